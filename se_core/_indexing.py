"""Which images a batch is made of: what a data set accepts as an index, and what it gives a DataLoader."""

import operator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from se_core.errors import InvalidTypeError, InvalidValueError


def check_index(index: object, count: int, device: torch.device) -> None:
    """Refuse what is no slice and no one-dimensional tensor for `count` images on `device`.

    Looks at the type, shape and device only: a value on a GPU would have to be waited for. Raises InvalidTypeError and
    InvalidValueError.
    """
    if isinstance(index, slice):
        return
    if not isinstance(index, Tensor):
        found, remedy = f"a {type(index).__name__}", "torch.as_tensor(index)"
        if isinstance(index, int):
            found, remedy = repr(index), f"torch.tensor([{index}]) for a batch of one"
        raise InvalidTypeError(f"index must be a slice or a one-dimensional tensor, not {found}; pass {remedy}")
    if index.dtype not in (torch.int64, torch.int32, torch.bool):
        raise InvalidTypeError(
            f"index must be a tensor of int64, int32 or bool, not {index.dtype}; pass index.long() if it holds the "
            "numbers of images, index.bool() if it is a mask"
        )
    if index.ndim != 1:
        raise InvalidValueError(f"index must have one dimension, not shape {tuple(index.shape)}; flatten it")
    if index.dtype == torch.bool and len(index) != count:
        raise InvalidValueError(
            f"index is a mask of {len(index)} entries for {count} images; pass one entry for each image, or "
            "the numbers of the images"
        )
    if index.device.type != "cpu" and index.device != device:
        raise InvalidValueError(
            f"index is on {index.device} and the images on {device}; move one of the two with .to()"
        )


def item(data: Any, index: Any) -> tuple[Tensor, ...]:
    """data[index]: images of a data set of ours and a label for each of its tasks; of one number, the only ones of a
    batch of one."""
    if isinstance(index, int | Integral) or (isinstance(index, Tensor) and index.ndim == 0):
        number = operator.index(index)
        if not -len(data) <= number < len(data):
            raise IndexError(f"there is no image {number} among {len(data)}")
        return tuple(batch[0] for batch in item(data, torch.tensor([number % len(data)], device="cpu")))
    check_index(index, len(data), data.pixels.device)
    return data.images(index), *(data.labels(task)[index] for task in data.tasks)
