"""The optimal plan is a feasible Gaussian, and its precision matrix is that of the random field (eqs. 3 and 11)."""

import pytest
import torch
from gaussian_problems import ALL, FULL_RANK, encoder_pairs, full_pair

from se_core.gaussians import entropy, kl_divergence
from se_core.transport import coupling, entropic_cost, entropic_w2_squared, mutual_information, transport_terms

SMOOTH = [name for name in FULL_RANK if name not in ("condition 1e8", "tiny", "huge", "dimension 128")]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 30.0, 1e6, 1e12])
@pytest.mark.parametrize("name", ALL)
def test_the_joint_has_the_right_marginals_and_cross_covariance(name, gamma):
    a, b = full_pair(name)
    plan = coupling(a, b, gamma)
    joint = plan.joint()
    d = a.mean.shape[-1]
    covariance, size = joint.covariance, float(a.covariance.trace() + b.covariance.trace())
    expected = torch.cat([torch.cat([a.covariance, plan.psi], -1), torch.cat([plan.psi.mT, b.covariance], -1)], -2)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=3e-15 * size)
    assert torch.equal(joint.mean, torch.cat([a.mean, b.mean]))
    assert joint.scale.shape[-2] == 2 * d


@pytest.mark.parametrize("gamma", [0.0, 0.3, 30.0, 1e6])
@pytest.mark.parametrize("name", ALL)
def test_feasibility(name, gamma):
    # Sigma_a - Psi Sigma_b^{-1} Psi^T >= 0, the constraint of section 5.2, without the inverse: the joint covariance as
    # assembled from its blocks is positive semi-definite, and the canonical correlations stay below one.
    a, b = full_pair(name)
    plan = coupling(a, b, gamma)
    blocks = torch.cat([torch.cat([a.covariance, plan.psi], -1), torch.cat([plan.psi.mT, b.covariance], -1)], -2)
    assert torch.linalg.eigvalsh(blocks).min() >= -3e-15 * blocks.trace()
    assert (plan.rho >= 0).all()
    assert (plan.rho <= 1).all()
    assert plan.rho.shape[-1] <= a.mean.shape[-1]


@pytest.mark.parametrize("gamma", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_precision_matrix_has_minus_gamma_as_its_cross_block(name, gamma):
    # log Q is f(z_a) + g(z_b) - gamma/2 ||z_a - z_b||^2: nothing else couples z_a and z_b.
    a, b = full_pair(name)
    d = a.mean.shape[-1]
    precision = torch.linalg.inv(coupling(a, b, gamma).joint().covariance)
    cross = -gamma * torch.eye(d, dtype=torch.float64)
    torch.testing.assert_close(precision[:d, d:], cross, rtol=0, atol=1e-13 * float(precision.norm()))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_every_scalar_follows_from_the_joint(name, gamma):
    a, b = full_pair(name)
    joint = coupling(a, b, gamma).joint()
    d = a.mean.shape[-1]
    difference = torch.cat([torch.eye(d), -torch.eye(d)], -1).double()
    spread = (difference @ joint.scale).square().sum() + (difference @ joint.mean).square().sum()
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(entropic_w2_squared(a, b, gamma), spread, **close)
    torch.testing.assert_close(mutual_information(a, b, gamma), entropy(a) + entropy(b) - entropy(joint), **close)
    torch.testing.assert_close(entropic_cost(a, b, gamma), gamma / 2 * spread - entropy(joint), **close)
    independent = coupling(a, b, 0.0).joint()
    torch.testing.assert_close(mutual_information(a, b, gamma), kl_divergence(joint, independent), **close)


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_both_terms_at_once(family):
    a, b = encoder_pairs(20, 3, torch.float64) if family == "diagonal" else full_pair("one narrow factor")
    terms = transport_terms(a, b, 0.7)
    assert torch.equal(terms.cost, entropic_w2_squared(a, b, 0.7))
    assert torch.equal(terms.information, mutual_information(a, b, 0.7))


def test_the_diagonal_joint_is_the_full_one():
    a, b = encoder_pairs(20, 3, torch.float64)
    diagonal, full = coupling(a, b, 2.5).joint(), coupling(a.full(), b.full(), 2.5).joint()
    torch.testing.assert_close(diagonal.covariance, full.covariance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.3, 30.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_no_perturbed_plan_is_better(name, gamma):
    # The functional of eq. 13, evaluated at feasible neighbours: strictly convex, so every one of them is worse.
    a, b = full_pair(name)
    d = a.mean.shape[-1]
    covariance = coupling(a, b, gamma).joint().covariance
    g = torch.Generator().manual_seed(5)

    def functional(psi):
        joint = covariance.clone()
        joint[:d, d:], joint[d:, :d] = psi, psi.mT
        return -gamma * psi.trace() - torch.linalg.slogdet(joint).logabsdet / 2

    psi = covariance[:d, d:]
    room = 1e-3 * torch.linalg.eigvalsh(covariance).min()
    for _ in range(10):
        step = room * torch.randn(d, d, generator=g, dtype=torch.float64) / d
        assert functional(psi + step) > functional(psi)
        change = (functional(psi + step) - functional(psi - step)) / (2 * step.norm())
        assert change.abs() < 1e-6 * (gamma * d + 1 / room**0.5)
