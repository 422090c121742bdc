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

Errors, alike for all functions: `TypeError` and `ValueError` of `se_core.gaussians.matched` where the distributions do
not fit together; `ValueError` where gamma is negative, NaN or infinite; `TypeError` where a tensor gamma has another
dtype or device.

Differentiation: the diagonal family is made of ordinary torch operations, so that higher derivatives, `torch.compile`
and `torch.func` work. The full family is one `autograd.Function` with an analytic first derivative; it raises on a
second one and under `torch.func` transforms, and `torch.compile` leaves it in eager mode. W_2^2 has no derivative
where a covariance is singular (like a square root at 0); the value returned there is one-sided.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution

from se_core.gaussians import DiagonalGaussian, FullGaussian, Gaussian, batch_shape, entropy, matched, square_factor


def w2_squared(a: Gaussian | Distribution, b: Gaussian | Distribution) -> Tensor:
    """Squared 2-Wasserstein distance W_2^2(a, b), shape (...,), eq. 12."""
    a, b = matched(a, b)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _diagonal_w2_squared(a, b)
    return _full_plan(a.full(), b.full(), None)[0].cost


def entropic_w2_squared(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """W^2_{2,gamma} = E ||z_a - z_b||^2 under the plan that is optimal at coupling gamma, shape (...,), eq. 19.

    It falls from the cost of independence at gamma = 0 to W_2^2 as gamma grows. It is not a distance: at equal
    arguments it is positive.
    """
    return _plan(*matched(a, b), gamma).cost


def mutual_information(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """Mutual information of z_a and z_b under the optimal plan at coupling gamma, in nats, shape (...,).

    It is H(Q_a) + H(Q_b) - H(Q), with H(Q) of eq. 15.
    """
    plan = _plan(*matched(a, b), gamma)
    return plan.gamma / 2 * plan.information


def entropic_cost(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """WD_{2,gamma} = gamma/2 E ||z_a - z_b||^2 - H(Q) under the optimal plan, in nats, shape (...,), eqs. 20-21.

    The last two terms of the SE-ELBO (section 6), negated. It can be negative, and it is +inf where a covariance is
    singular: `entropic_w2_squared` and `mutual_information` stay finite there.
    """
    a, b = matched(a, b)
    plan = _plan(a, b, gamma)
    return plan.gamma / 2 * (plan.cost + plan.information) - entropy(a) - entropy(b)


def sinkhorn_divergence(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """Debiased entropic transport, OT(a, b) - OT(a, a)/2 - OT(b, b)/2, shape (...,), zero if and only if a equals b.

    Here OT = W^2_{2,gamma} + (2/gamma) I is the entropic cost in the units of the squared latent (Feydy et al., 2019,
    with epsilon = 2 / gamma). The divergence rises from ||mu_a - mu_b||^2 at gamma = 0 to W_2^2 as gamma grows. It is
    a difference: its error is that of OT, not of the result.
    """
    a, b = matched(a, b)
    ab, aa, bb = _plan(a, b, gamma), _plan(a, a, gamma), _plan(b, b, gamma)
    return (ab.cost + ab.information) - (aa.cost + aa.information) / 2 - (bb.cost + bb.information) / 2


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
        return self.target + (self.matrix @ (z - self.source)[..., None]).squeeze(-1)


def monge_map(a: Gaussian | Distribution, b: Gaussian | Distribution) -> AffineMap:
    """The optimal map that carries a to b; its matrix is symmetric positive semi-definite.

    The paper prints, below eq. 11, the map from b to a, which is `monge_map(b, a)`.

    Raises:
        ValueError: if the covariance of a is singular, where mass would have to split; use `coupling`.
    """
    a, b = matched(a, b)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return AffineMap(torch.diag_embed(((b.log_var - a.log_var) / 2).exp()), a.mean, b.mean)
    a, b = a.full(), b.full()
    dimension, rank = a.scale.shape[-2:]
    if rank >= dimension:
        a = FullGaussian(a.mean, square_factor(a.scale))
        _, rotation = _full_plan(a, b, None)
        matrix, singular = torch.linalg.solve_ex(a.scale.mT, rotation @ b.scale.mT)
        if not bool(singular.any()):
            return AffineMap(matrix.mT, a.mean, b.mean)
    raise ValueError("a must have a covariance of full rank to be carried by a map; use coupling(a, b, gamma) instead")


class Coupling(NamedTuple):
    """The optimal plan Q(z_a, z_b) at coupling gamma, eq. 11 with Psi of eqs. 18 and 24.

    Attributes:
        a: the marginal of z_a.
        b: the marginal of z_b, of the same family.
        gamma: the coupling strength, shape (...,).
        psi: cross-covariance of z_a with z_b, shape (..., D, D), symmetric only when the covariances commute; for two
            diagonal Gaussians its diagonal, shape (..., D).
        rho: canonical correlations of z_a and z_b in [0, 1), shape (..., min(R_a, R_b, D)), falling; for two diagonal
            Gaussians one for each coordinate, shape (..., D).
        rotation: R with Psi = L_a R L_b^T, shape (..., R_a, R_b); None for two diagonal Gaussians.
    """

    a: Gaussian
    b: Gaussian
    gamma: Tensor
    psi: Tensor
    rho: Tensor
    rotation: Tensor | None

    def joint(self) -> FullGaussian:
        """The joint distribution of the concatenation (z_a, z_b), of dimension 2 D."""
        a, b = self.a.full(), self.b.full()
        rotation = torch.diag_embed(self.rho) if self.rotation is None else self.rotation
        batch = rotation.shape[:-2]
        scale_a, scale_b = a.scale.expand(*batch, -1, -1), b.scale.expand(*batch, -1, -1)
        # I - R R^T = (I + gamma R L_b^T L_a)^{-1} by the Riccati equation: no difference of numbers near 1.
        precision = torch.eye(rotation.shape[-2], dtype=rotation.dtype, device=rotation.device) + self.gamma[
            ..., None, None
        ] * (rotation @ (scale_b.mT @ scale_a))
        factor = torch.linalg.cholesky((precision + precision.mT) / 2)
        unexplained = torch.linalg.solve_triangular(factor, scale_a.mT, upper=False).mT
        upper = torch.cat([unexplained, scale_a @ rotation], -1)
        lower = torch.cat([torch.zeros_like(unexplained), scale_b], -1)
        mean = torch.cat([a.mean.expand(*batch, -1), b.mean.expand(*batch, -1)], -1)
        return FullGaussian(mean, torch.cat([upper, lower], -2))


def coupling(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Coupling:
    """The optimal plan between a and b at coupling gamma: its cross-covariance, its correlations, its joint."""
    a, b = matched(a, b)
    gamma = _coupling_strength(gamma, a.mean)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        plan = _diagonal_plan(a, b, gamma)
        return Coupling(a, b, plan.gamma, plan.rho / _inverse_overlap(a, b), plan.rho, None)
    a, b = a.full(), b.full()
    plan, rotation = _full_plan(a, b, gamma)
    rho = plan.rho.flip(-1)[..., : a.mean.shape[-1]]
    return Coupling(a, b, plan.gamma, a.scale @ rotation @ b.scale.mT, rho, rotation)


class _Plan(NamedTuple):
    gamma: Tensor
    rho: Tensor
    cost: Tensor  # E ||z_a - z_b||^2, shape (...,)
    information: Tensor  # 2 I / gamma, the mutual information in the units of the cost, shape (...,)


def _plan(a: Gaussian, b: Gaussian, gamma: float | Tensor) -> _Plan:
    gamma = _coupling_strength(gamma, a.mean)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _diagonal_plan(a, b, gamma)
    return _full_plan(a.full(), b.full(), gamma)[0]


def _coupling_strength(gamma: float | Tensor, like: Tensor) -> Tensor:
    """gamma as a tensor beside `like`, checked to be finite and non-negative in its dtype.

    The values of a tensor are read only in eager mode: once, and never inside a compiled graph.
    """
    if isinstance(gamma, Tensor):
        if gamma.dtype != like.dtype or gamma.device != like.device:
            raise TypeError(
                f"gamma must have the dtype and device of the distributions, {like.dtype} on {like.device}, got "
                f"{gamma.dtype} on {gamma.device}; convert it with .to"
            )
        if gamma.numel() and not torch.compiler.is_compiling():
            lowest, highest = torch.stack(gamma.detach().aminmax()).tolist()
            _check_coupling_strength(highest if lowest >= 0 else lowest, like.dtype)
        return gamma
    _check_coupling_strength(gamma, like.dtype)
    return like.new_full((), gamma)


def _check_coupling_strength(gamma: float, dtype: torch.dtype) -> None:
    if gamma < 0:
        raise ValueError(f"gamma must be non-negative, got {gamma}; call w2_squared for transport without entropy")
    if not gamma < torch.finfo(dtype).max / 4:
        raise ValueError(f"gamma must be finite in {dtype}, got {gamma}; its limit of infinite coupling is w2_squared")


# The formulas below are written in 1/s, because 1/s + gamma does not overflow where gamma s would, and because the
# gradients of the quotients underflow to their true value, zero.


def _correlation(inverse_overlap: Tensor, gamma: Tensor) -> Tensor:
    return 2 * gamma / (inverse_overlap + torch.hypot(inverse_overlap, 2 * gamma))


def _information(psi: Tensor, gamma: Tensor) -> Tensor:
    """2 I / gamma = log(1 + gamma psi) / gamma, exact at gamma = 0."""
    return psi * _log_ratio(gamma * psi)


def _log_ratio(y: Tensor) -> Tensor:
    """log(1 + y) / y, which is 1 at y = 0."""
    y = y.clamp(min=torch.finfo(y.dtype).tiny)
    return torch.log1p(y) / y


def _diagonal_plan(a: DiagonalGaussian, b: DiagonalGaussian, gamma: Tensor) -> _Plan:
    strength = gamma[..., None]
    inverse_overlap = _inverse_overlap(a, b)
    rho = _correlation(inverse_overlap, strength)
    excess = 2 * (1 + rho) / (2 * strength + torch.hypot(inverse_overlap, 2 * strength))  # W^2_{2,gamma} - W_2^2
    information = _information(rho / inverse_overlap, strength)
    return _Plan(gamma, rho, _diagonal_w2_squared(a, b) + excess.sum(-1), information.sum(-1))


def _diagonal_w2_squared(a: DiagonalGaussian, b: DiagonalGaussian) -> Tensor:
    # sigma_a - sigma_b as a hyperbolic sine: no cancellation, so that PGD sees the first 1e-7 of a difference.
    spread = 2 * ((a.log_var + b.log_var) / 4).exp() * ((a.log_var - b.log_var) / 4).sinh()
    return ((a.mean - b.mean).square() + spread.square()).sum(-1)


def _inverse_overlap(a: DiagonalGaussian, b: DiagonalGaussian) -> Tensor:
    """1 / s = 1 / (sigma_a sigma_b), shape (..., D)."""
    return (-(a.log_var + b.log_var) / 2).exp()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _full_plan(a: FullGaussian, b: FullGaussian, gamma: Tensor | None) -> tuple[_Plan, Tensor]:
    """The plan of two full Gaussians and its rotation R; None is the limit of infinite gamma, W_2."""
    if a.scale.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a FullGaussian must be float32 or float64 for transport, got {a.scale.dtype}")
    batch = batch_shape(a, b)
    if gamma is not None:
        batch = torch.broadcast_shapes(batch, gamma.shape)
        gamma = gamma.expand(batch)
    scale_a, scale_b = a.scale.expand(*batch, -1, -1), b.scale.expand(*batch, -1, -1)
    # The spectral problem has the size of the first factor's rank.
    swap = scale_a.shape[-1] > scale_b.shape[-1]
    first, second = (scale_b, scale_a) if swap else (scale_a, scale_b)
    rotation, rho, cost, information = _FullTransport.apply(first, second, gamma)
    distance = (a.mean - b.mean).square().sum(-1)
    gamma = distance.new_full(batch, torch.inf) if gamma is None else gamma
    return _Plan(gamma, rho, distance + cost, information), rotation.mT if swap else rotation


class _FullTransport(torch.autograd.Function):
    """(L_a, L_b, gamma) -> R, rho, W^2_{2,gamma} of the centred Gaussians, and 2 I / gamma, with analytic gradients."""

    @staticmethod
    def forward(ctx: Any, scale_a: Tensor, scale_b: Tensor, gamma: Tensor | None) -> tuple[Tensor, ...]:
        dtype, accuracy = scale_a.dtype, torch.finfo(scale_a.dtype).eps
        if gamma is None:  # no floor below which a singular value ceases to matter: float32 would seldom do
            floor = torch.zeros_like(scale_a[..., 0, 0])
            svd = _overlap_svd(scale_a.double(), scale_b.double(), floor, accuracy)
        else:
            svd = _overlap_svd(scale_a, scale_b, 1 / (2 * gamma), accuracy)
        left, s, right = (x.to(dtype) for x in svd)
        if gamma is None:
            rho, unexplained, information = torch.ones_like(s), torch.zeros_like(s), torch.zeros_like(s)
        else:
            strength = gamma[..., None]
            rho = _correlation(1 / s, strength)
            unexplained = 2 / (1 + torch.hypot(2 * strength * s, torch.ones_like(s)))  # 1 - rho^2
            information = _information(rho * s, strength)
        rotation = (left * rho[..., None, :]) @ right
        # E ||z_a - z_b||^2 as two sums of squares: what the plan pairs badly, and what it leaves unexplained.
        explained = torch.linalg.matrix_norm(scale_a @ rotation - scale_b).square()
        cost = explained + (unexplained * (scale_a @ left).square().sum(-2)).sum(-1)
        ctx.save_for_backward(scale_a, scale_b, gamma, left, s, right, rho)
        ctx.set_materialize_grads(False)
        return rotation, rho, cost, information.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_rotation: Tensor | None, d_rho: Tensor | None, d_cost: Tensor | None, d_information: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scale_a, scale_b, gamma, left, s, right, rho = ctx.saved_tensors
        nothing = torch.zeros_like(s[..., :1])
        d_cost = nothing if d_cost is None else d_cost[..., None]
        d_information = nothing if d_information is None else d_information[..., None]
        d_rho = nothing if d_rho is None else d_rho
        d_gamma = None
        if gamma is None:
            strength, u, slope = torch.ones_like(s), s, -2 * d_cost.expand_as(s)
        else:
            strength = 2 * gamma[..., None]
            u = torch.hypot(strength * s, torch.ones_like(s))
            angle = strength * s / u
            slope = 2 * angle * (d_information / (1 + u) - d_cost) + strength / (1 + u) / u * d_rho

        # C = L_a^T L_b; the derivative of sum f(s) with respect to C is X diag(f'(s)) Y^T, whatever the multiplicities.
        d_overlap = (left * slope[..., None, :]) @ right
        if d_rotation is not None:
            inner = left.mT @ d_rotation
            core = inner @ right.mT
            mixed = (core - rho[..., :, None] * rho[..., None, :] * core.mT) / (u[..., :, None] + u[..., None, :])
            outer = (inner - core @ right) / (u if gamma is None else 1 + u)[..., None]
            d_overlap = d_overlap + left @ (strength[..., None] * (mixed @ right + outer))
            d_rho = d_rho + core.diagonal(dim1=-2, dim2=-1)
        if gamma is not None and ctx.needs_input_grad[2]:
            q = 2 * s.square() / (1 + u)  # psi / gamma
            per_direction = (
                q * (2 / u) * (d_information - d_cost)
                - q * _log_ratio(gamma[..., None].square() * q) * d_information
                + 2 * s / (1 + u) / u * d_rho
            )
            d_gamma = per_direction.sum(-1)
        d_cost = 2 * d_cost[..., None]
        return d_cost * scale_a + scale_b @ d_overlap.mT, d_cost * scale_b + scale_a @ d_overlap, d_gamma


def _overlap_svd(scale_a: Tensor, scale_b: Tensor, floor: Tensor, accuracy: float) -> tuple[Tensor, Tensor, Tensor]:
    """X, s, Y^T of L_a^T L_b = X diag(s) Y^T, s ascending, for functions of s that are smooth at the scale `floor`.

    One eigendecomposition of C C^T is several times faster than an SVD of C, but knows s^2 only to eps s_max^2, and
    that matters in proportion to s_max^2 / (s^2 + floor^2). Examples that would fall short of `accuracy` are done
    again: float32 ones by the same route in float64, float64 ones by an SVD.
    """
    overlap = scale_a.mT @ scale_b
    left = torch.linalg.eigh(overlap @ overlap.mT).eigenvectors
    right = left.mT @ overlap
    s = torch.linalg.vector_norm(right, dim=-1)  # more accurate than the root of the eigenvalue
    right = right / s.where(s > 0, 1)[..., None]
    tolerable = 64 * accuracy / torch.finfo(s.dtype).eps
    lost = ~(s.amax(-1).square() <= tolerable * (s.amin(-1).square() + floor.square()))
    if bool(lost.any()):
        if s.dtype == torch.float32:
            again = _overlap_svd(scale_a[lost].double(), scale_b[lost].double(), floor[lost].double(), accuracy)
        else:
            svd = torch.linalg.svd(overlap[lost], full_matrices=False)
            again = svd.U.flip(-1), svd.S.flip(-1), svd.Vh.flip(-2)
        left[lost], s[lost], right[lost] = (x.to(s.dtype) for x in again)
    return left, s, right
