"""log p(x) >= ELBO >= SE-ELBO, on the linear-Gaussian model where log p(x) is known.

Proof of the second inequality, which the paper's eqs. 5-7 do not give: with p~(x, x') of eq. 2 unnormalised,
integral of p~ over x' = integral of p(x|z_a) p(z_a) p(z_b) exp(-gamma c/2) <= p(x), because exp(-gamma c / 2) <= 1;
and Jensen's inequality on the left-hand side, over z_a and z_b, is the SE-ELBO. The gap is exact:
ELBO - SE-ELBO = KL(Q_b || p) + I_Q(Z_a; Z_b) + gamma/2 E_Q c >= 0.
"""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import MultivariateNormal

from se_core.gaussians import DiagonalGaussian, FullGaussian, Gaussian, kl_divergence
from se_core.objectives import LinearGaussianModel, elbo, se_elbo
from se_core.transport import coupling

GAMMAS = (0.0, 1e-3, 1.0, 30.0, 1e6)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _model(seed: int = 0, d_x: int = 5, d_z: int = 3, v: float = 0.4) -> LinearGaussianModel:
    g = _generator(seed)
    return LinearGaussianModel(_normal(g, d_x, d_z), _normal(g, d_x), v)


def _posteriors(kind: str, batch: int, d_z: int, g: torch.Generator) -> tuple[Gaussian, Gaussian]:
    def draw() -> Gaussian:
        mean = 1.5 * _normal(g, batch, d_z)
        if kind == "diagonal":
            return DiagonalGaussian(mean, 2 * _normal(g, batch, d_z) - 1)
        return FullGaussian(mean, 0.7 * _normal(g, batch, d_z, d_z))

    return draw(), draw()


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_no_draw_of_twenty_thousand_breaks_the_bound(kind: str) -> None:
    model, g = _model(), _generator(1)
    n = 20_000
    x = 2 * _normal(g, n, 5)
    q_a, q_b = _posteriors(kind, n, 3, g)
    gamma = 10 ** (6 * torch.rand(n, generator=g, dtype=torch.float64) - 3)
    terms = model.se_elbo(x, q_a, q_b, gamma)
    evidence, plain = model.log_evidence(x), terms.log_likelihood - terms.kl
    rounding = 1e-11 * (1 + terms.value.abs())
    assert bool((plain <= evidence + rounding).all())
    assert bool((terms.value <= plain + rounding).all())
    # The first gap is KL(q_a || p(z|x)), by another route.
    gap = kl_divergence(q_a, model.posterior(x))
    torch.testing.assert_close(evidence - plain, gap, rtol=1e-8, atol=1e-8)


def test_at_the_posterior_the_elbo_is_the_evidence() -> None:
    model, g = _model(), _generator(2)
    x = _normal(g, 50, 5)
    q = model.posterior(x)
    terms = model.se_elbo(x, q, q, 1.0)
    torch.testing.assert_close(terms.log_likelihood - terms.kl, model.log_evidence(x), rtol=1e-11, atol=1e-11)


def test_the_evidence_and_the_posterior_are_those_of_quadrature() -> None:
    model = _model(d_x=1, d_z=1)
    x = torch.tensor([[0.7]], dtype=torch.float64)

    def joint(z: float) -> float:
        mean = float(model.weight) * z + float(model.bias)
        likelihood = math.exp(-((0.7 - mean) ** 2) / (2 * 0.4)) / math.sqrt(2 * math.pi * 0.4)
        return likelihood * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    evidence = quad(joint, -12, 12, epsabs=1e-13)[0]
    assert float(model.log_evidence(x)) == pytest.approx(math.log(evidence), abs=1e-11)
    mean = quad(lambda z: z * joint(z), -12, 12, epsabs=1e-13)[0] / evidence
    variance = quad(lambda z: (z - mean) ** 2 * joint(z), -12, 12, epsabs=1e-13)[0] / evidence
    posterior = model.posterior(x)
    assert float(posterior.mean) == pytest.approx(mean, abs=1e-10)
    assert float(posterior.covariance) == pytest.approx(variance, abs=1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_the_exact_likelihood_is_the_mean_of_the_sampled_one(kind: str) -> None:
    model, g = _model(), _generator(3)
    x = _normal(g, 1, 5)
    q, _ = _posteriors(kind, 1, 3, g)
    n = 100_000
    many = type(q)(*(p.expand(n, *p.shape[1:]) for p in q))

    def decoder(z: Tensor) -> Tensor:
        return z @ model.weight.mT + model.bias

    draws = elbo(x.expand(n, 5), many, decoder, 0.4, _generator(4)).log_likelihood
    exact = float(model.expected_log_likelihood(x, q))
    assert float(draws.mean()) == pytest.approx(exact, abs=5 * float(draws.std()) / math.sqrt(n))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_the_gap_between_the_bounds_is_what_the_plan_says(kind: str, gamma: float) -> None:
    """KL(Q_b||p) + I + gamma/2 E c, each from the joint covariance of the plan and textbook formulas for it."""
    model, g = _model(), _generator(5)
    x = _normal(g, 40, 5)
    q_a, q_b = _posteriors(kind, 40, 3, g)
    terms = model.se_elbo(x, q_a, q_b, gamma)
    joint = coupling(q_a, q_b, gamma).joint()
    covariance = joint.covariance
    s_a, s_b, psi = covariance[:, :3, :3], covariance[:, 3:, 3:], covariance[:, :3, 3:]
    cost = (q_a.mean - q_b.mean).square().sum(-1) + (s_a + s_b - 2 * psi).diagonal(dim1=-2, dim2=-1).sum(-1)
    mean_b = q_b.mean.square().sum(-1)
    kl_b = 0.5 * (s_b.diagonal(dim1=-2, dim2=-1).sum(-1) + mean_b - 3 - torch.logdet(s_b))
    torch.testing.assert_close(terms.kl_fictive, kl_b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(terms.transport, gamma / 2 * cost, rtol=1e-8, atol=1e-8)
    if gamma < 1e3:  # the plan degenerates, and its determinant with it
        information = 0.5 * (torch.logdet(s_a) + torch.logdet(s_b) - torch.logdet(covariance))
        torch.testing.assert_close(terms.mutual_information, information, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_the_bound_falls_with_gamma_at_half_the_expected_cost(kind: str) -> None:
    """d SE-ELBO / d gamma = -W^2_{2,gamma} / 2: the plan's own dependence on gamma drops out (envelope theorem)."""
    model, g = _model(), _generator(6)
    x = _normal(g, 10, 5)
    q_a, q_b = _posteriors(kind, 10, 3, g)
    gamma = torch.linspace(0.1, 20, 10, dtype=torch.float64).requires_grad_()
    terms = model.se_elbo(x, q_a, q_b, gamma)
    (slope,) = torch.autograd.grad(terms.value.sum(), gamma)
    torch.testing.assert_close(slope, -terms.transport.detach() / gamma.detach(), rtol=1e-9, atol=1e-9)
    h = 1e-5
    ahead, behind = (model.se_elbo(x, q_a, q_b, gamma.detach() + d).value for d in (h, -h))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-7)


def test_no_other_plan_makes_the_bound_tighter() -> None:
    """E_Q log psi + H(Q) is largest at our plan, among Gaussian plans with the same marginals drawn around it."""
    g = _generator(7)
    q_a, q_b = _posteriors("full", 1, 2, g)
    gamma = 3.0
    plan = coupling(q_a, q_b, gamma)
    s_a, s_b = q_a.covariance[0], q_b.covariance[0]

    def value(psi: Tensor) -> Tensor:
        joint = torch.cat([torch.cat([s_a, psi], 1), torch.cat([psi.mT, s_b], 1)], 0)
        return gamma * psi.trace() + 0.5 * torch.logdet(joint)

    best = value(plan.psi[0])
    others = torch.stack([value(plan.psi[0] + 0.02 * _normal(g, 2, 2)) for _ in range(500)])
    feasible = others[others.isfinite()]
    assert len(feasible) > 100
    assert bool((feasible < best).all())


def test_the_batch_elbo_is_a_divergence_of_joints_up_to_a_constant() -> None:
    """Eq. 1: mean ELBO = -KL(pi(x) q(z|x) || p(x|z) p(z)) + const, whatever q: the constant does not move with it.

    For an empirical pi the divergence is over z given the index; it is computed here from the joint Gaussian of (x, z).
    """
    model, g = _model(), _generator(8)
    x = _normal(g, 30, 5)
    prior_and_likelihood = MultivariateNormal(
        torch.cat([torch.zeros(3, dtype=torch.float64), model.bias]),
        torch.cat(
            [
                torch.cat([torch.eye(3, dtype=torch.float64), model.weight.mT], 1),
                torch.cat([model.weight, model.weight @ model.weight.mT + 0.4 * torch.eye(5, dtype=torch.float64)], 1),
            ]
        ),
    )
    constants = []
    for _ in range(3):
        q, _ = _posteriors("diagonal", 30, 3, g)
        terms = model.se_elbo(x, q, q, 0.0)
        nodes = torch.linspace(-math.sqrt(2), math.sqrt(2), 2, dtype=torch.float64) / math.sqrt(2)
        # log p(x, z) is quadratic in z, so two nodes a coordinate integrate it exactly against q(z|x).
        grid = torch.cartesian_prod(nodes, nodes, nodes)
        z = q.mean[:, None] + torch.exp(q.log_var / 2)[:, None] * grid
        log_joint = prior_and_likelihood.log_prob(torch.cat([z, x[:, None].expand(-1, 8, -1)], -1)).mean(1)
        log_q = -0.5 * (q.log_var + math.log(2 * math.pi * math.e)).sum(-1)
        divergence = (math.log(1 / 30) + log_q - log_joint).mean()
        constants.append(float((terms.log_likelihood - terms.kl).mean() + divergence))
    assert constants == pytest.approx([math.log(1 / 30)] * 3, abs=1e-11)


def test_the_decoder_learns_the_same_under_both_bounds() -> None:
    g = _generator(9)
    x, weight = _normal(g, 20, 5), _normal(g, 5, 3).requires_grad_()
    model = LinearGaussianModel(weight, torch.zeros(5, dtype=torch.float64), 0.4)
    q_a, q_b = _posteriors("full", 20, 3, g)
    terms = model.se_elbo(x, q_a, q_b, 5.0)
    smooth, plain = (
        torch.autograd.grad(value.sum(), weight, retain_graph=True)[0]
        for value in (terms.value, terms.log_likelihood - terms.kl)
    )
    assert torch.equal(smooth, plain)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_the_normalised_field_would_not_give_a_bound(gamma: float) -> None:
    """Erratum: divided by its integral Z = (1 + 2 gamma)^(-D_z/2), psi has the prior N(0, s I) with
    s = (1 + gamma) / (1 + 2 gamma) for z_a. SE-ELBO - log Z then bounds that model's evidence, tightly at its own
    posterior, and exceeds log p(x) wherever that evidence does."""
    model, g = _model(d_z=2), _generator(10)
    s = (1 + gamma) / (1 + 2 * gamma)
    field = LinearGaussianModel(math.sqrt(s) * model.weight, model.bias, model.noise_variance)
    x = _normal(g, 500, 2) @ model.weight.mT + model.bias
    standard = field.posterior(x)
    q_a = FullGaussian(math.sqrt(s) * standard.mean, math.sqrt(s) * standard.scale)
    # z_b given z_a, under psi, is N(gamma z_a, I) / (1 + gamma) in natural terms: mean gamma z_a / (1 + gamma).
    pull = gamma / (1 + gamma)
    noise = torch.eye(2, dtype=torch.float64).expand(500, 2, 2) / math.sqrt(1 + gamma)
    q_b = FullGaussian(pull * q_a.mean, torch.cat([pull * q_a.scale, noise], -1))
    value = model.se_elbo(x, q_a, q_b, gamma).value
    log_z = -math.log1p(2 * gamma)
    torch.testing.assert_close(value - log_z, field.log_evidence(x), rtol=1e-10, atol=1e-10)
    evidence = model.log_evidence(x)
    assert bool((value < evidence).all())  # unnormalised, as eq. 3 has it, psi gives a bound
    assert float((value - log_z > evidence).double().mean()) > 0.1


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_sampled_se_elbo_accepts_both_families(kind: str) -> None:
    model, g = _model(), _generator(11)
    x = _normal(g, 6, 5)
    q_a, q_b = _posteriors(kind, 6, 3, g)

    def decoder(z: Tensor) -> Tensor:
        return z @ model.weight.mT + model.bias

    sampled, exact = se_elbo(x, q_a, q_b, decoder, 0.4, 2.0, _generator(0)), model.se_elbo(x, q_a, q_b, 2.0)
    for a, b in zip(sampled[1:], exact[1:], strict=True):
        assert torch.equal(a, b)
