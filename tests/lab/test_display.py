"""What the checks of the book print, and that they can fail."""

import math

import pytest
import torch

from se_core.lab.display import agree, holds, less


def test_a_check_says_what_it_compared(capsys: pytest.CaptureFixture[str]) -> None:
    agree("KL, ours against quadrature", torch.tensor(1.25), 1.25 + 1e-12, rtol=1e-11)
    agree("its gradient", torch.tensor([[0.0, -3.0]]), torch.tensor([[1e-7, -3.0]]), atol=1e-6)
    agree("nothing", torch.zeros(1), 0 * torch.ones(1))
    agree("noise", torch.tensor([-2.6e-8, 3e-9]), torch.zeros(2), atol=1e-5)
    agree("a variance", 0.99966, 1.0, rtol=2e-3)
    agree("a parameter", torch.ones((), requires_grad=True), 1.0)
    agree("infinity", math.inf, math.inf)
    less("share moved, pinned against free", 0.25, 0.5)
    holds("the plan is symmetric", torch.tensor(True))
    assert capsys.readouterr().out.splitlines() == [
        "KL, ours against quadrature: 1.25 and 1.25, apart by at most 1e-11 of it",
        "its gradient: 2 numbers, the largest -3 and -3, apart by at most 1e-06",
        "nothing: 0 and 0, apart by at most 0",
        "noise: 2 numbers, the largest 0 and 0, apart by at most 1e-05",
        "a variance: 1 and 1, apart by at most 2e-03 of it",
        "a parameter: 1 and 1, apart by at most 0",
        "infinity: inf and inf, apart by at most 0",
        "share moved, pinned against free: 0.25 < 0.50",
        "the plan is symmetric: yes",
    ]


def test_a_check_that_fails_names_itself() -> None:
    with pytest.raises(AssertionError, match=r"its gradient: .*not close"):
        agree("its gradient", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), rtol=1e-3)
    with pytest.raises(AssertionError, match="its gradient"):
        agree("its gradient", torch.tensor(float("nan")), 1.0, rtol=1.0)
    with pytest.raises(AssertionError, match="its gradient"):
        agree("its gradient", torch.zeros(2), torch.zeros(3))
    for smaller, larger in ((2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(AssertionError, match=r"share moved: .* does not hold"):
            less("share moved", smaller, larger)
    with pytest.raises(AssertionError, match="symmetric: does not hold"):
        holds("symmetric", False)
