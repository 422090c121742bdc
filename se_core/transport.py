"""Optimal and entropic transport between Gaussians, in closed form (section 5 of the paper).

With square-root factors Sigma_a = L_a L_a^T, Sigma_b = L_b L_b^T and the singular value decomposition
L_a^T L_b = X diag(s) Y^T (for diagonal covariances s_k = sigma_a^k sigma_b^k), put

    rho = 2 gamma / (1/s + h),   h = sqrt(1/s^2 + 4 gamma^2),   R = X diag(rho) Y^T.

The rho are the canonical correlations of the optimal plan, Psi = L_a R L_b^T is its cross-covariance (the solution of
eqs. 18 and 22-24), and 1/2 sum log(1 + gamma rho s) is its mutual information. Gradients through R and s need no gap
between singular values and no inverse. These forms equal the printed ones, and contain neither a difference of nearly
equal numbers nor a product that overflows before its result does; the printed ones lose every digit in float32 where
encoders live.

The cost is ||z_a - z_b||^2, without a factor 1/2, and gamma is an inverse temperature: what other libraries call the
regularisation epsilon is 2 / gamma. Every function returns one number per example, shape (...,), in the units of the
squared latent (costs) or in nats, and accepts two Gaussians of either family, or of `torch.distributions`; a diagonal
one is promoted to a full one only when it meets a full one.

Errors: those of `se_core.gaussians.matched`; `InvalidValueError` where gamma is negative, NaN or infinite, or does not
broadcast with the batch; `InvalidTypeError` where gamma is neither a number nor a tensor of the same dtype and device,
or where a full Gaussian is neither float32 nor float64. `torch.autocast` changes nothing for these two.

Differentiation: the diagonal family is made of ordinary torch operations, so that higher derivatives, `torch.compile`
and `torch.func` work (under `vmap` with a float gamma). The full family is made of `autograd.Function`s with analytic
first derivatives; they raise on a second one and under `torch.func`, and `torch.compile` leaves them in eager mode.
W_2^2 has no derivative where a covariance is singular (like a square root at 0); the value there is one-sided.

Range: values and gradients are right wherever variances, 2 gamma, gamma s and the result can be represented (for the
gradients of the Sinkhorn divergence, also the result over gamma and times a variance), W_2^2 where log-variances differ
by less than 350 besides: in float32, log-variances from -87 to 87. A gradient of a cost is a sum of terms as large as
the larger variance, and its error is that of them. The full family needs its factors squared, and 2 gamma s, to be
numbers: in float32, factors from 1e-18 to 1e18. Besides the relative error, a cost there has one of (1e-7 |L|)^2, and a
gradient of WD one of 1e-7 gamma |L|: at gamma beyond 1e5 use float64. An example with NaN, or with inf in a factor, is
NaN in its own row only.
"""

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from se_core import _full_transport, _sinkhorn
from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.gaussians import (
    DiagonalGaussian,
    FullGaussian,
    Gaussian,
    GaussianLike,
    batch_shape,
    entropy,
    finite,
    full_precision,
    matched,
    square_factor,
)


def w2_squared(a: GaussianLike, b: GaussianLike) -> Tensor:
    """Squared 2-Wasserstein distance W_2^2(a, b), shape (...,), eq. 12."""
    a, b = matched(a, b)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _diagonal_w2_squared(a, b)
    return _squared_distance(a, b) + _full_transport.distance(a.full(), b.full())


def entropic_w2_squared(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> Tensor:
    """W^2_{2,gamma} = E ||z_a - z_b||^2 under the plan that is optimal at coupling gamma, shape (...,), eq. 19.

    It falls from the cost of independence at gamma = 0 to W_2^2 as gamma grows. It is not a distance: at equal
    arguments it is positive.
    """
    return _terms(*_checked(a, b, gamma)).cost


def mutual_information(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> Tensor:
    """Mutual information of z_a and z_b under the optimal plan at coupling gamma, in nats, shape (...,).

    It is H(Q_a) + H(Q_b) - H(Q), with H(Q) of eq. 15.
    """
    return _terms(*_checked(a, b, gamma)).information


class TransportTerms(NamedTuple):
    """The two terms of entropic transport under one plan, each of shape (...,).

    Attributes:
        cost: E ||z_a - z_b||^2, as `entropic_w2_squared`.
        information: I(z_a; z_b) in nats, as `mutual_information`.
    """

    cost: Tensor
    information: Tensor


def transport_terms(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> TransportTerms:
    """`entropic_w2_squared` and `mutual_information` at the price of one."""
    return _terms(*_checked(a, b, gamma))


def entropic_cost(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> Tensor:
    """WD_{2,gamma} = gamma/2 E ||z_a - z_b||^2 - H(Q) under the optimal plan, in nats, shape (...,), eqs. 20-21.

    The last two terms of the SE-ELBO (section 6), negated. It can be negative, and it is +inf where a covariance is
    singular: `entropic_w2_squared` and `mutual_information` stay finite there.
    """
    a, b, gamma = _checked(a, b, gamma)
    terms = _terms(a, b, gamma)
    return gamma / 2 * terms.cost + terms.information - entropy(a) - entropy(b)


def sinkhorn_divergence(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> Tensor:
    """Debiased entropic transport, OT(a, b) - OT(a, a)/2 - OT(b, b)/2, shape (...,), zero if and only if a equals b.

    Here OT = W^2_{2,gamma} + (2/gamma) I is the entropic cost in the units of the squared latent (Feydy et al., 2019,
    with epsilon = 2 / gamma). The divergence rises from ||mu_a - mu_b||^2 at gamma = 0 to W_2^2 as gamma grows. It is
    computed as a sum of terms that are not negative, without the difference.
    """
    a, b, gamma = _checked(a, b, gamma)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _squared_distance(a, b) + _sinkhorn.diagonal_divergence(a, b, gamma)
    return _squared_distance(a, b) + _sinkhorn.full_divergence(a.full(), b.full(), gamma)


class AffineMap(NamedTuple):
    """The map z -> target + matrix (z - source).

    Attributes:
        matrix: shape (..., D, D).
        source: shape (..., D).
        target: shape (..., D).
    """

    matrix: Tensor
    source: Tensor
    target: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """The image of z, shape (..., D)."""
        with full_precision(self.matrix):
            return self.target + (self.matrix @ (z - self.source)[..., None]).squeeze(-1)


def monge_map(a: GaussianLike, b: GaussianLike) -> AffineMap:
    """The optimal map that carries a to b; its matrix is symmetric positive semi-definite.

    The paper prints, below eq. 11, the map from b to a, which is `monge_map(b, a)`.

    Raises:
        InvalidValueError: if the covariance of a is singular, where mass would have to split; use `coupling`.
    """
    a, b = matched(a, b)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return AffineMap(torch.diag_embed(((b.log_var - a.log_var) / 2).exp()), a.mean, b.mean)
    a, b = a.full(), b.full()
    usable = finite(a.scale)
    rank = torch.linalg.matrix_rank(a.scale.detach().where(usable[..., None, None], 0))
    if not bool((~usable | (rank == a.mean.shape[-1])).all()):
        raise InvalidValueError(
            f"a must have a covariance of full rank {a.mean.shape[-1]} to be carried by a map, got rank "
            f"{int(rank[usable].min())}; use coupling(a, b, gamma)"
        )
    a = FullGaussian(a.mean, square_factor(a.scale))
    rotation = _full_transport.polar_factor(a, b)
    with full_precision(rotation):
        return AffineMap(torch.linalg.solve(a.scale.mT, rotation @ b.scale.mT).mT, a.mean, b.mean)


class Coupling(NamedTuple):
    """The optimal plan Q(z_a, z_b) at coupling gamma, eq. 11 with Psi of eqs. 18 and 24.

    Attributes:
        a: the marginal of z_a.
        b: the marginal of z_b, of the same family.
        gamma: the coupling strength, shape (...,).
        psi: cross-covariance of z_a with z_b, shape (..., D, D), symmetric only when the covariances commute; for two
            diagonal Gaussians its diagonal, shape (..., D).
        rho: canonical correlations of z_a and z_b in [0, 1], shape (..., min(R_a, R_b, D)), falling; for two diagonal
            Gaussians one for each coordinate, shape (..., D).
        rotation: R with Psi = L_a R L_b^T, shape (..., R_a, R_b).
        residual: (I - R R^T)^{1/2} where R_a <= R_b, else (I - R^T R)^{1/2}: what one variable leaves open in the
            other.
    """

    a: Gaussian
    b: Gaussian
    gamma: Tensor
    psi: Tensor
    rho: Tensor
    rotation: Tensor
    residual: Tensor

    def joint(self) -> FullGaussian:
        """The joint distribution of the concatenation (z_a, z_b), of dimension 2 D."""
        a, b = self.a.full(), self.b.full()
        batch = self.rotation.shape[:-2]
        scale_a, scale_b = a.scale.expand(*batch, -1, -1), b.scale.expand(*batch, -1, -1)
        with full_precision(scale_a):
            if scale_a.shape[-1] <= scale_b.shape[-1]:
                blocks = (scale_a @ self.residual, scale_a @ self.rotation), (torch.zeros_like(scale_a), scale_b)
            else:
                blocks = (scale_a, torch.zeros_like(scale_b)), (scale_b @ self.rotation.mT, scale_b @ self.residual)
        mean = torch.cat([a.mean.expand(*batch, -1), b.mean.expand(*batch, -1)], -1)
        return FullGaussian(mean, torch.cat([torch.cat(row, -1) for row in blocks], -2))


def coupling(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> Coupling:
    """The optimal plan between a and b at coupling gamma: its cross-covariance, its correlations, its joint."""
    a, b, gamma = _checked(a, b, gamma)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        rho, psi, _ = _by_coordinate(a, b, gamma)
        residual = (1 + gamma[..., None] * psi).rsqrt()  # sqrt(1 - rho^2), by eq. 22
        return Coupling(a, b, gamma, psi, rho, torch.diag_embed(rho), torch.diag_embed(residual))
    a, b = a.full(), b.full()
    rho, rotation, residual = _full_transport.plan(a, b, gamma)
    with full_precision(rotation):
        psi = a.scale @ rotation @ b.scale.mT
    return Coupling(a, b, gamma, psi, rho.flip(-1)[..., : a.mean.shape[-1]], rotation, residual)


def _terms(a: Gaussian, b: Gaussian, gamma: Tensor) -> TransportTerms:
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        _, psi, excess = _by_coordinate(a, b, gamma)
        information = torch.log1p(gamma[..., None] * psi).sum(-1) / 2
        return TransportTerms(_diagonal_w2_squared(a, b) + excess.sum(-1), information)
    cost, information = _full_transport.terms(a.full(), b.full(), gamma)
    return TransportTerms(_squared_distance(a, b) + cost, information)


def _squared_distance(a: Gaussian, b: Gaussian) -> Tensor:
    return (a.mean - b.mean).square().sum(-1)


def _checked(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> tuple[Gaussian, Gaussian, Tensor]:
    """a and b as they fit together, and gamma as a tensor, finite and non-negative in their dtype.

    The values of a tensor gamma are read once, and never inside a compiled graph.
    """
    a, b = matched(a, b)
    dtype, device = a.mean.dtype, a.mean.device
    if not isinstance(gamma, Tensor):
        if isinstance(gamma, bool) or not isinstance(gamma, Real):
            raise InvalidTypeError(f"gamma must be a number or a tensor, got {gamma!r}; pass float(gamma)")
        _check_coupling_strength(float(gamma), float(gamma), dtype)
        return a, b, a.mean.new_full((), float(gamma))
    if gamma.dtype != dtype or gamma.device != device:
        raise InvalidTypeError(
            f"gamma must have the dtype and device of the distributions, {dtype} on {device}, got {gamma.dtype} on "
            f"{gamma.device}; convert it with .to"
        )
    batch = tuple(batch_shape(a, b))
    try:
        torch.broadcast_shapes(batch, gamma.shape)
    except RuntimeError as error:
        raise InvalidValueError(
            f"gamma must broadcast with the batch {batch}, got the shape {tuple(gamma.shape)}; pass one number, or one "
            "for each example"
        ) from error
    if gamma.numel() and not torch.compiler.is_compiling():
        _check_coupling_strength(*gamma.detach().aminmax(), dtype)
    return a, b, gamma


def _check_coupling_strength(lowest: float | Tensor, highest: float | Tensor, dtype: torch.dtype) -> None:
    if bool((lowest >= 0) & (highest < torch.finfo(dtype).max / 4)):
        return
    if lowest < 0:
        raise InvalidValueError(
            f"gamma must be non-negative, got {float(lowest)}; call w2_squared for transport without entropy"
        )
    raise InvalidValueError(
        f"gamma must be finite in {dtype}, got {float(highest)}; its limit of infinite coupling is w2_squared"
    )


def _by_coordinate(a: DiagonalGaussian, b: DiagonalGaussian, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rho, psi = rho s, and the excess 2 s (1 + rho) / (u + w) = W^2_{2,gamma} - W_2^2, each of shape (..., D).

    In units of c, the smaller of s and 1 / (2 gamma), the pair (x, y) is (w, 1) or (1, 1/w): nothing overflows, and no
    derivative vanishes before its time. A unit has no derivative.
    """
    strength, log_s = 2 * gamma[..., None], (a.log_var + b.log_var) / 2
    log_c = torch.minimum(log_s.detach(), -strength.detach().log())
    c = log_c.exp()
    x, y = c * strength, (log_c - log_s).exp()
    u = torch.hypot(x, y)
    rho = x / (y + u)
    return rho, rho * log_s.exp(), 2 * c * (1 + rho) / (x + u)


def _diagonal_w2_squared(a: DiagonalGaussian, b: DiagonalGaussian) -> Tensor:
    # sigma_a - sigma_b as a hyperbolic sine: no cancellation, so that PGD sees the first 1e-7 of a difference.
    spread = 2 * ((a.log_var + b.log_var) / 4).exp() * ((a.log_var - b.log_var) / 4).sinh()
    return ((a.mean - b.mean).square() + spread.square()).sum(-1)
