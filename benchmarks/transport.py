"""Transport between Gaussians: ours against textbook formulas, POT and OTT-JAX.

Forward and backward over a batch of 1024, float32, interleaved in one run, one thread. Prints the median of the ratios
of time within a round and, because speed without digits is worth nothing, the largest relative error of each against
float64. OTT-JAX, where it is installed, is given 16 examples, and its time scaled. `--device cuda` measures on a GPU,
`--out FILE` keeps the numbers with their provenance.
"""

import argparse
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import ot
import torch
from torch import Tensor
from tqdm import tqdm

from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.lab.storage import provenance, write_json
from se_core.transport import coupling, entropic_cost, entropic_w2_squared, w2_squared

BATCH, OTT_BATCH, GAMMA = 1024, 16, 1.0

Way = Callable[[], Tensor]  # computes value and gradient of some examples, returns the values
Case = tuple[Tensor, dict[str, Way]]  # exact values, and ways to them, ours first


def square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT


def trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def textbook_w2(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Eq. 12 as printed: two matrix square roots."""
    root = square_root(cov_b)
    middle = square_root(root @ cov_a @ root)
    return (mean_a - mean_b).square().sum(-1) + trace(cov_a) + trace(cov_b) - 2 * trace(middle)


def textbook_entropic(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 19 with Psi of eq. 24 read as matrices: two matrix square roots."""
    identity = torch.eye(cov_a.shape[-1], dtype=cov_a.dtype, device=cov_a.device)
    root = square_root(cov_b)
    product = root @ cov_a @ root
    u = square_root(identity + 4 * GAMMA**2 * product)
    cost = (mean_a - mean_b).square().sum(-1) + trace(cov_a) + trace(cov_b) - trace(u - identity) / GAMMA
    return cost, product, u + identity


def textbook_cost(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Eqs. 20-21: the same, and two log-determinants."""
    cost, product, denominator = textbook_entropic(mean_a, cov_a, mean_b, cov_b)
    log_det = torch.logdet(2 * product) - torch.logdet(denominator)
    return GAMMA / 2 * cost - mean_a.shape[-1] * math.log(2 * math.pi * math.e) - log_det / 2


def textbook_diagonal(mean_a: Tensor, var_a: Tensor, mean_b: Tensor, var_b: Tensor) -> Tensor:
    """The last formula of section 6, with the mean term corrected."""
    var_a, var_b = var_a.exp(), var_b.exp()
    u = (1 + 4 * GAMMA**2 * var_a * var_b).sqrt()
    cost = GAMMA / 2 * ((mean_a - mean_b).square() + var_a + var_b)
    rest = (u - 1) - (u + 1).log() + (2 * var_a * var_b).log()
    return (cost - rest / 2 - math.log(2 * math.pi) - 1).sum(-1)


def differentiated(function: Callable[..., Tensor], *inputs: Tensor) -> Way:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def run() -> Tensor:
        value = function(*leaves)
        torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        return value.detach()

    return run


def ott_w2(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Way:
    import jax
    from ott.geometry.costs import Bures

    def flat(mean: Tensor, cov: Tensor) -> "jax.Array":
        return jax.numpy.array(torch.cat([mean, cov.flatten(-2)], -1)[:OTT_BATCH].numpy())

    both = jax.jit(jax.vmap(jax.value_and_grad(Bures(mean_a.shape[-1]), argnums=(0, 1))))
    x, y = flat(mean_a, cov_a), flat(mean_b, cov_b)
    return lambda: torch.tensor(jax.block_until_ready(both(x, y))[0].tolist())


def full_problem(dimension: int, device: str) -> tuple[Tensor, ...]:
    """Means and factors as an encoder might emit them: variances from exp(-4) to 1 along random axes."""
    g = torch.Generator().manual_seed(dimension)

    def axes() -> Tensor:
        return torch.linalg.qr(torch.randn(BATCH, dimension, dimension, generator=g)).Q

    scales = [(axes() * (-2 * torch.rand(BATCH, 1, dimension, generator=g)).exp()) @ axes().mT for _ in range(2)]
    means = torch.randn(2, BATCH, dimension, generator=g)
    return tuple(x.to(device) for x in (means[0], scales[0], means[1], scales[1]))


def on_full(function: Callable[..., Tensor], *gamma: float) -> Callable[..., Tensor]:
    return lambda ma, sa, mb, sb: function(FullGaussian(ma, sa), FullGaussian(mb, sb), *gamma)


def full_cases(dimension: int, device: str) -> dict[str, Case]:
    mean_a, scale_a, mean_b, scale_b = factors = full_problem(dimension, device)
    covariances = mean_a, scale_a @ scale_a.mT, mean_b, scale_b @ scale_b.mT
    exact_a, exact_b = scale_a.double(), scale_b.double()
    exact = mean_a.double(), exact_a @ exact_a.mT, mean_b.double(), exact_b @ exact_b.mT

    def pot_w2(ma: Tensor, ca: Tensor, mb: Tensor, cb: Tensor) -> Tensor:
        return ot.gaussian.bures_wasserstein_distance(ma, mb, ca, cb, paired=True).square()

    def case(function: Callable[..., Tensor], textbook: Callable[..., Tensor], *gamma: float) -> Case:
        ours = differentiated(on_full(function, *gamma), *factors)
        return textbook(*exact), {"ours": ours, "two square roots": differentiated(textbook, *covariances)}

    w2 = case(w2_squared, textbook_w2)
    w2[1]["POT"] = differentiated(pot_w2, *covariances)
    if device == "cpu" and importlib.util.find_spec("ott"):
        w2[1]["OTT-JAX, compiled"] = ott_w2(*covariances)
    return {
        f"W^2_2,gamma, D = {dimension}": case(entropic_w2_squared, lambda *x: textbook_entropic(*x)[0], GAMMA),
        f"WD_2,gamma, D = {dimension}": case(entropic_cost, textbook_cost, GAMMA),
        f"W^2_2, D = {dimension}": w2,
    }


def diagonal_cases(dimension: int, device: str) -> dict[str, Case]:
    g = torch.Generator().manual_seed(dimension)
    mean = torch.randn(2, BATCH, dimension, generator=g).to(device)
    log_var = (-8 * torch.rand(2, BATCH, dimension, generator=g)).to(device)
    fields = mean[0], log_var[0], mean[1], log_var[1]

    def ours(ma: Tensor, va: Tensor, mb: Tensor, vb: Tensor) -> Tensor:
        return entropic_cost(DiagonalGaussian(ma, va), DiagonalGaussian(mb, vb), GAMMA)

    exact = textbook_diagonal(*(x.double() for x in fields))
    ways = {"ours": differentiated(ours, *fields), "as printed": differentiated(textbook_diagonal, *fields)}
    return {f"WD_2,gamma, diagonal, D = {dimension}": (exact, ways)}


def digits_of_psi() -> tuple[float, float]:
    """Largest relative error of psi at log-variance -8 and gamma = 1 in float32: ours, and eq. 24 as printed."""
    log_var = torch.linspace(-8.5, -7.5, 1000)[:, None]
    q = DiagonalGaussian(torch.zeros_like(log_var), log_var)
    s = log_var.double().exp()
    exact = 2 * s**2 / (1 + (1 + 4 * s**2).sqrt())
    printed = ((1 + 4 * log_var.exp() ** 2).sqrt() - 1) / 2
    ours = coupling(q, q, 1.0).psi
    return largest_error(ours, exact), largest_error(printed, exact)


def largest_error(values: Tensor, exact: Tensor) -> float:
    """Relative, but where the exact value passes through zero, to the median of them."""
    exact = exact[: len(values)]
    return float(((values.double().to(exact.device) - exact) / exact.abs().clamp(min=exact.abs().median())).abs().max())


def milliseconds(way: Way, device: str) -> float:
    """Time for a batch of 1024."""
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    examples = len(way())
    if device != "cpu":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started) * BATCH / examples


def measure(exact: Tensor, ways: dict[str, Way], rounds: int, device: str) -> dict[str, dict[str, float]]:
    errors = {name: largest_error(way(), exact) for name, way in ways.items()}  # and warm up
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(milliseconds(way, device))
    ratio = {n: statistics.median(t / o for t, o in zip(times[n], times["ours"], strict=True)) for n in ways}
    return {n: {"ms": statistics.median(times[n]), "ratio": ratio[n], "error": errors[n]} for n in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print(f"batch {BATCH}, gamma = {GAMMA:g}, float32, forward and backward, {arguments.device}")
    rows = {}
    for dimension in tqdm(arguments.dimensions, disable=not os.isatty(2)):
        for cases in (diagonal_cases, full_cases):
            for title, case in cases(dimension, arguments.device).items():
                rows[title] = measure(*case, arguments.rounds, arguments.device)
                print(title)
                for name, row in rows[title].items():
                    print(f"  {name:18s} {row['ms']:10.2f} ms {row['ratio']:7.2f} x ours   error {row['error']:.1e}")
    psi, printed = digits_of_psi()
    print(f"psi at log-variance -8: error {psi:.1e}, of eq. 24 as printed {printed:.1e}")
    if arguments.out:
        record = {"provenance": provenance(arguments.device), "batch": BATCH, "rows": rows}
        record["psi"] = {"ours": psi, "as printed": printed}
        write_json(arguments.out, record)


if __name__ == "__main__":
    main()
