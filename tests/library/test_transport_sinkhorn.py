"""The Sinkhorn divergence near equality: never negative, and right where the difference of costs has no digit left."""

import mpmath
import pytest
import torch
from gaussian_problems import encoder_pairs, full_pair, generator
from torch.autograd import gradcheck, gradgradcheck

from se_core._sinkhorn import exp_difference
from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.transport import entropic_w2_squared, mutual_information, sinkhorn_divergence

STEPS = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]


def regularised(overlaps, trace, gamma):
    """OT of eq. 19 and the information, in the units of the squared latent, from the singular values of L_a^T L_b."""
    u = [mpmath.sqrt(1 + (2 * gamma * s) ** 2) for s in overlaps]
    return trace - sum(x - 1 - mpmath.log((1 + x) / 2) for x in u) / gamma


def exact_diagonal(log_var_a, log_var_b, gamma):
    v_a, v_b = ([mpmath.exp(mpmath.mpf(x)) for x in v.tolist()] for v in (log_var_a, log_var_b))
    g = mpmath.mpf(gamma)
    pairs = ((v_a, v_b, 1), (v_a, v_a, -0.5), (v_b, v_b, -0.5))
    return sum(
        sign * regularised([mpmath.sqrt(p * q) for p, q in zip(x, y, strict=True)], sum(x) + sum(y), g)
        for x, y, sign in pairs
    )


def exact_full(scale_a, scale_b, gamma):
    factors = [mpmath.matrix(x.tolist()) for x in (scale_a, scale_b)]
    g, total = mpmath.mpf(gamma), mpmath.mpf(0)
    for i, j, sign in ((0, 1, 1), (0, 0, -0.5), (1, 1, -0.5)):
        overlap = factors[i].T * factors[j]
        s = [mpmath.sqrt(max(x, mpmath.mpf(0))) for x in mpmath.eigsy(overlap * overlap.T, eigvals_only=True)]
        total += sign * regularised(s, sum(x**2 for x in factors[i]) + sum(x**2 for x in factors[j]), g)
    return total


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 30.0, 1e5])
@pytest.mark.parametrize("step", STEPS)
def test_near_equality_on_the_diagonal(step, gamma):
    a, _ = encoder_pairs(40, 3, torch.float32, seed=2)
    b = DiagonalGaussian(a.mean, a.log_var + step * torch.randn(40, 3, generator=generator(1)))
    value = sinkhorn_divergence(a, b, gamma)
    assert (value >= 0).all()
    with mpmath.workdps(60):
        for i in range(40):
            exact = exact_diagonal(a.log_var[i], b.log_var[i], torch.tensor(gamma).item())
            assert abs(mpmath.mpf(value[i].item()) - exact) <= 2e-6 * exact


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 30.0, 1e5])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["non-commuting", "repeated eigenvalues", "wide factors", "narrow factors"])
def test_near_equality_of_full_gaussians(name, step, gamma):
    a = FullGaussian(*(x.float() for x in full_pair(name)[0]))
    b = a._replace(scale=a.scale + step * a.scale.abs().max() * torch.randn(a.scale.shape, generator=generator(1)))
    value = sinkhorn_divergence(a, b, gamma)
    assert value >= 0
    with mpmath.workdps(60):
        exact = exact_full(a.scale, b.scale, torch.tensor(gamma).item())
        rounding = (1e-15 * gamma + 1e-14) * float(a.covariance.trace()) * step  # of the gap in double, linear in it
        assert abs(mpmath.mpf(value.item()) - exact) <= 2e-7 * exact + rounding


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1.0, 1e3])
def test_never_negative_and_zero_at_equality(gamma):
    a, b = encoder_pairs(200, 4, torch.float32)
    near = DiagonalGaussian(a.mean, torch.nextafter(a.log_var, torch.zeros_like(a.log_var)))
    for pair in ((a, b), (a, near), (a, a)):
        for x, y in (pair, (pair[0].full(), pair[1].full())):
            assert (sinkhorn_divergence(x, y, gamma) >= 0).all()
    assert (sinkhorn_divergence(a, a, gamma) == 0).all()


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 1e3])
def test_it_is_the_difference_of_three_costs(gamma):
    a, b = encoder_pairs(200, 4, torch.float64)

    def cost(x, y):
        return entropic_w2_squared(x, y, gamma) + 2 / gamma * mutual_information(x, y, gamma)

    expected = cost(a, b) - cost(a, a) / 2 - cost(b, b) / 2
    torch.testing.assert_close(
        sinkhorn_divergence(a, b, gamma), expected, rtol=1e-12, atol=1e-13 * float(expected.max())
    )
    full = sinkhorn_divergence(a.full(), b.full(), gamma)
    torch.testing.assert_close(full, expected, rtol=1e-10, atol=1e-13 * float(expected.max()))


def test_first_and_second_derivatives_at_equality():
    # Where the derivatives of maximum or abs would be wrong, and at gamma = 0.
    zero = torch.zeros(2, 1, dtype=torch.float64)

    def divergence(log_var_a, log_var_b, gamma):
        return sinkhorn_divergence(DiagonalGaussian(zero, log_var_a), DiagonalGaussian(zero, log_var_b), gamma)

    log_var = torch.tensor([[0.0], [-3.0]], dtype=torch.float64)
    for shift in (0.0, 1e-3, 2.0, -2.0):
        inputs = [log_var, log_var + shift, torch.tensor([1.5, 40.0], dtype=torch.float64)]
        inputs = [x.clone().requires_grad_() for x in inputs]
        assert gradcheck(divergence, inputs)
        assert gradgradcheck(divergence, inputs)
    inputs = [x.clone().requires_grad_() for x in (log_var, log_var, zero[:, 0])]
    gradients = torch.autograd.grad(divergence(*inputs).sum(), inputs)
    assert all((x == 0).all() for x in gradients)


def test_the_difference_of_exponentials_and_its_derivatives():
    x = torch.tensor([0.0, 1e-7, 0.5, -0.5, 1.0, 30.0, -30.0, 80.0, -80.0]).requires_grad_()
    y = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -30.0, 30.0, -80.0, 80.0]).requires_grad_()
    value = exp_difference(x, y)
    by_x, by_y = torch.autograd.grad(value.sum(), (x, y))
    with mpmath.workdps(60):
        for i in range(len(x)):
            p, q = mpmath.exp(mpmath.mpf(x[i].item())), mpmath.exp(mpmath.mpf(y[i].item()))
            for got, exact in ((value[i], p - q), (by_x[i], p), (by_y[i], -q)):
                assert abs(mpmath.mpf(got.item()) - exact) <= 4e-7 * abs(exact)
