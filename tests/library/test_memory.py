"""Selection that remembers: where an attack goes on from, what a byte a pixel keeps, and what it is good for."""

import pytest
import torch
from torch import Tensor

from se_core import build_vae, fictive_sample
from se_core.gaussians import DiagonalGaussian
from se_core.memory import SelectionMemory
from se_core.transport import w2_squared

X = torch.rand(8, 3, 28, 28, generator=torch.Generator().manual_seed(3))
RADIUS = 0.2
ENCODER = build_vae("mlp", 3, 8).encoder


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _moved(x_prime: Tensor) -> Tensor:
    with torch.no_grad():
        return w2_squared(ENCODER(X), ENCODER(x_prime))


def test_it_begins_anywhere_in_the_ball() -> None:
    """Uniform on the 255 levels, to five standard errors: mean 0 and variance (255^2 - 1) / 12."""
    memory, other = (SelectionMemory(400, (1, 28, 28), RADIUS, generator=_generator(seed)) for seed in (0, 1))
    levels = memory.levels.double()
    variance = (255**2 - 1) / 12
    assert abs(float(levels.mean())) < 5 * (variance / levels.numel()) ** 0.5
    assert abs(float(levels.var()) / variance - 1) < 5 * (0.8 / levels.numel()) ** 0.5  # kurtosis of the uniform: 1.8
    assert (int(levels.min()), int(levels.max())) == (-127, 127)
    assert not torch.equal(memory.levels, other.levels)


def test_the_attack_goes_on_from_where_it_ended() -> None:
    """Two visits of one step find what one visit of two steps finds, to the rounding of a byte."""
    memory, same = (SelectionMemory(8, (3, 28, 28), RADIUS, generator=_generator()) for _ in range(2))
    index = torch.arange(8)
    once = fictive_sample(ENCODER, X, RADIUS, 2, memory=same[index])
    for visit in range(2):
        twice = fictive_sample(ENCODER, X, RADIUS, 1, memory=memory[index], generator=_generator(visit))
    torch.testing.assert_close(_moved(twice), _moved(once), rtol=0.05, atol=0)
    for visit in range(2, 12):
        later = fictive_sample(ENCODER, X, RADIUS, 1, memory=memory[index], generator=_generator(visit))
    assert float((_moved(later) / _moved(twice)).mean()) > 1.05


def test_each_image_remembers_its_own() -> None:
    """In another order, in other batches: the same x' for each image."""
    together, apart = SelectionMemory(8, (3, 28, 28), RADIUS), SelectionMemory(8, (3, 28, 28), RADIUS)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    delta = RADIUS * (2 * torch.rand(X.shape, generator=_generator()) - 1)
    together[torch.arange(8)].keep(X, X + delta)
    for part in order.split(3):
        apart[part].keep(X[part], X[part] + delta[part])
    assert torch.equal(together.levels, apart.levels)
    assert torch.equal(together[order].recall(X[order]), apart[torch.arange(8)].recall(X)[order])


def test_a_byte_a_pixel_keeps_a_hundred_and_twenty_seventh_of_the_radius() -> None:
    memory = SelectionMemory(8, (3, 28, 28), RADIUS)
    x_prime = X + RADIUS * (2 * torch.rand(X.shape, generator=_generator()) - 1)
    memory[torch.arange(8)].keep(X, x_prime)
    recalled = memory[torch.arange(8)].recall(X)
    assert float((recalled - x_prime).abs().max()) <= RADIUS / 127 / 2 + 1e-6
    assert memory.levels.nbytes == X.nbytes / 4
    corner = X + RADIUS * (X - 0.5).sign()
    memory[torch.arange(8)].keep(X, corner)
    torch.testing.assert_close(memory[torch.arange(8)].recall(X), corner, rtol=0, atol=1e-6)  # the faces are exact


def test_what_is_found_stays_in_the_ball_and_in_the_range_of_pixels() -> None:
    memory, x = SelectionMemory(8, (3, 28, 28), RADIUS), X.round()

    def encode(x: Tensor) -> DiagonalGaussian:
        assert 0 <= x.min().item() <= x.max().item() <= 1  # nor does the attack look beyond it
        return ENCODER(x)

    for _ in range(3):
        x_prime = fictive_sample(encode, x, RADIUS, 1, memory=memory[torch.arange(8)])
        assert float((x_prime - x).abs().max()) <= RADIUS + 1e-6
        assert 0 <= float(x_prime.min()) <= float(x_prime.max()) <= 1


@pytest.mark.parametrize("compiled", [False, True])
def test_its_state_is_all_there_is(compiled: bool) -> None:
    memory, other = (SelectionMemory(8, (3, 28, 28), RADIUS) for _ in range(2))
    index = torch.arange(8)
    for visit in range(2):
        fictive_sample(ENCODER, X, RADIUS, 1, memory=memory[index], generator=_generator(visit), compiled=compiled)
    other.load_state_dict({name: tensor.clone() for name, tensor in memory.state_dict().items()})
    a, b = (
        fictive_sample(ENCODER, X, RADIUS, 1, memory=m[index], generator=_generator(2), compiled=compiled)
        for m in (memory, other)
    )
    assert torch.equal(a, b)
    assert torch.equal(memory.levels, other.levels)


@pytest.mark.parametrize("radius", [0.0, -0.1, float("nan"), float("inf")])
def test_a_memory_needs_a_ball(radius: float) -> None:
    with pytest.raises(ValueError, match=r"radius=.* must be finite and > 0"):
        SelectionMemory(8, (3, 28, 28), radius)


@pytest.mark.parametrize(
    ("x", "radius", "index", "message"),
    [
        (
            X[:1],
            RADIUS,
            torch.arange(8),
            r"memory\[index\] is of images of shape \(8, 3, 28, 28\), got x of shape \(1, ",
        ),
        (X, RADIUS, torch.arange(1), r"of shape \(1, 3, 28, 28\), got x of shape \(8, 3, 28, 28\)"),
        (X[:, :1], RADIUS, torch.arange(8), r"got x of shape \(8, 1, 28, 28\)"),
        (X, 0.5, torch.arange(8), r"memory is of radius 0\.2, got radius=0\.5"),
    ],
)
def test_the_memory_of_other_images_is_refused(x: Tensor, radius: float, index: Tensor, message: str) -> None:
    memory = SelectionMemory(8, (3, 28, 28), RADIUS)
    before = memory.levels.clone()
    with pytest.raises(ValueError, match=message):
        fictive_sample(ENCODER, x, radius, 1, memory=memory[index])
    assert torch.equal(memory.levels, before)


def test_a_memory_without_an_index_is_refused() -> None:
    with pytest.raises(TypeError, match=r"got SelectionMemory; pass memory\[index\]"):
        fictive_sample(ENCODER, X, RADIUS, 1, memory=SelectionMemory(8, (3, 28, 28), RADIUS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_offsets_of_half_precision_images_do_not_wrap(dtype: torch.dtype) -> None:
    memory, x = SelectionMemory(8, (3, 28, 28), 0.3), X.to(dtype)
    x_prime = (x.float() + 0.3 * (X - 0.5).sign()).to(dtype)
    memory[torch.arange(8)].keep(x, x_prime)
    recalled = memory[torch.arange(8)].recall(x.float())
    assert float((recalled - x_prime.float()).abs().max()) < 0.01
