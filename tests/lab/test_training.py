"""Training: bitwise repeatable, and resumable after any interruption."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import outcome, stop_at, write_digits

from se_core.lab import steps, storage, training
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import evaluate
from se_core.lab.milestones import judge_on_the_way
from se_core.lab.runs import images, milestones
from se_core.lab.training import Batches, Interrupted, TrainingDiverged, train

CASES: list[dict[str, Any]] = [
    {},
    {"method": "vae"},
    {"dataset": "colour-mnist", "colouring": "all"},
    {"architecture": "conv", "optimiser": "sgd", "learning_rate": 1e-5},
    {"covariance": "full", "divergence": "entropic_cost"},
    {"divergence": "entropic_cost", "gamma": 10.0, "attack_dtype": "bfloat16"},
    {"scale": "pinned", "memory": True, "attack_steps": 1, "schedule": "cosine"},
    {"architecture": "conv", "dataset": "colour-mnist", "scale": "pinned", "memory": True, "attack_steps": 1},
    {"prior": "paired", "gamma": 10.0},
    {"method": "avae", "gamma": 2.0, "scale": "pinned"},
]


@pytest.mark.parametrize("fields", CASES)
def test_the_same_configuration_gives_the_same_bits(fields: dict, tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(**fields)
    once, twice = (train(config, tmp_path / name) for name in "ab")
    assert outcome(once) == outcome(twice)
    other = train(tiny_config(**fields, seed=1), tmp_path / "a")
    assert outcome(once)[0] != outcome(other)[0]


@pytest.mark.parametrize("fields", CASES)
def test_ctrl_c_stops_cleanly_and_the_same_call_resumes_bit_for_bit(
    fields: dict, tiny_config: Any, tmp_path: Path
) -> None:
    config = tiny_config(**fields)
    whole = train(config, tmp_path / "whole")
    for step in (7, 50 - 7):  # before the first row of metrics, then just at it
        with pytest.raises(Interrupted, match=r"stopped after step \d+ of 60; the same command resumes it"):
            train(config, tmp_path / "parts", progress=stop_at(step if step == 7 else 7 + step))
    assert outcome(train(config, tmp_path / "parts")) == outcome(whole)


@pytest.mark.parametrize("fields", [{}, {"dataset": "colour-mnist", "colouring": "all"}, {"compile": True}])
def test_a_memory_in_use_resumes_bit_for_bit(fields: dict, tiny_config: Any, tmp_path: Path) -> None:
    """Few images, so that each was attacked many times before the interruption and after it."""
    write_digits(tmp_path, 0)
    config = tiny_config(source=str(tmp_path), batch_size=8, memory=True, attack_steps=1, **fields)
    whole = train(config, tmp_path / "whole")
    assert outcome(whole) != outcome(train(replace(config, memory=False), tmp_path / "whole"))
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", progress=stop_at(31))
    assert outcome(train(config, tmp_path / "parts")) == outcome(whole)


def test_a_cosine_ends_at_nothing(tiny_config: Any) -> None:
    config = tiny_config(schedule="cosine", iterations=101, learning_rate=0.5)
    rates = [training.learning_rate(config, step) for step in range(1, 102)]
    assert rates[0] == 0.5
    assert rates == sorted(rates, reverse=True)
    assert sum(rates) / 101 == pytest.approx(0.25, abs=0.005)
    assert rates[-1] < 0.001
    assert training.learning_rate(tiny_config(learning_rate=0.5), 60) == 0.5


def test_validation_digits_are_never_trained_on(tmp_path: Path) -> None:
    """The last sixth of the training digits, whatever their colours; its images are none of the others."""
    write_digits(tmp_path, 0)  # twenty digits: seventeen and three
    for fields in ({}, {"dataset": "colour-mnist"}, {"dataset": "colour-mnist", "colouring": "all"}):
        config = RunConfig(source=str(tmp_path), **fields)
        parts = {split: images(config, split) for split in ("train", "validation", "test")}
        colours = 7 if "colouring" in fields else 1
        assert [len(part) for part in parts.values()] == [17 * colours, 3 * colours if colours == 1 else 3, 20]
        assert not set(parts["train"].source.tolist()) & set(parts["validation"].source.tolist())
        assert parts["validation"].source.tolist() == [17, 18, 19]
        assert parts["test"].sha256 != parts["train"].sha256


def test_ctrl_c_at_any_moment_saves_what_it_stops(tiny_config: Any, tmp_path: Path) -> None:
    """Also between the end of a step and the next, where a reproduction passes it on to its workers."""
    config = tiny_config()
    with pytest.raises(Interrupted, match="stopped after step 21 of 60"):
        train(config, tmp_path, progress=stop_at(20))
    assert [p.name for p in (tmp_path / config.name).glob("*.safetensors")] == ["checkpoint-000000021.safetensors"]


def test_resuming_needs_only_the_checkpoint(tiny_config: Any, tmp_path: Path) -> None:
    """Not the state of the global generator, nor the threads' history: other work in between changes nothing."""
    config = tiny_config()
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", progress=stop_at(20))
    torch.manual_seed(12345)
    torch.rand(17)
    assert outcome(train(config, tmp_path / "parts")) == outcome(whole)


_TRAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from se_core.lab.training import RunConfig, train
train(RunConfig(latent_dim=4, attack_steps=2, batch_size=16, iterations=300), Path(sys.argv[1]), checkpoint_every=20)
"""


def test_kill_9_at_several_moments_loses_nothing(tmp_path: Path) -> None:
    config = RunConfig(latent_dim=4, attack_steps=2, batch_size=16, iterations=300)
    whole = train(config, tmp_path / "whole")
    folder = tmp_path / "killed" / config.name
    kills = 0
    for step in (20, 100, 240):  # as soon as this checkpoint begins to exist, wherever the process is by then
        process = subprocess.Popen([sys.executable, "-c", _TRAIN, str(tmp_path / "killed")])
        deadline = time.monotonic() + 120
        while not list(folder.glob(f"*checkpoint-{step:09d}*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    assert not (folder / "finished.json").exists()
    subprocess.run([sys.executable, "-c", _TRAIN, str(tmp_path / "killed")], check=True)
    assert outcome(folder) == outcome(whole)


def test_a_kill_between_any_two_writes_loses_nothing(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write of a run, one after the other, is the last thing that the process does."""
    config = tiny_config(iterations=12)
    whole = train(config, tmp_path / "whole", checkpoint_every=5)

    class Killed(BaseException):
        pass

    writes = 0
    while True:
        countdown = writes

        def replace(source: Any, target: Any) -> None:
            nonlocal countdown
            if countdown == 0:
                raise Killed
            countdown -= 1
            os.rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(storage.os, "replace", replace)
            try:
                train(config, tmp_path / f"killed-{writes}", checkpoint_every=5)
                break
            except Killed:
                pass
        assert outcome(train(config, tmp_path / f"killed-{writes}", checkpoint_every=5)) == outcome(whole)
        writes += 1
    assert writes >= 8  # config, metrics, two checkpoints and the model with their checksums, the mark


def test_metrics_are_the_terms_of_the_bound(tiny_config: Any, tmp_path: Path) -> None:
    rows = [
        json.loads(line)
        for line in (train(tiny_config(iterations=120), tmp_path) / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [50, 100]
    for row in rows:
        costs = row["kl"] + row["kl_fictive"] + row["mutual_information"] + row["transport"]
        assert row["bound"] == pytest.approx(row["log_likelihood"] - costs)
        assert row["transport"] > 0


def test_training_raises_the_bound(tiny_config: Any, tmp_path: Path) -> None:
    folder = train(tiny_config(iterations=400, noise_variance=0.25), tmp_path)
    rows = [json.loads(line)["bound"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1] > rows[0] + 10


def test_an_epoch_is_a_permutation() -> None:
    batches = Batches(10, 3, seed=0, device=torch.device("cpu"))
    epochs = [torch.cat([batches[3 * e + i] for i in range(3)]).tolist() for e in range(3)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    again = Batches(10, 3, seed=0, device=torch.device("cpu"))
    assert again[7].tolist() == epochs[2][3:6]  # any step, without those before it


@pytest.mark.parametrize(
    ("term", "spoil"),
    [
        ("the term log_likelihood", lambda t: t._replace(log_likelihood=t.log_likelihood * math.nan)),
        ("the term transport", lambda t: t._replace(transport=t.transport + math.inf)),
    ],
)
def test_a_term_that_is_not_finite_stops_the_run_with_its_name(
    term: str, spoil: Callable, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    calls = 0
    honest = steps.bound

    def bound(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return spoil(honest(*arguments)) if calls == 33 else honest(*arguments)

    monkeypatch.setattr(steps, "bound", bound)
    with pytest.raises(TrainingDiverged, match=rf"step 33: {term}=.* is not finite; .*step 20, is kept"):
        train(config, tmp_path, checkpoint_every=20)
    monkeypatch.undo()
    whole = train(config, tmp_path / "whole")
    assert outcome(train(config, tmp_path)) == outcome(whole)  # the good checkpoint is there and good


def test_a_parameter_that_is_not_finite_is_never_saved(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = training.training_step, 0

    def step(config: RunConfig, vae: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        terms = honest(config, vae, *arguments)
        if calls == 20:
            with torch.no_grad():
                next(vae.parameters())[0, 0] = math.inf
        return terms

    monkeypatch.setattr(training, "training_step", step)
    with pytest.raises(TrainingDiverged, match="step 20: a parameter of the networks is not finite; nothing was saved"):
        train(tiny_config(), tmp_path, checkpoint_every=20)
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_a_learning_rate_too_large_is_explained(tiny_config: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"lower learning_rate=1e\+20"):
        train(tiny_config(optimiser="sgd", learning_rate=1e20), tmp_path)


def test_a_model_that_diverged_in_the_last_step_is_not_finished(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(optimiser="sgd", learning_rate=1e38, iterations=1)
    for _ in range(2):
        with pytest.raises(
            TrainingDiverged, match="step 1: a parameter of the networks is not finite; nothing was saved"
        ):
            train(config, tmp_path)
    assert not (tmp_path / config.name / "finished.json").exists()


def test_a_plan_that_cannot_be_computed_is_a_divergence(tiny_config: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"step \d+: .*lower learning_rate=1e\+18"):
        train(tiny_config(covariance="full", learning_rate=1e18), tmp_path)


def test_checkpoints_need_an_interval(tiny_config: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every=0 must be at least 1"):
        train(tiny_config(), tmp_path, checkpoint_every=0)


@pytest.mark.parametrize("default", ["dtype", "device", "no_grad", "inference_mode"])
def test_global_state_of_torch_does_not_change_a_run(default: str, tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(iterations=5)
    whole = outcome(train(config, tmp_path / "whole"))
    evaluation = EvaluationConfig(radii=(0.0, 0.1), attack_steps=2, test_images=20)
    judged = evaluate(tmp_path / "whole" / config.name, evaluation).read_bytes()
    modes = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    try:
        if default == "dtype":
            torch.set_default_dtype(torch.float64)
        if default == "device":
            torch.set_default_device("meta")  # stands for a GPU
        with modes.get(default, nullcontext)():
            assert outcome(train(config, tmp_path / "other")) == whole
            assert evaluate(tmp_path / "other" / config.name, evaluation).read_bytes() == judged
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_a_run_judged_on_the_way_is_the_same_run(tiny_config: Any, tmp_path: Path) -> None:
    """Bit for bit, interrupted between two milestones or not, with the same rows."""
    config = tiny_config(iterations=250, scale="pinned", memory=True, attack_steps=1)
    whole = train(config, tmp_path / "whole", judge=judge_on_the_way(config))
    rows = milestones(whole)
    assert [row["step"] for row in rows] == [100, 200, 250]
    assert all(0 <= a <= 1 for row in rows for a in row["accuracy"]["digit"])
    with pytest.raises(Interrupted):
        train(config, tmp_path, 60, progress=stop_at(149), judge=judge_on_the_way(config))
    resumed = train(config, tmp_path, 60, judge=judge_on_the_way(config))
    assert outcome(resumed) == outcome(whole)
    assert outcome(train(config, tmp_path / "unjudged"))[0] == outcome(whole)[0]
