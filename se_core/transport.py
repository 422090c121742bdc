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
not fit together; `ValueError` where gamma is negative, NaN or infinite, or does not broadcast with the batch;
`TypeError` where a tensor gamma has another dtype or device.

Differentiation: the diagonal family is made of ordinary torch operations, so that higher derivatives, `torch.compile`
and `torch.func` work (under `vmap` with a float gamma). The full family is one `autograd.Function` with an analytic
first derivative; it raises on a second one and under `torch.func` transforms, and `torch.compile` leaves it in eager
mode. W_2^2 has no derivative where a covariance is singular (like a square root at 0); the value returned there is
one-sided.

Range: 2 gamma and gamma s must not overflow; in float32 that admits gamma = 1e30 with variances up to 1e8. W_2^2 needs
log-variances that differ by less than 350 in float32. There the gradient of the full family has an error of about
1e-7 gamma |L| besides the relative one: at gamma beyond 1e5 use float64.
"""

import math
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
    return _plan(*_checked(a, b, gamma)).cost


def mutual_information(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """Mutual information of z_a and z_b under the optimal plan at coupling gamma, in nats, shape (...,).

    It is H(Q_a) + H(Q_b) - H(Q), with H(Q) of eq. 15.
    """
    return _plan(*_checked(a, b, gamma)).information


class TransportTerms(NamedTuple):
    """The two terms of entropic transport under one plan, each of shape (...,).

    Attributes:
        cost: E ||z_a - z_b||^2, as `entropic_w2_squared`.
        information: I(z_a; z_b) in nats, as `mutual_information`.
    """

    cost: Tensor
    information: Tensor


def transport_terms(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> TransportTerms:
    """`entropic_w2_squared` and `mutual_information` at the price of one."""
    plan = _plan(*_checked(a, b, gamma))
    return TransportTerms(plan.cost, plan.information)


def entropic_cost(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """WD_{2,gamma} = gamma/2 E ||z_a - z_b||^2 - H(Q) under the optimal plan, in nats, shape (...,), eqs. 20-21.

    The last two terms of the SE-ELBO (section 6), negated. It can be negative, and it is +inf where a covariance is
    singular: `entropic_w2_squared` and `mutual_information` stay finite there.
    """
    a, b, gamma = _checked(a, b, gamma)
    plan = _plan(a, b, gamma)
    return gamma / 2 * plan.cost + plan.information - entropy(a) - entropy(b)


def sinkhorn_divergence(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """Debiased entropic transport, OT(a, b) - OT(a, a)/2 - OT(b, b)/2, shape (...,), zero if and only if a equals b.

    Here OT = W^2_{2,gamma} + (2/gamma) I is the entropic cost in the units of the squared latent (Feydy et al., 2019,
    with epsilon = 2 / gamma). The divergence rises from ||mu_a - mu_b||^2 at gamma = 0 to W_2^2 as gamma grows. It is
    a difference: its error is that of OT, not of the result.
    """
    a, b, gamma = _checked(a, b, gamma)
    ab, aa, bb = (_plan(*pair, gamma).regularised_cost for pair in ((a, b), (a, a), (b, b)))
    return ab - aa / 2 - bb / 2


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
    if not bool((torch.linalg.matrix_rank(a.scale.detach()) == a.mean.shape[-1]).all()):
        raise ValueError("a must have a covariance of full rank to be carried by a map; use coupling(a, b, gamma)")
    a = FullGaussian(a.mean, square_factor(a.scale))
    _, (rotation, _) = _full_plan(a, b, None, whole=True)
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
        if scale_a.shape[-1] <= scale_b.shape[-1]:
            blocks = (scale_a @ self.residual, scale_a @ self.rotation), (torch.zeros_like(scale_a), scale_b)
        else:
            blocks = (scale_a, torch.zeros_like(scale_b)), (scale_b @ self.rotation.mT, scale_b @ self.residual)
        mean = torch.cat([a.mean.expand(*batch, -1), b.mean.expand(*batch, -1)], -1)
        return FullGaussian(mean, torch.cat([torch.cat(row, -1) for row in blocks], -2))


def coupling(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Coupling:
    """The optimal plan between a and b at coupling gamma: its cross-covariance, its correlations, its joint."""
    a, b, gamma = _checked(a, b, gamma)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        plan = _diagonal_plan(a, b, gamma)
        residual = (1 + gamma[..., None] * plan.psi).rsqrt()
        return Coupling(a, b, gamma, plan.psi, plan.rho, torch.diag_embed(plan.rho), torch.diag_embed(residual))
    a, b = a.full(), b.full()
    plan, (rotation, residual) = _full_plan(a, b, gamma, whole=True)
    rho = plan.rho.flip(-1)[..., : a.mean.shape[-1]]
    return Coupling(a, b, gamma, a.scale @ rotation @ b.scale.mT, rho, rotation, residual)


class _Plan(NamedTuple):
    gamma: Tensor  # shape (...,)
    rho: Tensor  # canonical correlations, shape (..., K)
    psi: Tensor  # canonical covariances rho s, shape (..., K)
    cost: Tensor  # E ||z_a - z_b||^2, shape (...,)

    @property
    def information(self) -> Tensor:
        """I(z_a; z_b) in nats, shape (...,)."""
        return torch.log1p(self.gamma[..., None] * self.psi).sum(-1) / 2

    @property
    def regularised_cost(self) -> Tensor:
        """E ||z_a - z_b||^2 + (2 / gamma) I, shape (...,), exact at gamma = 0."""
        y = (self.gamma[..., None] * self.psi).clamp(min=torch.finfo(self.psi.dtype).tiny)
        return self.cost + (self.psi * (torch.log1p(y) / y)).sum(-1)


def _plan(a: Gaussian, b: Gaussian, gamma: Tensor) -> _Plan:
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _diagonal_plan(a, b, gamma)
    return _full_plan(a.full(), b.full(), gamma)[0]


def _checked(
    a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor
) -> tuple[Gaussian, Gaussian, Tensor]:
    """a and b as they fit together, and gamma as a tensor beside them, finite and non-negative in their dtype.

    The values of a tensor gamma are read in eager mode only, once: never inside a compiled graph.
    """
    a, b = matched(a, b)
    dtype, device = a.mean.dtype, a.mean.device
    if not isinstance(gamma, Tensor):
        _check_coupling_strength(gamma, dtype)
        return a, b, a.mean.new_full((), gamma)
    if gamma.dtype != dtype or gamma.device != device:
        raise TypeError(
            f"gamma must have the dtype and device of the distributions, {dtype} on {device}, got {gamma.dtype} on "
            f"{gamma.device}; convert it with .to"
        )
    batch = tuple(batch_shape(a, b))
    try:
        torch.broadcast_shapes(batch, gamma.shape)
    except RuntimeError as error:
        raise ValueError(f"gamma must broadcast with the batch {batch}, got the shape {tuple(gamma.shape)}") from error
    if gamma.numel() and not torch.compiler.is_compiling():
        lowest, highest = torch.stack(gamma.detach().aminmax()).tolist()
        _check_coupling_strength(highest if lowest >= 0 else lowest, dtype)
    return a, b, gamma


def _check_coupling_strength(gamma: float, dtype: torch.dtype) -> None:
    if gamma < 0:
        raise ValueError(f"gamma must be non-negative, got {gamma}; call w2_squared for transport without entropy")
    if not gamma < torch.finfo(dtype).max / 4:
        raise ValueError(f"gamma must be finite in {dtype}, got {gamma}; its limit of infinite coupling is w2_squared")


def _correlation(inverse_overlap: Tensor, gamma: Tensor) -> Tensor:
    return 2 * gamma / (inverse_overlap + torch.hypot(inverse_overlap, 2 * gamma))


def _diagonal_plan(a: DiagonalGaussian, b: DiagonalGaussian, gamma: Tensor) -> _Plan:
    # Written in 1/s: 1/s + gamma does not overflow where gamma s would, and where the gradients of the quotients
    # underflow, their true value does too.
    strength = gamma[..., None]
    largest = math.log(torch.finfo(a.log_var.dtype).max) - 1  # beyond it s is zero for every purpose
    inverse_overlap = (-(a.log_var + b.log_var) / 2).clamp(max=largest).exp()
    rho = _correlation(inverse_overlap, strength)
    excess = 2 * (1 + rho) / (2 * strength + torch.hypot(inverse_overlap, 2 * strength))  # W^2_{2,gamma} - W_2^2
    return _Plan(gamma, rho, rho / inverse_overlap, _diagonal_w2_squared(a, b) + excess.sum(-1))


def _diagonal_w2_squared(a: DiagonalGaussian, b: DiagonalGaussian) -> Tensor:
    # sigma_a - sigma_b as a hyperbolic sine: no cancellation, so that PGD sees the first 1e-7 of a difference.
    spread = 2 * ((a.log_var + b.log_var) / 4).exp() * ((a.log_var - b.log_var) / 4).sinh()
    return ((a.mean - b.mean).square() + spread.square()).sum(-1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _full_plan(
    a: FullGaussian, b: FullGaussian, gamma: Tensor | None, whole: bool = False
) -> tuple[_Plan, tuple[Tensor, ...]]:
    """The plan of two full Gaussians and, if `whole`, its rotation and residual; gamma = None is the limit, W_2."""
    if a.scale.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a FullGaussian must be float32 or float64 for transport, got {a.scale.dtype}")
    batch = batch_shape(a, b)
    if gamma is not None:
        batch = torch.broadcast_shapes(batch, gamma.shape)
        gamma = gamma.expand(batch)
    # The spectral problem has the size of the first factor's rank.
    swap = a.scale.shape[-1] > b.scale.shape[-1]
    first, second = (q.scale.expand(*batch, -1, -1) for q in ((b, a) if swap else (a, b)))
    # W_2 has no floor below which a singular value ceases to matter, and vanishes at a = b: it is computed in double.
    dtype, work = a.scale.dtype, torch.float64 if gamma is None else a.scale.dtype
    terms = _FullTransport.apply(first.to(work), second.to(work), gamma, torch.finfo(dtype).eps, whole)
    rho, psi, cost, *matrices = (x.to(dtype) for x in terms)
    distance = (a.mean - b.mean).square().sum(-1)
    plan = _Plan(distance.new_full(batch, torch.inf) if gamma is None else gamma, rho, psi, distance + cost)
    if swap and whole:
        matrices[0] = matrices[0].mT
    return plan, tuple(matrices)


class _FullTransport(torch.autograd.Function):
    """(L_a, L_b, gamma) -> rho, rho s, E ||z_a - z_b||^2 of the centred Gaussians; if `whole`, R and (I - R R^T)^{1/2}.

    L_a must not have more columns than L_b. The derivatives are analytic.
    """

    @staticmethod
    def forward(
        ctx: Any, scale_a: Tensor, scale_b: Tensor, gamma: Tensor | None, accuracy: float, whole: bool
    ) -> tuple[Tensor, ...]:
        floor = torch.zeros_like(scale_a[..., 0, 0]) if gamma is None else 1 / (2 * gamma)
        left, s, right = _overlap_svd(scale_a, scale_b, floor, accuracy)
        if gamma is None:
            rho, tau = torch.ones_like(s), torch.zeros_like(s)
        else:
            rho = _correlation(1 / s, gamma[..., None])
            tau = (1 + gamma[..., None] * rho * s).rsqrt()  # sqrt(1 - rho^2), by eq. 22
        # E ||z_a - z_b||^2 as two sums of squares: what the plan pairs badly, and what it leaves open.
        turned = scale_a @ left
        paired = (turned * rho[..., None, :]) @ right - scale_b
        cost = torch.linalg.matrix_norm(paired).square() + (tau.square() * turned.square().sum(-2)).sum(-1)
        ctx.save_for_backward(scale_a, scale_b, gamma, left, s, right, rho, tau)
        ctx.set_materialize_grads(False)
        if not whole:
            return rho, rho * s, cost
        return rho, rho * s, cost, (left * rho[..., None, :]) @ right, (left * tau[..., None, :]) @ left.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        scale_a, scale_b, gamma, left, s, right, rho, tau = ctx.saved_tensors
        d_rho, d_psi, d_cost, d_rotation, d_residual = (*gradients, None, None)[:5]
        nothing = torch.zeros_like(s[..., :1])
        d_cost = nothing if d_cost is None else d_cost[..., None]
        d_psi = (nothing if d_psi is None else d_psi) - 2 * d_cost  # the cost is Tr Sigma_a + Tr Sigma_b - 2 sum psi
        d_rho = nothing if d_rho is None else d_rho
        d_tau = nothing
        if gamma is None:
            strength, u, slope = torch.ones_like(s), s, d_psi.expand_as(s)
        else:
            strength = 2 * gamma[..., None]
            u = torch.hypot(strength * s, torch.ones_like(s))
            slope = strength * s / u * d_psi + strength / (1 + u) / u * d_rho

        # C = L_a^T L_b; the derivative of sum f(s) with respect to C is X diag(f'(s)) Y^T, whatever the multiplicities.
        d_overlap = slope[..., None] * right
        if d_rotation is not None:
            # gamma R C^T R + R = gamma C, differentiated in the singular basis: one division by u_i + u_j, no gaps.
            inner = left.mT @ d_rotation
            core = inner @ right.mT
            within = core - rho[..., :, None] * rho[..., None, :] * core.mT
            within = within / (u[..., :, None] + u[..., None, :]) @ right
            beyond = (inner - core @ right) / (u if gamma is None else 1 + u)[..., None]
            d_overlap = d_overlap + strength[..., None] * (within + beyond)
            d_rho = d_rho + core.diagonal(dim1=-2, dim2=-1)
        if d_residual is not None and gamma is not None:
            # The same for T: (tau_i - tau_j) / (s_i^2 - s_j^2), with the difference divided out.
            core = left.mT @ d_residual @ left
            curvature = strength * tau.square()
            divided = curvature[..., :, None] * curvature[..., None, :] / (u[..., :, None] + u[..., None, :])
            divided = divided / (tau[..., :, None] + tau[..., None, :])
            d_overlap = d_overlap - divided / 2 * (core + core.mT) @ (s[..., None] * right)
            d_tau = core.diagonal(dim1=-2, dim2=-1)
        d_overlap = left @ d_overlap
        d_gamma = None
        if gamma is not None and ctx.needs_input_grad[2]:
            explained = 2 * s / (1 + u) / u * (s * d_psi + d_rho)
            d_gamma = (explained - gamma[..., None] * tau**3 * s / u * s * d_tau).sum(-1)
        spread = 2 * d_cost[..., None]
        d_scale_a = (scale_b @ d_overlap.mT).addcmul_(spread, scale_a)
        d_scale_b = (scale_a @ d_overlap).addcmul_(spread, scale_b)
        return d_scale_a, d_scale_b, d_gamma, None, None


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
    lost = ~(s.amax(-1).square() < tolerable * (s.amin(-1).square() + floor.square()))
    if bool(lost.any()):
        if s.dtype == torch.float32:
            again = _overlap_svd(scale_a[lost].double(), scale_b[lost].double(), floor[lost].double(), accuracy)
        else:
            svd = torch.linalg.svd(overlap[lost], full_matrices=False)
            again = svd.U.flip(-1), svd.S.flip(-1), svd.Vh.flip(-2)
        left[lost], s[lost], right[lost] = (x.to(s.dtype) for x in again)
    return left, s, right
