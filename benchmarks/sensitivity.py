"""The study behind the settings that the methods share: one thing changed at a time, judged by validation digits.

    .venv/bin/python benchmarks/sensitivity.py --out runs/sensitivity

Writes `results.json` there: the bases, and one row for each base, change, seed and method, with its accuracies, radius
by radius, and its diagnostics. Interrupt it as you like; the same command continues.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.executors import LocalProcesses
from se_core.lab.experiments import PROFILES, run_all
from se_core.lab.statistics import robustness
from se_core.lab.storage import provenance, write_atomically

SEEDS = (0, 1, 2)
EVALUATION = EvaluationConfig(test_images=500, attack_steps=30, split="validation")
BASES: dict[str, dict[str, Any]] = {
    dataset: PROFILES["small"].run | {"dataset": dataset, "iterations": 800} for dataset in ("mnist", "colour-mnist")
}
SHARED: list[dict[str, Any]] = [
    {},
    *({"noise_variance": v} for v in (0.3, 1.0)),
    {"learning_rate": 1e-3},
    {"schedule": "constant"},
    {"initialisation": "pytorch"},
    {"iterations": 1500},
    *({"l2": l2} for l2 in (1e-4, 1e-2)),
]
# Of MNIST alone: the smooth encoder's own two knobs, and full covariances at a dimension that they can afford.
CHANGES: dict[str, list[dict[str, Any]]] = {
    "mnist": [
        *SHARED,
        {"gamma": 10.0},
        {"radius": 0.0},  # x' = x: the control, which pays each of the terms and smooths nothing
        {"radius": 0.05},
        {"radius": 0.1},
        {"radius": 0.05, "gamma": 10.0},
        {"latent_dim": 16},
        {"latent_dim": 16, "covariance": "full"},
    ],
    "colour-mnist": SHARED,
}


def _studies() -> list[tuple[str, dict[str, Any]]]:
    """(base, change), without the changes that change nothing."""
    return [(b, c) for b, base in BASES.items() for c in CHANGES[b] if not c or not c.items() <= base.items()]


def _study(base: str, change: dict[str, Any], out: Path, workers: int) -> list[dict[str, Any]]:
    """The rows of one change: VAE and smooth encoder, seed by seed."""
    fields = dict(change)
    evaluation = replace(EVALUATION, l2=fields.pop("l2", EVALUATION.l2))
    pairs = [(seed, method) for seed in SEEDS for method in ("vae", "se")]
    configs = [RunConfig(**(BASES[base] | fields | {"seed": seed, "method": method})) for seed, method in pairs]
    rows = []
    results = run_all(configs, evaluation, out / "runs", LocalProcesses(workers))
    for (seed, method), result in zip(pairs, results, strict=True):
        accuracy: dict[str, list[float]] = {}
        for record in result["records"]:
            accuracy.setdefault(record["task"], []).append(record["accuracy"])
        setting = {"base": base, "change": change, "seed": seed, "method": method}
        rows.append(setting | {"accuracy": accuracy, "diagnostics": result["diagnostics"]})
    return rows


def _gains(rows: list[dict[str, Any]]) -> dict[str, float]:
    """For each task, the smooth encoder's robustness over the VAE's, both averaged over the seeds."""

    def mean(method: str, task: str) -> float:
        curves = [row["accuracy"][task] for row in rows if row["method"] == method]
        return statistics.fmean(robustness(dict(zip(EVALUATION.radii, curve, strict=True))) for curve in curves)

    return {task: round(mean("se", task) / mean("vae", task), 2) for task in rows[0]["accuracy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    rows = []
    for base, change in _studies():
        rows += (new := _study(base, change, arguments.out, arguments.workers))
        print(f"{base:13s} {change or 'as chosen'!s:44s} gain {_gains(new)}", flush=True)
    header = {"provenance": provenance(), "bases": BASES, "seeds": SEEDS, "radii": EVALUATION.radii}
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    content = f'{json.dumps(header)[:-1]}, "rows": [\n  {lines}\n]}}\n'
    write_atomically(arguments.out / "results.json", content.encode())


if __name__ == "__main__":
    main()
