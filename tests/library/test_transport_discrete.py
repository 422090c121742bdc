"""The definitions (eqs. 9, 10 and 13), discretised: linear programs, assignments, quantiles, Sinkhorn on grids."""

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.sparse
import scipy.special
import scipy.stats
import torch
from gaussian_problems import full_pair, generator, random_full

from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.transport import coupling, entropic_cost, entropic_w2_squared, monge_map, mutual_information, w2_squared


def scalar_pair(mean, deviation):
    """N(0, 1) and N(mean, deviation^2)."""
    a, b = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[mean], [2 * np.log(deviation)]], dtype=torch.float64)
    return DiagonalGaussian(*a), DiagonalGaussian(*b)


def linear_program(cost, weights_a, weights_b):
    n, m = cost.shape
    rows = scipy.sparse.kron(scipy.sparse.eye(n), np.ones((1, m)))
    columns = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye(m))
    found = scipy.optimize.linprog(
        cost.ravel(),
        A_eq=scipy.sparse.vstack([rows, columns]),
        b_eq=np.concatenate([weights_a, weights_b]),
        method="highs",
    )
    assert found.status == 0, found.message
    return found.fun, found.x.reshape(n, m)


def squared_distances(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)


@pytest.mark.parametrize("order", [3, 5, 7])
@pytest.mark.parametrize("name", ["dimension 2", "turned"])
def test_linear_program_on_quadrature_nodes(name, order):
    # Gauss-Hermite nodes X of a have its first two moments, and so have their images under the map: then the best of
    # all plans between the two discrete laws is the map, and its value is W_2^2. Beyond order 7 the weights fall below
    # the solver's feasibility tolerance.
    if name == "turned":
        g = generator(2)
        a, b = random_full(2, g), random_full(2, g)
    else:
        a, b = full_pair(name)
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    grid = torch.tensor(np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2))
    weight = np.outer(weights, weights).ravel() / (2 * np.pi)
    x = a.mean + grid @ a.scale.mT
    y = monge_map(a, b)(x)
    value, plan = linear_program(squared_distances(x.numpy(), y.numpy()), weight, weight)
    assert float(w2_squared(a, b)) == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(plan, np.diag(weight), rtol=0, atol=1e-8)


def test_the_map_is_the_optimal_assignment():
    # Brenier: the map is the gradient of a convex function, so X and T(X) are already paired optimally.
    a, b = full_pair("non-commuting")
    x = a.mean + torch.randn(400, 5, generator=generator(9), dtype=torch.float64) @ a.scale.mT
    y = monge_map(a, b)(x)
    _, match = scipy.optimize.linear_sum_assignment(squared_distances(x.numpy(), y.numpy()))
    assert (match == np.arange(400)).all()


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 1.7), (-3.0, 0.02), (0.0, 1.0), (1e-3, 1.001)])
def test_quantile_coupling(mean, deviation):
    a, b = scalar_pair(mean, deviation)

    quantile_a, quantile_b = scipy.stats.norm(0, 1).ppf, scipy.stats.norm(mean, deviation).ppf

    def integrand(p):
        return (quantile_a(p) - quantile_b(p)) ** 2

    half, _ = scipy.integrate.quad(integrand, 0, 0.5, epsabs=0, epsrel=1e-12, limit=500)
    rest, _ = scipy.integrate.quad(integrand, 0.5, 1, epsabs=0, epsrel=1e-12, limit=500)
    assert float(w2_squared(a, b)) == pytest.approx(half + rest, rel=1e-9, abs=1e-20)


def sinkhorn(kernel_log, weight_a, weight_b, sweeps):
    """Potentials of the entropic problem in the log domain; `kernel_log(v)` is log K exp(v) for a matrix K."""
    forward, backward = kernel_log
    f = np.zeros_like(weight_a)
    for _ in range(sweeps):
        g = np.log(weight_b) - backward(f)
        f = np.log(weight_a) - forward(g)
    return f, g


def trapezoid_grid(mean, deviation, points, width=8.5):
    x = mean + deviation * np.linspace(-width, width, points)
    weight = np.exp(-(((x - mean) / deviation) ** 2) / 2)
    return x, weight / weight.sum()


@pytest.mark.parametrize("gamma", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 1.7), (-1.0, 0.4)])
def test_sinkhorn_on_a_line(mean, deviation, gamma):
    a, b = scalar_pair(mean, deviation)
    x, weight_a = trapezoid_grid(0, 1, 161)
    y, weight_b = trapezoid_grid(mean, deviation, 161)
    kernel = -gamma / 2 * (x[:, None] - y[None]) ** 2
    f, g = sinkhorn(
        (
            lambda v: scipy.special.logsumexp(kernel + v[None], axis=1),
            lambda v: scipy.special.logsumexp(kernel + v[:, None], axis=0),
        ),
        weight_a,
        weight_b,
        300,
    )
    log_plan = f[:, None] + g[None] + kernel
    plan = np.exp(log_plan)
    spread = (plan * (x[:, None] - y[None]) ** 2).sum()
    psi = (plan * np.outer(x, y - mean)).sum()
    information = (plan * (log_plan - np.log(weight_a)[:, None] - np.log(weight_b)[None])).sum()
    assert float(coupling(a, b, gamma).psi[0]) == pytest.approx(psi, rel=1e-11)
    assert float(entropic_w2_squared(a, b, gamma)) == pytest.approx(spread, rel=1e-11)
    assert float(mutual_information(a, b, gamma)) == pytest.approx(information, rel=1e-10)
    # Density = mass / cell: entropies of the grid exceed the differential ones by log of the cell size.
    cells = np.log((x[1] - x[0]) * (y[1] - y[0]))
    functional = gamma / 2 * spread + (plan * (log_plan - cells)).sum()
    assert float(entropic_cost(a, b, gamma)) == pytest.approx(functional, rel=1e-10, abs=1e-10)


def test_sinkhorn_in_the_plane_settles_the_asymmetry_of_psi():
    # Correlated, non-commuting covariances; the kernel separates over coordinates. Psi_12 and Psi_21 differ.
    gamma = 1.0
    a = FullGaussian(torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, 0.0], [0.6, 0.5]], dtype=torch.float64))
    b = FullGaussian(torch.zeros(2, dtype=torch.float64), torch.tensor([[0.5, 0.3], [0.0, 1.2]], dtype=torch.float64))
    axis = np.linspace(-8.5, 8.5, 69)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)

    def weights(q):
        precision = np.linalg.inv(q.covariance.numpy())
        log = -np.einsum("...i,ij,...j->...", points, precision, points) / 2
        return log - scipy.special.logsumexp(log)

    # Both kernels are applied one coordinate at a time, with the largest exponent taken out.
    kernel = np.exp(-gamma / 2 * (axis[:, None] - axis[None]) ** 2)

    def smooth(v):
        top = v.max()
        return np.log(kernel @ np.exp(v - top) @ kernel) + top

    log_a, log_b = weights(a), weights(b)
    f = np.zeros_like(log_a)
    for _ in range(60):
        g = log_b - smooth(f)
        f = log_a - smooth(g)
    # E[x_i y_j] under the plan exp(f(x) + g(y)) k(x_1, y_1) k(x_2, y_2).
    u, v = np.exp(f - f.max()), np.exp(g - g.max())
    moment = kernel * axis  # k(x, y) y
    regressed = [moment @ v @ kernel, kernel @ v @ moment.T]
    mass = (u * (kernel @ v @ kernel)).sum()
    psi = [[(u * points[..., i] * regressed[j]).sum() / mass for j in range(2)] for i in range(2)]
    expected = coupling(a, b, gamma).psi.numpy()
    np.testing.assert_allclose(psi, expected, rtol=0, atol=1e-9)
    assert abs(expected[0, 1] - expected[1, 0]) > 0.05
