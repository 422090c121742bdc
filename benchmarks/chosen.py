"""What validation digits say of the settings of the pinned encoder at the length of `full`: one seed each.

    .venv/bin/python benchmarks/chosen.py --device cuda --workers 4 --out runs/chosen

Needs all of MNIST (`se-core data`). The same command continues after an interruption; at the end `results.json` is
there, which the book has as `chosen.json`. On a GPU minutes, on a CPU half an hour of a core for each ConvNET.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.executors import LocalProcesses
from se_core.lab.experiments import METHODS, PROFILES, run_all
from se_core.lab.storage import provenance, write_json

CONVNET: list[dict[str, Any]] = [
    {},
    {"attack_steps": 3},
    {"gamma": 20.0},
    {"gamma": 20.0, "attack_steps": 3, "radius": 0.25},
    {"gamma": 30.0, "attack_steps": 3},
    {"gamma": 30.0, "attack_steps": 3, "radius": 0.3},
]
COLOURS: list[dict[str, Any]] = [
    {},
    {"gamma": 5.0},
    {"attack_steps": 2},
    {"noise_variance": 0.05},
    {"noise_variance": 0.05, "latent_dim": 128},
]


def runs(device: str) -> list[RunConfig]:
    base = PROFILES["full"].run | METHODS["pinned"] | {"device": device}
    convnet = base | {"dataset": "mnist", "architecture": "conv"}
    colours = base | {"dataset": "colour-mnist"}
    return [RunConfig(**(convnet | c)) for c in CONVNET] + [RunConfig(**(colours | c)) for c in COLOURS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/chosen"))
    arguments = parser.parse_args()
    evaluation, configs = EvaluationConfig(split="validation"), runs(arguments.device)
    found = run_all(configs, evaluation, arguments.out / "runs", LocalProcesses(arguments.workers))
    rows = [
        {"run": asdict(config), "records": result["records"], "diagnostics": result["diagnostics"]}
        for config, result in zip(configs, found, strict=True)
    ]
    header = {"provenance": provenance(arguments.device), "evaluation": asdict(evaluation)}
    write_json(arguments.out / "results.json", header | {"attack": found[0]["attack"], "rows": rows})


if __name__ == "__main__":
    main()
