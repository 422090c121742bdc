"""Does a model hide its gradients? Checks that honest robustness passes: Athalye et al. (2018), Carlini et al. (2019).

A model is robust, or its gradients lead attackers astray. In the second case an attack that does not need them, or has
more time or room, or was made for another model, does better than the direct one; no such attack may.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from se_core.attacks import fictive_sample, pgd
from se_core.lab.autoattack import autoattack
from se_core.lab.config import EvaluationConfig
from se_core.lab.evaluation import BATCH, NEAR, Logits, accuracy_against_radius
from se_core.lab.steps import derived_generator
from se_core.losses import cross_entropy, margin
from se_core.pretrained import Mean

LARGE_RADIUS = 0.5  # half of all grey values: enough to turn any digit into any other
MORE_STEPS, MORE_RESTARTS, GAIN = 100, 3, 0.01  # what they may find beyond the standard attack
NOISE = 0.05  # what uniform noise may cost


def masking(
    encoder: nn.Module,
    probe: nn.Module,
    x: Tensor,
    labels: Tensor,
    radius: float,
    config: EvaluationConfig,
    others: Mapping[str, Logits] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The checks of one model, each a row {check, accuracy, reference, holds}; accuracies are shares of the images.

    encoder: images (B, C, H, W) -> Gaussians over (B, latent_dim); probe: means -> logits (B, classes); x
    (N, C, H, W), pixels in [0, 1]; labels (N,) int64; config: of the standard attack, here at `radius`. others: by
    name, the classifiers from which attacks are transferred; without them that check has no row.

    | check | holds if |
    |---|---|
    | radius 0.5 | the accuracy falls to chance |
    | more steps and restarts | 100 steps, 3 restarts find less than a point more than the standard attack |
    | Square | an attack without gradients is not the stronger one |
    | transferred from ... | nor is one made for another model |
    | latent attack | nor one on the representation, the selection mechanism of section 2.1 |
    | uniform noise | noise of that radius costs less than 5 points |

    Raises what `accuracy_against_radius` and `autoattack` raise.
    """
    logits = nn.Sequential(Mean(encoder), probe)
    noise = 2 * torch.rand(x.shape, generator=derived_generator(x.device, seed, "noise"), device=x.device) - 1

    def attacked(radius: float, **changes: Any) -> float:
        return accuracy_against_radius(logits, x, labels, replace(config, radii=(radius,), **changes), seed)[0]

    direct, clean = attacked(radius), accuracy(logits, x, labels)
    chance = 1 / logits(x[:1]).shape[-1]
    wide = attacked(LARGE_RADIUS)
    longer = attacked(radius, attack_steps=MORE_STEPS, restarts=MORE_RESTARTS)
    noisy = accuracy(logits, torch.clamp(x + radius * noise, 0, 1), labels)
    weaker = {"Square": float(autoattack(logits, x, labels, radius, seed, ("square",))["square"].cpu().double().mean())}
    for name, other in (others or {}).items():
        weaker[f"transferred from {name}"] = transferred(other, logits, x, labels, radius, config, seed)
    weaker["latent attack"] = accuracy(logits, moved(encoder, x, radius, config, seed), labels)
    return [
        _row(f"radius {LARGE_RADIUS}", wide, chance, wide <= chance),
        _row("more steps and restarts", longer, direct, direct - longer < GAIN),
        *(_row(check, accuracy, direct, accuracy >= direct) for check, accuracy in weaker.items()),
        _row("uniform noise", noisy, clean, clean - noisy < NOISE),
    ]


def _row(check: str, accuracy: float, reference: float, holds: bool) -> dict[str, Any]:
    return {"check": check, "accuracy": accuracy, "reference": reference, "holds": holds}


def accuracy(logits: Logits, x: Tensor, labels: Tensor) -> float:
    """The share of images x (N, C, H, W) that are classified as labels (N,) say."""
    with torch.no_grad():
        right = [(logits(a).argmax(-1) == b).sum() for a, b in zip(x.split(BATCH), labels.split(BATCH), strict=True)]
    return sum(map(int, right)) / len(x)


def transferred(
    source: Logits, target: Logits, x: Tensor, labels: Tensor, radius: float, config: EvaluationConfig, seed: int
) -> float:
    """The share of images that the target classifies rightly after the two standard attacks on the source that
    begin near them."""
    standing = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for objective in (cross_entropy, margin):
        generator = derived_generator(x.device, seed, "transfer", objective.__name__)
        for block in torch.arange(len(x), device=x.device).split(BATCH):
            loss = objective(source, labels[block])
            x_prime = pgd(loss, x[block], radius, config.attack_steps, generator=generator, **NEAR)
            with torch.no_grad():
                standing[block] &= target(x_prime).argmax(-1) == labels[block]
    return int(standing.sum()) / len(x)


def moved(encoder: nn.Module, x: Tensor, radius: float, config: EvaluationConfig, seed: int) -> Tensor:
    """The images within `radius` whose representation differs most from that of x in W_2^2, of the shape of x."""
    generator = derived_generator(x.device, seed, "latent attack")
    blocks = (fictive_sample(encoder, b, radius, config.attack_steps, generator=generator) for b in x.split(BATCH))
    return torch.cat(list(blocks))
