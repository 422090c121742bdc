"""The autoencoding VAE's bound, on the linear-Gaussian model with a linear encoder, where its expectation is exact.

Q(z, x~, z') = q(z|x) r(x~|z) q(z'|x~) stands against the model p(z) p(x|z) r(x~|z) N(z'; rho z, 1 - rho^2): r cancels,
whatever it is, and x~ and z' integrate out of the model. So this is a bound of log p(x), with the gap
KL(q(z|x) || p(z|x)) plus the last term.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from se_core.gaussians import DiagonalGaussian, FullGaussian, Gaussian, kl_divergence
from se_core.networks import build_vae
from se_core.objectives import LinearGaussianModel, autoencoding_elbo, elbo, reparameterised_sample

V = 0.4
RHOS = (0.0, 0.5, 0.975, 0.999)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _model(g: torch.Generator) -> LinearGaussianModel:
    return LinearGaussianModel(_normal(g, 5, 3), _normal(g, 5), V)


def _linear_encoder(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """F, f and log-variances: q(z|x) = N(F x + f, diag)."""
    return 0.4 * _normal(g, 3, 5), _normal(g, 3), _normal(g, 3) - 1


def _exact_last_term(
    model: LinearGaussianModel, q: Gaussian, f: Tensor, shift: Tensor, s: Tensor, rho: float, noise: float
) -> Tensor:
    """E KL(N(F X~ + f, s) || N(rho Z, 1 - rho^2)) for Z ~ q and X~ ~ N(W Z + bias, noise I), by moments."""
    open_ = 1 - rho**2
    of_z = f @ model.weight - rho * torch.eye(3, dtype=torch.float64)
    mean = q.mean @ of_z.mT + model.bias @ f.mT + shift
    spread = (of_z @ q.covariance @ of_z.mT).diagonal(dim1=-2, dim2=-1).sum(-1) + noise * f.square().sum()
    stein = s.diagonal().sum() / open_ - 3 - torch.logdet(s / open_)
    return (stein + (mean.square().sum(-1) + spread) / open_) / 2


@pytest.mark.parametrize("rho", RHOS)
def test_the_last_term_of_the_exact_encoder_is_its_closed_form(rho: float) -> None:
    """With S the posterior's covariance, o = 1 - rho^2 and K = (1 - rho) I - S, twice the last term is
    Tr S/o - D - log det S/o + [mu^T K^2 mu + Tr K^2 S + Tr(S - S^2)] / o; the last trace is due to the noise of X~."""
    g, n = _generator(0), 40_000
    model = _model(g)
    x = _normal(g, 1, 5)
    q = model.posterior(x)
    s, identity = q.covariance[0], torch.eye(3, dtype=torch.float64)
    k = (1 - rho) * identity - s
    terms = {}
    for noise in (0.0, V):
        draws = autoencoding_elbo(
            x.expand(n, 5),
            model.posterior(x.expand(n, 5)),
            lambda image, noise=noise: model.posterior(image + math.sqrt(noise) * _normal(g, n, 5)),
            lambda z: z @ model.weight.mT + model.bias,
            V,
            rho,
            _generator(1),
        ).kl_fictive
        square = q.mean[0] @ k @ k @ q.mean[0] + (k @ k @ s).trace() + (noise > 0) * (s - s @ s).trace()
        stein = s.trace() / (1 - rho**2) - 3 - torch.logdet(s / (1 - rho**2))
        expected = float(stein + square / (1 - rho**2)) / 2
        assert float(draws.mean()) == pytest.approx(expected, abs=5 * float(draws.std()) / math.sqrt(n))
        f = s @ model.weight.mT / V
        by_moments = _exact_last_term(model, q, f, -f @ model.bias, s, rho, noise)
        assert float(by_moments) == pytest.approx(expected, rel=1e-10)
        terms[noise] = expected
    assert terms[V] > terms[0.0]


@pytest.mark.parametrize("noise", [0.0, V], ids=["mean image", "sample"])
def test_it_is_a_bound_whatever_the_law_of_the_image(noise: float) -> None:
    """Three hundred models and encoders, every expectation exact: the gap is KL(q || posterior) + the last term."""
    for seed in range(300):
        g = _generator(seed)
        model, (f, shift, log_var) = _model(g), _linear_encoder(g)
        x = 2 * _normal(g, 5, 5)
        q = DiagonalGaussian(x @ f.mT + shift, log_var.expand(5, 3))
        rho = float(torch.rand((), generator=g))
        last = _exact_last_term(model, q, f, shift, torch.diag(log_var.exp()), rho, noise)
        standard = DiagonalGaussian(torch.zeros(3).double(), torch.zeros(3).double())
        value = model.expected_log_likelihood(x, q) - kl_divergence(q, standard) - last
        evidence = model.log_evidence(x)
        assert bool((last >= 0).all())
        assert bool((value <= evidence).all())
        gap = kl_divergence(q, model.posterior(x)) + last
        torch.testing.assert_close(evidence - value, gap, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("noise", [0.0, V], ids=["mean image", "sample"])
def test_the_sampled_terms_have_those_expectations(noise: float, rho: float) -> None:
    g, n = _generator(2), 40_000
    model, (f, shift, log_var) = _model(g), _linear_encoder(g)
    x = _normal(g, 1, 5)

    def encoder(image: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(image @ f.mT + shift, log_var.expand(len(image), 3))

    terms = autoencoding_elbo(
        x.expand(n, 5),
        encoder(x.expand(n, 5)),
        lambda image: encoder(image + math.sqrt(noise) * _normal(g, n, 5)),
        lambda z: z @ model.weight.mT + model.bias,
        V,
        rho,
        _generator(3),
    )
    last = _exact_last_term(model, encoder(x), f, shift, torch.diag(log_var.exp()), rho, noise)
    for draws, exact in (
        (terms.kl_fictive, last),
        (terms.log_likelihood, model.expected_log_likelihood(x, encoder(x))),
    ):
        assert float(draws.mean()) == pytest.approx(float(exact), abs=5 * float(draws.std()) / math.sqrt(n))
    assert float(terms.value.mean()) < float(model.log_evidence(x)) + 5 * float(terms.value.std()) / math.sqrt(n)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_term_by_term_against_torch(kind: str) -> None:
    g = _generator(4)
    model, x, rho = _model(g), _normal(g, 6, 5), 0.9
    scale = _normal(g, 3, 3) + 2 * torch.eye(3, dtype=torch.float64)

    def encoder(image: Tensor) -> Gaussian:
        mean = torch.tanh(image[:, :3])
        if kind == "diagonal":
            return DiagonalGaussian(mean, -mean.square() - 1)
        return FullGaussian(mean, scale.expand(len(image), 3, 3))

    def decoder(z: Tensor) -> Tensor:
        return z @ model.weight.mT + model.bias

    terms = autoencoding_elbo(x, encoder(x), encoder, decoder, V, rho, _generator(5))
    plain = elbo(x, encoder(x), decoder, V, _generator(5))
    z = reparameterised_sample(encoder(x), _generator(5))
    q_b = encoder(decoder(z))
    ours = MultivariateNormal(q_b.mean, q_b.covariance)
    prior = MultivariateNormal(rho * z, (1 - rho**2) * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(terms.kl_fictive, torch_kl(ours, prior), rtol=1e-11, atol=1e-11)
    assert torch.equal(terms.log_likelihood, plain.log_likelihood)  # the same draws
    assert torch.equal(terms.kl, plain.kl)
    assert all(bool((term == 0).all()) for term in terms[3:])
    torch.testing.assert_close(terms.value, plain.value - terms.kl_fictive, rtol=0, atol=0)


def test_the_decoder_does_not_learn_from_the_last_term_and_the_encoder_does() -> None:
    vae = build_vae("mlp", 1, 4)
    x = torch.rand(6, 1, 28, 28, generator=_generator(6))
    terms = autoencoding_elbo(x, vae.encode(x), vae.encode, vae.decode, 0.1, 0.975, _generator(7))
    plain = elbo(x, vae.encode(x), vae.decode, 0.1, _generator(7))
    weights = tuple(vae.decoder.parameters())
    found, expected = (torch.autograd.grad(t.value.sum(), weights, retain_graph=True) for t in (terms, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    learned = torch.autograd.grad(terms.kl_fictive.sum(), tuple(vae.encoder.parameters()))
    assert all(bool(p.isfinite().all()) and bool(p.any()) for p in learned)


def test_gradients_reach_both_ends_of_the_last_term() -> None:
    """Z through its reparameterisation, Z' through the encoder's parameters; the image between them is a constant."""
    g = _generator(8)
    x, mean, gain = _normal(g, 4, 5), _normal(g, 4, 3).requires_grad_(), torch.tensor(0.5).double().requires_grad_()
    weight, rho = _normal(g, 5, 3), 0.8
    log_var = torch.full_like(mean, -1.0)

    def encoder(image: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(gain * image[:, :3], log_var)

    q = DiagonalGaussian(mean, log_var)
    terms = autoencoding_elbo(x, q, encoder, lambda z: z @ weight.mT, V, rho, _generator(9))
    found = torch.autograd.grad(terms.kl_fictive.sum(), (mean, gain))
    z = reparameterised_sample(DiagonalGaussian(mean.detach(), log_var), _generator(9))
    image = (z @ weight.mT)[:, :3]
    misfit = (gain.detach() * image - rho * z) / (1 - rho**2)
    torch.testing.assert_close(found[0], -rho * misfit, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], (misfit * image).sum(), rtol=1e-12, atol=1e-12)


def test_float32_up_to_a_correlation_of_one() -> None:
    """The prior's variance 1 - rho^2 is that of the rho given, not of its neighbour in float32."""
    mean = torch.tensor([[0.3, -0.2]])
    for rho in (1e-9, 0.5, 0.999, 1 - 1e-9):
        q = DiagonalGaussian(mean, torch.full((1, 2), -80.0))  # all but a point
        image = DiagonalGaussian(rho * mean, torch.full((1, 2), math.log(1 - rho**2)))
        terms = autoencoding_elbo(mean, q, lambda _, image=image: image, lambda z: z, V, rho, _generator(10))
        assert float(terms.kl_fictive) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rho", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_a_rho_that_is_no_correlation_is_refused(rho: float) -> None:
    x = torch.zeros(2, 3)
    q = DiagonalGaussian(x, x)
    with pytest.raises(ValueError, match=r"rho=.* must be a correlation in \[0, 1\): paired_correlation"):
        autoencoding_elbo(x, q, lambda image: q, lambda z: z, V, rho)


def test_what_the_encoder_returns_is_looked_at() -> None:
    x = torch.zeros(2, 3)
    q = DiagonalGaussian(x, x)
    one = Independent(Normal(x[:1], 1.0), 1)
    with pytest.raises(ValueError, match=r"encoder\(image\) must be one Gaussian for each of the 2 images"):
        autoencoding_elbo(x, q, lambda image: one, lambda z: z, V, 0.5)
    with pytest.raises(TypeError, match="expected a DiagonalGaussian"):
        autoencoding_elbo(x, q, lambda image: image, lambda z: z, V, 0.5)
    with pytest.raises(ValueError, match="noise_variance"):
        autoencoding_elbo(x, q, lambda image: q, lambda z: z, -1.0, 0.5)
    with pytest.raises(TypeError, match="x must hold floating-point pixels"):
        autoencoding_elbo(x > 0, q, lambda image: q, lambda z: z, V, 0.5)
