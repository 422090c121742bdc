"""A device that this machine has not: tensors that say they are on it, are computed on the CPU, and refuse to mix.

    with pretended_device("mps"): ...

What a GPU refuses is refused, by RuntimeError or TypeError: tensors of two devices in one operation (but numbers, and
indices on the CPU), a generator of another device, reading as an array, and on "mps" float64.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# A GPU takes indices from the CPU, and copies across.
ACROSS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.copy_.default)


class Pretended(Tensor):
    """A tensor of the CPU, `inner`, that says it is at `home`. To torch's C++ it is on "lazy", which nobody uses."""

    inner: Tensor
    home: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, home: torch.device) -> "Pretended":
        shape = inner.size(), inner.stride(), inner.storage_offset()
        return torch.Tensor._make_wrapper_subclass(cls, *shape, dtype=inner.dtype, layout=inner.layout, device="lazy")

    def __init__(self, inner: Tensor, home: torch.device) -> None:
        self.inner, self.home = inner, home

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return self.home

    def __repr__(self) -> str:
        return f"a tensor of shape {tuple(self.shape)} on {self.home}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
        if func not in ACROSS and any(not isinstance(tensor, Pretended) and tensor.dim() for tensor in tensors):
            raise RuntimeError(f"{func}: expected all tensors on one device, found {ours[0].home} and cpu")
        result = func(*_inner(args), **_inner(_on_cpu(kwargs)))
        if func is torch.ops.aten.copy_.default:
            return args[0]
        known = {id(tensor.inner): tensor for tensor in ours}  # what was changed in place is itself

        def at_home(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return known[id(value)] if id(value) in known else _arrived(value, ours[0].home)

        return tree_map(at_home, result)


def _arrived(value: Tensor, home: torch.device) -> Pretended:
    if home.type == "mps" and value.dtype == torch.float64:
        raise TypeError("MPS has no float64")
    return Pretended(value, home)


def _inner(values: Any) -> Any:
    return tree_map(lambda value: value.inner if isinstance(value, Pretended) else value, values)


def _on_cpu(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    return {key: torch.device("cpu") if key == "device" and value else value for key, value in (kwargs or {}).items()}


class PretendedGenerator(torch.Generator):
    """A generator of the CPU that may say it is of another device."""

    home: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "PretendedGenerator":
        generator = super().__new__(cls)
        generator.home = torch.device(device)
        return generator

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return self.home


class _Made(TorchDispatchMode):
    """New tensors on "lazy", those of torch's own derivatives among them, are at home."""

    def __init__(self, home: torch.device) -> None:
        super().__init__()
        self.home = home

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if device and device.type == "lazy" and not any(isinstance(leaf, Pretended) for leaf in tree_leaves(args)):
            return Pretended(func(*args, **_on_cpu(kwargs)), self.home)
        return func(*args, **(kwargs or {}))


class _Asked(TorchFunctionMode):
    """What is asked of the device by its name."""

    def __init__(self, home: torch.device) -> None:
        super().__init__()
        self.home = home

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], Pretended):
            raise TypeError(f"can't convert {self.home} tensor to numpy; use .cpu() first")
        if func in (Tensor.tolist, Tensor.cpu):
            return func(*_inner(args))
        if func is Tensor.to:
            return self._moved(*args, **kwargs)
        home = kwargs.get("device") or next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
        generator = kwargs.get("generator")
        if generator is not None and generator.device != torch.device(home):
            raise RuntimeError(f"Expected a '{home}' device type for generator but found '{generator.device}'")
        if kwargs.get("device") and torch.device(home) == self.home:
            made = func(*args, **kwargs | {"device": "cpu", "requires_grad": False})
            return _arrived(made, self.home).requires_grad_(kwargs.get("requires_grad", False))
        return func(*args, **kwargs)

    def _moved(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x.to(...), to this device, from it, or to another dtype where it is."""
        if isinstance(args[0] if args else None, Tensor):
            args = args[0].device, args[0].dtype
        home, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        if home is None or home == x.device:
            return x.to(dtype=dtype) if dtype and dtype != x.dtype else x
        moved = _inner(x).detach().to(dtype=dtype or x.dtype)
        return (_arrived(moved, self.home) if home == self.home else moved).requires_grad_(x.requires_grad)


@contextmanager
def pretended_device(name: str) -> Iterator[None]:
    """While it is entered, this machine has a device of that name, "cuda" or "mps"."""
    home = torch.device(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", PretendedGenerator)
        # A module is moved by giving it new parameters, not by giving its parameters other data.
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        patch.setattr(torch.backends.mps, "is_available", lambda: name == "mps")
        patch.setattr(torch.cuda, "is_available", lambda: name == "cuda")
        patch.setattr(torch.cuda, "device_count", lambda: int(name == "cuda"))
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
        with _Made(home), _Asked(home):
            yield
