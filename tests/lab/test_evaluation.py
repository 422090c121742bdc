"""Probe and robust accuracy against independent answers: scipy, a linear model solved exactly, and foolbox."""

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from se_core.datasets import DataError, load
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import (
    ANYWHERE,
    accuracy_against_radius,
    diagnostics,
    encode_means,
    evaluate,
    evaluated,
    fit_probe,
)
from se_core.lab.milestones import SHORT
from se_core.lab.runs import load_run
from se_core.lab.storage import CheckpointError
from se_core.lab.training import train
from se_core.networks import build_vae


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [1.0, 0.01, 30.0])
def test_the_probe_minimises_what_scipy_minimises(scale: float) -> None:
    g = _generator()
    labels = torch.randint(4, (300,), generator=g)
    means = scale * (torch.randn(300, 3, generator=g) + torch.nn.functional.one_hot(labels, 4)[:, :3])
    l2 = 1e-2
    x, y = means.double().numpy(), labels.numpy()

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = parameters[:12].reshape(4, 3), parameters[12:]
        logits = x @ weight.T + bias
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (p - np.eye(4)[y]) / len(x)
        value = -np.log(p[np.arange(len(x)), y]).mean() + l2 / 2 * (weight**2).sum()
        return value, np.concatenate([(error.T @ x + l2 * weight).ravel(), error.sum(0)])

    best = minimize(loss, np.zeros(16), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    probe = fit_probe(means, labels, 4, l2)
    ours = np.concatenate([probe.weight.double().numpy().ravel(), probe.bias.double().numpy()])
    np.testing.assert_allclose(ours, best.x, atol=2e-5)
    assert not probe.weight.requires_grad


def _linear_task() -> tuple[nn.Linear, Tensor, Tensor]:
    g = _generator(5)
    x = torch.rand(400, 1, 4, 4, generator=g)
    probe = nn.Linear(16, 2).requires_grad_(False)
    probe.weight.copy_(0.5 * torch.randn(2, 16, generator=g))
    probe.bias.zero_()
    noise = 0.3 * torch.randn(400, generator=g)
    return probe, x, (probe(x.flatten(1)).diff(dim=-1)[:, 0] + noise > 0).long()


RADII = (0.0, 0.01, 0.03, 0.05, 0.1, 0.3)


def test_a_linear_classifier_is_attacked_exactly() -> None:
    """Two classes, linear logits: the worst image in box and ball is known pixel by pixel, and so is the accuracy."""
    probe, x, labels = _linear_task()
    config = EvaluationConfig(radii=RADII, attack_steps=10, test_images=0)
    curve = accuracy_against_radius(nn.Sequential(nn.Flatten(), probe), x, labels, config)
    direction = (probe.weight[1] - probe.weight[0])[None] * (1 - 2 * labels[:, None])  # towards the wrong class
    for radius, accuracy in zip(RADII, curve, strict=True):
        worst = torch.clamp(x.flatten(1) + radius * direction.sign(), 0, 1)
        assert accuracy == (probe(worst).argmax(-1) == labels).sum().item() / len(x), radius
    assert curve[0] > 0.8
    assert curve[-1] < 0.5  # chance


def test_an_image_lost_once_stays_lost() -> None:
    probe, x, labels = _linear_task()
    classifier = nn.Sequential(nn.Flatten(), probe)
    together = accuracy_against_radius(classifier, x, labels, EvaluationConfig(radii=RADII, attack_steps=1))
    assert together == sorted(together, reverse=True)


def _climbing(towards: Tensor) -> Tensor:
    """A blind alley: from x = 0.5 class 1 is the nearest, upwards, and is never reached; class 2 lies downwards."""
    height = 10 * (towards - 0.5)
    return torch.stack([torch.zeros_like(height), (5 * height - 1).clamp(max=-0.1), -2 - 6 * height], -1)


def test_each_wrong_class_is_aimed_at() -> None:
    x, labels = torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.long)
    config = EvaluationConfig(radii=(0.1,))

    def logits(x: Tensor) -> Tensor:
        return _climbing(x.flatten(1).mean(1))

    assert accuracy_against_radius(logits, x, labels, config) == [0.0]
    assert accuracy_against_radius(logits, x, labels, config, aims=SHORT) == [1.0]


def test_attacks_begin_near_the_image_and_anywhere() -> None:
    """No slope near the image, or none but near it: each of the two beginnings alone finds one model robust."""
    x, labels = torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.long)
    config = EvaluationConfig(radii=(0.1,))

    def logits(x: Tensor, slope_near: bool) -> Tensor:
        near = (x - 0.5).abs().flatten(1).mean(1) < 0.035
        height = x.flatten(1).mean(1)
        height = torch.where(near == slope_near, height, height.detach())
        return torch.stack([torch.zeros_like(height), 20 * (height - 0.5) - 0.5], -1)

    for slope_near in (True, False):
        model = partial(logits, slope_near=slope_near)
        assert accuracy_against_radius(model, x, labels, config) == [0.0]
        blind = {"margin": (ANYWHERE,)} if slope_near else SHORT
        assert accuracy_against_radius(model, x, labels, config, aims=blind) == [1.0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = RunConfig(latent_dim=16, attack_steps=2, iterations=300, noise_variance=0.25)
    return train(config, tmp_path_factory.mktemp("runs"))


def test_foolbox_finds_the_same_accuracy(trained: Path) -> None:
    """An independent PGD on the same model, probe and images, worst case over the same two losses, at two radii.

    The cross-entropy alone, in either implementation, leaves three points more standing.
    """
    foolbox = pytest.importorskip("foolbox", reason="foolbox is a test dependency: pip install -e '.[test]'")
    import eagerpy as ep

    class MarginPGD(foolbox.attacks.LinfPGD):  # type: ignore[misc]
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            def loss(x: Any) -> Any:
                logits, true = model(x), ep.onehot_like(model(x), labels)
                return ((logits - 1e9 * true).max(-1) - (logits * true).sum(-1)).sum()

            return loss

    _, vae = load_run(trained)
    train_data, test_data = load("mnist", "train"), load("mnist", "test")
    probe = fit_probe(encode_means(vae, train_data), train_data.digits, 10, 1e-3)

    class Classifier(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return probe(vae.encode(x).mean)

    n, radii = 500, (0.02, 0.05)
    x, labels = test_data.images(torch.arange(n)), test_data.digits[:n]
    classifier = Classifier().eval()
    ours = accuracy_against_radius(classifier, x, labels, EvaluationConfig(radii=radii))
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    torch.manual_seed(0)
    found = [
        attack(rel_stepsize=2.5 / 40, steps=40)(model, x, labels, epsilons=list(radii))[2]
        for attack in (foolbox.attacks.LinfPGD, MarginPGD)
    ]
    theirs = (1 - (found[0] | found[1]).float().mean(-1)).tolist()
    assert 0.1 < theirs[1] < theirs[0] < 0.9  # neither radius is trivial
    assert ours == pytest.approx(theirs, abs=0.02)


def test_diagnostics_measure_what_they_name() -> None:
    vae = build_vae("mlp", 1, 6)
    x = load("mnist", "test").images(torch.arange(64))
    with torch.no_grad():
        means = vae.encode(x).mean
        vae.encoder.layers[-1].weight[2] = 0  # a latent that sleeps, whose mean is constant
        sleeping = vae.encode(x).mean
    still = diagnostics(RunConfig(noise_variance=0.25, radius=0.0), vae, sleeping, x)
    assert still["active_latents"] == 5
    assert still["moved_share"] == 0.0
    assert still["latent_variance"] == pytest.approx(float(sleeping.double().var(0).sum()))
    shrunk = diagnostics(RunConfig(noise_variance=0.25, radius=0.1), build_vae("mlp", 1, 6), means, x)
    doubled = diagnostics(RunConfig(noise_variance=0.25, radius=0.1), build_vae("mlp", 1, 6), 2 * means, x)
    assert shrunk["moved_share"] == pytest.approx(4 * doubled["moved_share"])
    assert still["reconstruction_mse"] == pytest.approx(
        float((vae.decode(sleeping) - x).detach().double().square().mean()), rel=1e-5
    )


def test_elbo_of_the_diagnostics_is_what_training_maximises(trained: Path) -> None:
    """300 steps raise the ELBO above that of the untrained networks, and towards the likelihood's own ceiling."""
    config, vae = load_run(trained)
    run, digits = RunConfig(noise_variance=0.25, radius=0.0), load("mnist", "test")
    fresh = build_vae(config.architecture, 1, config.latent_dim)
    after, before = (
        diagnostics(run, v, encode_means(v, digits, 200), digits.images(torch.arange(200)))["elbo"]
        for v in (vae, fresh)
    )
    ceiling = -784 / 2 * math.log(2 * math.pi * 0.25)
    assert before < after < ceiling


def test_evaluate_writes_once_and_repeats_bitwise(trained: Path) -> None:
    config = EvaluationConfig(radii=(0.0, 0.05), attack_steps=3, test_images=80)
    path = evaluate(trained, config)
    first = path.read_bytes()
    assert evaluate(trained, config) == path
    path.unlink()
    assert evaluate(trained, config).read_bytes() == first
    for damage in (b"", b"{}", first[:-5]):
        path.write_bytes(damage)
        assert evaluate(trained, config).read_bytes() == first
    other = EvaluationConfig(radii=(0.0,), test_images=80)
    assert evaluated(trained, config) == path
    assert evaluated(trained, other) is None
    assert evaluate(trained, other) != path


def test_only_a_sound_evaluation_of_a_sound_run_is_there(trained: Path, tmp_path: Path) -> None:
    """What `evaluated` finds is what `evaluate` would not write again."""
    folder = Path(shutil.copytree(trained, tmp_path / trained.name))
    config = EvaluationConfig(radii=(0.0,), attack_steps=2, test_images=20)
    path = evaluate(folder, config)
    model, found = (folder / "model.safetensors").read_bytes(), path.read_text()
    for file, damage in (
        (folder / "model.safetensors", model[:-1]),
        (path, found[:-1].encode()),
        (path, json.dumps(json.loads(found) | {"attack": {}}).encode()),
        (path, json.dumps(json.loads(found) | {"test_sha256": "0"}).encode()),
    ):
        sound = file.read_bytes()
        file.write_bytes(damage)
        assert evaluated(folder, config) is None
        file.write_bytes(sound)
        assert evaluated(folder, config) == path
    (folder / "data.json").write_text('{"train": "0"}')
    with pytest.raises(DataError, match="the data have changed"):
        evaluated(folder, config)


def test_an_unfinished_run_is_not_evaluated(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished run; train it first"):
        evaluate(tmp_path, EvaluationConfig())


@pytest.mark.parametrize(
    "arguments",
    [
        {"radii": ()},
        {"radii": (0.1, 0.0)},
        {"radii": (-0.1,)},
        {"radii": (math.nan,)},
        {"l2": -1.0},
        {"restarts": 0},
        {"test_images": 1},
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"=.* must be|=.* at least"):
        EvaluationConfig(**arguments)


def test_the_probe_does_not_mind_the_scale_of_a_latent() -> None:
    """Without a penalty the problem is the same in any units, and so is its answer, up to those units."""
    g = _generator()
    labels = torch.randint(3, (500,), generator=g)
    means = torch.randn(500, 2, generator=g) + nn.functional.one_hot(labels, 3)[:, :2]
    units = torch.tensor([1e4, 1e-4])
    plain, scaled = (fit_probe(m, labels, 3, 0.0)(m) for m in (means, means * units))
    torch.testing.assert_close(scaled.diff(dim=-1), plain.diff(dim=-1), rtol=1e-4, atol=1e-4)


def test_collapsed_means_have_no_share_that_moves() -> None:
    vae = build_vae("mlp", 1, 6)
    x = load("mnist", "test").images(torch.arange(8))
    assert math.isnan(diagnostics(RunConfig(noise_variance=0.25, radius=0.1), vae, torch.ones(8, 6), x)["moved_share"])


def test_what_another_attack_found_is_not_taken_for_ours(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / trained.name))
    config = EvaluationConfig(radii=(0.0, 0.1), attack_steps=2, test_images=20)
    path = evaluate(folder, config)
    honest = path.read_text()
    for attack in ({"spread": 1.0, "momentum": 0.0}, None):
        older = {k: v for k, v in json.loads(honest).items() if k != "attack"} | ({"attack": attack} if attack else {})
        path.write_text(json.dumps(older | {"records": []}))
        assert json.loads(evaluate(folder, config).read_text())["records"] == json.loads(honest)["records"]
        assert "of another attack" in capsys.readouterr().out
