"""Convexity: what a sum of independent arguments allows, and what it does not."""

import pytest
import torch
from gaussian_problems import generator

from se_core.gaussians import FullGaussian
from se_core.transport import entropic_cost, entropic_w2_squared, mutual_information, w2_squared


def random_laws(count, dimension, seed):
    g = generator(seed)
    mean = torch.randn(count, dimension, generator=g, dtype=torch.float64)
    scale = torch.randn(count, dimension, dimension, generator=g, dtype=torch.float64)
    width = 10 ** (2 * torch.rand(count, 1, 1, generator=g, dtype=torch.float64) - 1)
    return FullGaussian(mean, width * scale)


def blend(p, q, t=0.5):
    """The Gaussian whose mean and covariance are the weighted averages."""
    return FullGaussian.from_covariance((1 - t) * p.mean + t * q.mean, (1 - t) * p.covariance + t * q.covariance)


def regularised(a, b, gamma):
    return entropic_w2_squared(a, b, gamma) + 2 / gamma * mutual_information(a, b, gamma)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("dimension", [1, 3])
def test_the_entropic_cost_is_jointly_convex(dimension, gamma):
    # A minimum over plans of a function jointly convex in plan and marginals; the plan of averages may be averaged.
    p, q, r, s = (random_laws(500, dimension, seed) for seed in range(4))
    for t in (0.5, 0.1):
        chord = (1 - t) * entropic_cost(p, q, gamma) + t * entropic_cost(r, s, gamma)
        assert (entropic_cost(blend(p, r, t), blend(q, s, t), gamma) <= chord + 1e-11 * (1 + chord.abs())).all()


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("dimension", [1, 3])
def test_regularised_transport_is_convex_in_each_argument(dimension, gamma):
    p, q, r = (random_laws(500, dimension, seed) for seed in range(3))
    chord = (regularised(p, q, gamma) + regularised(p, r, gamma)) / 2
    assert (regularised(p, blend(q, r), gamma) <= chord * (1 + 1e-12)).all()
    assert (w2_squared(p, blend(q, r)) <= (w2_squared(p, q) + w2_squared(p, r)) / 2 * (1 + 1e-12)).all()


def test_regularised_transport_is_not_jointly_convex():
    # Without the marginal entropies the information is paid twice: narrow with narrow, wide with wide, is cheaper.
    def law(variance):
        return FullGaussian(torch.zeros(1, dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64).sqrt())

    narrow, middle, wide = law(0.0), law(2.0), law(4.0)
    chord = (regularised(narrow, narrow, 1.0) + regularised(wide, wide, 1.0)) / 2
    assert regularised(middle, middle, 1.0) > chord + 0.05


def test_the_entropic_cost_is_concave_in_gamma():
    # A minimum of functions that are affine in gamma.
    a, b = random_laws(50, 3, 0), random_laws(50, 3, 1)
    gamma = torch.linspace(0.0, 20.0, 81, dtype=torch.float64)[:, None]
    value = entropic_cost(a, b, gamma)
    assert (value.diff(n=2, dim=0) <= 1e-10 * value.abs().max()).all()
    assert (value.diff(n=2, dim=0) < 0).float().mean() > 0.99
