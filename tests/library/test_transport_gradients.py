"""Derivatives: analytic against numerical, at ordinary points and at equal, repeated, singular and empty ones."""

import math

import pytest
import torch
from gaussian_problems import ALL, FULL_RANK, encoder_pairs, full_pair, generator, to
from torch.autograd import gradcheck, gradgradcheck

from se_core.gaussians import DiagonalGaussian, FullGaussian, entropy, kl_divergence
from se_core.transport import (
    coupling,
    entropic_cost,
    entropic_w2_squared,
    monge_map,
    mutual_information,
    sinkhorn_divergence,
    w2_squared,
)

SMOOTH = [entropic_w2_squared, mutual_information, sinkhorn_divergence]
SMALL = ["equal", "nearly equal", "commuting", "isotropic", "non-commuting", "repeated eigenvalues", "dimension 1"]


def leaves(*tensors):
    return tuple(x.detach().clone().requires_grad_() for x in tensors)


def small_full(name):
    a, b = full_pair(name)
    return leaves(a.mean, a.scale, b.mean, b.scale, torch.tensor([1.3, 0.2], dtype=torch.float64))


def on_full(function):
    return lambda mean_a, scale_a, mean_b, scale_b, *gamma: function(
        FullGaussian(mean_a, scale_a), FullGaussian(mean_b, scale_b), *gamma
    )


def on_diagonal(function):
    return lambda mean_a, var_a, mean_b, var_b, *gamma: function(
        DiagonalGaussian(mean_a, var_a), DiagonalGaussian(mean_b, var_b), *gamma
    )


@pytest.mark.parametrize("name", [*SMALL, "narrow factors", "one narrow factor", "wide factors", "point mass"])
def test_full_gradients_are_the_numerical_ones(name):
    inputs = small_full(name)
    for function in SMOOTH:
        assert gradcheck(on_full(function), inputs)
        swapped = lambda a, b, gamma, f=function: f(b, a, gamma)  # noqa: E731
        assert gradcheck(on_full(swapped), inputs)


@pytest.mark.parametrize("name", [*SMALL, "wide factors"])
def test_full_gradients_that_need_full_rank(name):
    inputs = small_full(name)
    assert gradcheck(on_full(entropic_cost), inputs)
    assert gradcheck(on_full(w2_squared), inputs[:4])
    assert gradcheck(on_full(kl_divergence), inputs[:4])
    assert gradcheck(lambda mean, scale: entropy(FullGaussian(mean, scale)), inputs[:2])


@pytest.mark.parametrize("name", [*SMALL, "narrow factors", "one narrow factor", "wide factors"])
def test_gradients_of_the_plan(name):
    inputs = small_full(name)
    assert gradcheck(on_full(lambda a, b, gamma: coupling(a, b, gamma).psi), inputs)
    assert gradcheck(on_full(lambda a, b, gamma: coupling(b, a, gamma).psi), inputs)
    assert gradcheck(on_full(lambda a, b, gamma: coupling(a, b, gamma).joint().scale), inputs)
    assert gradcheck(on_full(lambda a, b, gamma: coupling(b, a, gamma).joint().scale), inputs)
    assert gradcheck(on_full(lambda a, b, gamma: coupling(a, b, gamma).rho.square().sum(-1)), inputs)


@pytest.mark.parametrize("name", ["commuting", "non-commuting", "wide factors", "repeated eigenvalues"])
def test_gradient_of_the_monge_map(name):
    a, b = full_pair(name)
    inputs = leaves(a.mean, a.scale, b.mean, b.scale)
    point = torch.ones(a.mean.shape[-1], dtype=torch.float64)
    assert gradcheck(on_full(lambda a, b: monge_map(a, b)(point)), inputs)


def diagonal_leaves(equal):
    a, b = encoder_pairs(4, 2, torch.float64, seed=1)
    b = a if equal else DiagonalGaussian(b.mean + 0.1, b.log_var + 0.2)
    return leaves(a.mean, a.log_var, b.mean, b.log_var, torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.float64))


@pytest.mark.parametrize("equal", [False, True])
def test_diagonal_gradients_are_the_numerical_ones_to_second_order(equal):
    inputs = diagonal_leaves(equal)
    for function in [*SMOOTH, entropic_cost]:
        assert gradcheck(on_diagonal(function), inputs)
        assert gradgradcheck(on_diagonal(function), inputs, atol=1e-4)
    for function in (w2_squared, kl_divergence):
        assert gradcheck(on_diagonal(function), inputs[:4])
        assert gradgradcheck(on_diagonal(function), inputs[:4])
    assert gradcheck(on_diagonal(lambda a, b, gamma: coupling(a, b, gamma).joint().scale), inputs)


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", [name for name in FULL_RANK if name not in ("condition 1e8", "tiny", "huge")])
def test_the_envelope_theorem(name, gamma):
    # d/dgamma min_Q {gamma/2 E c - H} = E c / 2, by autograd and by central differences of the value.
    a, b = full_pair(name)
    strength = torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    half_cost = entropic_w2_squared(a, b, gamma) / 2
    (slope,) = torch.autograd.grad(entropic_cost(a, b, strength), strength)
    torch.testing.assert_close(slope, half_cost, rtol=1e-9, atol=0)
    step = 1e-4 * gamma
    central = (entropic_cost(a, b, gamma + step) - entropic_cost(a, b, gamma - step)) / (2 * step)
    torch.testing.assert_close(central, half_cost, rtol=2e-7, atol=1e-13 * a.mean.shape[-1] / step)


def test_the_envelope_theorem_on_the_diagonal():
    a, b = encoder_pairs(200, 3, torch.float64)
    strength = torch.logspace(-6, 6, 200, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(entropic_cost(a, b, strength).sum(), strength)
    torch.testing.assert_close(slope, entropic_w2_squared(a, b, strength) / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in ALL if name != "huge"])
def test_every_gradient_is_finite(name, dtype):
    # Singular covariances have an infinite entropy, and W_2 a corner there; the rest is smooth.
    a, b = to(dtype, *full_pair(name))
    inputs = leaves(a.mean, a.scale, b.mean, b.scale)
    gamma = torch.tensor([0.0, 1.0, 1e6], dtype=dtype, requires_grad=True)
    a, b = FullGaussian(*inputs[:2]), FullGaussian(*inputs[2:])
    values = [function(x, y, gamma).sum() for function in SMOOTH for x, y in ((a, b), (b, a), (a, a))]
    if name in FULL_RANK:
        values += [entropic_cost(x, y, gamma).sum() for x, y in ((a, b), (b, a), (a, a))]
    values += [w2_squared(x, y) for x, y in ((a, b), (b, a), (a, a))]
    for value in values:
        for gradient in torch.autograd.grad(value, (*inputs, gamma), retain_graph=True, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_the_gradient_at_zero_coupling_is_one_sided():
    a, b = full_pair("non-commuting")
    gamma = torch.zeros((), dtype=torch.float64, requires_grad=True)
    expected = {
        entropic_w2_squared: -2 * (a.covariance @ b.covariance).trace(),
        mutual_information: torch.zeros((), dtype=torch.float64),
        sinkhorn_divergence: (a.covariance - b.covariance).square().sum() / 2,
    }
    for function, slope in expected.items():
        (gradient,) = torch.autograd.grad(function(a, b, gamma), gamma)
        torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-14)
    a, b = encoder_pairs(10, 3, torch.float64)
    strength = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(entropic_w2_squared(a, b, strength).sum(), strength)
    torch.testing.assert_close(gradient, -2 * (a.log_var + b.log_var).exp().sum(-1), rtol=1e-12, atol=0)


def test_equal_inputs_are_a_critical_point_of_w2():
    for q in (encoder_pairs(5, 3, torch.float32)[0], to(torch.float32, *full_pair("repeated eigenvalues"))[0]):
        inputs = leaves(*q)
        value = w2_squared(type(q)(*inputs), q).sum()
        for gradient in torch.autograd.grad(value, inputs):
            assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
def test_pgd_sees_the_smallest_difference(step):
    # In float32, just off a = b, the gradient of W_2^2 in the log-variance is sigma^2 step / 2 and not rounding noise.
    a = DiagonalGaussian(torch.zeros(1), torch.zeros(1))
    (log_var,) = leaves(torch.full((1,), step))
    (gradient,) = torch.autograd.grad(w2_squared(a, DiagonalGaussian(torch.zeros(1), log_var)), log_var)
    exact = math.expm1(step / 2) * math.exp(step / 2)
    assert gradient.item() == pytest.approx(exact, rel=1e-6)


def test_second_derivatives_of_the_full_family_are_refused():
    a, b = full_pair("non-commuting")
    (scale,) = leaves(a.scale)
    value = entropic_cost(FullGaussian(a.mean, scale), b, 1.0)
    (gradient,) = torch.autograd.grad(value, scale, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_torch_func_on_the_diagonal_family():
    a, b = encoder_pairs(6, 3, torch.float64)
    gamma = torch.linspace(0.1, 3, 6, dtype=torch.float64)

    def cost(mean_a, var_a, mean_b, var_b, strength=1.5):
        return on_diagonal(entropic_cost)(mean_a, var_a, mean_b, var_b, strength) + on_diagonal(kl_divergence)(
            mean_a, var_a, mean_b, var_b
        )

    torch.testing.assert_close(torch.func.vmap(cost)(*a, *b), cost(*a, *b))
    inputs = leaves(*a, *b)
    (expected,) = torch.autograd.grad(cost(*inputs).sum(), inputs[1])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cost, argnums=1))(*a, *b), expected)
    slope = torch.func.grad(lambda g: cost(*a, *b, g).sum())(gamma)
    torch.testing.assert_close(slope, entropic_w2_squared(a, b, gamma) / 2)


def test_torch_func_on_the_full_family_is_refused_clearly():
    a, b = (FullGaussian(q.mean[None], q.scale[None]) for q in full_pair("non-commuting"))
    with pytest.raises(RuntimeError, match=r"vmap|setup_context"):
        torch.func.vmap(lambda *x: on_full(entropic_w2_squared)(*x, 1.0))(*a, *b)


def test_compiled_diagonal_functions_agree():
    a, b = encoder_pairs(8, 4, torch.float32)

    def value_and_gradient(mean_a, var_a, mean_b, var_b, gamma):
        def total(mean, var):
            x, y = DiagonalGaussian(mean_a, var_a), DiagonalGaussian(mean, var)
            return (w2_squared(x, y) + entropic_cost(x, y, gamma) + kl_divergence(x, y)).sum()

        return torch.func.grad_and_value(total, argnums=(0, 1))(mean_b, var_b)

    compiled = torch.compile(value_and_gradient, fullgraph=True, backend="aot_eager")
    for gamma in (1.0, torch.rand(8, generator=generator())):
        torch.testing.assert_close(compiled(*a, *b, gamma), value_and_gradient(*a, *b, gamma), rtol=2e-5, atol=1e-5)


def test_the_full_family_runs_inside_a_compiled_function():
    a, b = full_pair("non-commuting")
    function = on_full(lambda a, b: entropic_w2_squared(a, b, 1.0) + w2_squared(a, b))
    compiled = torch.compile(function, backend="aot_eager")
    torch.testing.assert_close(compiled(*a, *b), function(*a, *b))


def test_vanishing_variances_have_finite_gradients():
    # 1/s overflows in float32; the value is that of two points, and the derivative by a log-variance is zero.
    for log_var in (-85.0, -89.0, -150.0):
        fields = [torch.full((2,), value, requires_grad=True) for value in (0.5, log_var, -0.5, log_var)]
        a, b = DiagonalGaussian(*fields[:2]), DiagonalGaussian(*fields[2:])
        for value in (entropic_w2_squared(a, b, 1.0), w2_squared(a, b), sinkhorn_divergence(a, b, 1.0)):
            assert value == 2
            gradients = torch.autograd.grad(value, fields)
            assert [g.tolist() for g in gradients[::2]] == [[2.0, 2.0], [-2.0, -2.0]]
            assert all(g.abs().max() < 1e-30 for g in gradients[1::2])
