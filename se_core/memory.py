"""A selection mechanism that remembers: ours, beyond the paper.

The paper attacks each image anew with twenty steps. Here each image keeps x' - x from the last time it was seen, and
the attack goes on from there with one or two: between two visits the encoder changes little.
"""

import torch
from torch import Tensor

from se_core.errors import InvalidValueError

_LEVELS = 127


class SelectionMemory:
    """x' - x for each image of a training set, in multiples of radius / 127: a byte a pixel, a quarter of float32.

    images: how many; shape: of one, (C, H, W); radius: the selection radius, in the units of the pixels.
    `memory[index]` is what `fictive_sample` takes, for the images at `index` (B,) int64.
    """

    def __init__(self, images: int, shape: tuple[int, ...], radius: float, device: torch.device | str = "cpu") -> None:
        if not radius > 0:
            raise InvalidValueError(f"radius={radius} must be > 0: without a neighbour there is nothing to remember")
        self.radius = radius
        self.levels = torch.zeros(images, *shape, dtype=torch.int8, device=device)
        self.seen = torch.zeros(images, dtype=torch.bool, device=device)

    def __getitem__(self, index: Tensor) -> "Remembered":
        return Remembered(self, index)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds: `levels` and `seen`."""
        return {"levels": self.levels, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The reverse of `state_dict`."""
        self.levels.copy_(state["levels"])
        self.seen.copy_(state["seen"])


class Remembered:
    """What a memory holds of one batch."""

    def __init__(self, memory: SelectionMemory, index: Tensor) -> None:
        self.memory, self.index = memory, index

    def recall(self, x: Tensor, start: Tensor) -> Tensor:
        """Where the attack on x (B, C, H, W) goes on from; `start` for images never seen."""
        step = self.memory.radius / _LEVELS
        remembered = x + step * self.memory.levels[self.index].to(x.dtype)
        return torch.where(self.memory.seen[self.index].reshape(-1, 1, 1, 1), remembered, start)

    def keep(self, x: Tensor, x_prime: Tensor) -> None:
        """Remember x' - x."""
        step = self.memory.radius / _LEVELS
        self.memory.levels[self.index] = ((x_prime - x) / step).round().to(torch.int8)
        self.memory.seen[self.index] = True
