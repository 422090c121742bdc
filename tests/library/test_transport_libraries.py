"""What other libraries call the same thing, and where ours is right and theirs is not.

The table of constants, for the cost ||x - y||^2: epsilon = 2 / gamma. POT's `sinkhorn2` returns E c alone, that is
W^2_{2,gamma}; its `solve` adds epsilon times a relative entropy ("KL", which is our regularised cost) or the negative
entropy of the plan's weights ("entropy", which depends on the grid). GeomLoss with p = 2 takes half the cost, the
standard deviation blur = gamma^(-1/2), and returns half the loss. OTT's `kl_reg_cost` is the "KL" form, its
`ent_reg_cost` the "entropy" form.
"""

import math

import numpy as np
import ot
import pytest
import scipy.special
import torch
from gaussian_problems import from_spectrum, full_pair, generator
from geomloss import SamplesLoss

from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.transport import (
    entropic_cost,
    entropic_w2_squared,
    monge_map,
    mutual_information,
    sinkhorn_divergence,
    w2_squared,
)

GAMMA = 1.0
A = DiagonalGaussian(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
B = DiagonalGaussian(A.mean + 0.5, A.log_var + 2 * math.log(1.7))


def regularised(a, b, gamma):
    return float(entropic_w2_squared(a, b, gamma) + 2 / gamma * mutual_information(a, b, gamma))


def grid(q, points=121):
    """Nodes and weights of a trapezoid rule, spectrally accurate for a Gaussian."""
    deviation = math.exp(float(q.log_var) / 2)
    x = float(q.mean) + deviation * np.linspace(-8, 8, points)
    weight = np.exp(-(((x - float(q.mean)) / deviation) ** 2) / 2)
    return x[:, None], weight / weight.sum()


def log_cells(x, y):
    """log(h_a h_b): a weight is a density times its cell."""
    return math.log((x[1, 0] - x[0, 0]) * (y[1, 0] - y[0, 0]))


def test_the_pair_of_the_table():
    assert regularised(A, B, GAMMA) == pytest.approx(2.4166534586123802, rel=1e-15)
    assert float(entropic_w2_squared(A, B, GAMMA)) == pytest.approx(1.5959909706660, rel=1e-13)


def test_pot_sinkhorn_returns_the_cost_alone():
    (x, p), (y, q) = grid(A), grid(B)
    cost = ot.dist(x, y)
    value = ot.sinkhorn2(p, q, cost, 2 / GAMMA, method="sinkhorn_log", stopThr=1e-15, numItermax=5000)
    assert float(entropic_w2_squared(A, B, GAMMA)) == pytest.approx(float(value), rel=1e-10)


def test_pot_solve_adds_the_regulariser():
    (x, p), (y, q) = grid(A), grid(B)
    cost = ot.dist(x, y)
    relative = ot.solve(cost, p, q, reg=2 / GAMMA, reg_type="KL", tol=1e-15, max_iter=5000)
    assert regularised(A, B, GAMMA) == pytest.approx(float(relative.value), rel=1e-7)  # POT adds 1e-16 in its log
    plan = relative.plan
    functional = GAMMA / 2 * float(relative.value_linear) + scipy.special.xlogy(plan, plan).sum() - log_cells(x, y)
    assert float(entropic_cost(A, B, GAMMA)) == pytest.approx(functional, rel=1e-10)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_geomloss_is_half_the_loss_at_blur_one_over_root_gamma(gamma):
    (x, p), (y, q) = (tuple(map(torch.from_numpy, grid(law, 81))) for law in (A, B))
    settings = {"p": 2, "blur": gamma**-0.5, "scaling": 0.98, "backend": "tensorized"}
    biased = SamplesLoss("sinkhorn", debias=False, **settings)(p, x, q, y)
    debiased = SamplesLoss("sinkhorn", debias=True, **settings)(p, x, q, y)
    # It makes one sweep at each of its scales and stops there.
    assert regularised(A, B, gamma) == pytest.approx(2 * float(biased), rel=3e-5)
    assert float(sinkhorn_divergence(A, B, gamma)) == pytest.approx(2 * float(debiased), rel=3e-5)


def test_pot_agrees_on_w2_and_the_map():
    for name in ("non-commuting", "commuting", "dimension 16", "repeated eigenvalues"):
        a, b = full_pair(name)
        theirs = ot.gaussian.bures_wasserstein_distance(a.mean, b.mean, a.covariance, b.covariance)
        torch.testing.assert_close(w2_squared(a, b), theirs.square().squeeze(), rtol=1e-12, atol=0)
        matrix, offset = ot.gaussian.bures_wasserstein_mapping(a.mean, b.mean, a.covariance, b.covariance)
        ours = monge_map(a, b)
        torch.testing.assert_close(ours.matrix, matrix, rtol=1e-9, atol=1e-10)
        zero = torch.zeros_like(a.mean)
        torch.testing.assert_close(ours(zero), offset.squeeze(), rtol=1e-9, atol=1e-10)


def test_pot_has_no_gradient_at_equal_covariances():
    # A square root of a cancelled difference: NaN where the derivative is zero. Ours is exact there.
    mean, identity = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    covariance = identity.clone().requires_grad_()
    theirs = ot.gaussian.bures_wasserstein_distance(mean, mean + 1, covariance, identity).square()
    (gradient,) = torch.autograd.grad(theirs, covariance)
    assert gradient.isnan().any()
    scale = identity.clone().requires_grad_()
    ours = w2_squared(FullGaussian(mean, scale), FullGaussian(mean + 1, identity))
    (gradient,) = torch.autograd.grad(ours, scale)
    torch.testing.assert_close(ours, torch.full_like(ours, 4.0), rtol=1e-15, atol=0)
    assert gradient.abs().max() < 1e-14


def test_pot_loses_w2_in_float32_near_equality():
    a, b = (FullGaussian(q.mean.float(), q.scale.float()) for q in full_pair("nearly equal"))
    exact = w2_squared(FullGaussian(a.mean.double(), a.scale.double()), FullGaussian(b.mean.double(), b.scale.double()))
    theirs = ot.gaussian.bures_wasserstein_distance(a.mean, b.mean, a.covariance, b.covariance).square().squeeze()
    assert (theirs.double() / exact - 1).abs() > 0.5
    torch.testing.assert_close(w2_squared(a, b).double(), exact, rtol=1e-6, atol=0)


@pytest.fixture
def ott():
    """OTT-JAX, where it is installed; it is no dependency of the tests because it brings all of JAX."""
    return pytest.importorskip("ott", reason="OTT-JAX is not installed")


def test_ott_stops_its_matrix_roots_too_early(ott):
    # `Bures` hands its dimension to the square root as the threshold of its iteration.
    import jax
    from ott.geometry.costs import Bures

    jax.config.update("jax_enable_x64", True)
    spectrum = torch.logspace(0, -3, 16, dtype=torch.float64)
    a, b = from_spectrum(spectrum, generator(1)), from_spectrum(spectrum.flip(0), generator(2))
    exact = ot.gaussian.bures_wasserstein_distance(a.mean, b.mean, a.covariance, b.covariance).square().squeeze()

    def flat(q):
        return jax.numpy.concatenate([jax.numpy.array(q.mean.numpy()), jax.numpy.array(q.covariance.numpy()).ravel()])

    cost = Bures(16)
    zero = a._replace(mean=b.mean)
    theirs = float(cost(flat(zero), flat(b)))
    centred = float(w2_squared(zero, b))
    assert abs(theirs / centred - 1) > 1e-4
    assert float(cost(flat(a), flat(a))) > 1e-4
    torch.testing.assert_close(w2_squared(a, b), exact, rtol=1e-12, atol=0)
    assert w2_squared(a, a) < 1e-28


def test_ott_has_both_regularised_costs(ott):
    import jax
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    jax.config.update("jax_enable_x64", True)
    (x, p), (y, q) = grid(A), grid(B)
    geometry = PointCloud(jax.numpy.array(x), jax.numpy.array(y), epsilon=2 / GAMMA)
    problem = LinearProblem(geometry, a=jax.numpy.array(p), b=jax.numpy.array(q))
    theirs = Sinkhorn(threshold=1e-13, max_iterations=5000)(problem)
    assert regularised(A, B, GAMMA) == pytest.approx(float(theirs.kl_reg_cost), rel=1e-9)
    functional = GAMMA / 2 * float(theirs.ent_reg_cost) - log_cells(x, y)
    assert float(entropic_cost(A, B, GAMMA)) == pytest.approx(functional, rel=1e-9)
