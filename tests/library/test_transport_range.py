"""The whole range of float32 that the documentation names, value and gradient, against 60 digits or float64."""

import itertools
import math

import mpmath
import pytest
import torch
from gaussian_problems import full_pair

from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.transport import (
    coupling,
    entropic_w2_squared,
    monge_map,
    mutual_information,
    sinkhorn_divergence,
    w2_squared,
)

LOG_VARIANCES = [-80.0, -60.0, -44.0, -8.0, -1e-3, 0.0, 1e-3, 8.0, 44.0, 46.0, 60.0, 80.0]
GAMMAS = [0.0, 1e-6, 1.0, 1e6]
SINGLE = 2e-6


def grid():
    """Every pair of log-variances with every gamma, one coordinate each, as columns of a batch."""
    columns = torch.tensor(list(itertools.product(LOG_VARIANCES, LOG_VARIANCES, GAMMAS)))
    log_var_a, log_var_b = (columns[:, i, None].clone().requires_grad_() for i in (0, 1))
    zero = torch.zeros_like(log_var_a)
    gamma = columns[:, 2].clone().requires_grad_()
    return DiagonalGaussian(zero, log_var_a), DiagonalGaussian(zero, log_var_b), gamma


def by_hand(log_var_a, log_var_b, gamma):
    """Value, derivative by log_var_a, size of the terms of that derivative, derivative by gamma; for each function."""
    a, b, g = (mpmath.mpf(x) for x in (log_var_a, log_var_b, gamma))
    v_a, v_b, s = mpmath.exp(a), mpmath.exp(b), mpmath.exp((a + b) / 2)
    w_a, w_b, w = 2 * g * v_a, 2 * g * v_b, 2 * g * s
    u_a, u_b, u = (mpmath.sqrt(1 + x**2) for x in (w_a, w_b, w))
    psi_a, psi_b, psi = (2 * g * x**2 / (1 + y) for x, y in ((v_a, u_a), (v_b, u_b), (s, u)))
    slope = 2 * s**2 / (u * (1 + u))
    info_a, info_b, info = (mpmath.log1p(w_i**2 / (1 + y) / 2) / 2 for w_i, y in ((w_a, u_a), (w_b, u_b), (w, u)))
    debiased = -2 * psi + psi_a + psi_b
    if g:
        debiased += 2 / g * (info - info_a / 2 - info_b / 2)
        debiased_slope = -2 / g**2 * (info - info_a / 2 - info_b / 2)
    else:
        debiased_slope = (v_a - v_b) ** 2 / 2
    cost = (mpmath.sqrt(v_a) - mpmath.sqrt(v_b)) ** 2 + 2 * s * (1 + w / (1 + u)) / (u + w)
    return {
        w2_squared: ((mpmath.sqrt(v_a) - mpmath.sqrt(v_b)) ** 2, v_a - s, max(v_a, v_b), 0),
        entropic_w2_squared: (cost, v_a - s * w / u, max(v_a, v_b), -2 * slope),
        mutual_information: (info, (u - 1) / (4 * u), 0, g * slope),
        sinkhorn_divergence: (debiased, psi_a - psi, 0, debiased_slope),
    }


LARGEST, SMALLEST = float(torch.finfo(torch.float32).max), float(torch.finfo(torch.float32).tiny)


def representable_terms(value, log_var_a, log_var_b, gamma):
    """Whether float32 has what the derivatives of the Sinkhorn divergence are made of, value / gamma and value v."""
    over_gamma = value / gamma if gamma else mpmath.mpf(0)
    return over_gamma < LARGEST / 8 and value * mpmath.exp(max(log_var_a, log_var_b)) > SMALLEST


def close(value, exact, tolerance, size=0):
    """Relative to the exact number, or to the terms of which it is the sum; what float32 has not is not asked for."""
    if abs(exact) > LARGEST / 4:
        return True
    return abs(mpmath.mpf(value.item()) - exact) <= tolerance * max(abs(exact), size) + SMALLEST


@pytest.mark.parametrize("function", [w2_squared, entropic_w2_squared, mutual_information, sinkhorn_divergence])
def test_the_diagonal_family_over_the_whole_range(function):
    a, b, gamma = grid()
    values = function(a, b, gamma) if function is not w2_squared else function(a, b)
    by_log_var, by_gamma = torch.autograd.grad(values.sum(), (a.log_var, gamma), allow_unused=True)
    with mpmath.workdps(150):
        for i in range(len(gamma)):
            row = a.log_var[i].item(), b.log_var[i].item(), gamma[i].item()
            value, slope, size, in_gamma = by_hand(*row)[function]
            if row[2] * mpmath.exp((row[0] + row[1]) / 2) > LARGEST:
                continue
            assert close(values[i], value, 2 * SINGLE), row
            if function is sinkhorn_divergence and not representable_terms(value, *row):
                continue
            assert close(by_log_var[i], slope, 2 * SINGLE, size), (row, by_log_var[i], slope)
            if by_gamma is not None:
                # The divergence grows like 1 - log(w) / w: the terms of its slope are as large as itself over gamma.
                size = value / row[2] if function is sinkhorn_divergence and row[2] else 0
                assert close(by_gamma[i], in_gamma, 4 * SINGLE, size), (row, by_gamma[i], in_gamma)


def test_the_diagonal_plan_over_the_whole_range():
    a, b, gamma = grid()
    plan = coupling(a, b, gamma)
    with mpmath.workdps(60):
        for i in range(len(gamma)):
            s = mpmath.exp((mpmath.mpf(a.log_var[i].item()) + mpmath.mpf(b.log_var[i].item())) / 2)
            w = 2 * mpmath.mpf(gamma[i].item()) * s
            u = mpmath.sqrt(1 + w**2)
            assert close(plan.rho[i], w / (1 + u), SINGLE)
            assert close(plan.psi[i], s * w / (1 + u), SINGLE)
            if w < LARGEST:
                assert close(plan.residual[i], mpmath.sqrt(2 / (1 + u)), SINGLE)


@pytest.mark.parametrize("gamma", [0.0, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("size", [1e-15, 1e-10, 1e10, 1e15])
@pytest.mark.parametrize("name", ["non-commuting", "equal", "condition 1e8", "one narrow factor"])
def test_the_full_family_over_the_whole_range(name, size, gamma):
    a, b = (FullGaussian(q.mean.float() * size, q.scale.float() * size) for q in full_pair(name))
    outcome = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.to(dtype).detach().requires_grad_() for x in (a.mean, a.scale, b.mean, b.scale)]
        strength = torch.tensor(gamma, dtype=torch.float32).to(dtype).requires_grad_()
        x, y = FullGaussian(*inputs[:2]), FullGaussian(*inputs[2:])
        values = (
            entropic_w2_squared(x, y, strength),
            mutual_information(x, y, strength),
            w2_squared(x, y),
            sinkhorn_divergence(x, y, strength),
        )
        gradients = [torch.autograd.grad(v, inputs[1], retain_graph=True)[0] for v in values]
        outcome.append([x.detach().double() for x in (*values, *gradients, coupling(x, y, strength).rotation)])
    # A cost is a sum of squares of numbers that carry the rounding of the factors, a gradient is linear in them.
    rounding = 1e-6 * float(a.scale.norm())
    limits = [rounding**2, 0, rounding**2, rounding**2, rounding, 0, rounding, rounding, 1e-6]
    # dI/dL_a is L_b C^{-T} / 2 for strong coupling: it loses as many digits as the condition number of L_b has.
    conditioning = 1e-3 if name == "condition 1e8" else 5e-6
    for single, double, atol in zip(*outcome, limits, strict=True):
        largest = double.abs().max()
        torch.testing.assert_close(single, double, rtol=5e-6, atol=max(atol, conditioning * float(largest), 1e-37))


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("which", [0, 1])
def test_an_example_that_is_not_finite_stays_in_its_row(bad, which):
    g = torch.Generator().manual_seed(4)
    fields = [torch.randn(2, 5, 3, generator=g), torch.randn(2, 5, 3, 4, generator=g)]
    broken = [x.clone() for x in fields]
    broken[1][which, 2, 1, 1] = bad
    functions = {
        "w2_squared": lambda a, b: w2_squared(a, b),
        "entropic_w2_squared": lambda a, b: entropic_w2_squared(a, b, 1.0),
        "mutual_information": lambda a, b: mutual_information(a, b, 1.0),
        "sinkhorn_divergence": lambda a, b: sinkhorn_divergence(a, b, 1.0),
        "rho": lambda a, b: coupling(a, b, 1.0).rho,
        "joint": lambda a, b: coupling(a, b, 1.0).joint().scale,
        "monge_map": lambda a, b: monge_map(a, b).matrix,
    }
    for name, function in functions.items():
        results = []
        for mean, scale in (fields, broken):
            factors = scale.clone().requires_grad_()
            value = function(FullGaussian(mean[0], factors[0]), FullGaussian(mean[1], factors[1]))
            (gradient,) = torch.autograd.grad(value.flatten(1).sum() if value.ndim > 1 else value.sum(), factors)
            results.append((value.detach(), gradient.transpose(0, 1)))
        others = torch.arange(5) != 2
        for sound, damaged in zip(*results, strict=True):
            assert torch.equal(sound[others], damaged[others]), name
            assert not damaged[2].isfinite().all(), name
        assert results[1][0][2].isnan().any(), name


def test_a_diagonal_example_that_is_not_finite_stays_in_its_row():
    g = torch.Generator().manual_seed(4)
    mean, log_var = torch.randn(2, 5, 3, generator=g), torch.randn(2, 5, 3, generator=g)
    for field, bad in itertools.product((0, 1), BAD):
        results = []
        for broken in (False, True):
            fields = [mean.clone(), log_var.clone()]
            if broken:
                fields[field][0, 2, 1] = bad
            m, v = (x.requires_grad_() for x in fields)
            a, b = DiagonalGaussian(m[0], v[0]), DiagonalGaussian(m[1], v[1])
            value = w2_squared(a, b) + entropic_w2_squared(a, b, 1.0) + sinkhorn_divergence(a, b, 1.0)
            value = value + mutual_information(a, b, 1.0)
            results.append((value, *(x.transpose(0, 1) for x in torch.autograd.grad(value.sum(), (m, v)))))
        others = torch.arange(5) != 2
        for sound, damaged in zip(*results, strict=True):
            assert torch.equal(sound[others], damaged[others])
