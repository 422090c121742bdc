"""The Sinkhorn divergence OT(a, b) - OT(a, a)/2 - OT(b, b)/2 of centred Gaussians, without the difference.

Near a = b the three costs agree in all their leading digits, and their difference has none left. Both forms here are
products or sums of terms that are not negative, and small where the divergence is.
"""

import math
from typing import Any

import torch
from torch import Tensor

from se_core._full_transport import correlations, eigh, first_derivative, overlap_svd, solved
from se_core.gaussians import DiagonalGaussian, FullGaussian, finite


def exp_difference(x: Tensor, y: Tensor) -> Tensor:
    """exp(x) - exp(y): neither the value nor its derivatives lose digits where x and y are near, or far apart."""
    near = (x - y).abs() < 1  # beyond, the derivative of expm1 cancels
    return torch.where(near, y.exp() * torch.expm1((x - y).where(near, 0)), x.exp() - y.exp())


def diagonal_divergence(a: DiagonalGaussian, b: DiagonalGaussian, gamma: Tensor) -> Tensor:
    """The Sinkhorn divergence of the centred Gaussians, shape (...,): a sum of products with (v_a - v_b)^2.

    With w_a = 2 gamma v_a, u_a = sqrt(1 + w_a^2), likewise b, u = sqrt(1 + w_a w_b) and D = w_a - w_b, the differences

        u_a u_b - u^2 = D^2 / (u_a u_b + u^2) = B,   (u_a + u_b)/2 - u = (D^2 + 2 B) / 2 (u_a + u_b + 2 u) = A

    turn OT(a, b) - OT(a, a)/2 - OT(b, b)/2 into (A - 1/2 log(1 + (2 A + B) / (1 + u)^2)) / gamma. Everything is
    measured in units of the larger variance, v_a say, so that no square overflows: h = 1 / v_a, hypot(h, ...) = h u.
    """
    strength = 2 * gamma[..., None]
    # By a mask, because at a = b maximum and abs have other second derivatives than what follows.
    first = a.log_var > b.log_var
    larger, ratio = a.log_var.where(first, b.log_var), (b.log_var - a.log_var).where(first, a.log_var - b.log_var)
    least = 1 - math.log(torch.finfo(larger.dtype).max)  # below it a variance is zero for every purpose
    variance, h = larger.exp(), (-larger.clamp(min=least)).exp()
    f = -exp_difference(ratio, torch.zeros_like(ratio))  # (v_a - v_b) / v_a
    h_a, h_b, h_u = (torch.hypot(h, strength * x) for x in (torch.ones_like(h), ratio.exp(), (ratio / 2).exp()))
    inverse_u_a, omega = h / h_a, h / (h + h_u)  # 1 / u_a, 1 / (1 + u)
    k = h / (h_b + h_u * (h_u / h_a))  # 1 / (u_b + u^2 / u_a), which is u_a B / D^2
    bracket = f * (strength / (h_a + h_b + 2 * h_u)) * (1 + 2 * k * inverse_u_a)  # 2 A / D
    total = bracket + f * (strength / h_a) * k  # (2 A + B) / D
    x = strength * (f * (variance * omega)) * total * omega  # (2 A + B) / (1 + u)^2
    # 1/2 log(1 + x) / gamma, exact at gamma = 0, where x is 0, and without a quotient x / gamma where x is large.
    small = x < 0.25
    near = _log1p_over(x.where(small, 0)) * (variance * f) * total * omega.square()
    return (variance * f * bracket - torch.where(small, near, x.log1p() / strength.where(~small, 1))).sum(-1)


def _log1p_over(x: Tensor) -> Tensor:
    """log(1 + x) / x for 0 <= x <= 1/4, derivatives at 0 included: the series of 2 atanh(z) / x at z = x / (2 + x)."""
    z_squared = (x / (2 + x)).square()
    series = torch.zeros_like(x)
    for k in range(17, 0, -2):
        series = 1 / k + z_squared * series
    return 2 / (2 + x) * series


def full_divergence(a: FullGaussian, b: FullGaussian, gamma: Tensor) -> Tensor:
    """The Sinkhorn divergence of the centred Gaussians, shape (...,)."""
    return solved(_Divergence, a, b, gamma, in_double=True)[0]


class _Divergence(torch.autograd.Function):
    """R maximises 2 gamma Tr(C R^T) + log det(I - R R^T); R_a and R_b do so at C_a = L_a^T L_a and C_b = L_b^T L_b.

    OT is the two traces less that maximum over gamma. With x_k and y_k the columns of X and Y, the divergence is
    therefore

        sum rho_k ||L_a x_k - L_b y_k||^2 + 1/(2 gamma) [G(X diag(rho) X^T, R_a) + G(Y diag(rho) Y^T, R_b)],

    where G is what R falls short of the maximum at C_a or C_b, the Bregman divergence of -log det(I - R^2).
    """

    @staticmethod
    def forward(ctx: Any, scale_a: Tensor, scale_b: Tensor, gamma: Tensor, accuracy: float) -> Tensor:
        left, s, right = overlap_svd(scale_a, scale_b, 1 / (2 * gamma), accuracy)
        # What rounding makes of s = 0 would be weighted with whole squares.
        s = s.where(~(s < 8 * torch.finfo(s.dtype).eps * s.amax(-1, keepdim=True)), 0)
        rho, u, _ = correlations(s, gamma)
        value = (rho * (scale_a @ left - scale_b @ right.mT).square().sum(-2)).sum(-1)
        information = _information_slope(s, u, rho, gamma)
        own = []
        for scale, axes in ((scale_a, left), (scale_b, right.mT)):
            squares, basis = eigh(scale.mT @ scale)
            squares = squares.clamp(min=0)
            rho_own, u_own, tau = correlations(squares, gamma)
            # R - R_a in the basis in which R_a is diagonal
            missed = (basis.mT @ axes * rho[..., None, :]) @ (axes.mT @ basis) - torch.diag_embed(rho_own)
            value = value + _gap(missed, rho_own, tau) / (2 * gamma).clamp(min=torch.finfo(s.dtype).tiny)
            information = information - _information_slope(squares, u_own, rho_own, gamma) / 2
            own.append(scale @ (basis * rho_own[..., None, :]) @ basis.mT)
        rotation = (left * rho[..., None, :]) @ right
        # Nothing but OT's own gradients: 2 (L_a - L_b R^T) - 2 (L_a - L_a R_a)
        ctx.save_for_backward(own[0] - scale_b @ rotation.mT, own[1] - scale_a @ rotation, information)
        return value

    @staticmethod
    @first_derivative
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, ...]:
        by_scale_a, by_scale_b, information = ctx.saved_tensors
        spread = 2 * d_value[..., None, None]
        return spread * by_scale_a, spread * by_scale_b, -d_value * information, None


def _gap(missed: Tensor, rho: Tensor, tau: Tensor) -> Tensor:
    """The Bregman divergence of -log det(I - R) - log det(I + R) between diag(rho) + missed and diag(rho), >= 0."""
    total = torch.zeros_like(rho[..., 0])
    for sign, distance_to_edge in ((1, 1 + rho), (-1, tau.square() / (1 + rho))):  # 1 + rho and 1 - rho
        root = distance_to_edge.sqrt()
        scaled = sign * missed / (root[..., :, None] * root[..., None, :])
        # An example that is not finite has rho = NaN already; LAPACK would refuse the batch for it.
        relative = torch.linalg.eigvalsh(scaled.where(finite(scaled)[..., None, None], 0))
        relative = relative.clamp(min=torch.finfo(rho.dtype).eps - 1)  # both are inside the edge, but for rounding
        total = total + (relative - torch.log1p(relative)).sum(-1)
    return total


def _information_slope(s: Tensor, u: Tensor, rho: Tensor, gamma: Tensor) -> Tensor:
    """(2 / gamma^2) I, with the value at gamma = 0: minus the derivative of OT in gamma, by the envelope theorem."""
    y = (gamma[..., None] * rho * s).clamp(min=torch.finfo(s.dtype).tiny)
    return (2 * s / (1 + u) * s * (torch.log1p(y) / y)).sum(-1)
