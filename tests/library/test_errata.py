"""The page of errata: what it names exists, it leaves no equation out, and the errata that no other file shows."""

import ast
import importlib
import math
import re
from functools import reduce
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import MultivariateNormal

from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.objectives import LinearGaussianModel
from se_core.transport import coupling, entropic_cost, entropic_w2_squared

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "errata.md").read_text()
LEDGER = PAGE.split("## The ledger")[1].split("\n## ")[0]
ENTRIES = re.split(r"^\* ", LEDGER, flags=re.MULTILINE)[1:]
CODE = re.compile(r"`([^`]+)`")


def test_every_test_that_the_page_names_exists() -> None:
    named = [name for name in CODE.findall(PAGE) if "::" in name]
    defined = {
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named) > 24
    assert not set(named) - defined


def test_every_function_that_the_page_names_exists() -> None:
    named = {name for name in CODE.findall(PAGE) if name.startswith("se_core.")}
    assert len(named) > 10
    for name in named:
        module, attributes = re.fullmatch(r"(se_core\.\w+)\.(.+)", name).groups()
        assert callable(reduce(getattr, attributes.split("."), importlib.import_module(module))), name


def test_every_numbered_equation_stands_once_in_the_ledger() -> None:
    numbers = [int(n) for entry in ENTRIES for n in re.findall(r"^\*\*\((\d+)\)\*\*", entry)]
    assert numbers == list(range(1, 25))


def test_every_entry_of_the_ledger_has_a_verdict_and_a_test() -> None:
    for entry in ENTRIES:
        assert len(re.findall(r"\*(?:Verified|Corrected|Defined)\b[^*]*\*", entry)) == 1, entry
        assert [name for name in CODE.findall(entry) if "::" in name], entry


def test_every_erratum_has_its_four_parts() -> None:
    errata = PAGE.split("## Errors that matter")[1].split("\n## ")[0].split("\n### ")[1:]
    assert errata
    for erratum in errata:
        parts = re.findall(r"^\*\*(\w+)\.\*\*", erratum, flags=re.MULTILINE)
        assert [part.replace("Counterexample", "Proof") for part in parts] == ["Printed", "Correct", "Proof", "Test"]
        assert "::" in erratum.split("**Test.**")[1]


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 30.0])
def test_the_pair_bound_is_attained_but_for_the_constant_it_drops(gamma: float) -> None:
    """Eq. 4 with the exact posterior of the pair, against the density of (x, x') under the normalised field."""
    g = torch.Generator().manual_seed(0)
    d = 2
    model = LinearGaussianModel(_normal(g, 4, d), _normal(g, 4), 0.4)
    x, x_prime = _normal(g, 4), _normal(g, 4)
    identity = torch.eye(d, dtype=torch.float64)
    spring = torch.tensor([[1 + gamma, -gamma], [-gamma, 1 + gamma]], dtype=torch.float64)
    field = torch.kron(spring, identity)  # the precision of psi, eq. 3
    weight = torch.block_diag(model.weight, model.weight)
    noise = 0.4 * torch.eye(8, dtype=torch.float64)
    both, bias = torch.cat([x, x_prime]), torch.cat([model.bias, model.bias])
    log_density = MultivariateNormal(bias, weight @ torch.linalg.inv(field) @ weight.mT + noise).log_prob(both)

    posterior = torch.linalg.inv(field + weight.mT @ weight / 0.4)
    mean = posterior @ weight.mT @ (both - bias) / 0.4
    q_a = FullGaussian.from_covariance(mean[:d], posterior[:d, :d])
    q_b = FullGaussian.from_covariance(mean[d:], posterior[d:, d:])
    priors = [-(q.mean.square().sum() + q.covariance.trace() + d * math.log(2 * math.pi)) / 2 for q in (q_a, q_b)]
    likelihoods = [model.expected_log_likelihood(v[None], q)[0] for v, q in ((x, q_a), (x_prime, q_b))]
    bound = sum(likelihoods) + sum(priors) - entropic_cost(q_a, q_b, gamma)
    dropped = d / 2 * math.log(1 + 2 * gamma)
    torch.testing.assert_close(log_density - bound, torch.full_like(bound, dropped), rtol=1e-10, atol=1e-10)


def test_exponentiating_leaves_a_term_that_is_negative() -> None:
    """log of the integral of exp<log p(x'|Z_b)> over x', by quadrature: -Tr Cov(W Z_b) / 2v, and not zero."""
    g = torch.Generator().manual_seed(1)
    model = LinearGaussianModel(_normal(g, 1, 3), _normal(g, 1), 0.4)
    q_b = DiagonalGaussian(_normal(g, 1, 3), _normal(g, 1, 3) - 1)

    def exponential(x_prime: float) -> float:
        return math.exp(model.expected_log_likelihood(torch.tensor([[x_prime]], dtype=torch.float64), q_b))

    centre = float(q_b.mean @ model.weight.mT + model.bias)
    left_over = math.log(quad(exponential, centre - 8, centre + 8, points=[centre], epsabs=1e-14)[0])
    spread = float(model.weight @ q_b.covariance[0] @ model.weight.mT)
    assert left_over == pytest.approx(-spread / (2 * 0.4), abs=1e-11)
    assert left_over < -0.1


@pytest.mark.parametrize("gamma", [0.01, 1.0, 50.0])
def test_equation_22_is_a_factor_of_the_derivative(gamma: float) -> None:
    sigma_a, sigma_b = 0.7, 2.3
    bound = math.sqrt(sigma_a * sigma_b)
    psi = (bound * torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)).requires_grad_()
    joint = torch.stack(
        [torch.stack([torch.full_like(psi, sigma_a), psi], -1), torch.stack([psi, torch.full_like(psi, sigma_b)], -1)],
        -2,
    )
    functional = -gamma * psi - torch.logdet(joint) / 2  # eq. 13 but for constants
    (derivative,) = torch.autograd.grad(functional.sum(), psi)
    printed = psi.detach() ** 2 + psi.detach() / gamma - sigma_a * sigma_b
    torch.testing.assert_close(derivative, gamma / (bound**2 - psi.detach() ** 2) * printed, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(derivative, printed, rtol=0.01)

    # Eq. 23: the roots, one of them ours, the other beyond what a covariance can be.
    a, b = (
        DiagonalGaussian(torch.zeros(1, dtype=torch.float64), torch.tensor([math.log(s)], dtype=torch.float64))
        for s in (sigma_a, sigma_b)
    )
    ours = float(coupling(a, b, gamma).psi)
    other = -1 / gamma - ours  # the sum of the roots
    assert ours * other == pytest.approx(-sigma_a * sigma_b, rel=1e-10)  # their product
    assert 0 < ours < bound < -other


def test_neither_entropic_quantity_is_a_distance() -> None:
    q = DiagonalGaussian(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    golden = (1 + math.sqrt(5)) / 2
    assert float(entropic_w2_squared(q, q, 1.0)) == pytest.approx(2 - 2 / golden, rel=1e-14)
    negative = 1 - 1 / golden - math.log(2 * math.pi * math.e) + math.log(golden) / 2
    assert float(entropic_cost(q, q, 1.0)) == pytest.approx(negative, rel=1e-14)
    assert 2 - 2 / golden > 0.7
    assert negative < -2


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 30.0])
def test_the_gap_has_a_least_value(gamma: float) -> None:
    g = torch.Generator().manual_seed(2)
    n, d = 500, 3
    model = LinearGaussianModel(_normal(g, 4, d), _normal(g, 4), 0.4)
    x = _normal(g, n, 4)
    q_a = FullGaussian(_normal(g, n, d), _normal(g, n, d, d))
    least = d / 2 * math.log1p(gamma) + gamma / (2 * (1 + gamma)) * (
        q_a.mean.square().sum(-1) + q_a.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    )

    def gap(q_b: FullGaussian) -> Tensor:
        terms = model.se_elbo(x, q_a, q_b, gamma)
        return terms.log_likelihood - terms.kl - terms.value

    pull = gamma / (1 + gamma)
    open_part = torch.eye(d, dtype=torch.float64).expand(n, d, d) / math.sqrt(1 + gamma)
    best = FullGaussian(pull * q_a.mean, torch.cat([pull * q_a.scale, open_part], -1))
    torch.testing.assert_close(gap(best), least, rtol=1e-9, atol=1e-9)
    other = FullGaussian(best.mean + 0.1 * _normal(g, n, d), best.scale + 0.1 * _normal(g, n, d, 2 * d))
    assert bool((gap(other) > least).all())
