"""The solver of the full family: entropic transport between centred Gaussians given by factors, with its derivatives.

With C = L_a^T L_b = X diag(s) Y^T, w = 2 gamma s, u = sqrt(1 + w^2), rho = w / (1 + u) and tau = sqrt(1 - rho^2), there
is one `autograd.Function` for each thing that is asked for:

    the distance      W_2^2 = ||L_a X Y^T - L_b||^2
    the two terms     E ||z_a - z_b||^2  and  I = 1/2 sum log(1 + gamma rho s)
    the plan          rho, R = X diag(rho) Y^T, T = X diag(tau) X^T
    the polar factor  X Y^T, the plan of W_2

No derivative divides by a gap between singular values: d sum f(s) / dC = X diag(f'(s)) Y^T whatever the multiplicities,
and R solves R + gamma R C^T R = gamma C, which is differentiated as it stands. Each function asks that L_a have no more
columns than L_b, so that the spectral problem has the size of the smaller rank. An example with NaN or inf is NaN.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se_core.errors import InvalidTypeError
from se_core.gaussians import FullGaussian, batch_shape, finite, full_precision

Factors = tuple[Tensor, Tensor]


def distance(a: FullGaussian, b: FullGaussian) -> Tensor:
    """W_2^2 of the centred Gaussians, shape (...,)."""
    # It vanishes at a = b, and no singular value is too small to matter to its gradient: hence in double.
    return solved(_Distance, a, b, in_double=True)[0]


def terms(a: FullGaussian, b: FullGaussian, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """E ||z_a - z_b||^2 of the centred Gaussians, and I, each of shape (...,)."""
    cost, information = solved(_Terms, a, b, gamma)
    return cost, information


def plan(a: FullGaussian, b: FullGaussian, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rho ascending, R of shape (..., R_a, R_b), and T of the side with fewer columns."""
    rho, rotation, residual = solved(_Plan, a, b, gamma)
    return rho, rotation.mT if _swapped(a, b) else rotation, residual


def polar_factor(a: FullGaussian, b: FullGaussian) -> Tensor:
    """X Y^T, shape (..., R_a, R_b)."""
    (rotation,) = solved(_Polar, a, b, in_double=True)
    return rotation.mT if _swapped(a, b) else rotation


def _swapped(a: FullGaussian, b: FullGaussian) -> bool:
    return a.scale.shape[-1] > b.scale.shape[-1]


def solved(function: Any, a: FullGaussian, b: FullGaussian, *gamma: Tensor, in_double: bool = False) -> Any:
    # Disabled only where a compiler is at work: the decorator would import the whole of it with this module.
    solve: Callable[..., Any] = torch.compiler.disable(_solve) if torch.compiler.is_compiling() else _solve
    return solve(function, a, b, *gamma, in_double=in_double)


def _solve(function: Any, a: FullGaussian, b: FullGaussian, *gamma: Tensor, in_double: bool) -> tuple[Tensor, ...]:
    dtype = a.scale.dtype
    if dtype not in (torch.float32, torch.float64):
        raise InvalidTypeError(
            f"a FullGaussian must be float32 or float64 for transport, got {dtype}; convert with .to"
        )
    batch = torch.broadcast_shapes(batch_shape(a, b), *(g.shape for g in gamma))
    first, second = (q.scale.expand(*batch, -1, -1) for q in ((b, a) if _swapped(a, b) else (a, b)))
    arguments = first, second, *(g.expand(batch) for g in gamma)
    work = torch.float64 if in_double else dtype
    with full_precision(first):
        values = function.apply(*(x.to(work) for x in arguments), torch.finfo(dtype).eps)
    return tuple(x.to(dtype) for x in ((values,) if isinstance(values, Tensor) else values))


def first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """An analytic derivative, in full precision, that refuses to be differentiated.

    By itself `once_differentiable` lets a second derivative pass as zero where the incoming gradient is a constant.
    """

    def guarded(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            gradients = tuple(g.detach().requires_grad_() for g in gradients)
        with full_precision(gradients[0]):
            return once_differentiable(backward)(ctx, *gradients)

    return guarded


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale_a: Tensor, scale_b: Tensor, accuracy: float) -> Tensor:
        left, _, right = overlap_svd(scale_a, scale_b, torch.zeros_like(scale_a[..., 0, 0]), accuracy)
        ctx.save_for_backward(scale_a, scale_b, left, right)
        return torch.linalg.matrix_norm(scale_a @ left @ right - scale_b).square()

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_cost: Tensor) -> tuple[Tensor | None, ...]:
        scale_a, scale_b, left, right = ctx.saved_tensors
        # W_2^2 = Tr Sigma_a + Tr Sigma_b - 2 sum s
        d_overlap = -2 * d_cost[..., None, None] * (left @ right)
        return *_through_factors(d_overlap, d_cost, scale_a, scale_b), None


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale_a: Tensor, scale_b: Tensor, gamma: Tensor, accuracy: float) -> tuple[Tensor, Tensor]:
        left, s, right = overlap_svd(scale_a, scale_b, 1 / (2 * gamma), accuracy)
        rho, u, tau = correlations(s, gamma)
        # E ||z_a - z_b||^2 as two sums of squares: what the plan pairs badly, and what it leaves open.
        turned = scale_a @ left
        paired = (turned * rho[..., None, :]) @ right - scale_b
        cost = torch.linalg.matrix_norm(paired).square() + (tau.square() * turned.square().sum(-2)).sum(-1)
        ctx.save_for_backward(scale_a, scale_b, gamma, left, s, right, rho, u)
        return cost, torch.log1p(gamma[..., None] * rho * s).sum(-1) / 2

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_cost: Tensor, d_information: Tensor) -> tuple[Tensor | None, ...]:
        scale_a, scale_b, gamma, left, s, right, rho, u = ctx.saved_tensors
        strength, on_cost, on_information = (x[..., None] for x in (gamma, d_cost, d_information))
        # E ||z_a - z_b||^2 = Tr Sigma_a + Tr Sigma_b - 2 sum rho s, and d(rho s)/ds = w / u, dI/ds = gamma rho / u
        slope = (-4 * on_cost * strength * s + on_information * strength * rho) / u
        # d(rho s)/dgamma = 2 s^2 / (1 + u) u, dI/dgamma = s rho / u
        explained = 2 * s / (1 + u) / u * s
        d_gamma = (-2 * on_cost * explained + on_information * s * rho / u).sum(-1)
        d_overlap = left @ (slope[..., None] * right)
        return *_through_factors(d_overlap, d_cost, scale_a, scale_b), d_gamma, None


class _Plan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale_a: Tensor, scale_b: Tensor, gamma: Tensor, accuracy: float) -> tuple[Tensor, ...]:
        left, s, right = overlap_svd(scale_a, scale_b, 1 / (2 * gamma), accuracy)
        rho, u, tau = correlations(s, gamma)
        ctx.save_for_backward(scale_a, scale_b, gamma, left, s, right, rho, u, tau)
        return rho, (left * rho[..., None, :]) @ right, (left * tau[..., None, :]) @ left.mT

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_rho: Tensor, d_rotation: Tensor, d_residual: Tensor) -> tuple[Tensor | None, ...]:
        scale_a, scale_b, gamma, left, s, right, rho, u, tau = ctx.saved_tensors
        strength = 2 * gamma[..., None]
        # d rho/ds = 2 gamma / (1 + u) u
        d_overlap = (strength / (1 + u) / u * d_rho)[..., None] * right
        inner = left.mT @ d_rotation
        d_overlap = d_overlap + strength[..., None] * _riccati_adjoint(inner, right, rho, u, 1 + u)
        # (tau_i - tau_j) / (s_i^2 - s_j^2) = -k_i k_j / 2 (u_i + u_j) (tau_i + tau_j), where k = 2 gamma tau^2
        core = left.mT @ d_residual @ left
        curvature = strength * tau.square()
        divided = _outer(curvature) / _outer_sum(u) / _outer_sum(tau)
        d_overlap = d_overlap - divided / 2 * (core + core.mT) @ (s[..., None] * right)
        # d rho/dgamma = 2 s / (1 + u) u, d tau/dgamma = -gamma tau^3 s^2 / u
        on_rho = d_rho + (inner * right).sum(-1)
        d_gamma = 2 * s / (1 + u) / u * on_rho
        d_gamma = d_gamma - gamma[..., None] * tau**3 * s / u * s * core.diagonal(dim1=-2, dim2=-1)
        return *_through_factors(left @ d_overlap, None, scale_a, scale_b), d_gamma.sum(-1), None


class _Polar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale_a: Tensor, scale_b: Tensor, accuracy: float) -> Tensor:
        left, s, right = overlap_svd(scale_a, scale_b, torch.zeros_like(scale_a[..., 0, 0]), accuracy)
        ctx.save_for_backward(scale_a, scale_b, left, s, right)
        return left @ right

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_rotation: Tensor) -> tuple[Tensor | None, ...]:
        scale_a, scale_b, left, s, right = ctx.saved_tensors
        # The limit of the plan: rho = 1, and u = 1 + u = w.
        d_overlap = left @ _riccati_adjoint(left.mT @ d_rotation, right, torch.ones_like(s), s, s)
        return *_through_factors(d_overlap, None, scale_a, scale_b), None


def _riccati_adjoint(inner: Tensor, right: Tensor, rho: Tensor, u: Tensor, beyond: Tensor) -> Tensor:
    """X^T dC / 2 gamma from X^T dR: R + gamma R C^T R = gamma C, differentiated in the singular basis.

    The part of dR in the span of Y is divided by u_i + u_j, the part beyond it by 1 + u_i.
    """
    core = inner @ right.mT
    within = (core - _outer(rho) * core.mT) / _outer_sum(u)
    return within @ right + (inner - core @ right) / beyond[..., None]


def _through_factors(d_overlap: Tensor, d_cost: Tensor | None, scale_a: Tensor, scale_b: Tensor) -> Factors:
    """From dC, C = L_a^T L_b, and from the two traces, to dL_a and dL_b."""
    d_scale_a, d_scale_b = scale_b @ d_overlap.mT, scale_a @ d_overlap
    if d_cost is None:
        return d_scale_a, d_scale_b
    spread = 2 * d_cost[..., None, None]
    return d_scale_a.addcmul_(spread, scale_a), d_scale_b.addcmul_(spread, scale_b)


def correlations(s: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """rho, u and tau = sqrt(1 - rho^2)."""
    w = 2 * gamma[..., None] * s
    u = torch.hypot(w, torch.ones_like(w))
    return w / (1 + u), u, (2 / (1 + u)).sqrt()


def _outer(x: Tensor) -> Tensor:
    return x[..., :, None] * x[..., None, :]


def _outer_sum(x: Tensor) -> Tensor:
    return x[..., :, None] + x[..., None, :]


def overlap_svd(scale_a: Tensor, scale_b: Tensor, floor: Tensor, accuracy: float) -> tuple[Tensor, Tensor, Tensor]:
    """X, s, Y^T of L_a^T L_b = X diag(s) Y^T, s ascending, for functions of s that are smooth at the scale `floor`.

    One eigendecomposition of C C^T is several times faster than an SVD of C, but knows s^2 only to eps s_max^2, and
    that matters in proportion to s_max^2 / (s^2 + floor^2). Examples that would fall short of `accuracy` are done
    anew: float32 ones by the same route in float64, float64 ones by an SVD. C is measured in units of its largest
    entry, because C C^T overflows where C does not.
    """
    overlap = scale_a.mT @ scale_b
    unit = overlap.abs().amax((-2, -1), keepdim=True)
    scaled = overlap / unit.where(unit != 0, 1)
    _, left = eigh(scaled @ scaled.mT)
    right = left.mT @ scaled
    s = torch.linalg.vector_norm(right, dim=-1)  # more accurate than the root of the eigenvalue
    right = right / s.where(s != 0, 1)[..., None]
    s = s * unit[..., 0]
    tolerable = (64 * accuracy / torch.finfo(s.dtype).eps) ** 0.5
    lost = s.amax(-1) >= tolerable * torch.hypot(s.amin(-1), floor)
    if bool(lost.any()):
        if s.dtype == torch.float32:
            better = overlap_svd(scale_a[lost].double(), scale_b[lost].double(), floor[lost].double(), accuracy)
        else:
            svd = torch.linalg.svd(overlap[lost], full_matrices=False)
            better = svd.U.flip(-1), svd.S.flip(-1), svd.Vh.flip(-2)
        left[lost], s[lost], right[lost] = (x.to(s.dtype) for x in better)
    return left, s, right


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; for an example with NaN or inf, where LAPACK refuses the batch, NaN."""
    usable = finite(matrix)[..., None]
    values, vectors = torch.linalg.eigh(matrix.where(usable[..., None], 0))
    return values.where(usable, torch.nan), vectors
