"""Plant one error at a time in the formulas of the package, and show that the tests notice each.

    python tests/mutations.py            # all of them, some minutes; writes the outcome into tests/README.md
    python tests/mutations.py excess     # those whose source line contains a word

Each error is a substitution in a temporary copy of package and tests; the tests of the module then run until the first
failure. An error that no test notices is a hole in the tests, and makes the script exit with 1. Libraries are loaded
once and every run is a fork of that process, so that the package alone is imported anew.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

import mpmath  # noqa: F401
import ot  # noqa: F401
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats  # noqa: F401
import torch
import torch._dynamo
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- mutations: written by tests/mutations.py -->\n", "<!-- end of mutations -->\n"

# The quick ones first: the run stops at the first failure.
TRANSPORT = [
    f"tests/library/test_transport_{name}.py"
    for name in (
        *("limits", "plan", "sinkhorn", "riccati", "range", "gradients", "errors"),
        *("surroundings", "symmetry", "precision", "solvers", "discrete"),
    )
]
TESTS = {
    "gaussians.py": ["tests/library/test_gaussians.py", *TRANSPORT],
    "_full_transport.py": ["tests/library/test_full_transport.py", *TRANSPORT],
    "_sinkhorn.py": ["tests/library/test_transport_sinkhorn.py", "tests/library/test_full_transport.py", *TRANSPORT],
    "transport.py": TRANSPORT,
    "paired_prior.py": ["tests/library/test_paired_prior.py"],
    "objectives.py": [f"tests/library/test_{name}.py" for name in ("objectives", "bound", "avae", "paired_prior")],
}


class Mutation(NamedTuple):
    module: str
    right: str
    wrong: str

    def source(self) -> str:
        """The module with the error in it; the right form must occur once."""
        text = (ROOT / "se_core" / self.module).read_text()
        if text.count(self.right) != 1:
            raise SystemExit(f"{self.module}: {self.right!r} occurs {text.count(self.right)} times, not once")
        return text.replace(self.right, self.wrong)


def planted(module: str, *pairs: tuple[str, str]) -> list[Mutation]:
    return [Mutation(module, right, wrong) for right, wrong in pairs]


GAUSSIANS = planted(
    "gaussians.py",
    ("LOG_2_PI_E = math.log(2 * math.pi * math.e)", "LOG_2_PI_E = math.log(2 * math.pi)"),
    ("return self.scale @ self.scale.mT", "return self.scale.mT @ self.scale"),
    ("torch.diag_embed(self.log_var.exp())", "torch.diag_embed((self.log_var / 2).exp())"),
    ("torch.diag_embed((self.log_var / 2).exp())", "torch.diag_embed(self.log_var.exp())"),
    ("eigenvectors * eigenvalues.clamp(min=0).sqrt()", "eigenvectors * eigenvalues.clamp(min=0)"),
    ("eigenvectors * eigenvalues.clamp(min=0).sqrt()", "eigenvectors.mT * eigenvalues.clamp(min=0).sqrt()"),
    ("_refuse(asymmetry > rounding,", "_refuse(asymmetry > torch.inf,"),
    ("_refuse(asymmetry > rounding,", "_refuse(asymmetry > 0,"),
    ("_refuse(lowest < -rounding,", "_refuse(lowest < -torch.inf,"),
    ("_refuse(lowest < -rounding,", "_refuse(lowest < 0,"),
    ("_refuse(~size.isfinite(),", "_refuse(size < 0,"),
    ("wrong.nonzero()[0])", "wrong.nonzero()[-1])"),
    ("DiagonalGaussian(loc, 2 * scale.log())", "DiagonalGaussian(loc, scale.log())"),
    ("event + base.reinterpreted_batch_ndims", "base.reinterpreted_batch_ndims"),
    ("torch.diag_embed(base.cov_diag.sqrt())", "torch.diag_embed(base.cov_diag)"),
    ("torch.cat([base.cov_factor, torch.diag_embed(base.cov_diag.sqrt())], -1)", "base.cov_factor"),
    ("isinstance(base, MultivariateNormal) and event == 0", "isinstance(base, MultivariateNormal)"),
    ("        with full_precision(self.scale):\n            return", "        if True:\n            return"),
    ("finite(scale_b, right), math.nan)", "finite(right), math.nan)"),
    ("right * usable[..., None, None])", "right)"),
    ("regular & finite(whitened)[..., None, None]", "regular"),
    ("return (q.log_var + LOG_2_PI_E).sum(-1) / 2", "return (q.log_var + LOG_2_PI_E).sum(-1)"),
    ("return (q.log_var + LOG_2_PI_E).sum(-1) / 2", "return (q.log_var - LOG_2_PI_E).sum(-1) / 2"),
    ("return log_volume + q.scale.shape[-2] * LOG_2_PI_E / 2", "return log_volume + LOG_2_PI_E / 2"),
    ("return log_volume + q.scale", "return 2 * log_volume + q.scale"),
    ("pad(scale, (0, dimension - rank))", "pad(scale, (0, dimension - rank), value=1.0)"),
    ("_itakura_saito(a.log_var - b.log_var)", "_itakura_saito(b.log_var - a.log_var)"),
    ("((a.mean - b.mean) * (-b.log_var / 2).exp())", "((a.mean - b.mean) * (-a.log_var / 2).exp())"),
    ("((a.mean - b.mean) * (-b.log_var / 2).exp())", "((a.mean - b.mean) * (-b.log_var).exp())"),
    ("((a.mean - b.mean) * (-b.log_var / 2).exp())", "((a.mean + b.mean) * (-b.log_var / 2).exp())"),
    ("KLTerms(covariance.sum(-1) / 2, mean.sum(-1) / 2)", "KLTerms(covariance.sum(-1), mean.sum(-1) / 2)"),
    ("KLTerms(covariance.sum(-1) / 2, mean.sum(-1) / 2)", "KLTerms(covariance.sum(-1) / 2, mean.sum(-1))"),
    ("return terms.covariance + terms.mean", "return terms.covariance - terms.mean"),
    ("range(15, 2, -1)", "range(6, 2, -1)"),
    ("series = 1 + near / k * series", "series = 1 - near / k * series"),
    ("near.square() / 2 * series", "near.square() * series"),
    ("log_ratio.abs() < 0.5, near", "log_ratio.abs() < 0.0, near"),
    ("log_ratio.clamp(-0.5, 0.5)", "log_ratio"),
    ("torch.expm1(log_ratio) - log_ratio)", "torch.expm1(log_ratio) + log_ratio)"),
    ("torch.linalg.qr(scale.mT).R.mT", "torch.linalg.qr(scale.mT).R"),
    ("_itakura_saito(2 * ratio.log())", "_itakura_saito(ratio.log())"),
    ("_itakura_saito(2 * ratio.log())", "_itakura_saito(-2 * ratio.log())"),
    ("mean.square().sum(-1) / 2 * usable)", "mean.square().sum(-1) * usable)"),
    ("shift = (a.mean - b.mean)", "shift = (a.mean + b.mean)"),
    (".where(regular[..., 0], math.inf)", ".where(regular[..., 0], 0)"),
    ("if a.mean.shape[-1] != b.mean.shape[-1]:", "if False:"),
    ("if a.mean.dtype != b.mean.dtype:", "if False:"),
    ("if a.mean.device != b.mean.device:", "if False:"),
    ("    batch_shape(a, b)\n    return a, b", "    return a, b"),
)

TRANSPORTS = planted(
    "transport.py",
    # the diagonal family
    ("spread = 2 * ((a.log_var + b.log_var) / 4)", "spread = ((a.log_var + b.log_var) / 4)"),
    ("((a.log_var + b.log_var) / 4).exp()", "((a.log_var + b.log_var) / 2).exp()"),
    ("((a.log_var - b.log_var) / 4).sinh()", "((a.log_var - b.log_var) / 4)"),
    ("((a.log_var - b.log_var) / 4).sinh()", "((a.log_var + b.log_var) / 4).sinh()"),
    ("(a.mean - b.mean).square() + spread.square()", "(a.mean - a.mean).square() + spread.square()"),
    ("(a.mean - b.mean).square() + spread.square()", "(a.mean - b.mean).square() + spread"),
    (
        "log_s = 2 * gamma[..., None], (a.log_var + b.log_var) / 2",
        "log_s = 2 * gamma[..., None], a.log_var + b.log_var",
    ),
    ("log_s = 2 * gamma[..., None], (a.log", "log_s = gamma[..., None], (a.log"),
    ("torch.minimum(log_s.detach(), -strength.detach().log())", "log_s.detach()"),
    ("torch.minimum(log_s.detach(), -strength.detach().log())", "-strength.detach().log()"),
    ("c = log_c.exp()", "c = log_s.exp()"),
    ("x, y = c * strength, (log_c - log_s).exp()", "x, y = c * strength, c * (-log_s).exp()"),
    ("u = torch.hypot(x, y)", "u = torch.hypot(x, x)"),
    ("rho = x / (y + u)", "rho = x / (x + u)"),
    ("return rho, rho * log_s.exp(), 2 * c * (1 + rho)", "return rho, rho * log_s.exp(), c * (1 + rho)"),
    ("return rho, rho * log_s.exp(), 2 * c * (1 + rho)", "return rho, rho * log_s.exp(), 2 * c * (1 - rho)"),
    ("return rho, rho * log_s.exp(), 2 * c * (1 + rho)", "return rho, rho / log_s.exp(), 2 * c * (1 + rho)"),
    ("2 * c * (1 + rho) / (x + u)", "2 * c * (1 + rho) / (y + u)"),
    ("_diagonal_w2_squared(a, b) + excess.sum(-1)", "_diagonal_w2_squared(a, b) - excess.sum(-1)"),
    # what follows from a plan
    ("torch.log1p(gamma[..., None] * psi).sum(-1) / 2", "torch.log1p(gamma[..., None] * psi).sum(-1)"),
    ("torch.log1p(gamma[..., None] * psi)", "torch.log1p(2 * gamma[..., None] * psi)"),
    ("torch.log1p(gamma[..., None] * psi)", "torch.log(1 + gamma[..., None] * psi)"),
    ("_squared_distance(a, b) + cost, information)", "_squared_distance(a, b) - cost, information)"),
    ("return (a.mean - b.mean).square().sum(-1)", "return (a.mean + b.mean).square().sum(-1)"),
    ("_squared_distance(a, b) + _full_transport.distance", "_full_transport.distance"),
    ("_squared_distance(a, b) + _sinkhorn.diagonal", "_sinkhorn.diagonal"),
    ("_squared_distance(a, b) + _sinkhorn.full", "_sinkhorn.full"),
    ("return gamma / 2 * terms.cost + terms.information", "return gamma * terms.cost + terms.information"),
    ("return gamma / 2 * terms.cost + terms.information", "return gamma / 2 * terms.cost - terms.information"),
    ("terms.information - entropy(a) - entropy(b)", "terms.information - entropy(a) + entropy(b)"),
    ("terms.information - entropy(a) - entropy(b)", "terms.information - entropy(a) - entropy(a)"),
    ("self.target + (self.matrix @ (z - self.source)", "self.target + (self.matrix.mT @ (z + self.source)"),
    ("((b.log_var - a.log_var) / 2).exp()), a.mean", "((a.log_var - b.log_var) / 2).exp()), a.mean"),
    ("((b.log_var - a.log_var) / 2).exp()), a.mean", "(b.log_var - a.log_var).exp()), a.mean"),
    ("rotation @ b.scale.mT).mT, a.mean, b.mean)", "rotation @ b.scale.mT).mT, b.mean, a.mean)"),
    ("torch.linalg.solve(a.scale.mT, rotation", "torch.linalg.solve(a.scale, rotation"),
    (
        "rank == a.mean.shape[-1])).all()):\n        raise",
        "rank == a.mean.shape[-1])).all()) and False:\n        raise",
    ),
    ("(1 + gamma[..., None] * psi).rsqrt()", "(1 + gamma[..., None] * psi).reciprocal()"),
    ("rho.flip(-1)[..., : a.mean.shape[-1]]", "rho[..., : a.mean.shape[-1]]"),
    ("psi = a.scale @ rotation @ b.scale.mT", "psi = (a.scale @ rotation @ b.scale.mT).mT"),
    ("        with full_precision(self.matrix):", "        if True:"),
    ("        with full_precision(scale_a):", "        if True:"),
    ("    with full_precision(rotation):\n        psi", "    if True:\n        psi"),
    ("    with full_precision(rotation):\n        return", "    if True:\n        return"),
    ("a.scale.detach().where(usable[..., None, None], 0)", "a.scale.detach()"),
    ("(~usable | (rank", "((rank"),
    ("scale_a @ self.residual, scale_a @ self.rotation", "scale_a @ self.residual, scale_b @ self.rotation"),
    ("(torch.zeros_like(scale_a), scale_b)", "(torch.zeros_like(scale_a), scale_a)"),
    ("(scale_b @ self.rotation.mT, scale_b", "(scale_b @ self.residual, scale_b"),
    # refusals
    ("if bool((lowest >= 0) & (highest", "if bool((highest == highest) & (highest"),
    ("(highest < torch.finfo(dtype).max / 4)):", "(highest < torch.inf)):"),
    ("    if lowest < 0:", "    if False:"),
    ("if isinstance(gamma, bool) or not isinstance(gamma, Real):", "if not isinstance(gamma, Real):"),
    ("if isinstance(gamma, bool) or not isinstance(gamma, Real):", "if isinstance(gamma, bool):"),
    ("if gamma.dtype != dtype or", "if"),
)

FULL_TRANSPORTS = planted(
    "_full_transport.py",
    ("return rho, rotation.mT if _swapped(a, b) else rotation, residual", "return rho, rotation, residual"),
    ("    return rotation.mT if _swapped(a, b) else rotation\n", "    return rotation\n"),
    ("((b, a) if _swapped(a, b) else (a, b))", "(a, b)"),
    ("if dtype not in (torch.float32, torch.float64):", "if False:"),
    ("    with full_precision(first):", "    if True:"),
    ("        with full_precision(gradients[0]):", "        if True:"),
    ("if torch.is_grad_enabled():", "if False:"),
    ("solved(_Distance, a, b, in_double=True)", "solved(_Distance, a, b)"),
    # W_2
    ("scale_a @ left @ right - scale_b).square()", "scale_a @ left @ right + scale_b).square()"),
    ("-2 * d_cost[..., None, None] * (left @ right)", "-d_cost[..., None, None] * (left @ right)"),
    # the two terms
    ("turned = scale_a @ left", "turned = scale_a @ left.mT"),
    ("(turned * rho[..., None, :]) @ right - scale_b", "(turned * rho[..., None, :]) @ right + scale_b"),
    ("+ (tau.square() * turned.square()", "- (tau.square() * turned.square()"),
    ("(tau.square() * turned.square()", "(tau * turned.square()"),
    ("torch.log1p(gamma[..., None] * rho * s).sum(-1) / 2", "torch.log1p(gamma[..., None] * rho * s).sum(-1)"),
    ("(-4 * on_cost * strength * s + on", "(-2 * on_cost * strength * s + on"),
    ("on_information * strength * rho) / u", "on_information * strength * rho)"),
    ("explained = 2 * s / (1 + u) / u * s", "explained = s / (1 + u) / u * s"),
    ("on_information * s * rho / u).sum(-1)", "on_information * s * rho / (1 + u)).sum(-1)"),
    # the plan
    ("(left * rho[..., None, :]) @ right, (left", "(left * tau[..., None, :]) @ right, (left"),
    ("(left * tau[..., None, :]) @ left.mT", "(left * tau[..., None, :]) @ left"),
    ("(strength / (1 + u) / u * d_rho)", "(strength / (1 + u) * d_rho)"),
    ("inner = left.mT @ d_rotation", "inner = left @ d_rotation"),
    ("curvature = strength * tau.square()", "curvature = strength * tau"),
    ("d_overlap - divided / 2 * (core + core.mT)", "d_overlap + divided / 2 * (core + core.mT)"),
    ("d_overlap - divided / 2 * (core + core.mT)", "d_overlap - divided / 2 * (core + core)"),
    ("on_rho = d_rho + (inner * right)", "on_rho = d_rho - (inner * right)"),
    ("d_gamma = 2 * s / (1 + u) / u * on_rho", "d_gamma = s / (1 + u) / u * on_rho"),
    ("gamma[..., None] * tau**3 * s / u", "gamma[..., None] * tau**2 * s / u"),
    ("within = (core - _outer(rho) * core.mT)", "within = (core + _outer(rho) * core.mT)"),
    ("within = (core - _outer(rho) * core.mT)", "within = (core - _outer(rho) * core)"),
    ("core.mT) / _outer_sum(u)", "core.mT) / (1 + u)[..., None]"),
    ("(inner - core @ right) / beyond", "(inner - inner) / beyond"),
    ("torch.ones_like(s), s, s)", "torch.zeros_like(s), s, s)"),
    ("torch.ones_like(s), s, s)", "torch.ones_like(s), s, 1 + s)"),
    # common to them
    ("d_scale_b = scale_b @ d_overlap.mT, scale_a", "d_scale_b = scale_b @ d_overlap, scale_a"),
    ("spread = 2 * d_cost[..., None, None]", "spread = d_cost[..., None, None]"),
    ("d_scale_b.addcmul_(spread, scale_b)", "d_scale_b.addcmul_(spread, scale_a)"),
    ("return w / (1 + u), u, (2 / (1 + u)).sqrt()", "return w / (1 + u), u, 2 / (1 + u)"),
    ("w = 2 * gamma[..., None] * s", "w = gamma[..., None] * s"),
    ("overlap = scale_a.mT @ scale_b", "overlap = scale_b.mT @ scale_a"),
    ("scaled = overlap / unit.where(unit != 0, 1)", "scaled, unit = overlap, torch.ones_like(unit)"),
    ("scaled = overlap / unit.where(unit != 0, 1)", "scaled = overlap / unit"),
    ("s = s * unit[..., 0]", "s = s * 1"),
    ("_, left = eigh(scaled @ scaled.mT)", "_, left = eigh(scaled.mT @ scaled)"),
    ("right = right / s.where(s != 0, 1)[..., None]", "right = right / s[..., None]"),
    ("tolerable = (64 * accuracy", "tolerable = (1e30 * accuracy"),
    ("lost = s.amax(-1) >= tolerable", "lost = s.amax(-1) > tolerable"),
    ("torch.hypot(s.amin(-1), floor)", "torch.hypot(s.amax(-1), floor)"),
    ("svd.U.flip(-1), svd.S.flip(-1)", "svd.U.flip(-1), svd.S"),
    ("torch.linalg.eigh(matrix.where(usable[..., None], 0))", "torch.linalg.eigh(matrix)"),
)

SINKHORNS = planted(
    "_sinkhorn.py",
    # the diagonal family
    ("near = (x - y).abs() < 1 ", "near = (x - y).abs() < 1000 "),
    ("near = (x - y).abs() < 1 ", "near = (x - y).abs() < 0 "),
    ("torch.expm1((x - y).where(near, 0))", "torch.expm1(x - y)"),
    ("strength = 2 * gamma[..., None]", "strength = gamma[..., None]"),
    ("first = a.log_var > b.log_var", "first = a.log_var < b.log_var"),
    ("(-larger.clamp(min=least)).exp()", "(-larger).exp()"),
    ("(ratio / 2).exp()))", "ratio.exp()))"),
    ("h / h_a, h / (h + h_u)", "h / h_b, h / (h + h_u)"),
    ("k = h / (h_b + h_u * (h_u / h_a))", "k = h / (h_b + h_a)"),
    ("(strength / (h_a + h_b + 2 * h_u))", "(strength / (h_a + h_b + h_u))"),
    ("(1 + 2 * k * inverse_u_a)", "(1 + k * inverse_u_a)"),
    ("total = bracket + f * (strength / h_a) * k", "total = bracket - f * (strength / h_a) * k"),
    ("x = strength * (f * (variance * omega)) * total", "x = strength * f * variance * omega * total"),
    ("small = x < 0.25", "small = x < 25"),
    ("* (variance * f) * total * omega.square()", "* (variance * f) * total * omega"),
    ("x.log1p() / strength.where(~small, 1)", "x.log1p() / strength"),
    ("x.log1p() / strength.where(~small, 1)", "x.log1p() / 2 / strength.where(~small, 1)"),
    ("for k in range(17, 0, -2):", "for k in range(5, 0, -2):"),
    ("series = 1 / k + z_squared * series", "series = 1 / k - z_squared * series"),
    # the full family
    ("s = s.where(~(s < 8 *", "s = s.where(~(s < 0 *"),
    ("value = (rho * (scale_a @ left - scale_b", "value = (rho.square() * (scale_a @ left - scale_b"),
    ("(scale_a @ left - scale_b @ right.mT)", "(scale_a @ left + scale_b @ right.mT)"),
    ("- torch.diag_embed(rho_own)", "- torch.diag_embed(rho)"),
    ("(2 * gamma).clamp(min=torch.finfo(s.dtype).tiny)", "gamma.clamp(min=torch.finfo(s.dtype).tiny)"),
    ("(2 * gamma).clamp(min=torch.finfo(s.dtype).tiny)", "(2 * gamma)"),
    ("rho_own, gamma) / 2\n", "rho_own, gamma)\n"),
    ("own[0] - scale_b @ rotation.mT", "own[0] + scale_b @ rotation.mT"),
    ("own[1] - scale_a @ rotation,", "own[1] - scale_b @ rotation,"),
    ("spread = 2 * d_value[..., None, None]", "spread = d_value[..., None, None]"),
    ("-d_value * information, None", "d_value * information, None"),
    ("(-1, tau.square() / (1 + rho))", "(-1, 1 + rho)"),
    ("(relative - torch.log1p(relative))", "(relative + torch.log1p(relative))"),
    ("relative.clamp(min=torch.finfo(rho.dtype).eps - 1)", "relative"),
    ("scaled.where(finite(scaled)[..., None, None], 0)", "scaled"),
    ("solved(_Divergence, a, b, gamma, in_double=True)", "solved(_Divergence, a, b, gamma)"),
    ("(torch.log1p(y) / y)).sum(-1)", "torch.log1p(y)).sum(-1)"),
)

PAIRED_PRIOR = planted(
    "paired_prior.py",
    ("return 2 * gamma / (1 + torch", "return gamma / (1 + torch"),
    ("return 2 * gamma / (1 + torch", "return 2 * gamma / (torch"),
    ("torch.hypot(torch.ones_like(gamma), 2 * gamma))", "torch.hypot(torch.ones_like(gamma), gamma))"),
    ("torch.hypot(torch.ones_like(gamma), 2 * gamma))", "(1 + 4 * gamma**2).sqrt())"),
    ("return 2 * gamma / (1 + math", "return gamma / (1 + math"),
    ("math.hypot(1, 2 * gamma)", "math.sqrt(1 + 4 * gamma * gamma)"),
    ("math.hypot(1, 2 * gamma)", "math.hypot(1, gamma)"),
    # the diagonal family
    (
        "coupling(_latents(a), _latents(b), gamma[..., None] if",
        "coupling(_latents(b), _latents(b), gamma[..., None] if",
    ),
    ("gamma[..., None] if isinstance", "gamma if isinstance"),
    ("-torch.log1p(strength * plan.psi[..., 0])", "-torch.log1p(2 * strength * plan.psi[..., 0])"),
    ("-torch.log1p(strength * plan.psi[..., 0])", "torch.log1p(strength * plan.psi[..., 0])"),
    ("-torch.log1p(strength * plan.psi[..., 0])", "torch.log1p(-r * r)"),
    ("-torch.log1p(strength * plan.psi[..., 0])", "-torch.log1p(strength * rho)"),
    ("b.log_var + log_open)", "a.log_var + log_open)"),
    ("b.log_var + log_open)", "b.log_var)"),
    ("misfit = r * (b.log_var / 2).exp()", "misfit = rho * (b.log_var / 2).exp()"),
    ("misfit = r * (b.log_var / 2).exp()", "misfit = r * b.log_var.exp()"),
    ("misfit = r * (b.log_var / 2).exp()", "misfit = (b.log_var / 2).exp()"),
    ("- rho * (a.log_var / 2).exp()", "+ rho * (a.log_var / 2).exp()"),
    ("- rho * (a.log_var / 2).exp()", "- r * (a.log_var / 2).exp()"),
    ("- rho * (a.log_var / 2).exp()", "- rho * (b.log_var / 2).exp()"),
    # the full family
    ("square_factor(a.full().scale)", "a.full().scale"),
    ("square_factor(b.full().scale)", "b.full().scale"),
    (
        "coupling(FullGaussian(b.mean, scale_b), FullGaussian(a.mean, scale_a), gamma)",
        "coupling(FullGaussian(a.mean, scale_a), FullGaussian(b.mean, scale_b), gamma)",
    ),
    ("strength = plan.gamma[..., None]", "strength = plan.gamma"),
    ("scale_b @ plan.residual", "scale_b"),
    ("scale_b @ plan.residual", "scale_b @ plan.rotation"),
    ("scale_b @ plan.residual", "scale_a @ plan.residual"),
    ("scale_b @ plan.rotation - rho", "scale_b @ plan.rotation.mT - rho"),
    ("scale_b @ plan.rotation - rho", "scale_b - rho"),
    ("scale_b @ plan.rotation - rho", "scale_b @ plan.rotation + rho"),
    ("rho[..., None] * scale_a)", "scale_a)"),
    ("with full_precision(scale_b):", "if True:"),
    # both
    ("log_var = -torch.log1p(strength * rho)", "log_var = -torch.log1p(strength)"),
    ("log_var = -torch.log1p(strength * rho)", "log_var = torch.log1p(-rho * rho)"),
    ("log_var = -torch.log1p(strength * rho)", "log_var = torch.log1p(-rho)"),
    ("DiagonalGaussian(rho * a.mean,", "DiagonalGaussian(a.mean,"),
    ("DiagonalGaussian(rho * a.mean,", "DiagonalGaussian(rho * b.mean,"),
    (
        "kl_terms(given, DiagonalGaussian(rho * a.mean, log_var",
        "kl_terms(given, DiagonalGaussian(rho * a.mean, -log_var",
    ),
    ("KLTerms(covariance, mean + ", "KLTerms(covariance, mean - "),
    ("KLTerms(covariance, mean + ", "KLTerms(mean, covariance + "),
    ("(-log_var / 2).exp()).square()", "(-log_var).exp()).square()"),
    ("(-log_var / 2).exp()).square()", "(log_var / 2).exp()).square()"),
    (".square().sum(-1) / 2)", ".square().sum(-1))"),
)

OBJECTIVES = planted(
    "objectives.py",
    ("- self.kl - self.kl_fictive -", "- self.kl + self.kl_fictive -"),
    ("- self.mutual_information - self.transport", "+ self.mutual_information - self.transport"),
    ("- self.mutual_information - self.transport", "- self.mutual_information"),
    ("torch.exp(q.log_var / 2) * noise", "torch.exp(q.log_var) * noise"),
    ("squares.sum(-1) / noise_variance +", "squares.sum(-1) / noise_variance**0.5 +"),
    ("squares.sum(-1) / noise_variance +", "squares.sum(-1) +"),
    ("squares.shape[-1] * log(2 * math.pi * noise_variance)", "squares.shape[-1] * log(2 * math.pi)"),
    ("squares.shape[-1] * log(", "log("),
    ("-0.5 * by_group.sum(-1)", "-by_group.sum(-1)"),
    ("log: Any = torch.log if", "log: Any = (lambda v: v.detach().log()) if"),
    ("if batch != x.shape[:1]:", "if len(batch) != 1:"),
    ("gamma.shape not in ((), (len(x),))", "gamma.ndim > 1"),
    ("kl_fictive=kl_divergence(q_b, _s", "kl_fictive=kl_divergence(q_a, _s"),
    ("transport=0.5 * gamma *", "transport=gamma *"),
    ("transport_terms(q_a, q_b, gamma)", "transport_terms(q_a, q_b, gamma / 2)"),
    ("cost, information = transport_terms", "information, cost = transport_terms"),
    # the paired prior
    ('if prior not in ("independent", "paired"):', "if False:"),
    ('if prior == "paired":', "if False:"),
    ("paired_terms(q_a, q_b, gamma)", "paired_terms(q_b, q_a, gamma)"),
    ("paired_terms(q_a, q_b, gamma)", "paired_terms(q_a, q_b, gamma / 2)"),
    ("covariance, mean = paired_terms", "mean, covariance = paired_terms"),
    ("kl_fictive=covariance, transport=mean", "kl_fictive=covariance"),
    ("kl_fictive=covariance, transport=mean", "transport=mean"),
    ("v, gamma, prior=prior)", "v, gamma)"),
    # the autoencoding VAE
    ("if not 0 <= rho < 1:", "if not rho < 1:"),
    ("if not 0 <= rho < 1:", "if not 0 <= rho <= 1:"),
    ("encoder(image.detach())", "encoder(image)"),
    ("encoder(image.detach())", "encoder(x)"),
    ("DiagonalGaussian(rho * z, torch.full_like", "DiagonalGaussian(z, torch.full_like"),
    ("DiagonalGaussian(rho * z, torch.full_like", "DiagonalGaussian(rho * q.mean, torch.full_like"),
    ("DiagonalGaussian(rho * z, torch.full_like", "DiagonalGaussian(rho * z.detach(), torch.full_like"),
    ("math.log1p(-rho * rho)", "math.log1p(-rho)"),
    ("math.log1p(-rho * rho)", "math.log1p(rho * rho)"),
    ("math.log1p(-rho * rho)", "math.log1p(-rho * rho) / 2"),
    ("torch.full_like(z, math.log1p(-rho * rho))", "torch.log1p(-torch.full_like(z, rho).square())"),
    ("kl_divergence(q_b, prior)", "kl_divergence(prior, q_b)"),
    ("kl_fictive=kl_divergence(q_b, prior)", "transport=kl_divergence(q_b, prior)"),
    ('_one_for_each_image("encoder(image)", encoder(image.detach()), x)', "encoder(image.detach())"),
    # the model whose evidence is known
    ("@ self.weight.mT + self.noise_variance * identity", "@ self.weight.mT + self.noise_variance**0.5 * identity"),
    ("identity + self.weight.mT @ self.weight / self.noise_variance", "identity + self.weight.mT @ self.weight"),
    ("((x - self.bias) @ self.weight / self.noise_variance)", "((x + self.bias) @ self.weight / self.noise_variance)"),
    ("torch.linalg.solve_triangular(root.mT, identity, upper=True)", "torch.linalg.inv(root)"),
    ("q.full().scale if", "q.full().covariance if"),
    ("/ (2 * self.noise_variance)", "/ self.noise_variance"),
    ("x.shape[:-1]) - spread", "x.shape[:-1]) + spread"),
)

MUTATIONS = GAUSSIANS + TRANSPORTS + FULL_TRANSPORTS + SINKHORNS + PAIRED_PRIOR + OBJECTIVES


def copy_of(folder: Path) -> Path:
    for name in ("se_core", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


class FirstFailure:
    """A pytest plugin that remembers it."""

    def __init__(self) -> None:
        self.test: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.test is None:
            self.test = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.test is None:
            self.test = report.nodeid


def run_tests(folder: Path, test: str, keep_bytecode: bool, answer: Connection) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    # The tests are compiled once, in the run without an error; the package must be compiled anew.
    sys.dont_write_bytecode = not keep_bytecode
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    plugin = FirstFailure()
    # conftest.py serves the machinery, and would import all of it.
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "--noconftest"]
    code = pytest.main([*options, test], plugins=[plugin])
    answer.send((int(code), plugin.test))


def first_failure(folder: Path, tests: list[str], keep_bytecode: bool = False) -> str | None:
    """The name of the first test that fails in this copy, None if all pass."""
    fork = multiprocessing.get_context("fork")
    for test in tests:
        ours, theirs = fork.Pipe()
        process = fork.Process(target=run_tests, args=(folder, test, keep_bytecode, theirs))
        process.start()
        code, failed = ours.recv()
        process.join()
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
            raise SystemExit(f"pytest did not run {test}: exit code {code}")
        if failed:
            return str(failed).removeprefix("tests/library/").split("[")[0]
    return None


def table(outcome: list[tuple[Mutation, str | None]]) -> str:
    def code(text: str) -> str:
        return "`" + " ".join(text.split()).replace("|", "\\|") + "`" if text.strip() else "(nothing)"

    killed = sum(test is not None for _, test in outcome)
    lines = [f"{killed} of {len(outcome)} planted errors are noticed.", ""]
    lines += ["| module | right | planted | first test that fails |", "|---|---|---|---|"]
    for (module, right, wrong), test in outcome:
        lines.append(f"| {module} | {code(right)} | {code(wrong)} | {test or '**none**'} |")
    return "\n".join(lines) + "\n"


def record(text: str) -> None:
    """Put the table between its two marks in tests/README.md, and leave the rest alone."""
    readme = ROOT / "tests" / "README.md"
    page = readme.read_text() if readme.exists() else "# Tests\n"
    if BEGIN not in page:
        page += f"\n## Planted errors\n\n{BEGIN}{END}"
    before, after = page[: page.index(BEGIN)], page[page.index(END) :]
    readme.write_text(f"{before}{BEGIN}{text}{after}")


def main() -> int:
    word = " ".join(sys.argv[1:])
    chosen = [m for m in MUTATIONS if word in m.right]
    sources = [m.source() for m in chosen]  # all of them must apply before any is tried
    outcome: list[tuple[Mutation, str | None]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = copy_of(Path(name))
        everything = dict.fromkeys(test for m in chosen for test in TESTS[m.module])
        if failed := first_failure(folder, list(everything), keep_bytecode=True):
            raise SystemExit(f"{failed} fails without any planted error")
        shutil.rmtree(folder / "se_core" / "__pycache__")
        for mutation, source in zip(tqdm(chosen), sources, strict=True):
            target = folder / "se_core" / mutation.module
            original = target.read_text()
            target.write_text(source)
            outcome.append((mutation, first_failure(folder, TESTS[mutation.module])))
            target.write_text(original)
    if not word:
        record(table(outcome))
    survivors = [m for m, test in outcome if test is None]
    for m in survivors:
        print(f"NOT NOTICED in {m.module}: {m.right!r} -> {m.wrong!r}")
    print(f"{len(outcome) - len(survivors)} of {len(outcome)} planted errors are noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
