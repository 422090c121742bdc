"""AutoAttack against classifiers whose worst case is known, and what it leaves behind."""

import logging
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from linear_classifiers import linear_problem, worst_case
from torch import Tensor, nn

from se_core.lab.autoattack import STANDARD, AutoAttackMissing, autoattack, autoattack_against_radius
from se_core.lab.config import EvaluationConfig
from se_core.lab.evaluation import accuracy_against_radius
from se_core.pretrained import Mean

ROOT = Path(__file__).parents[2]
RADII = (0.02, 0.05, 0.1)


class Shattered(nn.Module):
    """A classifier from which no gradient arrives at the images."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.detach()).mean + 0 * x.sum()


@pytest.mark.parametrize("classes", [10, 7])  # digits, colours
def test_both_judges_find_the_worst_case_of_a_linear_classifier(classes: int) -> None:
    encoder, x, labels = linear_problem(classes, 80)
    exact = [worst_case(encoder, x, labels, radius) for radius in RADII]
    accuracies = [int(standing.sum()) / len(x) for standing in exact]
    assert 1 > accuracies[0] > accuracies[1] > accuracies[2] > 0  # no radius is trivial
    assert torch.equal(autoattack(Mean(encoder), x, labels, RADII[1], attacks=STANDARD[:3])["fab-t"], exact[1])
    assert accuracy_against_radius(Mean(encoder), x, labels, EvaluationConfig(radii=RADII)) == accuracies


def test_an_image_lost_once_is_not_attacked_again(shortened: Callable[..., None]) -> None:
    shortened(queries=100, steps=20)
    encoder, x, labels = linear_problem(7, 30)
    exact = [int(worst_case(encoder, x, labels, radius).sum()) / len(x) for radius in RADII]
    curve = autoattack_against_radius(Mean(encoder), x, labels, RADII)
    assert [row["square"] for row in curve] == exact
    assert [row["clean"] for row in curve] == [int(worst_case(encoder, x, labels, 0.0).sum()) / len(x), *exact[:-1]]
    for row in curve:
        assert tuple(row) == ("clean", *STANDARD)
        assert list(row.values()) == sorted(row.values(), reverse=True)


def test_square_alone_sees_no_gradient(shortened: Callable[..., None]) -> None:
    """It is weaker than the exact answer, and the same where no gradient arrives at all."""
    shortened(queries=1000)
    encoder, x, labels = linear_problem(10, 40)

    smooth, shattered = (
        autoattack(model, x, labels, 0.05, attacks=["square"])["square"]
        for model in (Mean(encoder), Shattered(encoder))
    )
    assert torch.equal(smooth, shattered)
    assert worst_case(encoder, x, labels, 0.05).sum() <= smooth.sum() < worst_case(encoder, x, labels, 0.0).sum()
    gradients = autoattack(Shattered(encoder), x, labels, 0.05, attacks=["apgd-ce", "apgd-t"])["apgd-t"]
    assert gradients.sum() > smooth.sum()


def test_every_wrong_class_is_tried() -> None:
    """With weights of unlike sizes the nearest class is not always the one that is reached first."""
    encoder, x, labels = linear_problem(7, 60)
    encoder.weight[::2] *= 8
    logits, exact = encoder(x).mean, worst_case(encoder, x, labels, 0.02)
    nearest = torch.nn.functional.one_hot(logits.scatter(1, labels[:, None], -torch.inf).argmax(1), 7)
    towards = nearest.float() @ encoder.weight - encoder.weight[labels]
    assert ((encoder(x + 0.02 * towards.sign().reshape(x.shape)).mean.argmax(1) == labels) & ~exact).sum() >= 3
    for attack in ("apgd-t", "fab-t"):
        assert torch.equal(autoattack(Mean(encoder), x, labels, 0.02, attacks=[attack])[attack], exact)


def test_what_lies_outside_ball_or_box_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, x, labels = linear_problem(7, 20)
    clean = encoder(x).mean.argmax(-1) == labels
    beyond = x - 0.9 * encoder.weight[labels].reshape(x.shape)  # misclassified, also where it is clamped
    for found, radius, counted in (
        (beyond.clamp(0, 1), 0.9, True),
        (beyond.clamp(0, 1), 0.05, False),
        (beyond, 0.9, False),
    ):
        assert (encoder(found).mean.argmax(-1) != labels).all()
        judge = SimpleNamespace(run_standard_evaluation=lambda x, y, batch_size, found=found: (found[clean], y))
        monkeypatch.setattr("se_core.lab.autoattack._standard", lambda *_, judge=judge: judge)
        standing = autoattack(Mean(encoder), x, labels, radius, attacks=["square"])["square"]
        assert torch.equal(standing, clean & (not counted))


def test_the_seed_decides(shortened: Callable[..., None]) -> None:
    shortened(queries=30)
    encoder, x, labels = linear_problem(7, 60)
    first, again, another = (
        autoattack(Mean(encoder), x, labels, 0.05, seed, ["square"])["square"].tolist() for seed in (1, 1, 2)
    )
    assert first == again != another


def test_nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    encoder, x, labels = linear_problem(7, 20)
    encoder.weight.requires_grad_()
    torch.manual_seed(3)
    before, trace = torch.get_rng_state(), sys.gettrace()
    sys.settrace(follow := lambda frame, event, argument: None)
    try:
        after = autoattack(Mean(encoder), x, labels, 0.05, attacks=STANDARD[:3])
        assert sys.gettrace() is follow
    finally:
        sys.settrace(trace)
    assert after["fab-t"].any()  # each attack had something to do
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.weight.grad is None
    assert encoder.weight.requires_grad
    autoattack(Shattered(encoder), x, labels, 0.05, attacks=["apgd-t"])
    assert not caplog.records  # of its thousand warnings
    assert not logging.getLogger("auto-attack").disabled


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, x, labels = linear_problem(7, 4)
    (pin,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["autoattack"]
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(AutoAttackMissing, match=re.escape(f"not installed: pip install '{pin}'")):
        autoattack(Mean(encoder), x, labels, 0.1)


@pytest.mark.parametrize("radius", [0.0, -0.1, float("nan"), float("inf")])
def test_a_radius_that_leaves_no_room_is_refused(radius: float) -> None:
    encoder, x, labels = linear_problem(7, 4)
    with pytest.raises(ValueError, match=f"radius={radius} must be a finite number > 0"):
        autoattack(Mean(encoder), x, labels, radius)


def test_unknown_attacks_and_too_few_classes_are_refused() -> None:
    encoder, x, labels = linear_problem(3, 4)
    with pytest.raises(ValueError, match=r"attacks=\('pgd',\) must be some of apgd-ce, apgd-t, fab-t, square"):
        autoattack(Mean(encoder), x, labels, 0.1, attacks=["pgd"])
    with pytest.raises(ValueError, match=r"logits of 3 classes: .* at least 4"):
        autoattack(Mean(encoder), x, labels, 0.1)
