"""What surrounds a call changes nothing: autocast, default dtype and device, inference mode, and the import itself."""

import subprocess
import sys

import pytest
import torch
from gaussian_problems import encoder_pairs, full_pair, to

from se_core.gaussians import DiagonalGaussian, FullGaussian, entropy, kl_divergence
from se_core.transport import (
    coupling,
    entropic_cost,
    entropic_w2_squared,
    monge_map,
    mutual_information,
    sinkhorn_divergence,
    transport_terms,
    w2_squared,
)


def everything(a, b):
    """All that the package computes from two Gaussians, as a list of tensors."""
    plan = coupling(a, b, 0.7)
    matrices = [*(x for x in plan[2:]), plan.joint().scale, plan.joint().covariance, a.covariance, b.full().covariance]
    moved = monge_map(a, b)
    scalars = [w2_squared(a, b), kl_divergence(a, b), entropy(a), sinkhorn_divergence(a, b, 0.7)]
    scalars += [*transport_terms(a, b, 0.7), entropic_cost(a, b, 0.7), entropic_w2_squared(a, b, 0.7)]
    return [*scalars, mutual_information(a, b, 0.7), *matrices, moved.matrix, moved(a.mean + 1)]


def gradients(a, b):
    inputs = [x.detach().clone().requires_grad_() for x in (*a, *b)]
    x, y = type(a)(*inputs[:2]), type(b)(*inputs[2:])
    value = w2_squared(x, y) + sum(transport_terms(x, y, 0.7)) + sinkhorn_divergence(x, y, 0.7)
    return torch.autograd.grad(value.sum(), inputs)


PAIRS = {
    "diagonal": encoder_pairs(5, 8, torch.float32),
    "full": to(torch.float32, *full_pair("dimension 16")),
    "rectangular": to(torch.float32, *full_pair("wide factors")),
}


def assert_same(values, expected):
    for value, true in zip(values, expected, strict=True):
        assert value.dtype == true.dtype
        assert torch.equal(value, true)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", PAIRS)
def test_autocast_rounds_nothing(family, dtype):
    a, b = PAIRS[family]
    values, slopes = everything(a, b), gradients(a, b)
    with torch.autocast("cpu", dtype):
        assert (torch.eye(2) @ torch.eye(2)).dtype == dtype  # it is on
        assert_same(everything(a, b), values)
        assert_same(gradients(a, b), slopes)


def test_half_precision_under_autocast_is_as_without():
    a, b = encoder_pairs(5, 8, torch.bfloat16)
    expected = entropic_cost(a, b, 1.0), w2_squared(a, b), sinkhorn_divergence(a, b, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same((entropic_cost(a, b, 1.0), w2_squared(a, b), sinkhorn_divergence(a, b, 1.0)), expected)


@pytest.mark.parametrize("family", PAIRS)
def test_defaults_of_dtype_and_device_change_nothing(family):
    a, b = PAIRS[family]
    values, slopes = everything(a, b), gradients(a, b)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        again, slopes_again = everything(a, b), gradients(a, b)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same(again, values)
    assert_same(slopes_again, slopes)


@pytest.mark.parametrize("family", PAIRS)
def test_inference_mode(family):
    values = everything(*PAIRS[family])
    with torch.inference_mode():
        assert_same(everything(*PAIRS[family]), values)


def test_shapes_can_be_had_without_data():
    q = DiagonalGaussian(torch.zeros(5, 3, device="meta"), torch.zeros(5, 3, device="meta"))
    assert w2_squared(q, q).shape == (5,)
    assert q.full().covariance.shape == FullGaussian(*q.full()).covariance.shape == (5, 3, 3)


def test_the_import_leaves_the_compiler_alone():
    # It would take longer than all the rest.
    code = "import sys, torch; had = 'torch._dynamo' in sys.modules; import se_core.transport; "
    code += "sys.exit('torch._dynamo' in sys.modules and not had)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
