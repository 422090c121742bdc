"""Hard pairs of Gaussians, and what an exact calculation says about them; shared by the tests of the mathematics."""

import mpmath
import torch
from torch import Tensor

from se_core.gaussians import DiagonalGaussian, FullGaussian

Pair = tuple[FullGaussian, FullGaussian]

GAMMAS = [0.0, 1e-6, 0.3, 1.0, 30.0, 1e6]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(dimension: int, g: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(dimension, dimension, generator=g, dtype=torch.float64)).Q


def random_full(dimension: int, g: torch.Generator, rank: int | None = None, scale: float = 1.0) -> FullGaussian:
    rank = dimension if rank is None else rank
    factor = torch.randn(dimension, rank, generator=g, dtype=torch.float64) / rank**0.5
    return FullGaussian(scale * torch.randn(dimension, generator=g, dtype=torch.float64), scale * factor)


def from_spectrum(variances: list[float] | Tensor, g: torch.Generator) -> FullGaussian:
    """Given variances along random axes, with a factor that is neither symmetric nor triangular."""
    deviations = torch.as_tensor(variances, dtype=torch.float64).sqrt()
    dimension = len(deviations)
    scale = (orthogonal(dimension, g) * deviations) @ orthogonal(dimension, g)
    return FullGaussian(torch.randn(dimension, generator=g, dtype=torch.float64), scale)


def _equal(g: torch.Generator) -> Pair:
    a = random_full(5, g)
    return a, a


def _equal_law(g: torch.Generator) -> Pair:
    a = random_full(5, g)
    return a, FullGaussian(a.mean, a.scale @ orthogonal(5, g))


def _nearly_equal(g: torch.Generator) -> Pair:
    a = random_full(5, g)
    return a, FullGaussian(a.mean, a.scale + 1e-5 * torch.randn(5, 5, generator=g, dtype=torch.float64))


def _commuting(g: torch.Generator) -> Pair:
    axes = orthogonal(4, g)
    spread = torch.rand(2, 4, generator=g, dtype=torch.float64) + 0.1
    mean = torch.randn(2, 4, generator=g, dtype=torch.float64)
    return FullGaussian(mean[0], axes * spread[0]), FullGaussian(mean[1], axes * spread[1])


def _isotropic(g: torch.Generator) -> Pair:
    identity = torch.eye(4, dtype=torch.float64)
    mean = torch.randn(4, generator=g, dtype=torch.float64)
    return FullGaussian(mean, 0.7 * identity), FullGaussian(-mean, 1.9 * identity)


_FULL_RANK = {
    "equal": _equal,
    "equal law, other factor": _equal_law,
    "nearly equal": _nearly_equal,
    "commuting": _commuting,
    "isotropic": _isotropic,
    "non-commuting": lambda g: (random_full(5, g), random_full(5, g)),
    "repeated eigenvalues": lambda g: (from_spectrum([2, 2, 2, 0.5, 0.5], g), from_spectrum([1, 1, 3, 3, 3], g)),
    "condition 1e8": lambda g: (from_spectrum([1, 1e-2, 1e-5, 1e-8], g), from_spectrum([1e-8, 1e-4, 0.1, 1], g)),
    "tiny": lambda g: (random_full(4, g, scale=1e-6), random_full(4, g, scale=1e-6)),
    "huge": lambda g: (random_full(4, g, scale=1e6), random_full(4, g, scale=1e6)),
    "wide factors": lambda g: (random_full(4, g, rank=7), random_full(4, g, rank=6)),
    "dimension 1": lambda g: (random_full(1, g), random_full(1, g)),
    "dimension 2": lambda g: (random_full(2, g), random_full(2, g)),
    "dimension 16": lambda g: (random_full(16, g, rank=24), random_full(16, g, rank=20)),
    "dimension 128": lambda g: (random_full(128, g, rank=200), random_full(128, g, rank=160)),
}


def _singular_square(g: torch.Generator) -> Pair:
    return from_spectrum([1, 0.5, 0, 0], g), from_spectrum([0, 2, 1, 0], g)


def _point_mass(g: torch.Generator) -> Pair:
    a = random_full(3, g)
    return a, FullGaussian(-a.mean, torch.zeros(3, 3, dtype=torch.float64))


_SINGULAR = {
    "narrow factors": lambda g: (random_full(5, g, rank=2), random_full(5, g, rank=3)),
    "one narrow factor": lambda g: (random_full(5, g), random_full(5, g, rank=2)),
    "singular square factors": _singular_square,
    "point mass": _point_mass,
}

FULL_RANK = list(_FULL_RANK)
ALL = FULL_RANK + list(_SINGULAR)


def full_pair(name: str, seed: int = 0) -> Pair:
    """The pair of full Gaussians of this name, in float64."""
    return {**_FULL_RANK, **_SINGULAR}[name](generator(seed))


def encoder_pairs(number: int, dimension: int, dtype: torch.dtype, seed: int = 0) -> tuple[DiagonalGaussian, ...]:
    """Diagonal pairs as encoders emit them, log-variances in [-8, 4]; every fifth equal, every seventh nearly equal."""
    g = generator(seed)
    mean = torch.randn(2, number, dimension, generator=g, dtype=torch.float64)
    log_var = torch.rand(2, number, dimension, generator=g, dtype=torch.float64) * 12 - 8
    step = 10 ** (-6 * torch.rand(number, 1, generator=g, dtype=torch.float64))
    nearly = torch.arange(number) % 7 == 0
    mean[1, nearly] = (mean[0] + step * mean[1])[nearly]
    log_var[1, nearly] = (log_var[0] + step * torch.randn(number, dimension, generator=g, dtype=torch.float64))[nearly]
    mean[1, ::5], log_var[1, ::5] = mean[0, ::5], log_var[0, ::5]
    return tuple(DiagonalGaussian(m.to(dtype), v.to(dtype)) for m, v in zip(mean, log_var, strict=True))


def to(dtype: torch.dtype, *pair: FullGaussian) -> Pair:
    """The pair in another dtype."""
    a, b = (FullGaussian(q.mean.to(dtype), q.scale.to(dtype)) for q in pair)
    return a, b


class Exact:
    """The textbook formulas of the paper in 60 digits, where they lose nothing that matters."""

    def __init__(self, a: DiagonalGaussian | FullGaussian, b: DiagonalGaussian | FullGaussian, gamma: float) -> None:
        with mpmath.workdps(60):
            gamma = mpmath.mpf(gamma)
            if isinstance(a, DiagonalGaussian):
                var_a, var_b = ([mpmath.exp(mpmath.mpf(v)) for v in q.log_var.tolist()] for q in (a, b))
                overlaps = [mpmath.sqrt(x * y) for x, y in zip(var_a, var_b, strict=True)]
                trace, log_det = sum(var_a) + sum(var_b), sum(map(mpmath.log, var_a + var_b))
                kl = sum(x / y - 1 - mpmath.log(x / y) for x, y in zip(var_a, var_b, strict=True))
                kl += sum((x - y) ** 2 / v for x, y, v in zip(_numbers(a.mean), _numbers(b.mean), var_b, strict=True))
                self.kl_divergence = kl / 2
            else:
                factor_a, factor_b = (mpmath.matrix(q.scale.tolist()) for q in (a, b))
                overlap = factor_a.T * factor_b
                squares = mpmath.eigsy(overlap * overlap.T, eigvals_only=True)
                overlaps = [mpmath.sqrt(max(x, mpmath.mpf(0))) for x in squares]
                trace = sum(x**2 for x in factor_a) + sum(x**2 for x in factor_b)
                log_det = None
            distance = sum((x - y) ** 2 for x, y in zip(_numbers(a.mean), _numbers(b.mean), strict=True))
            u = [mpmath.sqrt(1 + (2 * gamma * s) ** 2) for s in overlaps]
            self.w2_squared = distance + trace - 2 * sum(overlaps)
            self.psi = [(x - 1) / (2 * gamma) for x in u] if gamma else [mpmath.mpf(0)] * len(u)
            self.entropic_w2_squared = distance + trace - 2 * sum(self.psi)
            self.mutual_information = sum(mpmath.log((1 + x) / 2) for x in u) / 2
            if log_det is not None:
                entropies = (log_det + 2 * len(u) * mpmath.log(2 * mpmath.pi * mpmath.e)) / 2
                self.entropic_cost = gamma / 2 * self.entropic_w2_squared + self.mutual_information - entropies


def _numbers(x: Tensor) -> list[mpmath.mpf]:
    return [mpmath.mpf(v) for v in x.tolist()]
