"""The study behind the settings that VAE and smooth encoder share: one thing changed at a time, at the small size.

    .venv/bin/python benchmarks/sensitivity.py --out runs/sensitivity

Writes `results.json` there: for each setting its configuration, its records and companions, and the gain of the smooth
encoder over the VAE, as in `se_core.experiments.claims`. Interrupt it as you like; the same command continues.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from se_core.evaluation import EvaluationConfig
from se_core.experiments import NOISE_VARIANCE, PROFILES, run_all
from se_core.storage import provenance, write_atomically
from se_core.training import RunConfig

BASES: dict[str, dict[str, Any]] = {
    dataset: PROFILES["small"].run | {"dataset": dataset, "noise_variance": v, "iterations": 800}
    for dataset, v in NOISE_VARIANCE.items()
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"noise_variance": 0.1},
    {"noise_variance": 0.3},
    {"noise_variance": 1.0},
    {"initialisation": "pytorch"},
    {"iterations": 1500},
]
# Of MNIST alone: what full covariances change, at a dimension that they can afford.
MNIST_CHANGES: list[dict[str, Any]] = [{"latent_dim": 16}, {"latent_dim": 16, "covariance": "full"}, {"gamma": 10.0}]
EVALUATION = EvaluationConfig(test_images=500, attack_steps=30)
PENALTIES = (1e-4, 1e-2)  # of the probe; the base has 1e-3


def _gain(evaluations: dict[str, dict], task: str) -> float:
    means = {
        method: math.fsum(r["accuracy"] for r in e["records"] if r["task"] == task and 0.02 <= r["radius"] <= 0.2)
        for method, e in evaluations.items()
    }
    return means["se"] / means["vae"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    studies = [(base, change, EVALUATION) for base in BASES for change in CHANGES]
    studies += [("mnist", change, EVALUATION) for change in MNIST_CHANGES]
    studies += [(base, {}, EvaluationConfig(**(asdict(EVALUATION) | {"l2": l2}))) for base in BASES for l2 in PENALTIES]
    rows = []
    for evaluation in dict.fromkeys(study[2] for study in studies):
        chosen = [(base, change) for base, change, e in studies if e == evaluation]
        configs = [RunConfig(**(BASES[b] | c | {"method": m})) for b, c in chosen for m in ("vae", "se")]
        evaluations = run_all(configs, evaluation, arguments.out / "runs", arguments.workers, "sensitivity")
        for (base, change), vae, se in zip(chosen, evaluations[::2], evaluations[1::2], strict=True):
            pair = {"vae": vae, "se": se}
            tasks = list(dict.fromkeys(r["task"] for r in vae["records"]))
            gains = {task: round(_gain(pair, task), 3) for task in tasks}
            rows.append({"base": base, "change": change | {"l2": evaluation.l2}, "gain": gains, "evaluations": pair})
            nominal = {m: [r["accuracy"] for r in e["records"] if r["radius"] == 0] for m, e in pair.items()}
            print(f"{base:13s} {change or 'as chosen'!s:28s} l2 {evaluation.l2:g}: gain {gains}, nominal {nominal}")
    results = {"provenance": provenance() | {"evaluation": asdict(EVALUATION)}, "bases": BASES, "rows": rows}
    write_atomically(arguments.out / "results.json", json.dumps(results, indent=1).encode())


if __name__ == "__main__":
    main()
