"""Optimal and entropic transport between Gaussians, in closed form (section 5 of the paper).

With square-root factors Sigma_a = L_a L_a^T, Sigma_b = L_b L_b^T and the singular values s of L_a^T L_b (for diagonal
covariances s_k = sigma_a^k sigma_b^k) everything is a function of s and of the coupling strength gamma:

    canonical correlation    rho     = 2 gamma / (1/s + h),  where h = sqrt(1/s^2 + 4 gamma^2)
    excess of the cost       excess  = 2 (1 + rho) / (h + 2 gamma)
    mutual information       I       = 1/2 log(1 + gamma rho s)

so that psi = rho s solves eq. 22, W^2_{2,gamma} = W_2^2 + sum excess is eq. 19, and I replaces the difference of
log-determinants in eq. 21. These forms equal eqs. 19-24 and contain neither a difference of nearly equal numbers nor a
product that overflows before its result does; the printed ones lose every digit in float32 where encoders live.

The cost is ||z_a - z_b||^2 without a factor 1/2, and gamma is an inverse temperature: the entropic regularisation that
other libraries call epsilon is 2 / gamma. All functions return one number per example, shape (...,), in the units of the
squared latent (costs) or in nats.
"""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from se_core.gaussians import DiagonalGaussian, Gaussian, entropy, matched


def w2_squared(a: Gaussian | Distribution, b: Gaussian | Distribution) -> Tensor:
    """Squared 2-Wasserstein distance W_2^2(a, b), shape (...,), eq. 12."""
    a, b = matched(a, b)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _diagonal_w2_squared(a, b)
    raise NotImplementedError


def entropic_w2_squared(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """W^2_{2,gamma} = E ||z_a - z_b||^2 under the plan that is optimal at coupling gamma, shape (...,), eq. 19.

    It falls from the cost of independence at gamma = 0 to W_2^2 as gamma grows. It is not a distance: at equal
    arguments it is positive.
    """
    a, b = matched(a, b)
    gamma = _coupling_strength(gamma, a.mean)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _diagonal_w2_squared(a, b) + _excess(_inverse_overlap(a, b), gamma[..., None]).sum(-1)
    raise NotImplementedError


def mutual_information(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """Mutual information of z_a and z_b under the optimal plan at coupling gamma, in nats, shape (...,).

    It is H(Q_a) + H(Q_b) - H(Q), with H(Q) of eq. 15.
    """
    a, b = matched(a, b)
    gamma = _coupling_strength(gamma, a.mean)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        return _information(_inverse_overlap(a, b), gamma[..., None]).sum(-1)
    raise NotImplementedError


def entropic_cost(a: Gaussian | Distribution, b: Gaussian | Distribution, gamma: float | Tensor) -> Tensor:
    """WD_{2,gamma} = gamma/2 E ||z_a - z_b||^2 - H(Q) under the optimal plan, in nats, shape (...,), eqs. 20-21.

    The minus of the last two terms of the SE-ELBO (section 6). It can be negative.
    """
    a, b = matched(a, b)
    gamma = _coupling_strength(gamma, a.mean)
    transport = gamma / 2 * entropic_w2_squared(a, b, gamma) + mutual_information(a, b, gamma)
    return transport - entropy(a) - entropy(b)


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
        if not torch.compiler.is_compiling():
            lowest, highest = (float(x) for x in gamma.detach().aminmax()) if gamma.numel() else (0.0, 0.0)
            _check_coupling_strength(highest if math.isfinite(lowest) and lowest >= 0 else lowest, like.dtype)
        return gamma
    _check_coupling_strength(gamma, like.dtype)
    return like.new_full((), gamma)


def _check_coupling_strength(gamma: float, dtype: torch.dtype) -> None:
    if gamma < 0:
        raise ValueError(f"gamma must be non-negative, got {gamma}; call w2_squared for transport without entropy")
    if not gamma < torch.finfo(dtype).max / 4:
        raise ValueError(f"gamma must be finite in {dtype}, got {gamma}; its limit of infinite coupling is w2_squared")


def _diagonal_w2_squared(a: DiagonalGaussian, b: DiagonalGaussian) -> Tensor:
    # sigma_a - sigma_b as a hyperbolic sine: no cancellation, so PGD sees the first 1e-7 of a difference.
    spread = 2 * ((a.log_var + b.log_var) / 4).exp() * ((a.log_var - b.log_var) / 4).sinh()
    return ((a.mean - b.mean).square() + spread.square()).sum(-1)


def _inverse_overlap(a: DiagonalGaussian, b: DiagonalGaussian) -> Tensor:
    """1 / s = 1 / (sigma_a sigma_b), shape (..., D)."""
    return (-(a.log_var + b.log_var) / 2).exp()


def _correlation(inverse_overlap: Tensor, gamma: Tensor) -> Tensor:
    return 2 * gamma / (inverse_overlap + torch.hypot(inverse_overlap, 2 * gamma))


def _excess(inverse_overlap: Tensor, gamma: Tensor) -> Tensor:
    h = torch.hypot(inverse_overlap, 2 * gamma)
    return 2 * (1 + 2 * gamma / (inverse_overlap + h)) / (h + 2 * gamma)


def _information(inverse_overlap: Tensor, gamma: Tensor) -> Tensor:
    return torch.log1p(gamma * _correlation(inverse_overlap, gamma) / inverse_overlap) / 2
