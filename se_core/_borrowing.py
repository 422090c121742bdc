"""Somebody else's module, called many times and given back as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

Encoder = Callable[[Tensor], Any]


@contextmanager
def left_unchanged(encoder: object, device: torch.device) -> Iterator[None]:
    """Put back what forward passes change: buffers of the encoder, and the global generators.

    Only what did change is written: another thread, or a graph built before, may hold the same tensors.
    """
    owner = getattr(encoder, "__self__", encoder)  # of a bound method, such as vae.encode
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    slots = [(m, name, b) for m in modules for name, b in m._buffers.items() if b is not None and not is_lazy(b)]
    copies = [buffer.detach().clone() for _, _, buffer in slots]
    # While a CUDA graph is captured nothing is drawn yet, and the state cannot be read.
    on_gpu = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    cuda = torch.cuda.get_rng_state(device) if on_gpu else None
    state = torch.get_rng_state()
    try:
        yield
    finally:
        if not torch.equal(torch.get_rng_state(), state):
            torch.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        with torch.no_grad():
            for (module, name, buffer), copy in zip(slots, copies, strict=True):
                module._buffers[name] = buffer
                if not torch.equal(buffer, copy):
                    buffer.copy_(copy)


def without_writing_buffers(encoder: Encoder) -> Encoder:
    """The encoder with copies of its buffers: under compilation no buffer can be written while differentiating."""
    if not isinstance(encoder, nn.Module) or not any(True for _ in encoder.buffers()):
        return encoder
    module, buffers = encoder, dict(encoder.named_buffers())
    return lambda x: functional_call(module, {name: b.clone() for name, b in buffers.items()}, (x,))
