"""A step of training as one CUDA graph: the processor launches it whole, and not kernel by kernel.

A step of the paper's MLP is some hundred kernels of a few microseconds each, up to two thousand with L = 20 of an
attack, and a GPU waits for the processor between any two of them. A graph is the same kernels on the same numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UP = 3  # steps in which handles and workspaces are made, code is compiled, and the optimiser gets its state


class CapturedStep:
    """`step`, captured from its fourth call on: `captured(index, seed)` is what `step(index, generator)` gives for a
    generator with that seed, bit for bit, and does what it does.

    step: indices (B,) int64 and a generator on `device`, a CUDA device -> a tensor. Nothing in it may wait for the GPU,
    and what it reads besides must keep its place in memory from call to call. The first calls run it as it is.
    """

    def __init__(self, step: Callable[[Tensor, torch.Generator], Tensor], batch: int, device: torch.device) -> None:
        self.step = step
        self.index = torch.zeros(batch, dtype=torch.int64, device=device)
        self.generator = torch.Generator(device)
        self.stream = torch.cuda.Stream(device)  # what is captured must have warmed up off the default stream
        self.graph = torch.cuda.CUDAGraph()
        self.calls = 0

    def __call__(self, index: Tensor, seed: int) -> Tensor:
        self.index.copy_(index)
        self.generator.manual_seed(seed)
        self.calls += 1
        if self.calls <= _WARM_UP:
            return self._as_it_is()
        if self.calls == _WARM_UP + 1:
            self.graph.register_generator_state(self.generator)
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.result = self.step(self.index, self.generator)
        self.graph.replay()
        return self.result.clone()

    def _as_it_is(self) -> Tensor:
        outside = torch.cuda.current_stream(self.index.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            result = self.step(self.index, self.generator)
        outside.wait_stream(self.stream)
        return result
