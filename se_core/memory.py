"""A selection mechanism that remembers: ours, beyond the paper.

The paper attacks each image anew with twenty steps. Here each image keeps x' - x from the last time it was seen, and
the attack goes on from there with one or two: between two visits the encoder changes little.
"""

import math

import torch
from torch import Tensor

from se_core.errors import InvalidTypeError, InvalidValueError

_LEVELS = 127


class SelectionMemory:
    """x' - x for each image of a training set, in multiples of radius / 127: a byte a pixel, a quarter of float32.

    It begins with a uniform point of each image's ball, drawn from `generator`, a generator on `device`.

    images: how many; shape: of one, (C, H, W); radius: the selection radius, in the units of the pixels.
    `memory[index]` is what `fictive_sample` takes, for the images at `index` (B,) int64.
    """

    def __init__(
        self,
        images: int,
        shape: tuple[int, ...],
        radius: float,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> None:
        if not (math.isfinite(radius) and radius > 0):
            raise InvalidValueError(
                f"radius={radius} must be finite and > 0: without a neighbour nothing is remembered"
            )
        self.radius = radius
        size = (images, *shape)
        self.levels = torch.randint(-_LEVELS, _LEVELS + 1, size, generator=generator, dtype=torch.int8, device=device)

    def __getitem__(self, index: Tensor) -> "Remembered":
        return Remembered(self, index)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds: `levels`."""
        return {"levels": self.levels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The reverse of `state_dict`."""
        self.levels.copy_(state["levels"])


class Remembered:
    """What a memory holds of one batch."""

    def __init__(self, memory: SelectionMemory, index: Tensor) -> None:
        self.memory, self.index = memory, index

    def check(self, x: Tensor, radius: float) -> None:
        """Refuse, with an InvalidValueError, images or a radius that are not those remembered."""
        shape = (*self.index.shape, *self.memory.levels.shape[1:])
        if x.shape != shape:
            raise InvalidValueError(f"memory[index] is of images of shape {shape}, got x of shape {tuple(x.shape)}")
        if radius != self.memory.radius:
            raise InvalidValueError(f"memory is of radius {self.memory.radius}, got radius={radius}; make another one")

    def recall(self, x: Tensor) -> Tensor:
        """Where the attack on x (B, C, H, W) goes on from."""
        return torch.add(x, self.memory.levels[self.index].to(x.dtype), alpha=self.memory.radius / _LEVELS)

    def keep(self, x: Tensor, x_prime: Tensor) -> None:
        """Remember x' - x."""
        step = self.memory.radius / _LEVELS
        levels = ((x_prime.float() - x.float()) / step).round().clamp(-_LEVELS, _LEVELS)
        self.memory.levels[self.index] = levels.to(torch.int8)


def check_memory(memory: Remembered | None, x: Tensor, radius: float) -> None:
    """Refuse what is not the memory of these images: InvalidTypeError, or InvalidValueError as `Remembered.check`."""
    if memory is not None and not isinstance(memory, Remembered):
        kind = type(memory).__name__
        raise InvalidTypeError(f"memory must be what a SelectionMemory holds of x, got {kind}; pass memory[index]")
    if memory is not None:
        memory.check(x, radius)
