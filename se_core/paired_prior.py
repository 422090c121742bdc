"""The paired prior: the field of the paper, normalised so that log p(x) is the VAE's own and its bound can be tight.

The paper couples the latents of x and x' by p(z_a) p(z_b) exp(-gamma/2 ||z_a - z_b||^2), which is not normalised: its
bound stays D/2 log(1 + gamma) below log p(x) whatever the encoder. The paired prior (ours) is

    (z_a, z_b) ~ N(0, [[1, rho], [rho, 1]]) for each latent,    gamma = rho / (1 - rho^2),

    log p(z_a, z_b) = -(||z_a||^2 + ||z_b||^2) / 2 (1 + rho) - gamma/2 ||z_a - z_b||^2
                      - D log 2 pi - D/2 log(1 - rho^2).

Both of its marginals are p = N(0, I), so that x' integrates out of the joint model and leaves p(x): eq. 5 is true here.
It is the same field at the same gamma, so that for given q_a and q_b the same plan Q is optimal, with

    log p(x) >= E log p(x|Z_a) - KL(Q || p(z_a, z_b))
              = E log p(x|Z_a) - KL(q_a || p) - E_Q KL(Q(z_b|Z_a) || N(rho Z_a, (1 - rho^2) I)).

The gap is KL(Q || p(z_a, z_b|x)): zero where q_a is the posterior and q_b its image under z -> N(rho z, 1 - rho^2). For
every q_a and q_b the bound exceeds the paper's, by rho E(||Z_a||^2 + ||Z_b||^2) / 2 (1 + rho) - D/2 log(1 - rho^2).
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from se_core.gaussians import (
    DiagonalGaussian,
    FullGaussian,
    Gaussian,
    GaussianLike,
    KLTerms,
    full_precision,
    kl_terms,
    matched,
    square_factor,
)
from se_core.transport import coupling

Strength = TypeVar("Strength", float, Tensor)


def paired_correlation(gamma: Strength) -> Strength:
    """rho with gamma = rho / (1 - rho^2), solved without a difference; of a tensor, for each of its entries.

    It is the correlation of the optimal plan between two standard normals: the paired prior is its own plan.
    """
    if isinstance(gamma, Tensor):
        return 2 * gamma / (1 + torch.hypot(torch.ones_like(gamma), 2 * gamma))
    return 2 * gamma / (1 + math.hypot(1, 2 * gamma))


def paired_terms(a: GaussianLike, b: GaussianLike, gamma: float | Tensor) -> KLTerms:
    """E_Q KL(Q(z_b|Z_a) || N(rho Z_a, (1 - rho^2) I)) under the optimal plan, in nats, in the two parts of eq. 8.

    Shapes and errors are those of `transport_terms`. With Psi = L_a R L_b^T and Z_a = mu_a + L_a e,

        Q(z_b|Z_a) = N(mu_b + L_b R^T e, L_b (I - R^T R) L_b^T),

    so that the part of the means is that at e = 0, and ||L_b R^T - rho L_a||^2 / 2 (1 - rho^2). No part is negative.

    In float32, for rho <= 0.999 and log-variances from -12 to 2, the sum is right to 2e-6 of itself and 4e-6 nats a
    latent (3e-9 in the tight case, where it is zero); for full covariances of condition below 1e8 to 1e-5 of itself.
    """
    a, b = matched(a, b)
    if isinstance(a, DiagonalGaussian) and isinstance(b, DiagonalGaussian):
        # Each latent as a Gaussian by itself, whose plan is a number and not a matrix.
        plan = coupling(_latents(a), _latents(b), gamma[..., None] if isinstance(gamma, Tensor) else gamma)
        strength = plan.gamma
        rho, r = paired_correlation(strength), plan.rho[..., 0]
        log_open = -torch.log1p(strength * plan.psi[..., 0])  # log(1 - r^2)
        given: Gaussian = DiagonalGaussian(b.mean, b.log_var + log_open)
        misfit = r * (b.log_var / 2).exp() - rho * (a.log_var / 2).exp()
    else:
        scale_a, scale_b = square_factor(a.full().scale), square_factor(b.full().scale)
        # In this order the residual is (I - R^T R)^{1/2}.
        plan = coupling(FullGaussian(b.mean, scale_b), FullGaussian(a.mean, scale_a), gamma)
        strength = plan.gamma[..., None]
        rho = paired_correlation(strength)
        with full_precision(scale_b):
            given = FullGaussian(b.mean, scale_b @ plan.residual)
            misfit = (scale_b @ plan.rotation - rho[..., None] * scale_a).flatten(-2)
    log_var = -torch.log1p(strength * rho)  # log(1 - rho^2)
    centre = rho * a.mean
    covariance, mean = kl_terms(given, DiagonalGaussian(centre, log_var.expand_as(centre)))
    return KLTerms(covariance, mean + (misfit * (-log_var / 2).exp()).square().sum(-1) / 2)


def _latents(q: DiagonalGaussian) -> DiagonalGaussian:
    return DiagonalGaussian(q.mean[..., None], q.log_var[..., None])
