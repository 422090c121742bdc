"""ELBO and SE-ELBO against torch.distributions, against the formulas as the paper prints them, and by Monte Carlo."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from se_core.gaussians import DiagonalGaussian
from se_core.networks import build_vae
from se_core.objectives import elbo, gaussian_log_likelihood, reparameterised_sample, se_elbo

V = 0.3
GAMMAS = (0.0, 1e-3, 1.0, 10.0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _problem(batch: int = 5, latent_dim: int = 4) -> tuple[Tensor, DiagonalGaussian, DiagonalGaussian, Tensor]:
    g = _generator(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    q_a = DiagonalGaussian(normal(batch, latent_dim), normal(batch, latent_dim) - 2)
    q_b = DiagonalGaussian(normal(batch, latent_dim), normal(batch, latent_dim) - 2)
    return torch.rand(batch, 1, 3, 3, generator=g, dtype=torch.float64), q_a, q_b, normal(9, latent_dim)


X, Q_A, Q_B, WEIGHT = _problem()


def decoder(z: Tensor) -> Tensor:
    return torch.sigmoid(z @ WEIGHT.T).reshape(-1, 1, 3, 3)


def _as_torch(q: DiagonalGaussian) -> Independent:
    return Independent(Normal(q.mean, torch.exp(q.log_var / 2)), 1)


PRIOR = Independent(Normal(torch.zeros(4, dtype=torch.float64), 1.0), 1)


def test_log_likelihood_is_the_normalised_gaussian() -> None:
    mean = torch.rand(X.shape, generator=_generator(), dtype=torch.float64)
    expected = Independent(Normal(mean, math.sqrt(V)), 3).log_prob(X)
    torch.testing.assert_close(gaussian_log_likelihood(X, mean, V), expected, rtol=1e-13, atol=1e-13)


def test_samples_have_the_standard_deviation_not_the_variance() -> None:
    q = DiagonalGaussian(torch.tensor([[1.0, -2.0]]), torch.tensor([[math.log(9.0), math.log(0.25)]]))
    n = 200_000
    z = reparameterised_sample(DiagonalGaussian(*(p.expand(n, 2) for p in q)), _generator())
    deviation = torch.tensor([3.0, 0.5])
    assert bool(((z.mean(0) - q.mean[0]).abs() < 5 * deviation / math.sqrt(n)).all())
    assert bool(((z.std(0) / deviation - 1).abs() < 5 / math.sqrt(2 * n)).all())


def test_elbo_term_by_term() -> None:
    terms = elbo(X, Q_A, decoder, V, _generator())
    z = reparameterised_sample(Q_A, _generator())
    expected = Independent(Normal(decoder(z), math.sqrt(V)), 3).log_prob(X) - kl_divergence(_as_torch(Q_A), PRIOR)
    torch.testing.assert_close(terms.value, expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(t, torch.zeros_like(t)) for t in terms[2:])


@pytest.mark.parametrize("gamma", GAMMAS)
def test_se_elbo_is_the_sum_that_section_6_prints(gamma: float) -> None:
    """E log p(x|Z_a) + E log p(Z_a) + E log p(Z_b) - WD, in the textbook form, with mu_b where the paper has mu_a."""
    terms = se_elbo(X, Q_A, Q_B, decoder, V, gamma, _generator())
    s_a, s_b = Q_A.log_var.exp(), Q_B.log_var.exp()
    u = torch.sqrt(1 + 4 * gamma**2 * s_a * s_b)
    d_z = 4
    wd = (
        gamma / 2 * ((Q_A.mean - Q_B.mean) ** 2 + s_a + s_b).sum(-1)
        - 0.5 * ((u - 1) - torch.log(u + 1) + torch.log(2 * s_a * s_b)).sum(-1)
        - d_z * math.log(2 * math.pi)
        - d_z
    )
    cross = [-0.5 * (q.mean**2 + q.log_var.exp()).sum(-1) - d_z / 2 * math.log(2 * math.pi) for q in (Q_A, Q_B)]
    expected = terms.log_likelihood + cross[0] + cross[1] - wd
    torch.testing.assert_close(terms.value, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_se_elbo_by_sampling_the_plan(gamma: float) -> None:
    """No closed form at all: draw (z_a, z_b) from the optimal joint Gaussian and average log p and -log Q."""
    s_a, s_b = Q_A.log_var[0].exp(), Q_B.log_var[0].exp()
    psi = (torch.sqrt(1 + 4 * gamma**2 * s_a * s_b) - 1) / (2 * gamma) if gamma else torch.zeros_like(s_a)
    covariance = torch.stack([torch.stack([s_a, psi], -1), torch.stack([psi, s_b], -1)], -2)  # (4, 2, 2)
    plan = torch.distributions.MultivariateNormal(torch.stack([Q_A.mean[0], Q_B.mean[0]], -1), covariance)
    torch.manual_seed(0)
    n = 100_000
    pairs = plan.sample((n,))  # (n, 4, 2)
    z_a, z_b = pairs.unbind(-1)
    draws = PRIOR.log_prob(z_a) + PRIOR.log_prob(z_b) - gamma / 2 * (z_a - z_b).square().sum(-1)
    draws = draws - plan.log_prob(pairs).sum(-1)
    terms = se_elbo(X, Q_A, Q_B, decoder, V, gamma, _generator())
    rest = float((terms.value - terms.log_likelihood)[0])
    assert rest == pytest.approx(float(draws.mean()), abs=5 * float(draws.std()) / math.sqrt(n))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_gap_is_a_sum_of_nonnegative_terms(gamma: float) -> None:
    plain = elbo(X, Q_A, decoder, V, _generator())
    smooth = se_elbo(X, Q_A, Q_B, decoder, V, gamma, _generator())
    assert torch.equal(plain.log_likelihood, smooth.log_likelihood)  # the same draws
    assert all(bool((t >= 0).all()) for t in smooth[1:])
    gap = smooth.kl_fictive + smooth.mutual_information + smooth.transport
    torch.testing.assert_close(plain.value - smooth.value, gap, rtol=1e-12, atol=1e-12)


def test_gamma_zero_is_not_the_elbo() -> None:
    """An erratum by omission: without coupling the bound still pays KL(q(Z|x') || p)."""
    difference = (
        elbo(X, Q_A, decoder, V, _generator()).value - se_elbo(X, Q_A, Q_B, decoder, V, 0.0, _generator()).value
    )
    torch.testing.assert_close(difference, kl_divergence(_as_torch(Q_B), PRIOR), rtol=1e-12, atol=1e-12)


def test_the_decoder_sees_the_same_gradient_under_both_bounds() -> None:
    vae = build_vae("mlp", 1, 4).double()
    x = torch.rand(6, 1, 28, 28, generator=_generator(), dtype=torch.float64)
    x_prime = torch.rand(6, 1, 28, 28, generator=_generator(1), dtype=torch.float64)
    gradients = []
    for gamma in (None, 1.0):
        q = vae.encode(x)
        if gamma is None:
            terms = elbo(x, q, vae.decode, V, _generator(2))
        else:
            terms = se_elbo(x, q, vae.encode(x_prime), vae.decode, V, gamma, _generator(2))
        gradients.append(torch.autograd.grad(terms.value.sum(), tuple(vae.decoder.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_float32_gradients_are_finite_where_encoders_live_and_beyond() -> None:
    for log_var in (-30.0, -8.0, 0.0, 8.0):
        for gamma in (0.0, 1.0, 1e6):
            parameters = [torch.full((2, 4), value, requires_grad=True) for value in (0.5, log_var, 0.5, log_var)]
            q_a, q_b = DiagonalGaussian(*parameters[:2]), DiagonalGaussian(*parameters[2:])
            x = X[:2].float()
            terms = se_elbo(x, q_a, q_b, lambda z, x=x: z.sum(-1)[:, None, None, None] + 0 * x, V, gamma, _generator())
            terms.value.sum().backward()
            assert bool(terms.value.isfinite().all())
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters), (log_var, gamma)


def test_an_empty_batch_has_no_terms() -> None:
    q = DiagonalGaussian(Q_A.mean[:0], Q_A.log_var[:0])
    assert se_elbo(X[:0], q, q, decoder, V, 1.0).value.shape == (0,)


@pytest.mark.parametrize("v", [0.0, -1.0, math.nan, math.inf])
def test_a_noise_variance_that_is_none_is_refused(v: float) -> None:
    with pytest.raises(ValueError, match=r"noise_variance=.* must be a finite number > 0"):
        elbo(X, Q_A, decoder, v)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_a_gamma_that_is_none_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        se_elbo(X, Q_A, Q_B, decoder, V, gamma)


def test_batches_that_differ_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"q must be one Gaussian for each of the 4 images, batch shape \(4,\), got \(5,\)"
    ):
        elbo(X[:4], Q_A, decoder, V)


def test_a_decoder_of_another_shape_is_refused() -> None:
    """(B, 28, 28) against (B, 1, 28, 28) would broadcast to (B, B, 28, 28), silently."""
    with pytest.raises(
        ValueError, match=r"decoder must return images of the shape of x, \(5, 1, 3, 3\), got \(5, 3, 3\)"
    ):
        elbo(X, Q_A, lambda z: decoder(z)[:, 0], V)


COLOUR = torch.rand(5, 3, 2, 2, generator=_generator(2), dtype=torch.float64)


@pytest.mark.parametrize("v", [0.3, torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.1, 0.5, 2.0]).double()])
def test_the_noise_variance_may_be_learned_one_for_all_or_one_a_channel(v: float | Tensor) -> None:
    """Value and derivative of torch.distributions, whose normaliser is part of its graph."""
    mean = torch.rand(COLOUR.shape, generator=_generator(4), dtype=torch.float64)
    ours, theirs = (
        v.clone().requires_grad_() if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64) for _ in range(2)
    )
    scale = (theirs if theirs.ndim == 0 else theirs[:, None, None]).sqrt()
    expected = Independent(Normal(mean, scale), 3).log_prob(COLOUR)
    q = DiagonalGaussian(Q_A.mean, Q_A.log_var)
    found = elbo(COLOUR, q, lambda z: mean, ours if isinstance(v, Tensor) else v).log_likelihood
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    if isinstance(v, Tensor):
        slopes = [torch.autograd.grad(value.sum(), leaf)[0] for value, leaf in ((found, ours), (expected, theirs))]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-12)


def test_the_best_noise_variance_is_the_mean_square() -> None:
    """Where the derivative vanishes: a lost normaliser would push v without end."""
    mean = torch.rand(COLOUR.shape, generator=_generator(4), dtype=torch.float64)
    v = (COLOUR - mean).square().mean((0, 2, 3)).requires_grad_()
    (slope,) = torch.autograd.grad(gaussian_log_likelihood(COLOUR, mean, v).sum(), v)
    torch.testing.assert_close(slope, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("v", "message"),
    [
        (torch.tensor([0.1, 0.2]), r"one for each of the 3 channels, got the shape \(2,\)"),
        (torch.ones(5, 1, 1, 1), r"got the shape \(5, 1, 1, 1\)"),
        (torch.tensor(-0.1), r"noise_variance must be positive, got -0\.1.*log_v\.exp\(\)"),
        (torch.tensor([0.1, 0.2, math.nan]), "noise_variance must be positive, got nan"),
    ],
)
def test_a_tensor_that_is_no_noise_variance_is_refused(v: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        elbo(COLOUR, Q_A, lambda z: COLOUR, v)


ONE_TOO_MANY: dict[str, object] = {
    "(B, 1, D)": DiagonalGaussian(Q_A.mean[:, None], Q_A.log_var[:, None]),
    "(B, C, H, W)": DiagonalGaussian(torch.zeros(5, 4, 2, 2).double(), torch.zeros(5, 4, 2, 2).double()),
    "a bare Normal": Normal(Q_A.mean, 1.0),
    "a bare Normal of one latent": Normal(Q_A.mean[:, :1], 1.0),
    "another batch": DiagonalGaussian(Q_A.mean[:4], Q_A.log_var[:4]),
    "no batch": DiagonalGaussian(Q_A.mean[0], Q_A.log_var[0]),
}


@pytest.mark.parametrize("shape", ONE_TOO_MANY)
def test_posteriors_are_one_for_each_image(shape: str) -> None:
    """Each of these would broadcast to a bound of shape (B, B) or (B, C, H), of another meaning, silently."""
    q = ONE_TOO_MANY[shape]
    with pytest.raises(ValueError, match="q must be one Gaussian for each of the 5 images"):
        elbo(X, q, decoder, V)
    with pytest.raises(ValueError, match="q_b must be one Gaussian for each of the 5 images"):
        se_elbo(X, Q_A, q, decoder, V, 1.0)


def test_distributions_of_torch_are_read() -> None:
    ours, theirs = (
        se_elbo(X, a, b, decoder, V, 2.0, _generator()) for a, b in ((Q_A, Q_B), (_as_torch(Q_A), _as_torch(Q_B)))
    )
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-13, atol=1e-13)
    block = Independent(Normal(Q_A.mean.reshape(5, 2, 2), torch.exp(Q_A.log_var.reshape(5, 2, 2) / 2)), 2)
    assert torch.equal(elbo(X, block, decoder, V, _generator()).value, elbo(X, Q_A, decoder, V, _generator()).value)


def test_gamma_may_differ_between_images_and_nothing_else() -> None:
    gamma = torch.tensor([0.0, 1e-3, 1.0, 10.0, 1e6], dtype=torch.float64)
    together = se_elbo(X, Q_A, Q_B, decoder, V, gamma, _generator()).value
    for i, g in enumerate(gamma.tolist()):
        assert float(together[i]) == pytest.approx(float(se_elbo(X, Q_A, Q_B, decoder, V, g, _generator()).value[i]))
    for wrong in (gamma[:, None], gamma[None], gamma[:4], torch.ones(1).double()):
        with pytest.raises(ValueError, match=r"gamma must be one number or one for each of the 5 images"):
            se_elbo(X, Q_A, Q_B, decoder, V, wrong)


@pytest.mark.parametrize("x", [(255 * X).to(torch.uint8), X > 0.5, X.tolist()])
def test_images_are_floating(x: object) -> None:
    with pytest.raises(TypeError, match="x must hold floating-point pixels"):
        elbo(x, Q_A, decoder, V)


def test_images_and_posteriors_of_two_dtypes_keep_the_digits_of_each() -> None:
    """Images in float64 with an encoder in float32 lose no digit of the likelihood, and the other way round."""
    single = [DiagonalGaussian(*(parameter.float() for parameter in q)) for q in (Q_A, Q_B)]
    same = [DiagonalGaussian(*(parameter.double() for parameter in q)) for q in single]
    noise = torch.randn(Q_A.mean.shape, generator=_generator())

    def decode(z: Tensor) -> Tensor:
        return decoder(z.double()).to(z.dtype)

    terms = se_elbo(X, *single, decode, V, 2.0, noise=noise)
    assert terms.log_likelihood.dtype == terms.value.dtype == torch.float64
    assert all(term.dtype == torch.float32 for term in terms[1:])
    mean = decode(reparameterised_sample(single[0], noise=noise))
    expected = Independent(Normal(mean.double(), math.sqrt(V)), 3).log_prob(X)
    torch.testing.assert_close(terms.log_likelihood, expected, rtol=1e-13, atol=1e-13)
    expected = se_elbo(X, *same, decode, V, 2.0, noise=noise.double()).value
    torch.testing.assert_close(terms.value, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("q", [(Q_A.mean, Q_A.log_var), Q_A.mean, None])
def test_a_posterior_is_a_gaussian(q: object) -> None:
    with pytest.raises(TypeError, match="expected a DiagonalGaussian"):
        elbo(X, q, decoder, V)


def test_a_decoder_of_other_latents_is_told_what_it_was_given() -> None:
    with pytest.raises(RuntimeError) as caught:
        elbo(X, DiagonalGaussian(Q_A.mean[:, :3], Q_A.log_var[:, :3]), decoder, V)
    assert "the decoder was given z of shape (5, 3)" in caught.value.__notes__[0]


def test_noise_drawn_elsewhere_is_the_same_noise() -> None:
    """Of the generator's draws, bit for bit; and of another shape refused."""
    x, vae = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1)), build_vae("mlp", 1, 4)
    for q in (vae.encode(x), vae.encode(x).full()):
        noise = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
        drawn = elbo(x, q, vae.decode, 0.1, torch.Generator().manual_seed(2))
        assert torch.equal(elbo(x, q, vae.decode, 0.1, noise=noise).log_likelihood, drawn.log_likelihood)
        with pytest.raises(ValueError, match=r"noise must have the shape \(6, 4\), got \(6, 3\)"):
            elbo(x, q, vae.decode, 0.1, noise=noise[:, :3])
