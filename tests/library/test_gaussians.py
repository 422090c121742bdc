"""The two families, their entropy and their divergence: against torch.distributions, integrals and 60 digits."""

import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from gaussian_problems import FULL_RANK, Exact, encoder_pairs, full_pair, generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from se_core.errors import InvalidTypeError
from se_core.gaussians import DiagonalGaussian, FullGaussian, as_gaussian, batch_shape, entropy, kl_divergence, kl_terms

MODERATE = [name for name in FULL_RANK if name not in ("condition 1e8", "dimension 128")]


def test_as_gaussian_keeps_event_and_batch_dimensions():
    g = generator()
    loc, scale = torch.randn(3, 4, generator=g), torch.rand(3, 4, generator=g) + 0.5
    for shape, distribution in [
        ((3, 4, 1), Normal(loc, scale)),
        ((3, 4, 1), Independent(Normal(loc, scale), 0)),
        ((3, 4), Independent(Normal(loc, scale), 1)),
        ((12,), Independent(Normal(loc, scale), 2)),
    ]:
        q = as_gaussian(distribution)
        assert isinstance(q, DiagonalGaussian)
        assert q.mean.shape == shape
        torch.testing.assert_close(q.log_var.exp().sqrt().flatten(), scale.flatten())
        torch.testing.assert_close(entropy(distribution), distribution.entropy())
    tril = torch.tril(torch.randn(2, 3, 3, generator=g)) + 3 * torch.eye(3)
    normal = MultivariateNormal(torch.zeros(2, 3), scale_tril=tril)
    full = as_gaussian(normal)
    assert isinstance(full, FullGaussian)
    torch.testing.assert_close(full.covariance, normal.covariance_matrix)
    for q in (full, DiagonalGaussian(loc, scale)):
        assert all(torch.equal(ours, given) for ours, given in zip(as_gaussian(q), q, strict=True))


def test_batches_of_mean_and_spread_broadcast():
    mean, log_var, scale = torch.randn(5, 3), torch.randn(3), torch.eye(3)
    for q in (
        DiagonalGaussian(mean, log_var),
        FullGaussian(mean, scale),
        DiagonalGaussian(mean[:1], log_var.expand(5, 3)),
    ):
        assert entropy(q).shape == (5,)
        assert [term.shape for term in kl_terms(q, q)] == [(5,), (5,)]
        assert [field.shape[0] for field in as_gaussian(q)] == [5, 5]


def test_divergence_of_equal_and_very_narrow_gaussians_is_zero():
    for dtype, log_var in ((torch.float32, -120.0), (torch.float64, -1000.0)):
        q = DiagonalGaussian(torch.ones(2, dtype=dtype), torch.full((2,), log_var, dtype=dtype))
        assert kl_divergence(q, q) == 0


def test_nested_and_low_rank_distributions_are_read():
    g = generator()
    loc, scale = torch.randn(3, 2, 4, generator=g), torch.rand(3, 2, 4, generator=g) + 0.5
    nested = Independent(Independent(Normal(loc, scale), 1), 1)
    torch.testing.assert_close(entropy(nested), nested.entropy())
    assert as_gaussian(nested).mean.shape == (3, 8)
    assert as_gaussian(Independent(Independent(Normal(loc, scale), 1), 0)).mean.shape == (3, 2, 4)
    low_rank = LowRankMultivariateNormal(loc, torch.randn(4, 2, generator=g), torch.rand(4, generator=g) + 0.1)
    q = as_gaussian(low_rank)
    assert q.scale.shape == (3, 2, 4, 6)
    torch.testing.assert_close(q.covariance, low_rank.covariance_matrix)
    torch.testing.assert_close(entropy(low_rank), low_rank.entropy())
    other = MultivariateNormal(loc, torch.eye(4))
    torch.testing.assert_close(kl_divergence(low_rank, other), torch.distributions.kl_divergence(low_rank, other))
    assert kl_divergence(Independent(other, 0), other).abs().max() == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.distributions.Cauchy(0.0, 1.0), "got Cauchy; match its moments: DiagonalGaussian"),
        (Independent(torch.distributions.Laplace(torch.zeros(2), torch.ones(2)), 1), r"got Independent\(Laplace, 1\)"),
        (Independent(MultivariateNormal(torch.zeros(2, 3), torch.eye(3)), 1), r"Normal, 1\); give its joint .*FullG"),
        ((torch.zeros(2), torch.zeros(2)), r"got tuple; wrap it: DiagonalGaussian\(mean, log_var\)"),
        (torch.zeros(2), "got Tensor; wrap it: DiagonalGaussian"),
    ],
)
def test_as_gaussian_refuses_the_rest(wrong, message):
    with pytest.raises(InvalidTypeError, match=message):
        as_gaussian(wrong)


def test_divergence_of_an_example_that_is_not_finite():
    a, b = (FullGaussian(q.mean.expand(4, -1), q.scale.expand(4, -1, -1).clone()) for q in full_pair("non-commuting"))
    # With a gradient asked for, as below: LAPACK computes singular values alone by other steps.
    expected = kl_terms(a._replace(scale=a.scale.clone().requires_grad_()), b)
    for bad in (math.nan, math.inf):
        for broken in ("scale_a", "scale_b", "mean_a"):
            mean, scale_a, scale_b = a.mean.clone(), a.scale.clone(), b.scale.clone()
            {"scale_a": scale_a, "scale_b": scale_b, "mean_a": mean}[broken][2] = bad
            scale_a.requires_grad_()
            terms = kl_terms(FullGaussian(mean, scale_a), FullGaussian(b.mean, scale_b))
            (gradient,) = torch.autograd.grad(sum(terms).sum(), scale_a)
            for term, true in zip(terms, expected, strict=True):
                assert torch.equal(term[[0, 1, 3]], true[[0, 1, 3]])
                assert term[2].isnan()
            assert gradient[[0, 1, 3]].isfinite().all()
            assert gradient[2].isnan().all()


def test_batch_shape_broadcasts_every_field():
    a = DiagonalGaussian(torch.zeros(3, 1, 4), torch.zeros(4))
    b = FullGaussian(torch.zeros(4), torch.zeros(2, 4, 1))
    assert batch_shape(a, b) == (3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_covariance(dtype):
    for name in ("non-commuting", "repeated eigenvalues", "singular square factors", "narrow factors", "condition 1e8"):
        covariance = full_pair(name)[0].covariance.to(dtype)
        q = FullGaussian.from_covariance(torch.zeros(len(covariance), dtype=dtype), covariance)
        atol = 8 * torch.finfo(dtype).eps * float(covariance.norm())
        torch.testing.assert_close(q.covariance, covariance, rtol=0, atol=atol)
    batch = torch.eye(3).expand(5, 3, 3)
    assert FullGaussian.from_covariance(torch.zeros(3), batch).scale.shape == (5, 3, 3)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.ones(3), r"\(\.\.\., D, D\), got \(3,\)"),
        (torch.ones(3, 2), r"\(3, 2\)"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), r"symmetric.*0\.1.*mT"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "eigenvalue of -1"),
        (-torch.eye(2), "positive semi-definite"),
        (torch.full((2, 2), math.nan), "finite, got the norm nan"),
        (
            torch.stack([torch.eye(2), torch.full((2, 2), math.inf), torch.full((2, 2), math.nan)]),
            "finite.* in example 1;",
        ),
        (torch.stack([torch.eye(2), -torch.eye(2)])[:, None], r"eigenvalue of -1 in example \(1, 0\);"),
    ],
)
def test_from_covariance_refuses(covariance, message):
    with pytest.raises(ValueError, match=message):
        FullGaussian.from_covariance(torch.zeros(covariance.shape[-1]), covariance)


@pytest.mark.parametrize("name", MODERATE)
def test_entropy_and_divergence_of_full_gaussians(name):
    a, b = full_pair(name)
    p, q = (MultivariateNormal(x.mean, x.covariance) for x in (a, b))
    torch.testing.assert_close(entropy(a), p.entropy(), rtol=1e-11, atol=1e-11)
    expected = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(kl_divergence(a, b), expected, rtol=1e-9, atol=1e-12)


def test_covariances_hold_variances():
    a, _ = encoder_pairs(5, 3, torch.float64)
    expected = torch.distributions.MultivariateNormal(a.mean, a.covariance).variance
    torch.testing.assert_close(expected, a.log_var.exp(), rtol=1e-12, atol=0)
    torch.testing.assert_close(a.full().covariance, a.covariance, rtol=1e-14, atol=0)
    assert (a.covariance.sum(-1) == a.log_var.exp()).all()  # nothing off the diagonal


def test_entropy_of_diagonal_gaussians():
    a, _ = encoder_pairs(50, 3, torch.float64)
    expected = Independent(Normal(a.mean, (a.log_var / 2).exp()), 1).entropy()
    torch.testing.assert_close(entropy(a), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(entropy(a.full()), expected, rtol=1e-13, atol=1e-13)
    numeric, _ = scipy.integrate.quad(lambda z: scipy.stats.norm(1, 3).entropy() * scipy.stats.norm.pdf(z), -20, 20)
    one = DiagonalGaussian(torch.ones(1, dtype=torch.float64), torch.full((1,), math.log(9.0), dtype=torch.float64))
    assert float(entropy(one)) == pytest.approx(numeric, rel=1e-12)


def test_divergence_of_scalar_gaussians_is_the_integral():
    a, b = encoder_pairs(8, 1, torch.float64, seed=5)
    for i in range(8):
        p, q = (scipy.stats.norm(float(x.mean[i]), math.exp(float(x.log_var[i]) / 2)) for x in (a, b))
        around = p.mean() + p.std() * np.linspace(-30, 30, 13)
        value, _ = scipy.integrate.quad(
            lambda z, p=p, q=q: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)), around[0], around[-1], points=around, limit=400
        )
        assert float(kl_divergence(a, b)[i]) == pytest.approx(value, rel=1e-8, abs=1e-10)


def test_the_two_terms_of_equation_8():
    a, b = full_pair("non-commuting")
    terms = kl_terms(a, b)
    inverse = torch.linalg.inv(b.covariance)
    ratio = inverse @ a.covariance
    stein = (ratio - torch.eye(5, dtype=torch.float64)).trace() - torch.linalg.slogdet(ratio).logabsdet
    difference = a.mean - b.mean
    torch.testing.assert_close(terms.covariance, stein / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.mean, difference @ inverse @ difference / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.covariance + terms.mean, kl_divergence(a, b))
    # The first is free of scale and of any choice of coordinates, the second is not free of scale.
    wider = kl_terms(a._replace(scale=3 * a.scale), b._replace(scale=3 * b.scale))
    torch.testing.assert_close(wider.covariance, terms.covariance, rtol=1e-12, atol=0)
    torch.testing.assert_close(wider.mean, terms.mean / 9, rtol=1e-12, atol=0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(-8, 4), st.floats(-30, 1), st.floats(-3, 3))
def test_divergence_near_equality(log_var, exponent, mean):
    # Unused latents live at the prior: from steps of 1e-13 to 10, float32 keeps the square of the step.
    step = math.exp(exponent)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 3e-15)):
        a = DiagonalGaussian(torch.tensor([mean], dtype=dtype), torch.tensor([log_var + step], dtype=dtype))
        b = DiagonalGaussian(torch.tensor([mean], dtype=dtype), torch.tensor([log_var], dtype=dtype))
        exact = Exact(a, b, 0.0).kl_divergence
        value = mpmath.mpf(float(kl_divergence(a, b)))
        assert abs(value - exact) <= tolerance * exact
        full = mpmath.mpf(float(kl_divergence(a.full(), b.full())))
        noise = 20 * torch.finfo(dtype).eps
        assert abs(full - exact) <= noise * exact + noise**2 + noise * mpmath.sqrt(exact)


def test_divergence_of_equal_arguments_is_zero_with_zero_gradient():
    a, _ = encoder_pairs(20, 3, torch.float32)
    log_var = a.log_var.clone().requires_grad_()
    value = kl_divergence(DiagonalGaussian(a.mean, log_var), a)
    assert (value == 0).all()
    (gradient,) = torch.autograd.grad(value.sum(), log_var)
    assert (gradient == 0).all()
    for dtype in (torch.float32, torch.float64):
        q, _ = (FullGaussian(x.mean.to(dtype), x.scale.to(dtype)) for x in full_pair("non-commuting"))
        assert kl_divergence(q, q).abs() < 100 * torch.finfo(dtype).eps ** 2


def test_divergence_overflows_to_infinity_only_where_it_is_infinite():
    zero = torch.zeros(1)
    for log_ratio, finite in ((80.0, True), (-80.0, True), (100.0, False), (-1e4, True)):
        log_var = torch.tensor([log_ratio], requires_grad=True)
        value = kl_divergence(DiagonalGaussian(zero, log_var), DiagonalGaussian(zero, zero))
        assert bool(value.isfinite()) == finite
        if finite:
            (gradient,) = torch.autograd.grad(value, log_var)
            assert gradient.isfinite().all()


def _mahalanobis(a, b):
    shift = (a.mean - b.mean).numpy()
    return shift @ np.linalg.solve(b.covariance.numpy(), shift)


def test_singular_covariances():
    solid, flat = full_pair("one narrow factor")
    assert entropy(flat) == -math.inf
    assert kl_divergence(flat, solid) == math.inf
    assert kl_divergence(solid, flat) == math.inf
    hole = FullGaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0])))
    whole = FullGaussian(torch.zeros(2), torch.eye(2))
    assert entropy(hole) == -math.inf
    assert kl_terms(hole, whole) == (math.inf, 0.0)
    assert kl_terms(whole, hole) == (math.inf, math.inf)
    assert [float(term) for term in kl_terms(flat, solid)] == [math.inf, pytest.approx(_mahalanobis(flat, solid) / 2)]
    batch = FullGaussian(torch.zeros(2, 2), torch.stack([hole.scale, whole.scale]))
    assert kl_divergence(whole, batch).tolist() == [math.inf, 0.0]
