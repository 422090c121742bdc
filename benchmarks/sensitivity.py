"""The study behind the settings: one thing changed at a time, judged by validation digits.

    .venv/bin/python benchmarks/sensitivity.py --out runs/sensitivity

Writes `results.json` there: the bases, and one row for each base, method, change and seed, with its accuracies, radius
by radius, and its diagnostics. Interrupt it as you like; the same command continues.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.executors import LocalProcesses
from se_core.lab.experiments import METHODS, PROFILES, run_all
from se_core.lab.statistics import mean_and_interval, robustness
from se_core.lab.storage import provenance, write_atomically

SEEDS = (0, 1, 2)
EVALUATION = EvaluationConfig(radii=(0.0, 0.02, 0.05, 0.1, 0.2), test_images=500, attack_steps=20, split="validation")
BASES: dict[str, dict[str, Any]] = {
    dataset: PROFILES["small"].run | {"dataset": dataset, "iterations": 800} for dataset in ("mnist", "colour-mnist")
}
# Of both data sets, and for every method: what the methods share.
SHARED: list[dict[str, Any]] = [
    {},
    {"noise_variance": 0.3},
    {"learning_rate": 1e-3},
    {"schedule": "constant"},
    {"initialisation": "pytorch"},
    {"iterations": 1500},
    *({"l2": l2} for l2 in (1e-4, 1e-2)),
]
# Of MNIST: the knobs of one method, and full covariances at a dimension that they can afford.
OWN: dict[str, list[dict[str, Any]]] = {
    "vae": [{"latent_dim": 16}],
    "se": [
        {"gamma": 10.0},
        {"radius": 0.0},  # x' = x: the control, which pays each of the terms and smooths nothing
        {"radius": 0.05},
        {"radius": 0.1},
        {"radius": 0.05, "gamma": 10.0},
        {"latent_dim": 16},
        {"latent_dim": 16, "covariance": "full"},
    ],
    "pinned": [
        *({"gamma": gamma} for gamma in (1.0, 3.0, 30.0)),
        *({"attack_steps": steps} for steps in (2, 5)),
        *({"radius": radius} for radius in (0.1, 0.3)),
    ],
}


def _studies() -> list[tuple[str, str, dict[str, Any]]]:
    """(base, method, change), without the changes that change nothing."""
    shared = [(base, method, c) for base in BASES for method in METHODS for c in SHARED]
    own = [("mnist", method, c) for method, changes in OWN.items() for c in changes]
    return [
        (base, method, c)
        for base, method, c in sorted(shared + own, key=lambda study: list(BASES).index(study[0]))
        if not c or not c.items() <= (BASES[base] | METHODS[method]).items()
    ]


def _study(base: str, method: str, change: dict[str, Any], out: Path, workers: int) -> list[dict[str, Any]]:
    """The rows of one change, seed by seed."""
    fields = dict(change)
    evaluation = replace(EVALUATION, l2=fields.pop("l2", EVALUATION.l2))
    configs = [RunConfig(**(BASES[base] | METHODS[method] | fields | {"seed": seed})) for seed in SEEDS]
    rows = []
    results = run_all(configs, evaluation, out / "runs", LocalProcesses(workers))
    for seed, result in zip(SEEDS, results, strict=True):
        accuracy: dict[str, list[float]] = {}
        for record in result["records"]:
            accuracy.setdefault(record["task"], []).append(record["accuracy"])
        setting = {"base": base, "method": method, "change": change, "seed": seed}
        rows.append(setting | {"accuracy": accuracy, "diagnostics": result["diagnostics"]})
    return rows


def _robustness(rows: list[dict[str, Any]], task: str) -> str:
    """The mean accuracy over the radii from 0.02 to 0.2, in per cent, with half of its 95 % interval over seeds."""
    curves = [dict(zip(EVALUATION.radii, row["accuracy"][task], strict=True)) for row in rows]
    mean, half = mean_and_interval([100 * robustness(curve) for curve in curves])
    return f"{task} {mean:.1f} ± {half:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    rows = []
    for base, method, change in _studies():
        rows += (new := _study(base, method, change, arguments.out, arguments.workers))
        found = ", ".join(_robustness(new, task) for task in new[0]["accuracy"])
        print(f"{base:13s} {method:7s} {change or 'as chosen'!s:40s} {found}", flush=True)
    header = {"provenance": provenance(), "bases": BASES, "seeds": SEEDS, "radii": EVALUATION.radii}
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    content = f'{json.dumps(header)[:-1]}, "rows": [\n  {lines}\n]}}\n'
    write_atomically(arguments.out / "results.json", content.encode())


if __name__ == "__main__":
    main()
