"""The ConvNET as matrix products with the batch last, against PyTorch's own convolutions."""

import pytest
import torch

from se_core import build_vae
from se_core._batch_last import Layers, batch_last


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("batch", "size"), [(1, 28), (7, 28), (2, 32), (2, 64), (2, 20)])
def test_it_is_the_same_function_with_the_same_gradients(channels: int, batch: int, size: int) -> None:
    layers = build_vae("conv", channels, 5, image_size=size).encoder.layers.double()
    assert isinstance(layers, Layers)
    outcomes = []
    for way in (layers, lambda x: batch_last(layers, x)):
        x = torch.rand(batch, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        y = way(x.requires_grad_())
        y.square().sum().backward()
        outcomes.append((y, x.grad, *(p.grad.clone() for p in layers.parameters())))
        layers.zero_grad()
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_compiled_code_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; the uncompiled layers stay PyTorch's own."""
    torch.compiler.reset()  # an older torch would take what another test has compiled
    calls = []
    monkeypatch.setattr("se_core._batch_last.batch_last", lambda layers, x: calls.append(len(x)) or x)
    layers = build_vae("conv", 1, 5).encoder.layers
    layers(torch.rand(2, 1, 28, 28))
    assert not calls
    torch.compile(layers, backend="eager")(torch.rand(3, 1, 28, 28))
    assert calls == [3]
