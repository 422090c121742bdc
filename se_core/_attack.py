"""What an attacker may do, and how it goes about it."""

import math
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

from se_core.errors import InvalidValueError


@dataclass(frozen=True)
class Attack:
    """What an attacker may do: change each pixel by at most `radius` within `bounds`, in `steps` signed gradient steps.

    Args:
        radius: largest change of a pixel, in the units of the images.
        steps: gradient steps, the paper's L.
        step_size: of one step; 2.5 radius / steps by default, so that the far side of the ball is within reach; of the
            first of steps that decay, half the radius; of the widest ball, where that is wider.
        restarts: random starts, of which the best is taken, example by example.
        bounds: the range of a pixel.
        momentum: share of the gradients before that a step goes along, each divided by its mean absolute value (Dong et
            al., 2018).
        spread: how far from x it may start, as a share of the radius.
        decay: whether the steps shrink, along half a cosine to nothing: to end on a maximum that steps of one
            size would leap over.
        widening: how many times as wide the ball is at first. It shrinks to the radius over the first two thirds of
            the steps, and only what is found after counts (Croce and Hein, 2021): a way around walls, from outside.

    Raises InvalidValueError for a radius that is negative or not finite, a step size likewise, fewer than one step or
    restart, bounds that are not a lower and a higher number, a momentum or spread outside [0, 1], and a widening below
    one or not finite.
    """

    radius: float
    steps: int
    step_size: float | None = None
    restarts: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)
    momentum: float = 0.0
    spread: float = 1.0
    decay: bool = False
    widening: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius) and self.radius >= 0):
            raise InvalidValueError(f"radius={self.radius} must be a finite number >= 0, in the units of the pixels")
        if not (math.isfinite(self.widening) and self.widening >= 1):
            raise InvalidValueError(f"widening={self.widening} must be a finite number >= 1; 1 is the ball itself")
        for name, count in (("steps", self.steps), ("restarts", self.restarts)):
            if not (isinstance(count, Integral) and count >= 1):
                raise InvalidValueError(f"{name}={count} must be at least 1, and whole; for no attack, use x itself")
        if not (math.isfinite(self.stride(0)) and self.stride(0) >= 0):
            raise InvalidValueError(
                f"step_size={self.step_size} must be a finite number >= 0; None stands for 2.5 radius / steps, or half "
                "the radius where the steps decay"
            )
        low, high = self.bounds
        if not low <= high:
            raise InvalidValueError(f"bounds={self.bounds} must be a lower and a higher number")
        for name, share in (("momentum", self.momentum), ("spread", self.spread)):
            if not 0 <= share <= 1:
                raise InvalidValueError(f"{name}={share} must be in [0, 1]")

    def stride(self, step: int) -> float:
        """The size of step 0, 1, ..., steps - 1."""
        first = self.step_size
        if first is None:
            widest = self.radius * self.widening
            first = widest / 2 if self.decay else 2.5 * widest / self.steps
        return first * (1 + math.cos(math.pi * step / self.steps)) / 2 if self.decay else first

    def reach(self, step: int) -> float:
        """The radius of the ball after so many steps, in units of the final one."""
        return 1 + (self.widening - 1) * max(0.0, 1 - 1.5 * step / self.steps)

    def box(self, x: Tensor, reach: float = 1.0) -> tuple[Tensor, Tensor]:
        """The lowest and the highest x' that are allowed, of the shape of x."""
        (low, high), radius = self.bounds, reach * self.radius
        return (x - radius).clamp(min=low), (x + radius).clamp(max=high)
