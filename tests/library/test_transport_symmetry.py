"""Exchanging the arguments, moving, turning and scaling the space: what must not change, and what must."""

import math

import pytest
import torch
from gaussian_problems import ALL, GAMMAS, encoder_pairs, full_pair, generator, orthogonal
from hypothesis import given, settings
from hypothesis import strategies as st

from se_core.gaussians import DiagonalGaussian, FullGaussian, kl_divergence
from se_core.transport import (
    coupling,
    entropic_cost,
    entropic_w2_squared,
    mutual_information,
    sinkhorn_divergence,
    w2_squared,
)

COUPLED = [entropic_w2_squared, mutual_information, sinkhorn_divergence]


def close(actual, expected, rtol=1e-12, atol=1e-14):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", ALL)
def test_exchange_of_full_gaussians(name, gamma):
    a, b = full_pair(name)
    size = float(a.covariance.trace() + b.covariance.trace())
    close(w2_squared(a, b), w2_squared(b, a), atol=1e-15 * size)
    for function in COUPLED:
        close(function(a, b, gamma), function(b, a, gamma), rtol=1e-11, atol=1e-14 * size)
    forward, backward = coupling(a, b, gamma), coupling(b, a, gamma)
    close(forward.psi, backward.psi.mT, atol=1e-13 * size)
    close(forward.rho.square(), backward.rho.square(), atol=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_exchange_of_diagonal_gaussians(gamma):
    a, b = encoder_pairs(100, 3, torch.float64)
    close(w2_squared(a, b), w2_squared(b, a))
    for function in [*COUPLED, entropic_cost]:
        close(function(a, b, gamma), function(b, a, gamma))
    close(coupling(a, b, gamma).psi, coupling(b, a, gamma).psi)


@pytest.mark.parametrize("name", ALL)
def test_the_choice_of_factor_does_not_matter(name):
    a, b = full_pair(name)
    g = generator(3)
    other = FullGaussian(a.mean, a.scale @ orthogonal(a.scale.shape[-1], g))
    wide = FullGaussian(b.mean, torch.nn.functional.pad(b.scale, (0, 3)) @ orthogonal(b.scale.shape[-1] + 3, g))
    size = float(a.covariance.trace() + b.covariance.trace())
    close(w2_squared(other, wide), w2_squared(a, b), atol=2e-15 * size)
    close(coupling(other, wide, 1.3).psi, coupling(a, b, 1.3).psi, atol=1e-13 * size)
    for function in COUPLED:
        close(function(other, wide, 1.3), function(a, b, 1.3), rtol=1e-10, atol=1e-14 * size)


gaussians = st.integers(0, 2**31).map(
    lambda seed: tuple(
        DiagonalGaussian(*torch.randn(2, 3, generator=generator(seed + i), dtype=torch.float64)) for i in (0, 1)
    )
)
strengths = st.floats(1e-6, 1e6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(gaussians, strengths, st.floats(1e-3, 1e3), st.integers(0, 100))
def test_euclidean_motions_and_scalings(pair, gamma, factor, seed):
    # z -> factor * Q z + t turns W^2 into factor^2 W^2 at coupling gamma / factor^2, and leaves the information alone.
    a, b = pair
    g = generator(seed)
    turn, shift = orthogonal(3, g), torch.randn(3, generator=g, dtype=torch.float64)

    def move(q):
        return FullGaussian(factor * turn @ q.mean + shift, factor * turn @ q.full().scale)

    weaker = gamma / factor**2
    close(w2_squared(move(a), move(b)), factor**2 * w2_squared(a, b), rtol=1e-9, atol=1e-12 * factor**2)
    close(mutual_information(move(a), move(b), weaker), mutual_information(a, b, gamma), rtol=1e-9)
    close(
        entropic_w2_squared(move(a), move(b), weaker),
        factor**2 * entropic_w2_squared(a, b, gamma),
        rtol=1e-9,
    )
    close(
        entropic_cost(move(a), move(b), weaker) + 6 * math.log(factor),
        entropic_cost(a, b, gamma),
        rtol=1e-9,
        atol=1e-9,
    )
    close(kl_divergence(move(a), move(b)), kl_divergence(a, b), rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(gaussians, strengths)
def test_independent_coordinates_add(pair, gamma):
    a, b = pair
    parts = [tuple(DiagonalGaussian(q.mean[k : k + 1], q.log_var[k : k + 1]) for q in pair) for k in range(3)]
    for function in [*COUPLED, entropic_cost]:
        total = sum(function(p, q, gamma) for p, q in parts)
        close(function(a, b, gamma), total, rtol=1e-12, atol=1e-12)
        close(function(a.full(), b.full(), gamma), total, rtol=1e-9, atol=1e-10 * (1 + 1 / gamma))
    close(w2_squared(a, b), sum(w2_squared(p, q) for p, q in parts))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(gaussians, st.integers(0, 100))
def test_w2_is_a_metric(pair, seed):
    a, b = pair
    c = DiagonalGaussian(*torch.randn(2, 3, generator=generator(seed), dtype=torch.float64))
    turned = FullGaussian(c.mean, orthogonal(3, generator(seed)) @ c.full().scale)
    via = w2_squared(a, turned).sqrt() + w2_squared(turned, b).sqrt()
    assert w2_squared(a, b).sqrt() <= via * (1 + 1e-12)
    assert w2_squared(a, a) == 0
    assert w2_squared(turned, turned) < 1e-28


@settings(max_examples=60, deadline=None, derandomize=True)
@given(gaussians, strengths)
def test_the_sinkhorn_divergence_separates(pair, gamma):
    a, b = pair
    assert sinkhorn_divergence(a, a, gamma) == 0
    assert sinkhorn_divergence(a, b, gamma) > 0
    assert sinkhorn_divergence(a.full(), b.full(), gamma) > 0
    assert sinkhorn_divergence(a.full(), a.full(), gamma).abs() < 1e-12


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1e6])
def test_mixed_pairs_and_broadcasting(gamma):
    a, b = encoder_pairs(6, 3, torch.float64)
    rows = DiagonalGaussian(a.mean[:, None], a.log_var[:, None])
    strengths = torch.tensor([gamma, 2.0], dtype=torch.float64)[:, None, None]
    for function in [*COUPLED, entropic_cost]:
        table = function(rows, b.full(), strengths)
        assert table.shape == (2, 6, 6)
        for i, j in ((0, 0), (2, 5), (4, 1)):
            x, y = DiagonalGaussian(a.mean[i], a.log_var[i]), DiagonalGaussian(b.mean[j], b.log_var[j])
            close(table[0, i, j], function(x, y, gamma), rtol=1e-11, atol=1e-11)
            close(table[1, i, j], function(x, y, 2.0), rtol=1e-11, atol=1e-11)
        close(function(rows, b, strengths), table, rtol=1e-11, atol=1e-11)
        close(function(b, rows.full(), strengths), table, rtol=1e-11, atol=1e-11)
    close(w2_squared(rows, b.full()), w2_squared(rows, b), rtol=1e-11)
    close(kl_divergence(rows, b.full()), kl_divergence(rows, b), rtol=1e-11)


@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)])
def test_empty_batches(batch):
    a = DiagonalGaussian(*torch.zeros(2, *batch, 4).requires_grad_().unbind())
    for x, y in ((a, a), (a.full(), a.full())):
        total = kl_divergence(x, y) + w2_squared(x, y)
        for function in [*COUPLED, entropic_cost]:
            total = total + function(x, y, 1.0) + function(x, y, torch.ones(batch))
        assert total.shape == batch
        assert coupling(x, y, 1.0).joint().mean.shape == (*batch, 8)
        total.sum().backward()
