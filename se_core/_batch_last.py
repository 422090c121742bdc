"""Convolutions as matrix products, with the batch as the last axis: what compiled code runs on a CPU.

Convolutions of few channels leave a CPU's own kernels waiting for memory. With images of shape (C, H, W, B) a patch is
a set of contiguous rows of B numbers, so the compiler gathers all patches in one pass, and one matrix product does the
rest: twice as fast, forwards and backwards, as the usual kernels. Uncompiled it is slower, and GPUs have kernels of
their own; there the layers are called as they are.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class Layers(nn.Sequential):
    """An `nn.Sequential` of convolutions, ReLUs, `nn.Flatten()` and linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and x.device.type == "cpu":
            return batch_last(self, x)
        return super().forward(x)


def batch_last(layers: nn.Sequential, x: Tensor) -> Tensor:
    """layers(x), x (B, ...), computed with the batch as the last axis."""
    y = x.movedim(0, -1)
    for layer in layers:
        match layer:
            case nn.Linear():
                y = torch.addmm(layer.bias[:, None], layer.weight, y)
            case nn.Conv2d():
                y = _convolution(layer, y)
            case nn.Flatten():
                y = y.flatten(0, -2)
            case _:
                y = layer(y)
    return y.movedim(-1, 0)


def _convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """x (C, H, W, B) -> (C', H', W', B)."""
    kernel, stride, margin = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    height, width = ((side + 2 * margin - kernel) // stride + 1 for side in x.shape[1:3])
    x = pad(x, (0, 0, margin, margin, margin, margin))
    patches = torch.stack(
        [
            x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
            for i in range(kernel)
            for j in range(kernel)
        ],
        dim=1,
    )
    assert layer.bias is not None
    y = torch.addmm(layer.bias[:, None], layer.weight.flatten(1), patches.flatten(2).flatten(0, 1))
    return y.unflatten(1, (height, width, -1))
