"""The paired prior: a bound of log p(x) that can be tight, in closed form and in float32.

Proof, tested below piece by piece. The joint model of x, x', z_a, z_b has the pair prior N(0, [[1, rho], [rho, 1]]) and
integrates over x' and z_b to p(x|z_a) p(z_a), the VAE: log p(x) is its own. By Jensen's inequality log p(x) is at least
E_Q log p(x|Z_a) - KL(Q || p(z_a, z_b)), with the gap KL(Q || p(z_a, z_b|x)), for any Q; among those with the marginals
q_a and q_b the entropic plan at gamma = rho / (1 - rho^2) is the best; and the chain rule of the divergence,
KL(q_a||p) + E KL(Q(z_b|Z_a) || p(z_b|Z_a)), leaves nothing to cancel.
"""

import math

import mpmath
import pytest
import torch
from gaussian_problems import FULL_RANK, full_pair, to
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from se_core.gaussians import DiagonalGaussian, FullGaussian, Gaussian, kl_divergence
from se_core.objectives import LinearGaussianModel, paired_correlation, se_elbo
from se_core.paired_prior import paired_terms
from se_core.transport import coupling

GAMMAS = (0.0, 1e-3, 1.0, 30.0)
RHOS = (0.0, 1e-6, 0.1, 0.5, 0.9, 0.99, 0.999)
KINDS = ("diagonal", "full", "mixed")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _model(seed: int = 0, d_x: int = 5, d_z: int = 3, v: float = 0.4) -> LinearGaussianModel:
    g = _generator(seed)
    return LinearGaussianModel(_normal(g, d_x, d_z), _normal(g, d_x), v)


def _gaussian(kind: str, batch: int, g: torch.Generator, d_z: int = 3) -> Gaussian:
    mean = 1.5 * _normal(g, batch, d_z)
    if kind == "diagonal":
        return DiagonalGaussian(mean, 2 * _normal(g, batch, d_z) - 1)
    return FullGaussian(mean, 0.7 * _normal(g, batch, d_z, d_z + 1))  # wider than square


def _posteriors(kind: str, batch: int, g: torch.Generator) -> tuple[Gaussian, Gaussian]:
    first, second = ("diagonal", "full") if kind == "mixed" else (kind, kind)
    return _gaussian(first, batch, g), _gaussian(second, batch, g)


def _standard(d_z: int = 3) -> DiagonalGaussian:
    return DiagonalGaussian(torch.zeros(d_z).double(), torch.zeros(d_z).double())


def _pair_covariance(rho: float, d_z: int = 3) -> Tensor:
    return torch.kron(torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64), torch.eye(d_z).double())


def _gap(q_a: Gaussian, q_b: Gaussian, gamma: float) -> Tensor:
    """The sum of the two parts."""
    terms = paired_terms(q_a, q_b, gamma)
    return terms.covariance + terms.mean


def _image(q: FullGaussian, rho: float) -> FullGaussian:
    """q under z -> N(rho z, (1 - rho^2) I)."""
    noise = math.sqrt(1 - rho**2) * torch.eye(q.mean.shape[-1], dtype=q.mean.dtype).expand(len(q.mean), -1, -1)
    return FullGaussian(rho * q.mean, torch.cat([rho * q.scale, noise], -1))


# the prior


@pytest.mark.parametrize("rho", RHOS)
def test_rho_and_gamma_are_one_parameter(rho: float) -> None:
    gamma = rho / (1 - rho**2)
    assert paired_correlation(gamma) == pytest.approx(rho, rel=1e-15)
    many = torch.tensor([gamma, 1.0, 1e30])
    assert paired_correlation(many).tolist() == pytest.approx([rho, (math.sqrt(5) - 1) / 2, 1.0], rel=2e-7)
    assert paired_correlation(1e300) == 1.0  # the square of gamma would overflow


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 5.0])
def test_x_prime_integrates_out_and_leaves_the_evidence(gamma: float) -> None:
    """Eq. 5, true of this prior at every rho: a sum over a fine grid, exact for Gaussians, of the joint of all four."""
    model = _model(d_x=1, d_z=1)
    w, mu, v = float(model.weight), float(model.bias), model.noise_variance
    x, rho = 0.7, paired_correlation(gamma)
    z, step = torch.linspace(-9, 9, 301, dtype=torch.float64), 18 / 300
    x_prime, x_step = torch.linspace(mu - 30, mu + 30, 401, dtype=torch.float64), 60 / 400
    a, b = z[:, None], z[None, :]
    field = torch.exp(-(a**2 + b**2) / (2 * (1 + rho)) - gamma / 2 * (a - b) ** 2)
    prior = field / (2 * math.pi * math.sqrt(1 - rho**2))
    likelihood = Normal(w * z + mu, math.sqrt(v)).log_prob(torch.full_like(z, x)).exp()
    of_x_prime = Normal(w * z + mu, math.sqrt(v)).log_prob(x_prime[:, None]).exp()  # (x', z_b)
    joint = of_x_prime @ (prior.mT @ likelihood) * step**2  # p(x, x') at each x'
    evidence = model.log_evidence(torch.tensor([[x]], dtype=torch.float64))
    assert float((joint.sum() * x_step).log()) == pytest.approx(float(evidence), abs=1e-10)
    torch.testing.assert_close(prior.sum(1) * step, Normal(0, 1).log_prob(z).exp(), rtol=1e-10, atol=1e-12)


# the divergence


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_terms_are_the_divergence_of_the_joint_plan(kind: str, rho: float) -> None:
    """KL(Q || p(z_a, z_b)) = KL(q_a || p) + both parts, against torch.distributions on the plan's joint."""
    q_a, q_b = _posteriors(kind, 30, _generator(1))
    gamma = rho / (1 - rho**2)
    joint = coupling(q_a, q_b, gamma).joint()
    plan = MultivariateNormal(joint.mean, joint.covariance)
    divergence = torch_kl(plan, MultivariateNormal(torch.zeros(6).double(), _pair_covariance(rho)))
    total = kl_divergence(q_a, _standard()) + _gap(q_a, q_b, gamma)
    torch.testing.assert_close(total, divergence, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_those_of_the_covariances_and_of_the_means(kind: str) -> None:
    """Of Q(z_b|z_a) against N(rho z_a, 1 - rho^2), by conditioning the joint in the textbook way and sampling z_a."""
    q_a, q_b = _posteriors(kind, 3, _generator(2))
    gamma = 2.0
    rho = paired_correlation(gamma)
    covariance = coupling(q_a, q_b, gamma).joint().covariance
    s_a, s_b, psi = covariance[:, :3, :3], covariance[:, 3:, 3:], covariance[:, :3, 3:]
    slope = psi.mT @ torch.linalg.inv(s_a)
    given = (s_b - slope @ psi) / (1 - rho**2)
    terms = paired_terms(q_a, q_b, gamma)
    stein = 0.5 * (given.diagonal(dim1=-2, dim2=-1).sum(-1) - 3 - torch.logdet(given))
    torch.testing.assert_close(terms.covariance, stein, rtol=1e-10, atol=1e-10)
    n = 200_000
    z_a = q_a.mean + (torch.linalg.cholesky(s_a) @ _normal(_generator(3), n, 3, 3, 1))[..., 0]
    image = q_b.mean + (slope @ (z_a - q_a.mean)[..., None])[..., 0]
    draws = (image - rho * z_a).square().sum(-1) / (2 * (1 - rho**2))
    assert bool(((draws.mean(0) - terms.mean).abs() < 5 * draws.std(0) / math.sqrt(n)).all())


def test_no_other_plan_has_a_smaller_divergence() -> None:
    g = _generator(4)
    q_a, q_b = (FullGaussian(q.mean[0], q.scale[0]) for q in _posteriors("full", 1, g))
    rho = 0.8
    plan = coupling(q_a, q_b, rho / (1 - rho**2))
    prior = MultivariateNormal(torch.zeros(6).double(), _pair_covariance(rho))
    mean = torch.cat([q_a.mean, q_b.mean])

    def divergence(psi: Tensor) -> Tensor:
        rows = torch.cat([q_a.covariance, psi], 1), torch.cat([psi.mT, q_b.covariance], 1)
        return torch_kl(MultivariateNormal(mean, torch.cat(rows)), prior)

    best = divergence(plan.psi)
    worse = torch.stack([divergence(plan.psi + 1e-3 * _normal(g, 3, 3)) for _ in range(200)])
    assert bool((worse > best).all())


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", [name for name in FULL_RANK if name not in ("condition 1e8", "dimension 128")])
def test_hard_pairs_of_the_full_family(name: str, gamma: float) -> None:
    """Against the joint in float64, and float32 against float64 on the same numbers."""
    a, b = full_pair(name)
    size, rho = a.mean.shape[-1], paired_correlation(gamma)
    joint = coupling(a, b, gamma).joint()
    precision = torch.linalg.inv(_pair_covariance(rho, size))
    log_volume = torch.linalg.svdvals(joint.scale).log().sum()
    square = (joint.mean @ precision * joint.mean).sum() + (precision * joint.covariance).sum()
    divergence = square / 2 - size - log_volume + size / 2 * math.log(1 - rho**2)
    expected = divergence - kl_divergence(a, _standard(size))
    torch.testing.assert_close(_gap(a, b, gamma), expected, rtol=1e-9, atol=1e-9)
    single = to(torch.float32, a, b)
    exact = float(_gap(*to(torch.float64, *single), gamma))
    assert float(_gap(*single, gamma)) == pytest.approx(exact, rel=1e-5)


def test_full_and_diagonal_agree() -> None:
    q_a, q_b = _posteriors("diagonal", 20, _generator(5))
    gamma = torch.linspace(0, 50, 20, dtype=torch.float64)
    for one, other in ((q_a.full(), q_b.full()), (q_a, q_b.full()), (q_a.full(), q_b)):
        for x, y in zip(paired_terms(q_a, q_b, gamma), paired_terms(one, other, gamma), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def test_a_singular_q_a_has_a_finite_term() -> None:
    """Fewer columns than latents: the limit of a variance that vanishes."""
    q_a, q_b = _posteriors("diagonal", 4, _generator(21))
    narrow = FullGaussian(q_a.mean, q_a.full().scale[..., :2])
    point = DiagonalGaussian(q_a.mean, torch.cat([q_a.log_var[:, :2], torch.full((4, 1), -80.0).double()], -1))
    for q in (q_b, q_b.full()):
        torch.testing.assert_close(_gap(narrow, q, 2.0), _gap(point, q_b, 2.0), rtol=1e-12, atol=1e-12)


# the bound


@pytest.mark.parametrize("kind", KINDS)
def test_no_draw_of_ten_thousand_breaks_the_bound(kind: str) -> None:
    model, g, n = _model(), _generator(6), 10_000
    x = 2 * _normal(g, n, 5)
    q_a, q_b = _posteriors(kind, n, g)
    gamma = 10 ** (6 * torch.rand(n, generator=g, dtype=torch.float64) - 3)
    paired, paper = model.se_elbo(x, q_a, q_b, gamma, "paired"), model.se_elbo(x, q_a, q_b, gamma)
    evidence = model.log_evidence(x)
    rounding = 1e-11 * (1 + paired.value.abs())
    assert bool((paired.value <= evidence + rounding).all())
    assert bool((paired.value >= paper.value).all())
    assert all(bool((term >= 0).all()) for term in paired[1:])
    assert bool((evidence - paper.value >= 1.5 * torch.log1p(gamma)).all())  # however good the encoder


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_is_the_divergence_from_the_posterior_of_the_pair(kind: str, rho: float) -> None:
    model, g = _model(), _generator(7)
    x, gamma = _normal(g, 30, 5), rho / (1 - rho**2)
    q_a, q_b = _posteriors(kind, 30, g)
    terms = model.se_elbo(x, q_a, q_b, gamma, "paired")
    w, v = model.weight, model.noise_variance
    precision = torch.linalg.inv(_pair_covariance(rho))
    precision[:3, :3] += w.mT @ w / v  # only z_a has been seen
    pull = torch.cat([(x - model.bias) @ w / v, torch.zeros(30, 3).double()], -1)
    posterior = MultivariateNormal(torch.linalg.solve(precision, pull.mT).mT, precision_matrix=precision)
    joint = coupling(q_a, q_b, gamma).joint()
    gap = torch_kl(MultivariateNormal(joint.mean, joint.covariance), posterior)
    torch.testing.assert_close(model.log_evidence(x) - terms.value, gap, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rho", RHOS)
def test_the_bound_is_tight_where_the_papers_cannot_be(rho: float) -> None:
    model, g = _model(), _generator(8)
    x, gamma = _normal(g, 20, 5), rho / (1 - rho**2)
    q_a = model.posterior(x)
    q_b = _image(q_a, rho)
    paired, paper = model.se_elbo(x, q_a, q_b, gamma, "paired"), model.se_elbo(x, q_a, q_b, gamma)
    evidence = model.log_evidence(x)
    torch.testing.assert_close(paired.value, evidence, rtol=1e-11, atol=1e-11)
    assert float((paired.kl_fictive + paired.transport).max()) < 1e-20
    assert bool((evidence - paper.value >= 1.5 * math.log1p(gamma) - 1e-11).all())
    # The same posteriors in float32.
    small = [FullGaussian(q.mean.float(), q.scale.float()) for q in (q_a, q_b)]
    assert float(_gap(*small, gamma).max()) < 1e-9


@pytest.mark.parametrize("rho", RHOS)
def test_the_bound_is_tight_for_diagonal_posteriors_in_float32(rho: float) -> None:
    """Zero, where the sum of the paper's terms leaves 7e-7: a model with orthogonal weights has such posteriors."""
    g = _generator(9)
    mean, log_var = torch.randn(500, 1, generator=g), 14 * torch.rand(500, 1, generator=g) - 12
    q_b = DiagonalGaussian(rho * mean, torch.log(rho**2 * log_var.double().exp() + 1 - rho**2).float())
    gamma = rho / (1 - rho**2)
    assert float(_gap(DiagonalGaussian(mean, log_var), q_b, gamma).max()) < 3e-9


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_exceeds_the_papers_by_a_moment_and_a_normaliser(kind: str, gamma: float) -> None:
    """The same plan, and gamma/2 W^2 + I - H - H: only the precision 1 / (1 + rho) and the normaliser differ."""
    model, g = _model(), _generator(10)
    x = _normal(g, 20, 5)
    q_a, q_b = _posteriors(kind, 20, g)
    paired, paper = model.se_elbo(x, q_a, q_b, gamma, "paired"), model.se_elbo(x, q_a, q_b, gamma)
    rho = paired_correlation(gamma)
    moments = sum(
        q.mean.square().sum(-1) + q.covariance.diagonal(dim1=-2, dim2=-1).sum(-1) for q in (q_a, q_b)
    )  # fmt: skip
    excess = rho / (2 * (1 + rho)) * moments - 1.5 * math.log(1 - rho**2)
    torch.testing.assert_close(paired.value - paper.value, excess, rtol=1e-9, atol=1e-9)
    assert torch.equal(paired.log_likelihood, paper.log_likelihood)
    assert torch.equal(paired.kl, paper.kl)


@pytest.mark.parametrize("kind", KINDS)
def test_without_coupling_both_priors_are_one(kind: str) -> None:
    model, g = _model(), _generator(11)
    x = _normal(g, 20, 5)
    q_a, q_b = _posteriors(kind, 20, g)
    for gamma, tolerance in ((0.0, 1e-12), (torch.zeros(20).double(), 1e-12), (1e-12, 1e-9)):
        paired = model.se_elbo(x, q_a, q_b, gamma, "paired")
        expected = paired.log_likelihood - paired.kl - kl_divergence(q_b, _standard())
        torch.testing.assert_close(paired.value, expected, rtol=tolerance, atol=tolerance)
        assert bool((paired.mutual_information == 0).all())


def test_gamma_may_differ_between_images() -> None:
    model, g = _model(), _generator(12)
    x = _normal(g, 4, 5)
    gamma = torch.tensor([0.0, 1e-3, 1.0, 100.0], dtype=torch.float64)
    for kind in KINDS:
        q_a, q_b = _posteriors(kind, 4, g)
        together = model.se_elbo(x, q_a, q_b, gamma, "paired").value
        for i, one in enumerate(gamma.tolist()):
            alone = model.se_elbo(x, q_a, q_b, one, "paired").value[i]
            assert float(together[i]) == pytest.approx(float(alone), rel=1e-12)
        first = model.se_elbo(x, q_a, q_b, gamma[2], "paired").value  # a tensor without dimensions
        torch.testing.assert_close(first, model.se_elbo(x, q_a, q_b, 1.0, "paired").value, rtol=1e-13, atol=1e-13)


def test_posteriors_may_be_those_of_torch_and_their_fields_may_broadcast() -> None:
    g = _generator(13)
    mean, log_var = _normal(g, 6, 3), _normal(g, 1, 3)
    ours = DiagonalGaussian(mean, log_var)
    theirs = Independent(Normal(mean, (log_var / 2).exp()), 1)
    for x, y in zip(paired_terms(ours, _standard(), 2.0), paired_terms(theirs, _standard(), 2.0), strict=True):
        assert x.shape == (6,)
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pair_meets_many_strengths(kind: str) -> None:
    """A gamma with more dimensions than the Gaussians have, as the functions of transport take it."""
    q_a, q_b = _posteriors(kind, 1, _generator(21))
    q_a, q_b = type(q_a)(*(p[0] for p in q_a)), type(q_b)(*(p[0] for p in q_b))
    gammas = torch.tensor(GAMMAS, dtype=torch.float64)
    expected = torch.stack([_gap(q_a, q_b, gamma) for gamma in GAMMAS])
    torch.testing.assert_close(_gap(q_a, q_b, gammas), expected, rtol=1e-12, atol=1e-12)


# float32


def _exact(q_a: DiagonalGaussian, q_b: DiagonalGaussian, gamma: float) -> list[mpmath.mpf]:
    """KL of the joint of one latent less KL of its first marginal, by the textbook forms in 50 digits."""
    values = []
    with mpmath.workdps(50):
        g = mpmath.mpf(gamma)

        def solved(s: mpmath.mpf) -> mpmath.mpf:
            return (mpmath.sqrt(1 + (2 * g * s) ** 2) - 1) / (2 * g) if g else mpmath.mpf(0)

        rho = solved(mpmath.mpf(1))
        for numbers in zip(*(p[:, 0].tolist() for p in (*q_a, *q_b)), strict=True):
            m_a, log_a, m_b, log_b = map(mpmath.mpf, numbers)
            v_a, v_b = mpmath.exp(log_a), mpmath.exp(log_b)
            psi = solved(mpmath.sqrt(v_a * v_b))
            square = m_a**2 + m_b**2 + v_a + v_b - 2 * rho * (m_a * m_b + psi)
            joint = square / (1 - rho**2) - 2 - mpmath.log(v_a * v_b - psi**2) + mpmath.log(1 - rho**2)
            values.append((joint - (v_a + m_a**2 - 1 - log_a)) / 2)
    return values


@pytest.mark.parametrize("rho", RHOS)
def test_float32_is_as_good_as_it_says(rho: float) -> None:
    g = _generator(14)

    def draw() -> DiagonalGaussian:
        return DiagonalGaussian(torch.randn(200, 1, generator=g), 14 * torch.rand(200, 1, generator=g) - 12)

    gamma = torch.tensor(rho / (1 - rho**2))
    q_a = draw()
    near = DiagonalGaussian(*(p + 0.01 * torch.randn(200, 1, generator=g) for p in q_a))
    for q_b, floor in ((draw(), 0.0), (near, 4e-6), (q_a, 4e-6)):
        found = _gap(q_a, q_b, gamma).tolist()
        for value, exact in zip(found, _exact(q_a, q_b, float(gamma)), strict=True):
            assert abs(value - exact) <= 2e-6 * exact + floor


def test_float32_neither_overflows_nor_cancels_at_the_ends() -> None:
    """Gradients too: at equal arguments, without coupling, and beyond every encoder."""
    for log_var in (-30.0, -8.0, 0.0, 8.0):
        for gamma in (0.0, 1e-6, 1.0, 500.0, 1e6):
            leaves = [torch.full((2, 4), value, requires_grad=True) for value in (0.5, log_var, 0.5, log_var)]
            strength = torch.full((2,), gamma, requires_grad=True)
            value = _gap(DiagonalGaussian(*leaves[:2]), DiagonalGaussian(*leaves[2:]), strength)
            gradients = torch.autograd.grad(value.sum(), [*leaves, strength])
            assert bool(value.isfinite().all())
            assert all(bool(p.isfinite().all()) for p in gradients), (log_var, gamma)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 500.0])
def test_float32_gradients_of_the_full_family_at_equal_arguments(gamma: float) -> None:
    """Repeated singular values, where the derivative of a singular value decomposition divides by zero."""
    leaves = [torch.zeros(2, 3).requires_grad_(), (0.1 * torch.eye(3)).repeat(2, 1, 1).requires_grad_()] * 2
    value = _gap(FullGaussian(*leaves[:2]), FullGaussian(*leaves[2:]), gamma)
    assert all(bool(p.isfinite().all()) for p in torch.autograd.grad(value.sum(), leaves[:2]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    g = _generator(15)
    q_a, q_b = _posteriors(kind, 2, g)
    kinds = type(q_a), type(q_b)
    leaves = [p.clone().requires_grad_() for p in (*q_a, *q_b)]
    gamma = torch.tensor([0.3, 4.0], dtype=torch.float64, requires_grad=True)

    def both(m_a: Tensor, s_a: Tensor, m_b: Tensor, s_b: Tensor, strength: Tensor) -> tuple[Tensor, ...]:
        return tuple(paired_terms(kinds[0](m_a, s_a), kinds[1](m_b, s_b), strength))

    assert torch.autograd.gradcheck(both, (*leaves, gamma))
    if kind == "diagonal":
        assert torch.autograd.gradgradcheck(both, (*leaves, gamma))


def test_the_plan_may_be_held_fixed() -> None:
    """The envelope theorem: the plan is the best one, so that the gradient does not see that it moves."""
    g = _generator(16)
    q_a, q_b = _posteriors("full", 5, g)
    scale = q_a.scale.clone().requires_grad_()
    rho = 0.9
    (slope,) = torch.autograd.grad(_gap(FullGaussian(q_a.mean, scale), q_b, rho / (1 - rho**2)).sum(), scale)
    plan = coupling(q_a, q_b, rho / (1 - rho**2))
    expected = (rho**2 * q_a.scale - rho * q_b.scale @ plan.rotation.mT) / (1 - rho**2)
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-9)


def test_autocast_changes_nothing() -> None:
    q_a, q_b = (FullGaussian(q.mean.float(), q.scale.float()) for q in _posteriors("full", 5, _generator(17)))
    plain = paired_terms(q_a, q_b, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = paired_terms(q_a, q_b, 2.0)
    assert all(torch.equal(x, y) for x, y in zip(plain, rounded, strict=True))


# refusals


@pytest.mark.parametrize("prior", ["Paired", "", None, 1])
def test_another_prior_is_refused(prior: object) -> None:
    model = _model()
    q = _gaussian("diagonal", 4, _generator(18))
    with pytest.raises(ValueError, match=r'prior=.* must be "independent", as in the paper, or "paired"'):
        model.se_elbo(torch.zeros(4, 5).double(), q, q, 1.0, prior)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf, -torch.ones(4).double(), torch.ones(4, 1).double()])
def test_a_gamma_that_is_none_is_refused(kind: str, gamma: float | Tensor) -> None:
    q_a, q_b = _posteriors(kind, 4, _generator(19))
    with pytest.raises(ValueError, match="gamma"):
        _model().se_elbo(torch.zeros(4, 5).double(), q_a, q_b, gamma, "paired")


def test_the_sampled_bound_has_the_same_terms() -> None:
    model, g = _model(), _generator(20)
    x = _normal(g, 6, 5)
    q_a, q_b = _posteriors("diagonal", 6, g)

    def decoder(z: Tensor) -> Tensor:
        return z @ model.weight.mT + model.bias

    sampled = se_elbo(x, q_a, q_b, decoder, 0.4, 2.0, _generator(0), prior="paired")
    plain = se_elbo(x, q_a, q_b, decoder, 0.4, 2.0, _generator(0))
    exact = model.se_elbo(x, q_a, q_b, 2.0, "paired")
    covariance, mean = paired_terms(q_a, q_b, 2.0)
    assert torch.equal(sampled.log_likelihood, plain.log_likelihood)
    assert torch.equal(sampled.kl_fictive, covariance)
    assert torch.equal(sampled.transport, mean)
    assert all(torch.equal(a, b) for a, b in zip(sampled[1:], exact[1:], strict=True))
