"""Make a pretrained encoder of a finished run: weights and probes in half precision, and what they are worth.

    .venv/bin/python book/weights.py runs/figure1-full/runs/NAME ...
    .venv/bin/python book/weights.py    # what those that there are are worth, after a change of the attack

Writes `se_core/weights/DATA-ARCHITECTURE-METHOD.safetensors` and its record. Refuses where half precision costs more
than 0.2 points of accuracy, mean over the radii: at one of them alone, where the curve is steep, rounding moves a few
of a thousand images across.
"""

import hashlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import save
from tqdm import tqdm

from se_core import pretrained
from se_core.lab.config import EvaluationConfig
from se_core.lab.evaluation import evaluate_pretrained, fit_probes, judged
from se_core.lab.executors import configure_process
from se_core.lab.runs import images, load_run
from se_core.lab.storage import provenance, read_json, write_atomically, write_json

FOLDER = Path(pretrained.__file__).parent / "weights"
EVALUATION = EvaluationConfig(radii=(0.0, 0.05, 0.1, 0.2))
QUICK = EvaluationConfig(radii=(0.0, 0.1), test_images=100)  # what a test can repeat in a second


def publish(folder: Path) -> str:
    run, vae = load_run(folder)
    name = "-".join((run.dataset, run.architecture, run.label)) + ("" if run.radius == 0.2 else f"-{run.radius:g}")
    data, test = images(run, "train"), images(replace(run, source="bundled"), "test")
    probes = fit_probes(vae, data, EVALUATION.l2)
    whole = judged(run, vae, probes, test.images(torch.arange(EVALUATION.test_images)), test, EVALUATION)
    tensors = {f"vae.{key}": tensor for key, tensor in vae.state_dict().items()}
    for task, probe in probes.items():
        tensors |= {f"probe.{task}.{key}": tensor for key, tensor in probe.state_dict().items()}
    content = save({key: t.half().contiguous() if t.is_floating_point() else t for key, t in tensors.items()})
    record = {"run": asdict(run), "sha256": hashlib.sha256(content).hexdigest(), "provenance": provenance()}
    record["trained"] = read_json(folder / "finished.json")["provenance"]
    record["evaluation"] = asdict(EVALUATION)
    write_atomically(FOLDER / f"{name}.safetensors", content)
    write_json(FOLDER / f"{name}.json", record)
    pretrained.PRETRAINED = tuple({*pretrained.PRETRAINED, name})
    record = judge(name)
    for task in probes:
        half, single = (fmean(r["accuracy"] for r in rows if r["task"] == task) for rows in (record["bundled"], whole))
        if abs(half - single) > 0.002 + 1e-9:
            raise SystemExit(f"{name}, {task}: half precision has a mean of {half:.4f}, single of {single:.4f}")
    return name


def judge(name: str) -> dict[str, Any]:
    """The record of a pretrained encoder, with what it is worth now; written, and returned."""
    record = read_json(FOLDER / f"{name}.json") | {"provenance": provenance()}
    record |= {"bundled": evaluate_pretrained(name, EVALUATION), "quick": evaluate_pretrained(name, QUICK)}
    write_json(FOLDER / f"{name}.json", record)
    return record


def main() -> None:
    configure_process()
    if folders := sys.argv[1:]:
        for folder in tqdm(folders):
            print(publish(Path(folder)))
    else:
        for name in tqdm(pretrained.PRETRAINED):
            judge(name)


if __name__ == "__main__":
    main()
