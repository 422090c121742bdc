"""Which images a batch is made of: what a data set accepts as an index."""

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
