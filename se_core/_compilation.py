"""`torch.compile` as it is used here."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under `torch.compile`, for inputs of one shape; made when first asked for, as it imports a compiler.

    Dynamo looks at the `.grad` of all that it is given, and PyTorch warns of it where that is no leaf.
    """
    fast = torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
            return fast(*arguments, **options)

    return call
