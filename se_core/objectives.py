"""The ELBO and the smooth encoder's SE-ELBO (sections 1 and 6), in nats per example.

The paper writes the SE-ELBO as E log p(x|Z_a) + E log p(Z_a) + E log p(Z_b) - WD_{2,gamma}. With
WD = gamma/2 W^2_{2,gamma} + I(Z_a; Z_b) - H(q_a) - H(q_b), and H(q) + E_q log p = -KL(q||p), the same number is

    SE-ELBO = E log p(x|Z_a) - KL(q_a||p) - KL(q_b||p) - I(Z_a; Z_b) - gamma/2 W^2_{2,gamma}.

Each term below is nonnegative but the likelihood, so nothing large cancels; and ELBO - SE-ELBO, the sum of the last
three, is nonnegative term by term.

Beyond the paper, the same plan serves the paired prior of `se_core.paired_prior`, whose bound can be tight; and the
autoencoding VAE couples q(Z|x) with what its encoder makes of its own decoder's image.

The posteriors may be diagonal, as in section 6, or full, for which the paper derives eq. 18 and then has no use.
`LinearGaussianModel` is the case in which log p(x) and every expectation are exact, so that the bounds can be seen to
hold.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.gaussians import DiagonalGaussian, FullGaussian, Gaussian, GaussianLike, as_gaussian, kl_divergence
from se_core.paired_prior import paired_correlation as paired_correlation
from se_core.paired_prior import paired_terms
from se_core.transport import transport_terms

Decoder = Callable[[Tensor], Tensor]
Encoder = Callable[[Tensor], GaussianLike]
Prior = Literal["independent", "paired"]


class ElboTerms(NamedTuple):
    """The terms of a bound, each of shape (B,), in nats. Those of the coupling are zero for the plain ELBO.

    The comments are for the paper's prior. Under the paired one E KL(Q(z_b|Z_a) || N(rho Z_a, (1 - rho^2) I)) is split
    as in eq. 8: `kl_fictive` is the part of the covariances; `transport` that of the means, the expected squared
    distance from rho Z_a to E(Z_b|Z_a) over 2 (1 - rho^2). `mutual_information` is zero: the prior has some itself, and
    what the plan has more or less of it is in `kl_fictive`. Either way no term but the likelihood is negative.
    """

    log_likelihood: Tensor  # E log p(x | Z_a), one reparameterised draw
    kl: Tensor  # KL(q(Z | x) || p)
    kl_fictive: Tensor  # KL(q(Z | x') || p)
    mutual_information: Tensor  # I(Z_a; Z_b) under the optimal plan
    transport: Tensor  # gamma/2 E ||Z_a - Z_b||^2 under the optimal plan

    @property
    def value(self) -> Tensor:
        """The bound on log p(x), shape (B,)."""
        return self.log_likelihood - self.kl - self.kl_fictive - self.mutual_information - self.transport


def reparameterised_sample(
    q: GaussianLike, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> Tensor:
    """z = mean + scale noise, (..., D); differentiable in both (Kingma and Welling, 2013). noise: as drawn before."""
    q = as_gaussian(q)
    shape = q.mean.shape if isinstance(q, DiagonalGaussian) else (*q.mean.shape[:-1], q.scale.shape[-1])
    if noise is None:
        noise = torch.randn(shape, generator=generator, device=q.mean.device, dtype=q.mean.dtype)
    elif noise.shape != shape:
        raise InvalidValueError(f"noise must have the shape {tuple(shape)}, got {tuple(noise.shape)}")
    if isinstance(q, DiagonalGaussian):
        return q.mean + torch.exp(q.log_var / 2) * noise
    return q.mean + (q.scale @ noise[..., None])[..., 0]


def gaussian_log_likelihood(x: Tensor, mean: Tensor, noise_variance: float | Tensor) -> Tensor:
    """log N(x; mean, v I) summed over pixels: x and mean (B, ...) -> (B,), in nats, section 6.

    noise_variance: v > 0, a number or a tensor to be learned: one value, or one for each channel, shape (C,), where x
    is (B, C, ...).
    """
    log: Any = torch.log if isinstance(noise_variance, Tensor) else math.log
    groups = noise_variance.numel() if isinstance(noise_variance, Tensor) else 1
    squares = (x - mean).square().flatten(1).unflatten(1, (groups, -1))
    by_group = squares.sum(-1) / noise_variance + squares.shape[-1] * log(2 * math.pi * noise_variance)
    return -0.5 * by_group.sum(-1)


def elbo(
    x: Tensor,
    q: GaussianLike,
    decoder: Decoder,
    noise_variance: float | Tensor,
    generator: torch.Generator | None = None,
    *,
    noise: Tensor | None = None,
) -> ElboTerms:
    """The evidence lower bound B_x(eta, theta) of section 1.

    x: (B, ...) in [0, 1]; q: q(Z | x), a batch of B Gaussians, mean (B, latent_dim), or distributions of torch that
    `as_gaussian` reads; decoder: z (B, latent_dim) -> mean image, the shape of x; noise_variance: v > 0, one number or
    one a channel, which may be learned. Only the likelihood is sampled (one draw, from `generator` or, under
    `torch.compile`, to which generators are opaque, by `noise` (B, latent_dim)), the KL is exact. Where x and q differ
    in dtype, as under autocast, the KL has that of q, and the likelihood what torch promotes x and the image to.

    Raises InvalidTypeError for an x that is not floating and a q that is no Gaussian; InvalidValueError for a v that is
    not positive (of a tensor, the values are looked at on the CPU only) or has another shape, a q that is not one
    Gaussian for each image, and a decoded image of another shape than x.
    """
    return _elbo_and_its_draw(x, q, decoder, noise_variance, generator, noise)[0]


def se_elbo(
    x: Tensor,
    q_a: GaussianLike,
    q_b: GaussianLike,
    decoder: Decoder,
    noise_variance: float | Tensor,
    gamma: float | Tensor,
    generator: torch.Generator | None = None,
    *,
    noise: Tensor | None = None,
    prior: Prior = "independent",
) -> ElboTerms:
    """The SE-ELBO of section 6 (with mu_a - mu_b where the paper prints mu_a - mu_a).

    q_a = q(Z | x), q_b = q(Z | x') for a fictive x'; gamma >= 0 the coupling strength, one or one for each image, shape
    (B,); the rest as in `elbo`, with whose likelihood term (the same draws of the same generator) and KL it agrees
    exactly. Note that gamma = 0 still pays KL(q_b || p): it is not the ELBO. prior="paired" puts the paired prior, of
    correlation `paired_correlation(gamma)`, in place of the paper's field; at gamma = 0 they agree. Raises what `elbo`
    raises, the same for q_b and gamma, and InvalidValueError for another prior.
    """
    if prior not in ("independent", "paired"):
        raise InvalidValueError(f'prior={prior!r} must be "independent", as in the paper, or "paired"')
    terms = elbo(x, q_a, decoder, noise_variance, generator, noise=noise)
    q_b = _one_for_each_image("q_b", q_b, x)
    if isinstance(gamma, Tensor) and gamma.shape not in ((), (len(x),)):
        raise InvalidValueError(
            f"gamma must be one number or one for each of the {len(x)} images, shape ({len(x)},), got "
            f"{tuple(gamma.shape)}; flatten it"
        )
    if prior == "paired":
        covariance, mean = paired_terms(q_a, q_b, gamma)
        return ElboTerms(terms.log_likelihood, terms.kl, covariance, terms.mutual_information, mean)
    cost, information = transport_terms(q_a, q_b, gamma)
    kl_fictive = kl_divergence(q_b, _standard_normal(q_b))
    return ElboTerms(terms.log_likelihood, terms.kl, kl_fictive, information, 0.5 * gamma * cost)


def autoencoding_elbo(
    x: Tensor,
    q: GaussianLike,
    encoder: Encoder,
    decoder: Decoder,
    noise_variance: float | Tensor,
    rho: float,
    generator: torch.Generator | None = None,
) -> ElboTerms:
    """The bound of the autoencoding VAE (Cemgil, Ghaisas, Dvijotham, Gowal and Kohli, 2020), in nats per example.

        E log p(x|Z) - KL(q(Z|x) || p) - E KL(q(Z'|X~) || N(rho Z, (1 - rho^2) I)),    Z ~ q(Z|x), X~ decoded from Z.

    (Z, Z') has the paired prior of correlation 0 <= rho < 1, but X~ is the model's own image instead of an adversary's,
    and Z' meets Z through it instead of by an optimal plan. encoder: images, the shape of x, -> a batch of B Gaussians;
    the rest as in `elbo`, with whose two terms (the same draws of the same generator) it agrees exactly. The last term,
    exact given the draw of Z, is `kl_fictive`; `mutual_information` and `transport` are zero.

    X~ is the mean image, as in the authors' code: the noise of p(X|Z) at v = 0.1 leaves [0, 1]. The law of X~ given Z
    stands in the model and in Q alike and cancels, so that any is a bound; for a sample of p(X|Z), as in their paper,
    let `encoder` add the noise. No gradient flows through X~, as there: the decoder is not trained by the last term.
    (Their code takes Z and Z' in it as independent, which forgoes what the chain from Z to Z' correlates.)

    Raises what `elbo` raises, the same for the Gaussians of the encoder, and InvalidValueError for another rho.
    """
    if not 0 <= rho < 1:
        raise InvalidValueError(f"rho={rho} must be a correlation in [0, 1): paired_correlation(gamma) gives one")
    terms, z, image = _elbo_and_its_draw(x, q, decoder, noise_variance, generator)
    q_b = _one_for_each_image("encoder(image)", encoder(image.detach()), x)
    prior = DiagonalGaussian(rho * z, torch.full_like(z, math.log1p(-rho * rho)))
    return terms._replace(kl_fictive=kl_divergence(q_b, prior))


def _elbo_and_its_draw(
    x: Tensor,
    q: GaussianLike,
    decoder: Decoder,
    noise_variance: float | Tensor,
    generator: torch.Generator | None,
    noise: Tensor | None = None,
) -> tuple[ElboTerms, Tensor, Tensor]:
    """The ELBO, the z at which its likelihood was taken, and the mean image there."""
    check_images(x)
    _check_noise_variance(noise_variance, x)
    q = _one_for_each_image("q", q, x)
    z = reparameterised_sample(q, generator, noise)
    image = _decoded(decoder, z, x)
    log_likelihood = gaussian_log_likelihood(x, image, noise_variance)
    zero = torch.zeros_like(log_likelihood)
    return ElboTerms(log_likelihood, kl_divergence(q, _standard_normal(q)), zero, zero, zero), z, image


def _standard_normal(q: Gaussian) -> DiagonalGaussian:
    return DiagonalGaussian(torch.zeros_like(q.mean), torch.zeros_like(q.mean))


def _decoded(decoder: Decoder, z: Tensor, x: Tensor) -> Tensor:
    try:
        mean = decoder(z)
    except RuntimeError as error:
        error.add_note(
            f"the decoder was given z of shape {tuple(z.shape)}: q's event dimensions, flattened, a row each"
        )
        raise
    if mean.shape != x.shape:
        raise InvalidValueError(
            f"decoder must return images of the shape of x, {tuple(x.shape)}, got {tuple(mean.shape)}"
        )
    return mean


def check_images(x: Tensor) -> None:
    """Refuse, with an InvalidTypeError, what holds no floating-point pixels."""
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InvalidTypeError(
            f"x must hold floating-point pixels, got {kind}; scale images to [0, 1] (divide uint8 by 255)"
        )


def _one_for_each_image(name: str, q: GaussianLike, x: Tensor) -> Gaussian:
    gaussian = as_gaussian(q)
    batch = gaussian.mean.shape[:-1]
    if batch != x.shape[:1]:
        raise InvalidValueError(
            f"{name} must be one Gaussian for each of the {len(x)} images, batch shape ({len(x)},), got "
            f"{tuple(batch)} and D = {gaussian.mean.shape[-1]}; encode the same batch, flatten latents "
            "into one dimension, and wrap a bare Normal in Independent(normal, 1)"
        )
    return q if isinstance(q, DiagonalGaussian | FullGaussian) else gaussian


def _check_noise_variance(v: float | Tensor, x: Tensor) -> None:
    if not isinstance(v, Tensor):
        if not (math.isfinite(v) and v > 0):
            raise InvalidValueError(f"noise_variance={v} must be a finite number > 0: the v of p(X|Z) = N(g(Z), v I)")
        return
    if v.shape not in ((), x.shape[1:2]):
        raise InvalidValueError(
            f"noise_variance must be one number or one for each of the {x.shape[1]} channels, got the shape "
            f"{tuple(v.shape)}"
        )
    if v.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((v > 0).all()):
        raise InvalidValueError(
            f"noise_variance must be positive, got {float(v.detach().min()):.9g}; learn its logarithm: log_v.exp()"
        )


class LinearGaussianModel(NamedTuple):
    """p(z) = N(0, I), p(x|z) = N(W z + bias, v I): the model whose evidence is known (probabilistic PCA).

    Attributes:
        weight: W, shape (D_x, D_z).
        bias: shape (D_x,).
        noise_variance: v > 0.
    """

    weight: Tensor
    bias: Tensor
    noise_variance: float

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; bias, W W^T + v I) in nats: x (..., D_x) -> (...,)."""
        identity = torch.eye(len(self.bias), dtype=x.dtype, device=x.device)
        covariance = self.weight @ self.weight.mT + self.noise_variance * identity
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> FullGaussian:
        """p(z|x), at which the ELBO is log p(x) itself: x (..., D_x) -> D_z-dimensional."""
        identity = torch.eye(self.weight.shape[1], dtype=x.dtype, device=x.device)
        precision = identity + self.weight.mT @ self.weight / self.noise_variance
        root = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(((x - self.bias) @ self.weight / self.noise_variance)[..., None], root)[..., 0]
        return FullGaussian(mean, torch.linalg.solve_triangular(root.mT, identity, upper=True).expand(*mean.shape, -1))

    def expected_log_likelihood(self, x: Tensor, q: Gaussian) -> Tensor:
        """E_q log p(x|z) without sampling: the value at the mean, less Tr(W Sigma W^T) / (2 v)."""
        scale = q.full().scale if isinstance(q, DiagonalGaussian) else q.scale
        spread = (self.weight @ scale).square().sum((-2, -1)) / (2 * self.noise_variance)
        x, mean = torch.broadcast_tensors(x, q.mean @ self.weight.mT + self.bias)
        rows, means = x.reshape(-1, len(self.bias)), mean.reshape(-1, len(self.bias))
        at_mean = gaussian_log_likelihood(rows, means, self.noise_variance)
        return at_mean.reshape(x.shape[:-1]) - spread

    def se_elbo(
        self, x: Tensor, q_a: Gaussian, q_b: Gaussian, gamma: float | Tensor, prior: Prior = "independent"
    ) -> ElboTerms:
        """The SE-ELBO with an exact likelihood term; x (B, D_x). Its ELBO is `log_likelihood - kl`."""
        v = self.noise_variance
        terms = se_elbo(x, q_a, q_b, lambda z: z @ self.weight.mT + self.bias, v, gamma, prior=prior)
        return terms._replace(log_likelihood=self.expected_log_likelihood(x, q_a))
