"""AutoAttack, a judge of robustness that is not ours: Croce and Hein (2020), arXiv:2003.01690.

Its standard version: APGD on the cross-entropy, APGD on the difference-of-logits ratio towards each wrong class, FAB
towards each wrong class, and Square, which sees no gradient. None has a parameter to tune. Computed by the package
pyautoattack, which only this file imports.
"""

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from se_core._borrowing import left_unchanged
from se_core.errors import InvalidValueError, SmoothEncoderError
from se_core.lab.evaluation import BATCH, Logits

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
ROUNDING = 1e-6  # of an image at the edge of its ball, in float32


class AutoAttackMissing(SmoothEncoderError):
    """The optional package pyautoattack is not installed."""


@torch.inference_mode(False)
def autoattack(
    logits: Logits, x: Tensor, labels: Tensor, radius: float, seed: int = 0, attacks: Sequence[str] = STANDARD
) -> dict[str, Tensor]:
    """Which images still stand after each attack: {"clean": (N,) bool, attack: (N,) bool, ...}, in that order.

    logits: images (B, C, H, W) -> (B, classes); x (N, C, H, W), pixels in [0, 1]; labels (N,) int64. Each attack is
    given what the ones before it have left, and an image is lost if what is found lies within `radius` of it in each
    pixel, and in [0, 1]. The same seed gives the same answer. Classifier, global generators and traces are left as
    they were. Raises AutoAttackMissing, and InvalidValueError for a radius that is not positive, an unknown attack, and
    fewer than the four classes that the ratio needs.
    """
    package = _package()
    classes = _checked(logits, x, radius, attacks)
    standing = _correct(logits, x, labels)
    after = {"clean": standing}
    for attack in attacks:
        alive = standing.nonzero()[:, 0]
        standing = standing.clone()
        if len(alive):
            with _borrowed(logits, x.device):
                judge = _standard(package, logits, attack, radius, classes, seed, x.device)
                found, _ = judge.run_standard_evaluation(x[alive], labels[alive], batch_size=BATCH)
            outside = ((found - x[alive]).abs() > radius + ROUNDING) | (found < 0) | (found > 1)
            standing[alive] = _correct(logits, found, labels[alive]) | outside.flatten(1).any(1)
        after[attack] = standing
    return after


def autoattack_against_radius(
    logits: Logits, x: Tensor, labels: Tensor, radii: Sequence[float], seed: int = 0
) -> list[dict[str, float]]:
    """For each of the ascending radii, the share of images standing after each attack; the last is the accuracy.

    As in `accuracy_against_radius`, an image lost at one radius is lost at every larger one. Arguments and errors as in
    `autoattack`.
    """
    curve, alive = [], torch.arange(len(x), device=x.device)
    for radius in radii:
        after = autoattack(logits, x[alive], labels[alive], radius, seed)
        curve.append({name: int(standing.sum()) / len(x) for name, standing in after.items()})
        alive = alive[after[STANDARD[-1]]]
    return curve


def _package() -> ModuleType:
    try:
        import pyautoattack
    except ImportError as error:
        raise AutoAttackMissing(
            "AutoAttack needs the package pyautoattack, which is not installed: pip install 'pyautoattack>=0.2'"
        ) from error
    return pyautoattack


def _checked(logits: Logits, x: Tensor, radius: float, attacks: Sequence[str]) -> int:
    """The number of classes."""
    if not (math.isfinite(radius) and radius > 0):
        raise InvalidValueError(f"radius={radius} must be a finite number > 0, in the units of the pixels")
    if not attacks or not set(attacks) <= set(STANDARD):
        raise InvalidValueError(f"attacks={tuple(attacks)} must be some of {', '.join(STANDARD)}")
    with torch.no_grad():
        classes = logits(x[:1]).shape[-1]
    if classes < 4:
        raise InvalidValueError(f"logits of {classes} classes: AutoAttack's ratio of logits needs at least 4")
    return classes


def _standard(
    package: ModuleType, logits: Logits, attack: str, radius: float, classes: int, seed: int, device: torch.device
) -> Any:
    """One attack of the standard version, which takes every wrong class of ten and here of any number below."""
    judge = package.AutoAttack(logits, attacks=[attack], eps=radius, seed=seed, device=device, version="custom")
    judge.apgd.n_restarts = judge.apgd_targeted.n_restarts = judge.fab.n_restarts = 1
    judge.apgd_targeted.n_target_classes = judge.fab.n_target_classes = min(9, classes - 1)
    return judge


def _correct(logits: Logits, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits(block).argmax(-1) for block in x.split(BATCH)]) == labels


@contextmanager
def _borrowed(logits: Logits, device: torch.device) -> Iterator[None]:
    """What pyautoattack changes, put back: seeds, the trace function, and gradients that FAB would leave in parameters.

    Its warnings, one for each image and step of vanishing gradient, are not shown: the checks of `masking` see more.
    """
    parameters = [p for p in logits.parameters() if p.requires_grad] if isinstance(logits, nn.Module) else []
    logger, trace = logging.getLogger("auto-attack"), sys.gettrace()
    disabled = logger.disabled
    with left_unchanged(logits, device):
        try:
            logger.disabled = True
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            logger.disabled = disabled
            sys.settrace(trace)
            for parameter in parameters:
                parameter.requires_grad_()
