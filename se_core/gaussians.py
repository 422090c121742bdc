"""Gaussian distributions as data, with their entropy and Kullback-Leibler divergence.

Two families are enough for the paper: the factorised Gaussian of its section 6, which encoders emit, and the general
one of its section 5, kept as a square-root factor so that the covariance may be singular and nothing is ever inverted
without need. Leading dimensions are batch dimensions and broadcast. Entropies and divergences are in nats, computed in
the dtype of the distributions, whatever `torch.autocast` says (but call `backward` outside of it, as torch asks). An
example that is not finite is so in its own row only.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from se_core.errors import InvalidTypeError, InvalidValueError

LOG_2_PI_E = math.log(2 * math.pi * math.e)


class FullGaussian(NamedTuple):
    """A Gaussian N(mean, scale @ scale.mT); the covariance may be singular.

    Attributes:
        mean: shape (..., D).
        scale: shape (..., D, R), any square-root factor of the covariance. It need be neither triangular nor square;
            R < D gives a covariance of rank at most R.
    """

    mean: Tensor
    scale: Tensor

    @property
    def covariance(self) -> Tensor:
        """The covariance matrix, shape (..., D, D)."""
        with full_precision(self.scale):
            return self.scale @ self.scale.mT

    def full(self) -> "FullGaussian":
        """The distribution itself."""
        return self

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> "FullGaussian":
        """The Gaussian with this covariance, shape (..., D, D), factored by its symmetric eigendecomposition.

        Works for singular covariances, where a Cholesky factorisation fails. The gradient with respect to
        `covariance` needs distinct positive eigenvalues; where that matters, parametrise by `scale` instead.

        Raises:
            InvalidValueError: if the covariance is not square, not finite, not symmetric, or has a negative eigenvalue,
                beyond rounding; if the mean has another dimension.
        """
        if covariance.ndim < 2 or not covariance.shape[-1] == covariance.shape[-2] == mean.shape[-1]:
            raise InvalidValueError(
                f"mean must have shape (..., D) and covariance (..., D, D), got {tuple(mean.shape)} and "
                f"{tuple(covariance.shape)}"
            )
        size = torch.linalg.matrix_norm(covariance, math.inf)
        rounding = covariance.shape[-1] * torch.finfo(covariance.dtype).eps * size
        asymmetry = torch.linalg.matrix_norm(covariance - covariance.mT, math.inf)
        remedy = "pass (S + S.mT) / 2 if the asymmetry is only rounding"
        _refuse(~size.isfinite(), "covariance must be finite, got the norm", size, "leave that example out")
        _refuse(asymmetry > rounding, "covariance must be symmetric, got ||S - S^T|| of", asymmetry, remedy)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        lowest, remedy = eigenvalues[..., 0], "a covariance holds variances and is never negative"
        _refuse(lowest < -rounding, "covariance must be positive semi-definite, got an eigenvalue of", lowest, remedy)
        return cls(mean, eigenvectors * eigenvalues.clamp(min=0).sqrt()[..., None, :])


class DiagonalGaussian(NamedTuple):
    """A Gaussian with independent coordinates, N(mean, diag(exp(log_var))).

    Attributes:
        mean: shape (..., D).
        log_var: shape (..., D), the logarithm of the variance (not of the standard deviation).
    """

    mean: Tensor
    log_var: Tensor

    @property
    def covariance(self) -> Tensor:
        """The covariance matrix, shape (..., D, D)."""
        return torch.diag_embed(self.log_var.exp())

    def full(self) -> FullGaussian:
        """The same distribution with a full scale factor."""
        return FullGaussian(self.mean, torch.diag_embed((self.log_var / 2).exp()))


Gaussian = DiagonalGaussian | FullGaussian
GaussianLike = Gaussian | Distribution  # what `as_gaussian` reads


def as_gaussian(distribution: GaussianLike) -> Gaussian:
    """Read a `torch.distributions` object as one of our two families; ours are checked, their batches broadcast.

    `Independent(Normal(...), n)`, nested or not, and `Normal` become a `DiagonalGaussian`; `MultivariateNormal` and
    `LowRankMultivariateNormal` (by the factor [W, diag(sqrt(d))]) become a `FullGaussian`. Event and batch dimensions
    keep their meaning: the last n dimensions of `Independent` are flattened into D, and a bare `Normal` is a batch of
    scalars, D = 1 (wrap it in `Independent(normal, 1)` to make its last dimension the event).

    Raises:
        InvalidTypeError: for any other object.
        InvalidValueError: if the shapes of mean and log_var or scale do not belong together.
    """
    if isinstance(distribution, DiagonalGaussian):
        _check_fields(distribution, distribution.mean, distribution.log_var, "log_var", (-1,))
        batch = batch_shape(distribution)
        return DiagonalGaussian(distribution.mean.expand(*batch, -1), distribution.log_var.expand(*batch, -1))
    if isinstance(distribution, FullGaussian):
        _check_fields(distribution, distribution.mean, distribution.scale, "scale", (-2, -1))
        batch = batch_shape(distribution)
        return FullGaussian(distribution.mean.expand(*batch, -1), distribution.scale.expand(*batch, -1, -1))
    base, event = distribution, 0
    while isinstance(base, Independent):
        base, event = base.base_dist, event + base.reinterpreted_batch_ndims
    if isinstance(base, Normal):
        loc, scale = (x.flatten(-event) if event else x[..., None] for x in (base.loc, base.scale))
        return DiagonalGaussian(loc, 2 * scale.log())
    if isinstance(base, MultivariateNormal) and event == 0:
        return FullGaussian(base.loc, base.scale_tril)
    if isinstance(base, LowRankMultivariateNormal) and event == 0:
        return FullGaussian(base.loc, torch.cat([base.cov_factor, torch.diag_embed(base.cov_diag.sqrt())], -1))
    raise InvalidTypeError(_remedy(distribution))


def _remedy(distribution: object) -> str:
    got, remedy = type(distribution).__name__, "match its moments: DiagonalGaussian(mean, variance.log())"
    if isinstance(distribution, Independent):
        got += f"({type(distribution.base_dist).__name__}, {distribution.reinterpreted_batch_ndims})"
        remedy = "give its joint mean and factor: FullGaussian(mean, scale)"
    elif isinstance(distribution, Tensor | tuple | list):
        remedy = "wrap it: DiagonalGaussian(mean, log_var)"
    return (
        "expected a DiagonalGaussian, a FullGaussian, or a Normal, Independent(Normal), MultivariateNormal or "
        f"LowRankMultivariateNormal of torch.distributions, got {got}; {remedy}"
    )


def matched(a: GaussianLike, b: GaussianLike) -> tuple[Gaussian, Gaussian]:
    """Both distributions, read by `as_gaussian` and checked to fit together.

    Raises:
        InvalidTypeError: if one of them is no Gaussian, or if their dtypes differ.
        InvalidValueError: if their dimensions, devices or batch shapes do not fit.
    """
    a, b = as_gaussian(a), as_gaussian(b)
    if a.mean.shape[-1] != b.mean.shape[-1]:
        dimensions = f"{a.mean.shape[-1]} and {b.mean.shape[-1]}"
        raise InvalidValueError(f"a and b must have the same dimension D, got {dimensions}; encode both alike")
    if a.mean.dtype != b.mean.dtype:
        dtypes = f"{a.mean.dtype} and {b.mean.dtype}"
        raise InvalidTypeError(f"a and b must have the same dtype, got {dtypes}; convert one with .to")
    if a.mean.device != b.mean.device:
        devices = f"{a.mean.device} and {b.mean.device}"
        raise InvalidValueError(f"a and b must be on one device, got {devices}; move one with .to")
    batch_shape(a, b)
    return a, b


def batch_shape(*distributions: Gaussian) -> torch.Size:
    """The shape to which all leading dimensions broadcast.

    Raises:
        InvalidValueError: if they do not.
    """
    shapes = [q.mean.shape[:-1] for q in distributions]
    shapes += [q.log_var.shape[:-1] if isinstance(q, DiagonalGaussian) else q.scale.shape[:-2] for q in distributions]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError as error:
        listed = ", ".join(str(tuple(shape)) for shape in shapes)
        message = f"leading dimensions must broadcast, got the batch shapes {listed}; add ones of size 1 with [:, None]"
        raise InvalidValueError(message) from error


def entropy(q: GaussianLike) -> Tensor:
    """Differential entropy in nats, shape (...,); -inf where the covariance is singular.

    It is the marginal entropy in eq. 15 of the paper.
    """
    q = as_gaussian(q)
    if isinstance(q, DiagonalGaussian):
        return (q.log_var + LOG_2_PI_E).sum(-1) / 2
    log_volume = torch.linalg.slogdet(square_factor(q.scale)).logabsdet
    return log_volume + q.scale.shape[-2] * LOG_2_PI_E / 2


class KLTerms(NamedTuple):
    """The two terms of eq. 8, each of shape (...,), in nats: their sum is the divergence.

    Attributes:
        covariance: half the log-det (Stein, matrix Itakura-Saito) divergence of the covariances, free of scale.
        mean: half the squared Mahalanobis distance of the means in the metric of b.
    """

    covariance: Tensor
    mean: Tensor


def kl_terms(a: GaussianLike, b: GaussianLike) -> KLTerms:
    """KL(a || b) split into its scale-invariant part and its Mahalanobis part, eq. 8.

    The first is +inf where either covariance is singular (the supports of two singular Gaussians are not compared), the
    second where that of b is.
    """
    a, b = matched(a, b)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        covariance = _itakura_saito(a.log_var - b.log_var)
        mean = ((a.mean - b.mean) * (-b.log_var / 2).exp()).square()  # in this order it overflows last
        return KLTerms(covariance.sum(-1) / 2, mean.sum(-1) / 2)
    return _full_kl_terms(a.full(), b.full())


def kl_divergence(a: GaussianLike, b: GaussianLike) -> Tensor:
    """Kullback-Leibler divergence KL(a || b) in nats, shape (...,), eq. 8."""
    terms = kl_terms(a, b)
    return terms.covariance + terms.mean


def _itakura_saito(log_ratio: Tensor) -> Tensor:
    """exp(d) - 1 - d, the Itakura-Saito divergence of two variances of ratio exp(d).

    The printed form loses every digit near d = 0, where an unused latent lives. There we sum the series
    d^2/2 (1 + d/3 (1 + d/4 (...))), to the last bit of float64 for |d| <= 1/2.
    """
    near = log_ratio.clamp(-0.5, 0.5)
    series = torch.ones_like(near)
    for k in range(15, 2, -1):
        series = 1 + near / k * series
    return torch.where(log_ratio.abs() < 0.5, near.square() / 2 * series, torch.expm1(log_ratio) - log_ratio)


def square_factor(scale: Tensor) -> Tensor:
    """A factor (..., D, D) of scale @ scale.mT, whatever the number of columns of scale."""
    dimension, rank = scale.shape[-2:]
    if rank <= dimension:
        return torch.nn.functional.pad(scale, (0, dimension - rank))
    return torch.linalg.qr(scale.mT).R.mT


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Matrix products in the dtype of their arguments: autocast would round them to bfloat16, two or three digits."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def finite(*matrices: Tensor) -> Tensor:
    """Which examples, shape (...,), have finite entries only. LAPACK refuses a whole batch for one that has not."""
    return torch.stack([x.isfinite().flatten(-2).all(-1) for x in matrices]).all(0)


def _full_kl_terms(a: FullGaussian, b: FullGaussian) -> KLTerms:
    # Both terms are seen from the coordinates in which b is standard: no covariance is formed, so none is squared.
    batch = batch_shape(a, b)
    dimension = b.mean.shape[-1]
    scale_b = square_factor(b.scale).expand(*batch, -1, -1)
    shift = (a.mean - b.mean).expand(*batch, -1)[..., None]
    right = torch.cat([square_factor(a.scale).expand(*batch, -1, -1), shift], -1)
    usable = torch.ones_like(right[..., 0, 0]).where(finite(scale_b, right), math.nan)
    whitened, failed = torch.linalg.solve_ex(scale_b, right * usable[..., None, None])
    regular = (failed == 0)[..., None, None]
    ratio = torch.linalg.svdvals(whitened[..., :dimension].where(regular & finite(whitened)[..., None, None], 0))
    mean = whitened[..., dimension].where(regular[..., 0], math.inf)
    return KLTerms(_itakura_saito(2 * ratio.log()).sum(-1) / 2 * usable, mean.square().sum(-1) / 2 * usable)


def _refuse(wrong: Tensor, what: str, values: Tensor, remedy: str) -> None:
    """Raise if any example is wrong, and name the first that is, with its value."""
    if bool(wrong.any()):
        index = tuple(int(i) for i in wrong.nonzero()[0])
        example = f" in example {index[0] if len(index) == 1 else index}" if index else ""
        raise InvalidValueError(f"{what} {float(values.detach()[index]):.3g}{example}; {remedy}")


def _check_fields(q: Gaussian, mean: Tensor, spread: Tensor, name: str, event: tuple[int, ...]) -> None:
    kind = type(q).__name__
    if not (isinstance(mean, Tensor) and isinstance(spread, Tensor)):
        kinds = f"mean: {type(mean).__name__}, {name}: {type(spread).__name__}"
        raise InvalidTypeError(f"{kind} holds tensors, got {kinds}; convert them with torch.as_tensor")
    if not mean.is_floating_point() or mean.dtype != spread.dtype:
        dtypes = f"mean: {mean.dtype}, {name}: {spread.dtype}"
        raise InvalidTypeError(f"{kind} needs one floating dtype, got {dtypes}; convert with .to")
    if mean.device != spread.device:
        devices = f"mean: {mean.device}, {name}: {spread.device}"
        raise InvalidValueError(f"{kind} needs one device, got {devices}; move one with .to")
    if mean.ndim < 1 or spread.ndim < len(event) or mean.shape[-1] != spread.shape[event[0]] or spread.shape[-1] == 0:
        shape = "(..., D)" if len(event) == 1 else "(..., D, R)"
        raise InvalidValueError(
            f"{kind} needs mean of shape (..., D) and {name} of shape {shape}, got {tuple(mean.shape)} and "
            f"{tuple(spread.shape)}"
        )
