"""The cross-covariance solves the matrix Riccati equation (eqs. 17, 18 and 22), and is not symmetric in general."""

import pytest
import torch
from gaussian_problems import ALL, FULL_RANK, GAMMAS, encoder_pairs, full_pair

from se_core.transport import coupling, monge_map


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("name", ALL)
def test_psi_solves_the_matrix_form_of_equation_22(name, gamma):
    # psi^2 + psi / gamma = Sigma_a Sigma_b holds for matrices as it stands: multiply eq. 18 by Sigma_b and use that
    # Psi Sigma_b^{-1} is symmetric. No inverse, so it holds for singular covariances too.
    a, b = full_pair(name)
    psi = coupling(a, b, gamma).psi
    size = torch.linalg.matrix_norm(a.scale) * torch.linalg.matrix_norm(b.scale)
    product = a.covariance @ b.covariance
    residual = gamma * psi @ psi + psi - gamma * product
    assert torch.linalg.matrix_norm(residual) <= 2e-14 * (gamma * size**2 + torch.linalg.matrix_norm(psi))


@pytest.mark.parametrize("gamma", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", [name for name in FULL_RANK if name not in ("condition 1e8", "tiny", "huge")])
def test_the_derivative_of_equation_17_vanishes(name, gamma):
    a, b = full_pair(name)
    psi = coupling(a, b, gamma).psi
    explained = torch.linalg.solve(b.covariance, psi.mT)  # Sigma_b^{-1} Psi^T
    schur = a.covariance - psi @ explained
    torch.testing.assert_close(explained, gamma * schur, rtol=1e-9, atol=1e-9 * float(explained.abs().max()))


def test_the_scalar_case_is_the_printed_root():
    a, b = encoder_pairs(200, 3, torch.float64)
    plan = coupling(a, b, 1.7)
    s = ((a.log_var + b.log_var) / 2).exp()
    textbook = (torch.sqrt(1 + 4 * 1.7**2 * s**2) - 1) / (2 * 1.7)  # eq. 24
    torch.testing.assert_close(plan.psi, textbook, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(plan.rho, textbook / s, rtol=1e-9, atol=1e-15)


def test_full_and_diagonal_families_agree_on_diagonal_covariances():
    a, b = encoder_pairs(50, 4, torch.float64)
    diagonal, full = coupling(a, b, 2.0), coupling(a.full(), b.full(), 2.0)
    torch.testing.assert_close(torch.diag_embed(diagonal.psi), full.psi, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(diagonal.rho.sort(descending=True).values, full.rho, rtol=1e-13, atol=1e-15)


def test_psi_is_symmetric_exactly_when_the_covariances_commute():
    # Erratum of eq. 11: the lower left block is Psi^T.
    for name in ("commuting", "isotropic", "equal"):
        psi = coupling(*full_pair(name), 1.0).psi
        torch.testing.assert_close(psi, psi.mT, rtol=0, atol=1e-14)
    psi = coupling(*full_pair("non-commuting"), 1.0).psi
    assert (psi - psi.mT).abs().max() > 1e-2 * psi.abs().max()


def test_the_monge_map_is_the_limit_of_the_regression_on_z_a():
    a, b = full_pair("non-commuting")
    regression = torch.linalg.solve(a.covariance, coupling(a, b, 1e10).psi).mT  # E[z_b | z_a] = Psi^T Sigma_a^{-1} z_a
    torch.testing.assert_close(monge_map(a, b).matrix, regression, rtol=1e-7, atol=1e-7)


def test_the_monge_map_is_the_printed_one():
    # Below eq. 11, from b to a: Sigma_a Sigma_b^{1/2} (Sigma_b^{1/2} Sigma_a Sigma_b^{1/2})^{-1/2} Sigma_b^{-1/2}.
    a, b = full_pair("non-commuting")
    root = _matrix_power(b.covariance, 0.5)
    inner = _matrix_power(root @ a.covariance @ root, -0.5)
    printed = a.covariance @ root @ inner @ torch.linalg.inv(root)
    torch.testing.assert_close(monge_map(b, a).matrix, printed, rtol=1e-10, atol=1e-10)


def test_the_monge_map_carries_a_to_b():
    for name in ("equal law, other factor", "non-commuting", "condition 1e8", "wide factors", "dimension 16"):
        a, b = full_pair(name)
        matrix = monge_map(a, b).matrix
        torch.testing.assert_close(matrix @ a.covariance @ matrix.mT, b.covariance, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(matrix, matrix.mT, rtol=1e-7, atol=1e-9 * float(matrix.abs().max()))
        torch.testing.assert_close(monge_map(a, b)(a.mean), b.mean)
        assert torch.linalg.eigvalsh((matrix + matrix.mT) / 2).min() > 0


def test_the_monge_map_of_diagonal_gaussians_scales_each_coordinate():
    a, b = encoder_pairs(20, 3, torch.float64)
    full = monge_map(a.full(), b.full())
    torch.testing.assert_close(monge_map(a, b).matrix, full.matrix, rtol=1e-12, atol=1e-12)
    point = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(monge_map(a, b)(point), full(point), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["narrow factors", "singular square factors"])
def test_a_degenerate_source_has_no_monge_map(name):
    with pytest.raises(ValueError, match=r"full rank.*coupling"):
        monge_map(*full_pair(name))


def test_a_degenerate_target_has_a_monge_map():
    a, b = full_pair("one narrow factor")
    matrix = monge_map(a, b).matrix
    torch.testing.assert_close(matrix @ a.covariance @ matrix.mT, b.covariance, rtol=1e-10, atol=1e-10)


def _matrix_power(matrix, power):
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.mT
