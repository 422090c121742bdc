"""On a GPU: a captured step is the step, a run resumes bit for bit, and the numbers are those of the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import outcome, stop_at

from se_core.attacks import fictive_sample, pgd
from se_core.datasets import load
from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.lab import training
from se_core.lab.captured import CapturedStep
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import evaluate
from se_core.lab.executors import configure_process
from se_core.lab.storage import read_json
from se_core.lab.training import Interrupted, train
from se_core.losses import cross_entropy
from se_core.networks import build_vae
from se_core.objectives import se_elbo
from se_core.transport import entropic_cost

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

REMEMBERED: dict[str, Any] = {"memory": True, "attack_steps": 1}
CASES: list[dict[str, Any]] = [
    {},
    {"method": "vae"},
    {"optimiser": "sgd", "learning_rate": 1e-5, "schedule": "cosine"},
    {"dataset": "colour-mnist", "colouring": "all", **REMEMBERED},
    {"architecture": "conv", "scale": "pinned", "gamma": 10.0, "schedule": "cosine", **REMEMBERED},
    {"attack_dtype": "bfloat16", "attack_steps": 20},
    {"compile": True},
    {"compile": True, "scale": "pinned", **REMEMBERED},
    {"prior": "paired", "gamma": 10.0, "divergence": "entropic_cost"},
    {"method": "avae", "gamma": 2.0, "scale": "pinned"},
    {"method": "classifier", **REMEMBERED},
]


@pytest.fixture(autouse=True)
def as_in_a_worker() -> None:
    configure_process()


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_a_captured_step_is_the_step(
    fields: dict[str, Any], tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**fields, device="cuda")
    captured = train(config, tmp_path / "captured")
    monkeypatch.setattr(training, "CapturedStep", _AsWritten)
    assert outcome(captured) == outcome(train(config, tmp_path / "as written"))


class _AsWritten(CapturedStep):
    def __call__(self, index: torch.Tensor, seed: int) -> torch.Tensor:
        return self.step(index, torch.Generator("cuda").manual_seed(seed))


def test_each_replay_draws_anew_from_its_own_seed() -> None:
    def draw(index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return index + torch.rand(index.shape, generator=generator, device="cuda", dtype=torch.float64)

    captured = CapturedStep(draw, 8, torch.device("cuda"))
    for seed in (5, 6, 7, 8, 9, 5):
        index = torch.arange(8, device="cuda") + seed
        expected = draw(index, torch.Generator("cuda").manual_seed(seed))
        assert torch.equal(captured(index, seed), expected)


@pytest.mark.parametrize("fields", CASES[:5], ids=str)
def test_a_stopped_run_resumes_bit_for_bit(fields: dict[str, Any], tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(**fields, device="cuda")
    whole = train(config, tmp_path / "whole")
    for step in (2, 29):  # before the step is captured, and after
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts", progress=stop_at(step))
    assert outcome(train(config, tmp_path / "parts")) == outcome(whole)


def test_a_full_covariance_is_trained_too(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(covariance="full", device="cuda")
    assert outcome(train(config, tmp_path / "a")) == outcome(train(config, tmp_path / "b"))


def test_a_run_is_judged_alike_on_both_devices(tiny_config: Any, tmp_path: Path) -> None:
    run = train(tiny_config(device="cuda", iterations=300, latent_dim=16), tmp_path)
    config = EvaluationConfig(radii=(0.0, 0.02), attack_steps=5, test_images=500)
    there, here = (read_json(evaluate(run, replace(config, l2=l2), device)) for l2, device in
                   ((1e-3, "cuda"), (1.001e-3, "cpu")))  # fmt: skip
    assert there["provenance"]["device"] == torch.cuda.get_device_name()
    for a, b in zip(there["records"], here["records"], strict=True):
        assert a["accuracy"] == pytest.approx(b["accuracy"], abs=0.02)
    for name in ("reconstruction_mse", "active_latents", "latent_variance", "moved_share"):  # the ELBO is a draw
        assert there["diagnostics"][name] == pytest.approx(here["diagnostics"][name], rel=0.02)


def test_nothing_in_a_selection_or_an_attack_waits_for_the_gpu() -> None:
    x = load("mnist", "test").to("cuda").images(torch.arange(64, device="cuda"))
    vae = build_vae("mlp", 1, 8).to("cuda")
    labels = torch.zeros(64, dtype=torch.int64, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    q = vae.encode(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_prime = fictive_sample(vae.encoder, x, 0.1, 3, q_x=q, generator=generator)
        attacked = pgd(cross_entropy(lambda a: vae.encode(a).mean, labels), x, 0.1, 3, generator=generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for found in (x_prime, attacked):
        assert 0 < float((found - x).abs().max()) <= 0.1 + 1e-7


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("prior", ["independent", "paired"])
def test_the_bound_is_that_of_the_cpu(gamma: float, prior: Any) -> None:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    x, noise, weight = torch.rand(32, 20, generator=draw, dtype=torch.float64), normal(32, 6), normal(6, 20)
    a, b = ((normal(32, 6), normal(32, 6)) for _ in range(2))

    def terms(device: str) -> torch.Tensor:
        q = [DiagonalGaussian(*(p.to(device) for p in parameters)) for parameters in (a, b)]
        found = se_elbo(
            x.to(device),
            q[0],
            q[1],
            lambda z: torch.sigmoid(z @ weight.to(device)),
            noise_variance=0.1,
            gamma=gamma,
            noise=noise.to(device),
            prior=prior,
        )
        return torch.stack([*found]).cpu()

    torch.testing.assert_close(terms("cuda"), terms("cpu"), rtol=1e-12, atol=1e-12)


def test_the_plan_of_full_covariances_is_that_of_the_cpu() -> None:
    draw = torch.Generator().manual_seed(0)
    means, scales = torch.randn(2, 16, 5, generator=draw).double(), torch.randn(2, 16, 5, 5, generator=draw).double()

    def cost(device: str) -> torch.Tensor:
        a, b = (FullGaussian(mean.to(device), scale.to(device)) for mean, scale in zip(means, scales, strict=True))
        return entropic_cost(a, b, 3.0).cpu()

    torch.testing.assert_close(cost("cuda"), cost("cpu"), rtol=1e-10, atol=1e-10)


def test_a_run_names_the_gpu(tiny_config: Any, tmp_path: Path) -> None:
    folder = train(tiny_config(device="cuda", iterations=5), tmp_path)
    assert read_json(folder / "finished.json")["provenance"]["device"] == torch.cuda.get_device_name()
    assert RunConfig(**read_json(folder / "config.json")).device == "cuda"
