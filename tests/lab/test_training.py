"""Training: bitwise repeatable, resumable after any interruption, and honest about damage."""

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from se_core.datasets import load
from se_core.lab import storage, training
from se_core.lab.storage import CheckpointError, StorageError, exclusive, read_tensors, write_atomically, write_tensors
from se_core.lab.training import (
    Interrupted,
    RunConfig,
    TrainingDiverged,
    load_run,
    make_optimiser,
    train,
    training_step,
)
from se_core.networks import build_vae


def _outcome(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_bytes()


def _stop_at(step: int) -> Callable[[int], None]:
    """A progress callback that presses Ctrl-C after `step` steps of this call."""
    done = 0

    def progress(steps: int) -> None:
        nonlocal done
        done += steps
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return progress


CASES: list[dict[str, Any]] = [
    {},
    {"method": "vae"},
    {"dataset": "colour-mnist", "colouring": "all"},
    {"architecture": "conv", "optimiser": "sgd", "learning_rate": 1e-5},
    {"covariance": "full", "divergence": "entropic_cost"},
    {"divergence": "entropic_cost", "gamma": 10.0, "attack_dtype": "bfloat16"},
]


@pytest.mark.parametrize("fields", CASES)
def test_the_same_configuration_gives_the_same_bits(fields: dict, tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(**fields)
    once, twice = (train(config, tmp_path / name) for name in "ab")
    assert _outcome(once) == _outcome(twice)
    other = train(tiny_config(**fields, seed=1), tmp_path / "a")
    assert _outcome(once)[0] != _outcome(other)[0]


@pytest.mark.parametrize("fields", CASES)
def test_ctrl_c_stops_cleanly_and_the_same_call_resumes_bit_for_bit(
    fields: dict, tiny_config: Any, tmp_path: Path
) -> None:
    config = tiny_config(**fields)
    whole = train(config, tmp_path / "whole")
    for step in (7, 50 - 7):  # before the first row of metrics, then just at it
        with pytest.raises(Interrupted, match=r"stopped after step \d+ of 60; the same command resumes it"):
            train(config, tmp_path / "parts", progress=_stop_at(step if step == 7 else 7 + step))
    assert _outcome(train(config, tmp_path / "parts")) == _outcome(whole)


def test_ctrl_c_at_any_moment_saves_what_it_stops(tiny_config: Any, tmp_path: Path) -> None:
    """Also between the end of a step and the next, where a reproduction passes it on to its workers."""
    config = tiny_config()
    with pytest.raises(Interrupted, match="stopped after step 21 of 60"):
        train(config, tmp_path, progress=_stop_at(20))
    assert [p.name for p in (tmp_path / config.name).glob("*.safetensors")] == ["checkpoint-000000021.safetensors"]


def test_resuming_needs_only_the_checkpoint(tiny_config: Any, tmp_path: Path) -> None:
    """Not the state of the global generator, nor the threads' history: other work in between changes nothing."""
    config = tiny_config()
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", progress=_stop_at(20))
    torch.manual_seed(12345)
    torch.rand(17)
    assert _outcome(train(config, tmp_path / "parts")) == _outcome(whole)


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
    assert _outcome(folder) == _outcome(whole)


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
        assert _outcome(train(config, tmp_path / f"killed-{writes}", checkpoint_every=5)) == _outcome(whole)
        writes += 1
    assert writes >= 8  # config, metrics, two checkpoints and the model with their checksums, the mark


def test_a_finished_run_is_not_redone(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config()
    folder = train(config, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    steps: list[int] = []
    assert train(config, tmp_path, progress=steps.append) == folder
    assert steps == []
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not list(folder.glob("checkpoint-*"))


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
    batches = training._Batches(10, 3, seed=0, device=torch.device("cpu"))
    epochs = [torch.cat([batches[3 * e + i] for i in range(3)]).tolist() for e in range(3)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    again = training._Batches(10, 3, seed=0, device=torch.device("cpu"))
    assert again[7].tolist() == epochs[2][3:6]  # any step, without those before it


def test_one_step_is_adam_on_the_negative_bound(tiny_config: Any) -> None:
    """From the first moments: Adam's first step moves each weight by the learning rate against its gradient's sign."""
    config = tiny_config(method="vae", learning_rate=1e-3)
    vae = build_vae("mlp", 1, 4)
    x = load("mnist", "train").images(torch.arange(16))
    reference = build_vae("mlp", 1, 4)
    terms = training.bound(config, reference, x, training.derived_generator("cpu", 0))
    (-terms.value.mean()).backward()
    means = training_step(config, vae, make_optimiser(config, vae), x, training.derived_generator("cpu", 0))
    for old, new in zip(reference.parameters(), vae.parameters(), strict=True):
        assert old.grad is not None
        moves = old.grad.abs() > 1e-4  # Adam's epsilon is felt below
        expected = old.detach() - 1e-3 * old.grad.sign()
        torch.testing.assert_close(new.detach()[moves], expected[moves], rtol=0, atol=1e-6)
    torch.testing.assert_close(means, torch.stack([t.detach().mean() for t in terms]))


# --- damage -----------------------------------------------------------------------------------------------------------


def _interrupted(config: RunConfig, runs: Path) -> Path:
    """A run stopped after step 40, with checkpoints at 20 and 40."""
    with pytest.raises(Interrupted):
        train(config, runs, checkpoint_every=20, progress=_stop_at(39))
    folder = runs / config.name
    assert [p.stem for p in sorted(folder.glob("checkpoint-*.safetensors"))] == [
        "checkpoint-000000020",
        "checkpoint-000000040",
    ]
    return folder


def _flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip_one_bit, _cut_short, Path.unlink, lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize("which", ["checkpoint-000000040.safetensors", "checkpoint-000000040.safetensors.sha256"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable, which: str, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_config()
    whole = train(config, tmp_path / "whole")
    folder = _interrupted(config, tmp_path / "parts")
    damage(folder / which)
    assert _outcome(train(config, tmp_path / "parts")) == _outcome(whole)
    if damage is not Path.unlink or which.endswith("sha256"):
        message = capsys.readouterr().out
        assert "checkpoint-000000040" in message
        assert "going on from step 20" in message


@pytest.mark.parametrize("damage", [_flip_one_bit, _cut_short])
def test_a_damaged_model_is_never_loaded(damage: Callable, tiny_config: Any, tmp_path: Path) -> None:
    folder = train(tiny_config(), tmp_path)
    damage(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256 is .* nothing was loaded"):
        load_run(folder)


def test_every_single_bit_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(3.0)})
    sound = path.read_bytes()
    for bit in range(8 * len(sound)):
        content = bytearray(sound)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_tensors(path)
    path.write_bytes(sound)
    assert torch.equal(read_tensors(path)["a"], torch.arange(3.0))


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)})
    subprocess.run(["sha256sum", "--check", "--quiet", "t.safetensors.sha256"], cwd=tmp_path, check=True)


def test_a_damaged_configuration_is_named(tiny_config: Any, tmp_path: Path) -> None:
    folder = train(tiny_config(), tmp_path)
    for content in ("{", '{"gammma": 1.0}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
            load_run(folder)


def test_load_run_returns_what_was_trained(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(architecture="conv", dataset="colour-mnist")
    folder = train(config, tmp_path)
    loaded, vae = load_run(folder)
    assert loaded == config
    assert vae.reconstruct(torch.rand(2, 3, 28, 28)).shape == (2, 3, 28, 28)


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
    honest = training.bound

    def bound(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return spoil(honest(*arguments)) if calls == 33 else honest(*arguments)

    monkeypatch.setattr(training, "bound", bound)
    with pytest.raises(TrainingDiverged, match=rf"step 33: {term}=.* is not finite; .*step 20, is kept"):
        train(config, tmp_path, checkpoint_every=20)
    monkeypatch.undo()
    whole = train(config, tmp_path / "whole")
    assert _outcome(train(config, tmp_path)) == _outcome(whole)  # the good checkpoint is there and good


def test_a_parameter_that_is_not_finite_is_never_saved(tiny_config: Any, tmp_path: Path) -> None:
    vae = build_vae("mlp", 1, 4)
    config = tiny_config()
    run = training._Run(config, tmp_path)
    with torch.no_grad():
        next(vae.parameters())[0, 0] = math.inf
    with pytest.raises(TrainingDiverged, match="step 5: a parameter of the networks is not finite"):
        run.save(5, vae, make_optimiser(config, vae))
    assert not list(tmp_path.iterdir())


def test_a_learning_rate_too_large_is_explained(tiny_config: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"lower learning_rate=1e\+20"):
        train(tiny_config(optimiser="sgd", learning_rate=1e20), tmp_path)


# --- storage ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    whole = train(config, tmp_path / "whole")

    def full(descriptor: int) -> None:
        if list((tmp_path / "run" / config.name).glob(".checkpoint-000000040.safetensors.*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device; .*free some space.*continues from step 20"):
        train(config, tmp_path / "run", checkpoint_every=20)
    assert not list((tmp_path / "run" / config.name).glob(".*.tmp"))
    monkeypatch.undo()
    assert _outcome(train(config, tmp_path / "run")) == _outcome(whole)


def test_the_kernel_refusing_to_write_more_is_explained(tmp_path: Path) -> None:
    """Not a simulation: the kernel cuts the write short at a file-size limit, as it does on a full disk."""
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(10)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="what was there before is untouched"):
            write_tensors(path, {"a": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_output_folder_that_cannot_be_written_is_refused_at_once(tiny_config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to .*file/.*choose another output folder"):
        train(tiny_config(), tmp_path / "file")
    with pytest.raises(StorageError, match="cannot write"):
        write_atomically(tmp_path / "file" / "x", b"")


def test_two_processes_do_not_share_a_folder(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config()
    with exclusive(tmp_path / config.name), pytest.raises(StorageError, match="another process is writing to"):
        train(config, tmp_path)
    train(config, tmp_path)  # and the lock ends with its holder


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": -1.0}, r"gamma=-1\.0 must be a finite number >= 0"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"radius": -0.2}, r"radius=-0\.2 must be a finite number >= 0"),
        ({"radius": math.nan}, "radius=nan"),
        ({"noise_variance": 0.0}, r"noise_variance=0\.0 must be a finite number > 0"),
        ({"learning_rate": -1e-3}, r"learning_rate=-0\.001"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"dataset": "cifar"}, "dataset='cifar' is unknown; choose one of mnist, colour-mnist"),
        ({"method": "SE"}, "method='SE' is unknown; choose one of vae, se"),
        ({"covariance": "full", "compile": True}, "covariance='full' has no compiled"),
        ({"batch_size": 10_001}, "batch_size=10001 exceeds the 10000 training images"),
    ],
)
def test_bad_configurations_are_refused_before_any_work(fields: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(RunConfig(**fields), tmp_path)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for one is no error")
def test_a_missing_gpu_is_explained(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = RunConfig(device="cuda")  # a result made elsewhere can be read here
    with pytest.raises(ValueError, match="finds no such GPU; use device='cpu'"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="device='meta' is unknown; choose cpu, cuda or cuda:N"):
        RunConfig(device="meta")


def test_the_folder_is_named_by_every_field() -> None:
    base = RunConfig()
    changed = {
        "dataset": "colour-mnist", "source": "data", "colouring": "all", "architecture": "conv", "latent_dim": 65,
        "covariance": "full",
        "initialisation": "pytorch", "method": "vae", "gamma": 2.0, "radius": 0.1, "attack_steps": 3,
        "divergence": "entropic_cost", "noise_variance": 0.2, "iterations": 7, "batch_size": 3, "optimiser": "sgd",
        "learning_rate": 0.1, "seed": 5, "device": "cuda", "attack_dtype": "bfloat16", "compile": True,
    }  # fmt: skip
    assert set(changed) == set(asdict(base))
    names = {RunConfig(**{field: value}).name for field, value in changed.items()}
    assert len(names | {base.name}) == len(changed) + 1


def test_equal_configurations_are_one(tmp_path: Path) -> None:
    import numpy as np

    assert RunConfig(gamma=1).name == RunConfig(gamma=1.0).name == RunConfig(gamma=np.float32(1)).name
    assert RunConfig(latent_dim=np.int64(8)).name == RunConfig(latent_dim=8).name
    for field, value in (("latent_dim", 8.0), ("seed", 1.5), ("gamma", "1"), ("compile", 1), ("batch_size", True)):
        with pytest.raises(TypeError, match=f"{field}=.* must be of type"):
            RunConfig(**{field: value})


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


@pytest.mark.parametrize("victim", ["model.safetensors", "model.safetensors.sha256", "finished.json"])
def test_a_damaged_result_is_trained_again(
    victim: str, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = train(tiny_config(), tmp_path)
    whole = _outcome(folder)
    for content in (b"", b"\xff\xfe{"):
        (folder / victim).write_bytes(content)
        assert _outcome(train(tiny_config(), tmp_path)) == whole
        assert victim.removesuffix(".sha256") in capsys.readouterr().out


def test_a_damaged_log_does_not_stop_a_run(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(iterations=120)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", progress=_stop_at(60))
    log = tmp_path / "parts" / config.name / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'{}\n{"step": 5\n\xff\xfe\n')
    assert _outcome(train(config, tmp_path / "parts")) == _outcome(whole)


def test_the_wall_time_is_that_of_all_sessions(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def progress(steps: int) -> None:
        nonlocal clock
        clock += 10 * (steps == 1)  # not those that a resumed run reports as done

    monkeypatch.setattr(training.time, "monotonic", lambda: clock)
    stop = _stop_at(20)
    with pytest.raises(Interrupted):
        train(tiny_config(), tmp_path, progress=lambda steps: (progress(steps), stop(steps)))
    folder = train(tiny_config(), tmp_path, progress=progress)
    assert json.loads((folder / "finished.json").read_text())["wall_s"] == pytest.approx(600, abs=20)


def test_checkpoints_need_an_interval(tiny_config: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint_every=0 must be at least 1"):
        train(tiny_config(), tmp_path, checkpoint_every=0)


def test_what_a_killed_process_left_half_written_is_removed(tiny_config: Any, tmp_path: Path) -> None:
    left_over = tmp_path / tiny_config().name / ".checkpoint-000000020.safetensors.123.tmp"
    left_over.parent.mkdir()
    left_over.write_bytes(b"half")
    train(tiny_config(), tmp_path)
    assert not left_over.exists()


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", *author, "commit", "--quiet", "--allow-empty", "-m", "another"], check=True, cwd=tmp_path)
    monkeypatch.setattr(storage, "__file__", str(tmp_path / "storage.py"))
    assert storage.provenance()["commit"] == "not a git checkout"
