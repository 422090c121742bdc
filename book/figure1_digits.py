"""The digits behind the points of Figure 1: book/_static/figure1-digits.safetensors.

    .venv/bin/python book/figure1_digits.py

Eight test digits at each radius of the curves, under the two attacks of the evaluation that begin near them, for each
pretrained encoder of MNIST, and what its probe reads in them. The pretrained encoders are the runs of the full
profile's panels (c) and (d).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from se_core import load, load_pretrained
from se_core.attacks import pgd
from se_core.lab.evaluation import NEAR
from se_core.lab.executors import configure_process
from se_core.lab.figures import METHODS
from se_core.lab.storage import write_atomically
from se_core.losses import cross_entropy, margin

BOOK = Path(__file__).parent
DIGITS = BOOK / "_static" / "figure1-digits.safetensors"
ARCHITECTURES = {"c": "mlp", "d": "conv"}  # by panel
EVALUATION = json.loads((BOOK / "results" / "figure1-full.json").read_text())["provenance"]["evaluation"]


def attacked(classifier: nn.Module, x: Tensor, labels: Tensor, radius: float) -> Tensor:
    """x (B, 1, 28, 28) as the first of the two losses that fools the classifier changes it, or as the first does."""
    found = x
    for loss in (margin, cross_entropy):  # the later one is kept where both succeed, or none
        generator = torch.Generator().manual_seed(0)
        steps = EVALUATION["attack_steps"]
        x_prime = pgd(loss(classifier, labels), x, radius, steps, generator=generator, **NEAR)
        fooled = (classifier(x_prime).argmax(-1) != labels)[:, None, None, None]
        found = x_prime if loss is margin else torch.where(fooled, x_prime, found)
    return found


def main() -> None:
    configure_process()
    data, tensors = load("mnist", "test").subset(0, 8), {}
    x = data.images()
    for panel, architecture in tqdm(ARCHITECTURES.items()):
        for method in METHODS:
            classifier = load_pretrained(f"mnist-{architecture}-{method}").classifier().requires_grad_(False)
            images = [attacked(classifier, x, data.digits, radius) for radius in EVALUATION["radii"]]
            pixels = (255 * torch.stack(images)).round().to(torch.uint8)  # (radius, digit, 1, 28, 28)
            tensors[f"{panel}.{method}"] = pixels
            tensors[f"{panel}.{method}.read"] = classifier((pixels / 255).flatten(0, 1)).argmax(-1).to(torch.uint8)
    write_atomically(DIGITS, save(tensors | {"labels": data.digits.to(torch.uint8)}))


if __name__ == "__main__":
    main()
