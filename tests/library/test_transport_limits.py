"""No coupling, weak coupling, strong coupling: exact values at the ends, and the expansions towards them."""

import math

import pytest
import torch
from gaussian_problems import ALL, FULL_RANK, encoder_pairs, full_pair

from se_core.gaussians import DiagonalGaussian, FullGaussian, entropy
from se_core.transport import (
    coupling,
    entropic_cost,
    entropic_w2_squared,
    mutual_information,
    sinkhorn_divergence,
    w2_squared,
)

CONTINUOUS = [name for name in FULL_RANK if name not in ("condition 1e8", "tiny", "huge")]


def size_of(a, b):
    return float(a.covariance.trace() + b.covariance.trace())


@pytest.mark.parametrize("name", ALL)
def test_without_coupling_the_plan_is_the_product(name):
    a, b = full_pair(name)
    independent = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    torch.testing.assert_close(entropic_w2_squared(a, b, 0.0), independent, rtol=1e-14, atol=0)
    assert mutual_information(a, b, 0.0) == 0
    assert (coupling(a, b, 0.0).psi == 0).all()
    assert (coupling(a, b, 0.0).rho == 0).all()
    distance = (a.mean - b.mean).square().sum()
    torch.testing.assert_close(sinkhorn_divergence(a, b, 0.0), distance, rtol=1e-14, atol=1e-14 * size_of(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_coupling_diagonal(dtype):
    a, b = encoder_pairs(100, 5, dtype)
    independent = ((a.mean - b.mean).square() + a.log_var.exp() + b.log_var.exp()).sum(-1)
    rtol = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(entropic_w2_squared(a, b, 0.0), independent, rtol=rtol, atol=0)
    assert (mutual_information(a, b, 0.0) == 0).all()
    torch.testing.assert_close(entropic_cost(a, b, 0.0), -entropy(a) - entropy(b), rtol=0, atol=0)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_strong_coupling_expansion(name):
    # W^2_{2,gamma} = W_2^2 + D/gamma - sum 1/(4 gamma^2 s) + O(gamma^-3): three terms, so that no factor 2 can hide.
    a, b = full_pair(name)
    gamma = 1e5
    s = torch.linalg.svdvals(a.scale.mT @ b.scale)[: a.mean.shape[-1]]
    beyond = gamma * (entropic_w2_squared(a, b, gamma) - w2_squared(a, b))
    expected = len(s) - (1 / (4 * gamma * s)).sum()
    torch.testing.assert_close(beyond, expected, rtol=1e-8, atol=gamma * 1e-14 * size_of(a, b))
    information = (gamma * s).log().sum() / 2 + (1 / (4 * gamma * s)).sum()
    torch.testing.assert_close(mutual_information(a, b, gamma), information, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["equal", "commuting", "non-commuting", "narrow factors", "dimension 16"])
def test_weak_coupling_expansion(name):
    # Psi = gamma Sigma_a Sigma_b + O(gamma^3), so W^2_{2,gamma} falls by
    # 2 gamma Tr(Sigma_a Sigma_b), and I is gamma^2/2 Tr(Sigma_a Sigma_b).
    a, b = full_pair(name)
    gamma = 1e-6
    product = a.covariance @ b.covariance
    torch.testing.assert_close(coupling(a, b, gamma).psi / gamma, product, rtol=0, atol=1e-5 * float(product.norm()))
    torch.testing.assert_close(mutual_information(a, b, gamma), gamma**2 / 2 * product.trace(), rtol=1e-9, atol=0)
    difference = (a.covariance - b.covariance).square().sum()
    divergence = sinkhorn_divergence(a, b, 1e-4) - (a.mean - b.mean).square().sum()
    torch.testing.assert_close(divergence, 1e-4 / 2 * difference, rtol=1e-3, atol=1e-13 * size_of(a, b))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_sinkhorn_divergence_tends_to_w2(name):
    a, b = full_pair(name)
    divergence = sinkhorn_divergence(a, b, 1e9)
    torch.testing.assert_close(divergence, w2_squared(a, b), rtol=1e-6, atol=1e-8 * size_of(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_arguments(dtype):
    a, _ = encoder_pairs(100, 5, dtype)
    assert (w2_squared(a, a) == 0).all()
    assert (sinkhorn_divergence(a, a, 2.0) == 0).all()
    strong = entropic_w2_squared(a, a, 1e30)
    torch.testing.assert_close(strong, torch.full_like(strong, 5e-30), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [1e10, 1e20, 1e30])
def test_immense_coupling(gamma, dtype):
    # Diagonal: log I, the excess D/gamma and every gradient survive where gamma^2 overflows float32.
    a, b = encoder_pairs(200, 3, dtype)
    a, b = (DiagonalGaussian(q.mean, q.log_var.clone().requires_grad_()) for q in (a, b))
    strength = torch.full((200,), gamma, dtype=dtype, requires_grad=True)
    information = mutual_information(a, b, strength)
    s = (a.log_var.double() + b.log_var.double()).detach() / 2
    expected = ((math.log(strength[0].item()) + s) / 2 + (-s).exp() / (4 * gamma)).sum(-1)
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(information.double(), expected, rtol=rtol, atol=0)
    beyond = w2_squared(a, b) + 3 / strength  # up to a relative 1 / (4 gamma s), s >= exp(-8)
    torch.testing.assert_close(entropic_w2_squared(a, b, strength), beyond, rtol=max(rtol, 1e3 / gamma), atol=0)
    gradients = torch.autograd.grad(information.sum(), (a.log_var, b.log_var, strength))
    torch.testing.assert_close(gradients[0], torch.full_like(a.log_var, 0.25), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients[2] * strength, torch.full_like(strength, 1.5), rtol=1e-5, atol=0)
    # -H contributes -1/2 - 1/2, the information 1/4 + 1/4 along both, the excess nothing.
    cost = entropic_cost(a, a, strength)
    (gradient,) = torch.autograd.grad(cost.sum(), a.log_var)
    torch.testing.assert_close(gradient, torch.full_like(gradient, -0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [1e10, 1e20, 1e30])
def test_immense_coupling_full(gamma, dtype):
    a, b = (FullGaussian(q.mean.to(dtype), q.scale.to(dtype)) for q in full_pair("non-commuting"))
    rtol = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(entropic_w2_squared(a, b, gamma), w2_squared(a, b), rtol=max(rtol, 1e-9), atol=0)
    log_det = torch.linalg.slogdet(a.scale.double() @ b.scale.double().mT).logabsdet
    strength = torch.tensor(gamma, dtype=dtype, requires_grad=True)
    information = mutual_information(a, b, strength)
    expected = (5 * math.log(strength.item()) + log_det) / 2
    torch.testing.assert_close(information.double(), expected, rtol=max(rtol, 1e-9), atol=0)
    (slope,) = torch.autograd.grad(information, strength)
    torch.testing.assert_close(slope * strength, torch.full_like(slope, 2.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_monotone_in_gamma(name):
    # More coupling: the cost falls, the information grows, the Sinkhorn divergence rises towards W_2^2.
    a, b = full_pair(name)
    gamma = torch.logspace(-4, 4, 25, dtype=torch.float64) / size_of(a, b)
    cost, information = entropic_w2_squared(a, b, gamma), mutual_information(a, b, gamma)
    rounding = 1e-13 * size_of(a, b)
    assert (cost.diff() <= rounding).all()
    assert (cost >= w2_squared(a, b) - rounding).all()
    assert (information.diff() >= -1e-13).all()
    divergence = sinkhorn_divergence(a, b, gamma)
    assert (divergence.diff() >= -10 * rounding).all()
    assert (divergence <= w2_squared(a, b) + 10 * rounding).all()
    assert (divergence >= (a.mean - b.mean).square().sum() - 10 * rounding).all()
