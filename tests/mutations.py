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
    for name in ("limits", "plan", "riccati", "gradients", "errors", "symmetry", "precision", "solvers", "discrete")
]
TESTS = {
    "gaussians.py": ["tests/library/test_gaussians.py", *TRANSPORT],
    "transport.py": TRANSPORT,
    "objectives.py": ["tests/library/test_objectives.py", "tests/library/test_bound.py"],
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
    ("(asymmetry <= rounding * size)", "(asymmetry < torch.inf)"),
    ("(asymmetry <= rounding * size)", "(asymmetry <= 0 * size)"),
    ("(eigenvalues >= -rounding * size[..., None])", "(eigenvalues > -torch.inf)"),
    ("(eigenvalues >= -rounding * size[..., None])", "(eigenvalues >= 0)"),
    ("DiagonalGaussian(distribution.loc[..., None], 2 *", "DiagonalGaussian(distribution.loc[..., None], 1 *"),
    ("normal.loc.flatten(-event), 2 * normal", "normal.loc.flatten(-event), 1 * normal"),
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
    ("mean.square().sum(-1) / 2)", "mean.square().sum(-1))"),
    ("_column(a.mean - b.mean, batch)", "_column(a.mean + b.mean, batch)"),
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
    ("(-(a.log_var + b.log_var) / 2).clamp", "(-(a.log_var + b.log_var)).clamp"),
    (".clamp(max=largest).exp()", ".exp()"),
    ("return 2 * gamma / (inverse_overlap + torch", "return gamma / (inverse_overlap + torch"),
    ("return 2 * gamma / (inverse_overlap + torch", "return 2 * gamma / (inverse_overlap - torch"),
    ("torch.hypot(inverse_overlap, 2 * gamma))", "torch.hypot(inverse_overlap, gamma))"),
    ("torch.hypot(inverse_overlap, 2 * gamma))", "(inverse_overlap**2 + 4 * gamma**2).sqrt())"),
    ("excess = 2 * (1 + rho)", "excess = 2 * (1 - rho)"),
    ("excess = 2 * (1 + rho)", "excess = (1 + rho)"),
    ("(2 * strength + torch.hypot(inverse_overlap", "(strength + torch.hypot(inverse_overlap"),
    ("_diagonal_w2_squared(a, b) + excess.sum(-1)", "_diagonal_w2_squared(a, b) - excess.sum(-1)"),
    ("rho, rho / inverse_overlap, _diagonal", "rho, rho * inverse_overlap, _diagonal"),
    # what follows from a plan
    ("self.psi).sum(-1) / 2", "self.psi).sum(-1)"),
    ("torch.log1p(self.gamma[..., None] * self.psi)", "torch.log1p(2 * self.gamma[..., None] * self.psi)"),
    ("torch.log1p(self.gamma[..., None] * self.psi)", "torch.log(1 + self.gamma[..., None] * self.psi)"),
    ("self.cost + (self.psi * (torch.log1p(y) / y))", "self.cost - (self.psi * (torch.log1p(y) / y))"),
    ("self.cost + (self.psi * (torch.log1p(y) / y))", "self.cost + (self.psi * (torch.log1p(y) / y)) / 2"),
    ("clamp(min=torch.finfo(self.psi.dtype).tiny)", "clamp(min=0)"),
    ("return gamma / 2 * plan.cost + plan.information", "return gamma * plan.cost + plan.information"),
    ("return gamma / 2 * plan.cost + plan.information", "return gamma / 2 * plan.cost - plan.information"),
    ("plan.information - entropy(a) - entropy(b)", "plan.information - entropy(a) + entropy(b)"),
    ("plan.information - entropy(a) - entropy(b)", "plan.information - entropy(a) - entropy(a)"),
    ("return ab - aa / 2 - bb / 2", "return ab - aa / 2 + bb / 2"),
    ("return ab - aa / 2 - bb / 2", "return ab - aa - bb"),
    ("((a, b), (a, a), (b, b))", "((a, b), (a, a), (a, a))"),
    ("TransportTerms(plan.cost, plan.information)", "TransportTerms(plan.information, plan.cost)"),
    ("self.target + (self.matrix @ (z - self.source)", "self.target + (self.matrix.mT @ (z + self.source)"),
    ("((b.log_var - a.log_var) / 2).exp()), a.mean", "((a.log_var - b.log_var) / 2).exp()), a.mean"),
    ("((b.log_var - a.log_var) / 2).exp()), a.mean", "(b.log_var - a.log_var).exp()), a.mean"),
    ("rotation @ b.scale.mT).mT, a.mean, b.mean)", "rotation @ b.scale.mT).mT, b.mean, a.mean)"),
    ("torch.linalg.solve(a.scale.mT, rotation", "torch.linalg.solve(a.scale, rotation"),
    ("a.mean.shape[-1]).all()):\n        raise", "a.mean.shape[-1]).any()) and False:\n        raise"),
    ("(1 + gamma[..., None] * plan.psi).rsqrt()", "(1 + gamma[..., None] * plan.psi).reciprocal()"),
    ("plan.rho.flip(-1)[..., : a.mean.shape[-1]]", "plan.rho[..., : a.mean.shape[-1]]"),
    ("gamma, a.scale @ rotation @ b.scale.mT, rho", "gamma, (a.scale @ rotation @ b.scale.mT).mT, rho"),
    ("scale_a @ self.residual, scale_a @ self.rotation", "scale_a @ self.residual, scale_b @ self.rotation"),
    ("(torch.zeros_like(scale_a), scale_b)", "(torch.zeros_like(scale_a), scale_a)"),
    ("(scale_b @ self.rotation.mT, scale_b", "(scale_b @ self.residual, scale_b"),
    # the full family, forward
    ("matrices[0] = matrices[0].mT", "pass"),
    ("((b, a) if swap else (a, b))", "(a, b)"),
    ("floor = torch.zeros_like(scale_a[..., 0, 0]) if", "floor = torch.ones_like(scale_a[..., 0, 0]) if"),
    ("else 1 / (2 * gamma)\n        left", "else 1e6 / (2 * gamma)\n        left"),
    ("work = a.scale.dtype, torch.float64 if gamma is None else a.scale.dtype", "work = (a.scale.dtype,) * 2"),
    ("_correlation(1 / s, gamma[..., None])", "_correlation(s, gamma[..., None])"),
    ("tau = (1 + gamma[..., None] * rho * s).rsqrt()", "tau = (1 + gamma[..., None] * rho * s).reciprocal()"),
    ("turned = scale_a @ left", "turned = scale_a @ left.mT"),
    ("(turned * rho[..., None, :]) @ right - scale_b", "(turned * rho[..., None, :]) @ right + scale_b"),
    ("+ (tau.square() * turned.square()", "- (tau.square() * turned.square()"),
    ("(tau.square() * turned.square()", "(tau * turned.square()"),
    ("(left * rho[..., None, :]) @ right, (left", "(left * tau[..., None, :]) @ right, (left"),
    ("(left * tau[..., None, :]) @ left.mT", "(left * tau[..., None, :]) @ left"),
    (
        "distance = (a.mean - b.mean).square().sum(-1)\n    plan",
        "distance = (a.mean + b.mean).square().sum(-1)\n    plan",
    ),
    ("overlap = scale_a.mT @ scale_b", "overlap = scale_b.mT @ scale_a"),
    ("torch.linalg.eigh(overlap @ overlap.mT)", "torch.linalg.eigh(overlap.mT @ overlap)"),
    ("tolerable = 64 * accuracy", "tolerable = 1e30 * accuracy"),
    ("s.amax(-1).square() < tolerable", "s.amax(-1).square() <= tolerable"),
    ("svd.U.flip(-1), svd.S.flip(-1)", "svd.U.flip(-1), svd.S"),
    ("right / s.where(s > 0, 1)", "right / s"),
    # the full family, backward
    ("else d_psi) - 2 * d_cost", "else d_psi) - d_cost"),
    ("strength * s / u * d_psi + strength", "strength * s * d_psi + strength"),
    ("+ strength / (1 + u) / u * d_rho", "+ strength / (1 + u) * d_rho"),
    ("inner = left.mT @ d_rotation", "inner = left @ d_rotation"),
    (
        "core - rho[..., :, None] * rho[..., None, :] * core.mT",
        "core + rho[..., :, None] * rho[..., None, :] * core.mT",
    ),
    ("core - rho[..., :, None] * rho[..., None, :] * core.mT", "core - rho[..., :, None] * rho[..., None, :] * core"),
    ("within = within / (u[..., :, None] + u[..., None, :])", "within = within / (1 + u[..., None, :])"),
    ("(u if gamma is None else 1 + u)", "(u if gamma is None else u)"),
    ("beyond = (inner - core @ right)", "beyond = (inner - inner)"),
    ("d_rho = d_rho + core.diagonal", "d_rho = d_rho - core.diagonal"),
    ("curvature = strength * tau.square()", "curvature = strength * tau"),
    ("d_overlap - divided / 2 * (core + core.mT)", "d_overlap + divided / 2 * (core + core.mT)"),
    ("d_overlap - divided / 2 * (core + core.mT)", "d_overlap - divided / 2 * (core + core)"),
    ("explained = 2 * s / (1 + u) / u", "explained = s / (1 + u) / u"),
    ("gamma[..., None] * tau**3 * s / u", "gamma[..., None] * tau**2 * s / u"),
    ("spread = 2 * d_cost[..., None]", "spread = d_cost[..., None]"),
    ("(scale_b @ d_overlap.mT).addcmul_", "(scale_b @ d_overlap).addcmul_"),
    ("(scale_a @ d_overlap).addcmul_(spread, scale_b)", "(scale_a @ d_overlap).addcmul_(spread, scale_a)"),
    ("    @once_differentiable\n", ""),
    # refusals
    ("if gamma < 0:", "if False:"),
    ("if not gamma < torch.finfo(dtype).max / 4:", "if gamma == torch.inf:"),
    ("highest if lowest >= 0 else lowest, dtype", "highest, dtype"),
    ("highest if lowest >= 0 else lowest, dtype", "lowest, dtype"),
    ("if gamma.dtype != dtype or", "if"),
    ("if a.scale.dtype not in (torch.float32, torch.float64):", "if False:"),
)

OBJECTIVES = planted(
    "objectives.py",
    ("- self.kl - self.kl_fictive -", "- self.kl + self.kl_fictive -"),
    ("- self.mutual_information - self.transport", "+ self.mutual_information - self.transport"),
    ("- self.mutual_information - self.transport", "- self.mutual_information"),
    ("torch.exp(q.log_var / 2) * noise", "torch.exp(q.log_var) * noise"),
    ("-0.5 * residual.square().sum(-1) / noise_variance", "-0.5 * residual.square().sum(-1) / noise_variance**0.5"),
    ("-0.5 * residual.square().sum(-1) / noise_variance", "-residual.square().sum(-1) / noise_variance"),
    ("2 * math.pi * noise_variance", "2 * math.pi"),
    ("kl_fictive=kl_divergence(q_b,", "kl_fictive=kl_divergence(q_a,"),
    ("transport=0.5 * gamma *", "transport=gamma *"),
    ("transport_terms(q_a, q_b, gamma)", "transport_terms(q_a, q_b, gamma / 2)"),
    ("cost, information = transport_terms", "information, cost = transport_terms"),
    # the model whose evidence is known
    ("@ self.weight.mT + self.noise_variance * identity", "@ self.weight.mT + self.noise_variance**0.5 * identity"),
    ("identity + self.weight.mT @ self.weight / self.noise_variance", "identity + self.weight.mT @ self.weight"),
    ("((x - self.bias) @ self.weight / self.noise_variance)", "((x + self.bias) @ self.weight / self.noise_variance)"),
    ("torch.linalg.solve_triangular(root.mT, identity, upper=True)", "torch.linalg.inv(root)"),
    ("q.full().scale if", "q.full().covariance if"),
    ("/ (2 * self.noise_variance)", "/ self.noise_variance"),
    ("x.shape[:-1]) - spread", "x.shape[:-1]) + spread"),
)

MUTATIONS = GAUSSIANS + TRANSPORTS + OBJECTIVES


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
