"""Models that hide their gradients, each in its own way, and one that does not."""

from collections.abc import Callable

import pytest
import torch
from linear_classifiers import LinearEncoder, linear_problem, worst_case
from torch import Tensor, nn

from se_core.gaussians import DiagonalGaussian
from se_core.lab.config import EvaluationConfig
from se_core.lab.masking import LARGE_RADIUS, accuracy, masking, transferred
from se_core.pretrained import Mean

RADIUS, CLASSES = 0.05, 10
ENCODER, X, LABELS = linear_problem(CLASSES, 100)
OTHERS = {"another": Mean(ENCODER)}
ALL = {f"radius {LARGE_RADIUS}", "more steps and restarts", "Square", "transferred from another", "latent attack"}
ALL |= {"uniform noise"}


def identity() -> nn.Linear:
    probe = nn.Linear(CLASSES, CLASSES, bias=False).requires_grad_(False)
    probe.weight.copy_(torch.eye(CLASSES))
    return probe


class Quantised(nn.Module):
    """Pixels of few values, by a function whose derivative is zero."""

    def forward(self, x: Tensor) -> DiagonalGaussian:
        rounded = (x.detach() * 50).round() / 50
        return ENCODER(rounded + 0 * x)


class Rippled(nn.Module):
    """Ripples, too small to matter to the classifier, whose slopes drown the true gradient."""

    def forward(self, x: Tensor) -> DiagonalGaussian:
        return ENCODER(x + 0.01 * torch.sin(2000 * x))


class Saturated(nn.Module):
    """Probabilities of 0 and 1 in the place of logits."""

    def forward(self, means: Tensor) -> Tensor:
        return (1e6 * means).softmax(-1)


class Flat(nn.Module):
    """No slope at all around the images it knows, but in the corners of the ball: of 64 pixels that begin anywhere in
    it, one is so far out in three cases of a hundred."""

    def forward(self, x: Tensor) -> DiagonalGaussian:
        near = (x[:, None] - X).abs().flatten(2).amax(-1).amin(1) < 0.9995 * RADIUS
        mean = ENCODER(x).mean
        return DiagonalGaussian(torch.where(near[:, None], mean.detach(), mean), torch.zeros_like(mean))


class Brittle(nn.Module):
    """Right on the images it knows and as near as `room` to them, and on nothing beside them."""

    def __init__(self, room: float) -> None:
        super().__init__()
        self.room = room

    def forward(self, x: Tensor) -> DiagonalGaussian:
        known = (x[:, None] - X).abs().flatten(2).amax(-1).amin(1) <= self.room
        q = ENCODER(x)
        return DiagonalGaussian(torch.where(known[:, None], q.mean, q.mean.flip(-1)), q.log_var)


@pytest.fixture(autouse=True)
def a_tenth_of_square(shortened: Callable[..., None]) -> None:
    shortened(queries=500)


def test_an_honest_model_passes() -> None:
    rows = {
        row.pop("check"): row for row in masking(ENCODER, identity(), X, LABELS, RADIUS, EvaluationConfig(), OTHERS)
    }
    assert rows.keys() == ALL
    assert all(row["holds"] for row in rows.values())
    exact = int(worst_case(ENCODER, X, LABELS, RADIUS).sum()) / len(X)
    clean = int(worst_case(ENCODER, X, LABELS, 0.0).sum()) / len(X)
    references = {check: row["reference"] for check, row in rows.items()}
    assert references == dict.fromkeys(ALL, exact) | {f"radius {LARGE_RADIUS}": 0.1, "uniform noise": clean}
    assert rows["more steps and restarts"]["accuracy"] == exact
    assert rows["transferred from another"]["accuracy"] == exact  # the other is the model itself
    assert exact < rows["Square"]["accuracy"] < clean
    assert exact < rows["latent attack"]["accuracy"] <= clean


NO_GRADIENT = {f"radius {LARGE_RADIUS}", "Square", "transferred from another"}


@pytest.mark.parametrize(
    ("encoder", "probe", "caught"),
    [
        (Quantised(), identity(), NO_GRADIENT),
        (Rippled(), identity(), {"Square", "transferred from another"}),
        (Flat(), identity(), {"Square", "transferred from another", "more steps and restarts"}),
        (ENCODER, Saturated(), NO_GRADIENT | {"latent attack"}),
        (Brittle(0.9 * RADIUS), identity(), {"uniform noise"}),
    ],
    ids=["quantised", "rippled", "flat", "saturated", "brittle"],
)
def test_a_model_that_hides_its_gradients_is_caught(encoder: nn.Module, probe: nn.Module, caught: set[str]) -> None:
    rows = masking(encoder, probe, X, LABELS, RADIUS, EvaluationConfig(), OTHERS)
    failed = {row["check"] for row in rows if not row["holds"]}
    assert caught <= failed
    assert ("uniform noise" in failed) == ("uniform noise" in caught)


def test_the_noise_fills_the_ball_and_does_not_leave_it() -> None:
    rows = masking(Brittle(RADIUS + 1e-6), identity(), X, LABELS, RADIUS, EvaluationConfig(attack_steps=1))
    (noisy,) = (row for row in rows if row["check"] == "uniform noise")
    assert noisy["holds"]  # and with nine tenths of that room it does not


def test_what_is_transferred_is_what_another_model_fears() -> None:
    """Of a model that looks at other features, it does no harm here."""
    other = Mean(LinearEncoder(2 * CLASSES))
    stranger = nn.Sequential(other, nn.Linear(2 * CLASSES, CLASSES, bias=False).requires_grad_(False))
    stranger[1].weight.copy_(torch.eye(2 * CLASSES)[CLASSES:])
    harmless, harmful = (
        transferred(source, Mean(ENCODER), X, LABELS, RADIUS, EvaluationConfig(), 0)
        for source in (stranger, Mean(ENCODER))
    )
    clean, exact = (int(worst_case(ENCODER, X, LABELS, radius).sum()) / len(X) for radius in (0.0, RADIUS))
    assert accuracy(stranger, X, LABELS) < 0.5  # of these labels it knows nothing
    assert harmless > clean - 0.05 > exact == harmful


def test_what_is_compared_with_the_standard_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger radius, and more steps and restarts; without other models no attack is transferred."""
    made: list[tuple[tuple[float, ...], int, int]] = []

    def attacked(logits: nn.Module, x: Tensor, labels: Tensor, config: EvaluationConfig, seed: int) -> list[float]:
        made.append((config.radii, config.attack_steps, config.restarts))
        return [0.5]

    monkeypatch.setattr("se_core.lab.masking.accuracy_against_radius", attacked)
    rows = masking(ENCODER, identity(), X[:4], LABELS[:4], RADIUS, EvaluationConfig(attack_steps=7))
    assert sorted(made) == [((RADIUS,), 7, 1), ((RADIUS,), 100, 3), ((LARGE_RADIUS,), 7, 1)]
    assert {row["check"] for row in rows} == ALL - {"transferred from another"}
