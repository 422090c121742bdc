"""What the page "Draw and attack" computes with: book/_static/pretrained-mlp.safetensors, and the table on the page.

    .venv/bin/python book/demo.py

Three pretrained encoders with their decoders and digit probes, in the half precision in which the package keeps them,
and sixteen digits. The same weights give the same bytes; the build of the book writes them, and they are not committed.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from se_core import load, load_pretrained
from se_core.lab.figures import METHODS
from se_core.lab.storage import write_atomically

BOOK = Path(__file__).parent
WEIGHTS = BOOK / "_static" / "pretrained-mlp.safetensors"
PAGE = BOOK / "draw-and-attack.md"
MARKED = re.compile(r"(<!-- withstood -->\n).*?(<!-- /withstood -->)", re.DOTALL)
DIGITS = 16


def tensors() -> dict[str, Tensor]:
    """Of each method the networks, the probe and the total variance of its means over the bundled test digits; and
    sixteen of these with their labels: the first of each class in order, then the second of each."""
    data, found = load("mnist", "test"), {}
    for method in METHODS:
        model = load_pretrained(f"mnist-mlp-{method}")
        parts = model.vae.state_dict() | {f"probe.{key}": t for key, t in model.probes["digit"].state_dict().items()}
        found |= {f"{method}.{key}": t.half().contiguous() for key, t in parts.items() if t.is_floating_point()}
        # In float64 and rounded, so that no machine's order of additions shows.
        variance = float(model.vae.double().encode(data.images().double()).mean.var(0).sum().detach())
        found[f"{method}.latent_variance"] = torch.tensor([round(variance, 3)])
    turn = nn.functional.one_hot(data.digits).cumsum(0).gather(1, data.digits[:, None])[:, 0]  # first, second, ...
    chosen = (10 * turn + data.digits).argsort()[:DIGITS]
    return found | {"digits": data.pixels[chosen], "labels": data.digits[chosen].to(torch.uint8)}


def withstood() -> str:
    """Accuracy of the three under attack by radius, in per cent, as their records have it."""
    records = {method: load_pretrained(f"mnist-mlp-{method}").record["bundled"] for method in METHODS}
    radii = [record["radius"] for record in records["vae"]]
    lines = ["| radius | " + " | ".join(f"{radius:g}" for radius in radii) + " |", "|---|" + "---:|" * len(radii)]
    for method, rows in records.items():
        cells = [f"{100 * row['accuracy']:.0f}" for row in rows]
        lines.append(f"| {METHODS[method]['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_weights() -> None:
    write_atomically(WEIGHTS, save(tensors()))


def main() -> None:
    write_weights()
    PAGE.write_text(MARKED.sub(lambda match: f"{match[1]}{withstood()}\n{match[2]}", PAGE.read_text()))


if __name__ == "__main__":
    main()
