"""The floor under Figure 1: linear representations, never trained to be robust, under the same probe and attack.

    .venv/bin/python benchmarks/floor.py --profile small --out book/results/floor-small.json
    .venv/bin/python benchmarks/floor.py --profile full --pixels false --out book/results/floor-full.json

PCA with as many components as the encoders have latents, and the raw pixels, fitted on the same training digits and
judged on the same test digits. An encoder that is not above them knows nothing that a line through the data does not.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se_core.datasets import DigitImages
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import BATCH, CLASSES, accuracy_against_radius
from se_core.lab.executors import configure_process
from se_core.lab.experiments import PANELS, PROFILES, Panel, figure1_runs
from se_core.lab.probe import fit_probe
from se_core.lab.runs import images
from se_core.lab.storage import provenance, write_json


def principal_components(pixels: Tensor, components: int) -> nn.Linear:
    """x -> its first principal components, of pixels (N, D); the covariance is summed in float64."""
    centre = pixels.mean(0, dtype=torch.float64)
    covariance = sum((block.double() - centre).mT @ (block.double() - centre) for block in pixels.split(BATCH))
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -components:].mT
    layer = nn.Linear(pixels.shape[1], components).requires_grad_(False)
    layer.weight.copy_(directions)
    layer.bias.copy_(-directions @ centre)
    return layer


def pixels_of(data: DigitImages) -> Tensor:
    return torch.cat([data.images(rows).flatten(1) for rows in torch.arange(len(data)).split(BATCH)])


def records(panel: Panel, run: RunConfig, evaluation: EvaluationConfig, with_pixels: bool) -> list[dict[str, Any]]:
    train, test = images(run, "train"), images(run, evaluation.split)
    n = min(evaluation.test_images or len(test), len(test))
    x, labels, pixels = test.images(torch.arange(n)), test.labels(panel.task)[:n], pixels_of(train)
    rows = []
    layers: dict[str, nn.Module] = {"pca": principal_components(pixels, run.latent_dim)}
    if with_pixels:
        layers["pixels"] = nn.Identity()
    for name, layer in layers.items():
        probe = fit_probe(layer(pixels), train.labels(panel.task), CLASSES[panel.task], evaluation.l2)
        classifier = nn.Sequential(nn.Flatten(), layer, probe)
        curve = accuracy_against_radius(classifier, x, labels, evaluation, run.seed)
        rows += [
            {"panel": panel.letter, "representation": name, "radius": radius, "accuracy": accuracy, "n": n}
            for radius, accuracy in zip(evaluation.radii, curve, strict=True)
        ]
        print(f"{panel.title:32s} {name:7s}" + " ".join(f"{100 * accuracy:4.0f}" for accuracy in curve), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="small")
    parser.add_argument("--pixels", choices=("true", "false"), default="true", help="of 350,000 images: an hour")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    configure_process()
    evaluation = PROFILES[arguments.profile].evaluation
    runs = {(r.dataset, r.architecture): r for r in reversed(figure1_runs(arguments.profile))}
    print(f"{'accuracy in % at radius':40s}" + " ".join(f"{radius:4g}" for radius in evaluation.radii), flush=True)
    rows = [
        row
        for p in PANELS
        for row in records(p, runs[p.dataset, p.architecture], evaluation, arguments.pixels == "true")
    ]
    if arguments.out:
        header = {"provenance": provenance(), "profile": arguments.profile, "evaluation": asdict(evaluation)}
        write_json(arguments.out, header | {"records": rows})


if __name__ == "__main__":
    main()
