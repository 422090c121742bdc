"""Bad input is refused before any work, with the argument, its value and the remedy in the message."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from gaussian_problems import encoder_pairs, full_pair

from se_core.errors import InvalidTypeError
from se_core.gaussians import DiagonalGaussian, FullGaussian, kl_divergence
from se_core.transport import (
    coupling,
    entropic_cost,
    entropic_w2_squared,
    monge_map,
    mutual_information,
    sinkhorn_divergence,
    w2_squared,
)

COUPLED = [entropic_w2_squared, mutual_information, entropic_cost, sinkhorn_divergence, coupling]
PAIRWISE = [kl_divergence, w2_squared, monge_map]


def pairs():
    yield encoder_pairs(3, 4, torch.float64)
    yield full_pair("commuting")


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("gamma", [-1.0, -1e-300, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", COUPLED)
def test_gamma_must_be_finite_and_non_negative(function, gamma, as_tensor):
    for a, b in pairs():
        value = torch.tensor([1.0, gamma, 2.0], dtype=torch.float64) if as_tensor else gamma
        with pytest.raises(ValueError, match=rf"gamma .*{gamma}.*w2_squared"):
            function(a, b, value)


def test_gamma_must_fit_the_dtype():
    a, b = encoder_pairs(3, 4, torch.float32)
    with pytest.raises(ValueError, match=r"finite in torch.float32, got 1e\+39"):
        entropic_cost(a, b, 1e39)
    assert entropic_w2_squared(a, b, 1e37).isfinite().all()
    with pytest.raises(TypeError, match=r"gamma.*float32.*float64.*\.to"):
        entropic_cost(a, b, torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"gamma.*int64"):
        entropic_cost(a, b, torch.tensor(1))


@pytest.mark.parametrize("gamma", ["1", None, True, 1j, [1.0]])
@pytest.mark.parametrize("function", COUPLED)
def test_gamma_must_be_a_number_or_a_tensor(function, gamma):
    for a, b in pairs():
        with pytest.raises(InvalidTypeError, match=r"gamma must be a number or a tensor, got .*; pass float\(gamma\)"):
            function(a, b, gamma)


def test_numbers_of_other_libraries_are_numbers():
    a, b = encoder_pairs(3, 4, torch.float32)
    for gamma in (2, np.float32(2), np.float64(2), Fraction(2)):
        assert torch.equal(entropic_w2_squared(a, b, gamma), entropic_w2_squared(a, b, 2.0))


def call(function, a, b):
    return function(a, b) if function in PAIRWISE else function(a, b, 1.0)


@pytest.mark.parametrize("function", [*PAIRWISE, *COUPLED])
def test_distributions_must_fit_together(function):
    a, _ = encoder_pairs(3, 4, torch.float32)
    for other, error, message in [
        (encoder_pairs(3, 5, torch.float32)[0], ValueError, "dimension D, got 4 and 5"),
        (encoder_pairs(3, 4, torch.float64)[0], TypeError, r"dtype, got torch.float32 and torch.float64.*\.to"),
        (encoder_pairs(2, 4, torch.float32)[0], ValueError, r"broadcast.*\(3,\), \(2,\)"),
        (DiagonalGaussian(a.mean.to("meta"), a.log_var.to("meta")), ValueError, r"one device, got cpu and meta.*\.to"),
        (torch.zeros(3, 4), TypeError, "DiagonalGaussian.*got Tensor"),
        (torch.distributions.Laplace(a.mean, 1.0), TypeError, "got Laplace"),
    ]:
        with pytest.raises(error, match=message):
            call(function, a, other)
        with pytest.raises(error):
            call(function, other, a)


@pytest.mark.parametrize(
    ("q", "error", "message"),
    [
        (DiagonalGaussian(torch.zeros(4), torch.zeros(5)), ValueError, r"log_var of shape .*\(4,\) and \(5,\)"),
        (DiagonalGaussian(torch.zeros(()), torch.zeros(())), ValueError, r"\(\.\.\., D\)"),
        (DiagonalGaussian(torch.zeros(4), torch.zeros(4).double()), TypeError, "one floating dtype"),
        (
            DiagonalGaussian(torch.zeros(4).int(), torch.zeros(4).int()),
            TypeError,
            "floating dtype, got mean: torch.int32",
        ),
        (DiagonalGaussian(torch.zeros(4), torch.zeros(4, device="meta")), ValueError, "one device"),
        (DiagonalGaussian([0.0], [0.0]), TypeError, "holds tensors, got mean: list"),
        (DiagonalGaussian(torch.zeros(3, 4), torch.zeros(2, 4)), ValueError, "broadcast"),
        (FullGaussian(torch.zeros(4), torch.zeros(5, 4)), ValueError, r"scale of shape \(\.\.\., D, R\)"),
        (FullGaussian(torch.zeros(4), torch.zeros(4)), ValueError, r"\(\.\.\., D, R\)"),
        (FullGaussian(torch.zeros(4), torch.zeros(4, 0)), ValueError, r"\(4, 0\)"),
    ],
)
def test_fields_must_belong_together(q, error, message):
    for function in (w2_squared, kl_divergence):
        with pytest.raises(error, match=message):
            function(q, q)


def test_half_precision_is_for_diagonal_gaussians():
    a, b = encoder_pairs(3, 4, torch.bfloat16)
    assert entropic_cost(a, b, 1.0).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="float32 or float64 for transport"):
        entropic_w2_squared(a.full(), b.full(), 1.0)


def test_a_gamma_that_does_not_fit_the_batch():
    q = DiagonalGaussian(torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"gamma must broadcast with the batch \(5,\), got the shape \(7,\)"):
        entropic_w2_squared(q, q, torch.ones(7))
