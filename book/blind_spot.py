"""What the picture of chapter 1 shows: book/results/blind-spot.json, one-dimensional encoders by gamma and radius.

    .venv/bin/python book/blind_spot.py

They are trained by the chapter's own code, each from the chapter's two initialisations. Minutes, on one core.
"""

import json
from pathlib import Path
from typing import Any

import jupytext
import torch
from tqdm import tqdm

from se_core.lab.executors import configure_process
from se_core.lab.storage import write_atomically

BOOK = Path(__file__).parent
RESULTS = BOOK / "results" / "blind-spot.json"
SEEDS = (1, 2)
GAMMAS = (1.0, 5.0, 20.0, 100.0, 500.0)
RADII = (0.01, 0.03, 0.05, 0.07, 0.1, 0.14)
POINTS = 101


def chapter() -> dict[str, Any]:
    """The names that the code of chapter 1 has defined once it can train."""
    names: dict[str, Any] = {}
    for cell in jupytext.read(BOOK / "src" / "01-blind-spot.py", fmt="py:percent").cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
        if "train" in names:
            break
    return names


def curve(names: dict[str, Any], method: str, seed: int, **price: float) -> dict[str, list[float]]:
    """Mean and standard deviation of q(Z | x) at `POINTS` points of [0, 1], to three digits after the point."""
    q = names["train"](method, seed, **price)(torch.linspace(0, 1, POINTS)[:, None])
    numbers = {"mean": q.mean[:, 0], "sigma": (q.log_var[:, 0] / 2).exp()}
    return {key: [round(value, 3) for value in values.tolist()] for key, values in numbers.items()}


def main() -> None:
    configure_process()
    names = chapter()
    grid = [{"gamma": gamma, "radius": radius} for gamma in GAMMAS for radius in RADII]
    results = {
        "data": [round(value, 4) for value in names["x"][:, 0].tolist()],
        "gammas": GAMMAS,
        "radii": RADII,
        "vae": [curve(names, "vae", seed) for seed in SEEDS],
        "se": [price | {"encoders": [curve(names, "se", seed, **price) for seed in SEEDS]} for price in tqdm(grid)],
    }
    write_atomically(RESULTS, json.dumps(results).encode())


if __name__ == "__main__":
    main()
