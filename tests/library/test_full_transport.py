"""The solver of the full family against a dense oracle: plain differentiable torch, no eigenvectors.

The square root of a positive definite matrix by Newton's iteration in the coupled form of Denman and Beavers (1976) is
smooth at repeated eigenvalues, and all roots needed here are of matrices >= I or near I, singular covariances included.
"""

import pytest
import torch
from gaussian_problems import full_pair
from torch.autograd import gradcheck

from se_core._full_transport import overlap_svd, polar_factor
from se_core.gaussians import FullGaussian
from se_core.transport import coupling, monge_map, mutual_information, sinkhorn_divergence, transport_terms, w2_squared

HARD = [
    "equal",
    "equal law, other factor",
    "nearly equal",
    "commuting",
    "isotropic",
    "non-commuting",
    "repeated eigenvalues",
    "wide factors",
    "narrow factors",
    "one narrow factor",
    "singular square factors",
    "point mass",
    "condition 1e8",
    "dimension 1",
    "dimension 16",
]
GAMMAS = [0.0, 0.3, 5.0]


def root(matrix):
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    y, z = matrix, identity
    for _ in range(25):
        y, z = (y + torch.linalg.inv(z)) / 2, (z + torch.linalg.inv(y)) / 2
    return y


def dense(mean_a, scale_a, mean_b, scale_b, gamma):
    """Eqs. 18-24 with C = L_a^T L_b: R = 2 gamma C (I + S)^{-1}, S = (I + 4 gamma^2 C^T C)^{1/2}."""
    overlap = scale_a.mT @ scale_b
    identity = torch.eye(scale_b.shape[-1], dtype=overlap.dtype)
    other = torch.eye(scale_a.shape[-1], dtype=overlap.dtype)
    u = root(identity + 4 * gamma**2 * overlap.mT @ overlap)
    rotation = 2 * gamma * overlap @ torch.linalg.inv(identity + u)
    trace = scale_a.square().sum() + scale_b.square().sum()
    cost = (mean_a - mean_b).square().sum() + trace - 2 * (overlap * rotation).sum()
    information = torch.logdet((identity + u) / 2) / 2
    narrow = scale_a.shape[-1] <= scale_b.shape[-1]
    residual = root(other - rotation @ rotation.mT) if narrow else root(identity - rotation.mT @ rotation)
    return cost, information, rotation, residual, rotation.square().sum()


def ours(mean_a, scale_a, mean_b, scale_b, gamma):
    a, b = FullGaussian(mean_a, scale_a), FullGaussian(mean_b, scale_b)
    plan = coupling(a, b, gamma)
    return *transport_terms(a, b, gamma), plan.rotation, plan.residual, plan.rho.square().sum()


def inputs_of(name, gamma):
    a, b = full_pair(name)
    strength = torch.tensor(gamma, dtype=torch.float64)
    return [x.clone().requires_grad_() for x in (a.mean, a.scale, b.mean, b.scale, strength)]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", HARD)
def test_values_and_gradients_are_those_of_the_dense_oracle(name, gamma):
    inputs = inputs_of(name, gamma)
    g = torch.Generator().manual_seed(6)
    for value, expected in zip(ours(*inputs), dense(*inputs), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
        weight = torch.randn(expected.shape, generator=g, dtype=torch.float64)
        gradients = (
            torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True, materialize_grads=True)
            for x in (value, expected)
        )
        for gradient, true in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, true, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", HARD)
def test_the_divergence_is_the_difference_of_three_costs(name, gamma):
    inputs = inputs_of(name, gamma)
    mean_a, scale_a, mean_b, scale_b, strength = inputs

    def cost(*pair):
        transport, information, *_ = dense(*pair, strength)
        return transport + 2 / strength * information if gamma else transport

    first, second = (mean_a, scale_a), (mean_b, scale_b)
    expected = cost(*first, *second) - cost(*first, *first) / 2 - cost(*second, *second) / 2
    value = sinkhorn_divergence(FullGaussian(*first), FullGaussian(*second), strength)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13)
    # At gamma = 0 the quotient has its limit, but not its derivative in gamma.
    wanted = inputs if gamma else inputs[:4]
    gradients = (torch.autograd.grad(x, wanted, materialize_grads=True) for x in (value, expected))
    for gradient, true in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, true, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", ["isotropic", "non-commuting", "repeated eigenvalues", "wide factors", "dimension 1"])
def test_w2_and_its_map_are_those_of_the_dense_oracle(name):
    # Eqs. 11-12 as printed, with the square roots of full covariances.
    a, b = full_pair(name)
    inputs = [x.clone().requires_grad_() for x in (a.scale, b.scale)]
    a, b = a._replace(scale=inputs[0]), b._replace(scale=inputs[1])
    root_a = root(a.covariance)
    middle = root(root_a @ b.covariance @ root_a)
    w2 = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance - 2 * middle).trace()
    matrix = torch.linalg.inv(root_a) @ middle @ torch.linalg.inv(root_a)
    g = torch.Generator().manual_seed(7)
    for value, expected in ((w2_squared(a, b), w2), (monge_map(a, b).matrix, matrix)):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11)
        weight = torch.randn(expected.shape, generator=g, dtype=torch.float64)
        gradients = (torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True) for x in (value, expected))
        for gradient, true in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, true, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("narrow_first", [True, False])
def test_the_polar_factor_of_rectangular_factors(narrow_first):
    a, b = full_pair("one narrow factor")
    a, b = (b, a) if narrow_first else (a, b)
    expected = torch.linalg.svd(a.scale.mT @ b.scale, full_matrices=False)
    torch.testing.assert_close(polar_factor(a, b), expected.U @ expected.Vh, rtol=0, atol=1e-13)
    inputs = [q.scale.clone().requires_grad_() for q in (a, b)]
    assert gradcheck(lambda x, y: polar_factor(a._replace(scale=x), b._replace(scale=y)), inputs)


@pytest.mark.parametrize("function", [w2_squared, mutual_information, sinkhorn_divergence])
def test_no_second_derivative_passes_as_zero(function):
    # The gradient that comes in is a constant: once_differentiable alone would call the second derivative zero.
    a, b = full_pair("non-commuting")
    scale = a.scale.clone().requires_grad_()
    arguments = () if function is w2_squared else (1.0,)
    (gradient,) = torch.autograd.grad(function(a._replace(scale=scale), b, *arguments), scale, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_overlap_may_be_as_large_as_its_dtype():
    scale = 1e18 * full_pair("non-commuting")[0].scale.float()[None]
    left, s, right = overlap_svd(scale, scale, torch.zeros(1), torch.finfo(torch.float32).eps)
    torch.testing.assert_close(s.double().flip(-1), torch.linalg.svdvals(scale.double()).square(), rtol=1e-6, atol=0)
    torch.testing.assert_close((left * s[..., None, :]) @ right, scale.mT @ scale, rtol=0, atol=1e-6 * float(s.max()))
