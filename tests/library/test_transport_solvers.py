"""Independent solvers of the same problem: Riccati equations, square roots, direct minimisation, Sinkhorn, sampling."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from gaussian_problems import FULL_RANK, full_pair, generator, orthogonal

from se_core.gaussians import FullGaussian
from se_core.transport import coupling, entropic_cost, entropic_w2_squared, mutual_information, w2_squared

MODERATE = [name for name in FULL_RANK if name not in ("condition 1e8", "tiny", "huge", "dimension 128")]


@pytest.mark.parametrize("gamma", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", MODERATE)
def test_continuous_riccati_solver(name, gamma):
    # K = Psi Sigma_b^{-1} is symmetric and solves K Sigma_b K + K / gamma = Sigma_a (eq. 18).
    a, b = full_pair(name)
    d = a.mean.shape[-1]
    factor = np.linalg.cholesky(b.covariance.numpy())
    solution = scipy.linalg.solve_continuous_are(-np.eye(d) / (2 * gamma), factor, a.covariance.numpy(), np.eye(d))
    expected = solution @ b.covariance.numpy()
    np.testing.assert_allclose(coupling(a, b, gamma).psi.numpy(), expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_continuous_riccati_solver_at_condition_1e8():
    a, b = full_pair("condition 1e8")
    factor = np.linalg.cholesky(b.covariance.numpy())
    solution = scipy.linalg.solve_continuous_are(-np.eye(4) / 2, factor, a.covariance.numpy(), np.eye(4))
    expected = solution @ b.covariance.numpy()
    np.testing.assert_allclose(coupling(a, b, 1.0).psi.numpy(), expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("gamma", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", MODERATE)
def test_discrete_riccati_solver(name, gamma):
    # The conditional precision S^{-1}, S = Sigma_a - Psi Sigma_b^{-1} Psi^T, is the fixed point of two marginal
    # scalings: X = Sigma_a^{-1} + gamma^2 (Sigma_b^{-1} + gamma^2 X^{-1})^{-1}, scipy's equation with A = B = I.
    a, b = full_pair(name)
    d = a.mean.shape[-1]
    identity, inverse = np.eye(d), np.linalg.inv(a.covariance.numpy())
    solution = scipy.linalg.solve_discrete_are(identity, identity, inverse, gamma**2 * b.covariance.numpy())
    psi = coupling(a, b, gamma).psi.numpy()
    schur = a.covariance.numpy() - psi @ np.linalg.solve(b.covariance.numpy(), psi.T)
    np.testing.assert_allclose(np.linalg.inv(solution), schur, rtol=0, atol=1e-9 * np.abs(schur).max())


@pytest.mark.parametrize("name", ["non-commuting", "repeated eigenvalues", "wide factors", "dimension 16"])
def test_matrix_square_roots(name):
    # Eq. 12 and eq. 11 as printed, by scipy's Schur method.
    a, b = full_pair(name)
    sigma_a, sigma_b = a.covariance.numpy(), b.covariance.numpy()
    root = scipy.linalg.sqrtm(sigma_b)
    middle = scipy.linalg.sqrtm(root @ sigma_a @ root)
    distance = float((a.mean - b.mean).square().sum()) + np.trace(sigma_a + sigma_b - 2 * middle)
    assert float(w2_squared(a, b)) == pytest.approx(distance, rel=1e-12)
    psi = sigma_a @ root @ np.linalg.inv(middle) @ root
    np.testing.assert_allclose(coupling(a, b, 1e13).psi.numpy(), psi, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize("name", ["dimension 1", "dimension 2", "commuting", "non-commuting", "repeated eigenvalues"])
def test_direct_minimisation(name, gamma):
    # BFGS on the functional of eq. 16, from the product plan.
    a, b = full_pair(name)
    d = a.mean.shape[-1]
    sigma_a, sigma_b = a.covariance.numpy(), b.covariance.numpy()
    inverse = np.linalg.inv(sigma_b)

    def functional(flat):
        psi = flat.reshape(d, d)
        schur = sigma_a - psi @ inverse @ psi.T
        try:
            log_det = 2 * np.log(np.diag(np.linalg.cholesky(schur))).sum()
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(d * d)
        return -gamma * psi.trace() - log_det / 2, (-gamma * np.eye(d) + np.linalg.solve(schur, psi) @ inverse).ravel()

    found = scipy.optimize.minimize(functional, np.zeros(d * d), jac=True, method="BFGS", options={"gtol": 1e-11})
    np.testing.assert_allclose(coupling(a, b, gamma).psi.numpy(), found.x.reshape(d, d), rtol=0, atol=1e-7)
    constant = gamma / 2 * float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace())
    constant -= d * np.log(2 * np.pi * np.e) + np.linalg.slogdet(sigma_b)[1] / 2
    assert float(entropic_cost(a, b, gamma)) == pytest.approx(found.fun + constant, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.3, 3.0])
@pytest.mark.parametrize("name", MODERATE)
def test_sinkhorn_on_covariances(name, gamma):
    # Scaling the marginals in turn is a Riccati iteration on the diagonal blocks of the precision. It contracts by
    # rho^4 a sweep.
    a, b = full_pair(name)
    d = a.mean.shape[-1]
    inverse_a, inverse_b = torch.linalg.inv(a.covariance), torch.linalg.inv(b.covariance)
    block_b = inverse_b
    for _ in range(400):
        block_a = inverse_a + gamma**2 * torch.linalg.inv(block_b)
        block_b = inverse_b + gamma**2 * torch.linalg.inv(block_a)
    cross = -gamma * torch.eye(d, dtype=torch.float64)
    joint = torch.linalg.inv(torch.cat([torch.cat([block_a, cross], -1), torch.cat([cross, block_b], -1)], -2))
    torch.testing.assert_close(joint[:d, d:], coupling(a, b, gamma).psi, rtol=0, atol=1e-10)


def test_the_contraction_of_sinkhorn_is_the_largest_correlation_to_the_fourth():
    a, b = full_pair("non-commuting")
    gamma = 0.7
    limit = torch.linalg.inv(coupling(a, b, gamma).joint().covariance)[5:, 5:]
    inverse_a, inverse_b = torch.linalg.inv(a.covariance), torch.linalg.inv(b.covariance)
    block, errors = inverse_b, []
    for _ in range(14):
        block = inverse_b + gamma**2 * torch.linalg.inv(inverse_a + gamma**2 * torch.linalg.inv(block))
        errors.append(float((block - limit).norm()))
    assert errors[13] / errors[12] == pytest.approx(float(coupling(a, b, gamma).rho[0]) ** 4, rel=1e-3)


def test_monte_carlo():
    # A million draws from the joint: cost and marginals within five standard errors.
    a, b = full_pair("non-commuting")
    joint = coupling(a, b, 2.0).joint()
    noise = torch.randn(1_000_000, joint.scale.shape[-1], generator=generator(11), dtype=torch.float64)
    z = joint.mean + noise @ joint.scale.mT
    cost = (z[:, :5] - z[:, 5:]).square().sum(-1)
    error = cost.std() / 1000
    assert abs(float(cost.mean() - entropic_w2_squared(a, b, 2.0))) < 5 * float(error)
    log_ratio = log_density(joint, z) - log_density(a, z[:, :5]) - log_density(b, z[:, 5:])
    assert abs(float(log_ratio.mean() - mutual_information(a, b, 2.0))) < 5 * float(log_ratio.std() / 1000)


def log_density(q: FullGaussian, z):
    return torch.distributions.MultivariateNormal(q.mean, q.covariance).log_prob(z)


def test_condition_1e12():
    # Beyond the reach of the solvers above, where commuting covariances still have an exact answer.
    axes = orthogonal(6, generator(4))
    x, y = torch.logspace(0, -12, 6, dtype=torch.float64), torch.logspace(-12, 0, 6, dtype=torch.float64)
    zero = torch.zeros(6, dtype=torch.float64)
    a, b = FullGaussian(zero, axes * x.sqrt()), FullGaussian(zero, axes * y.sqrt())
    exact = (x.sqrt() - y.sqrt()).square().sum()
    torch.testing.assert_close(w2_squared(a, b), exact, rtol=1e-14, atol=0)
    near = FullGaussian(zero, axes * (x.sqrt() * 1.001))
    torch.testing.assert_close(w2_squared(a, near), 1e-6 * x.sum(), rtol=1e-12, atol=0)
