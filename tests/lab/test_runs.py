"""The folder of a run: damage is named, full disks lose nothing, data and configuration are checked."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import interrupted, outcome, stop_at, write_digits

from se_core.datasets import DataError
from se_core.lab import runs, storage
from se_core.lab.config import EvaluationConfig
from se_core.lab.evaluation import evaluate
from se_core.lab.runs import load_run, logged_step
from se_core.lab.storage import CheckpointError, StorageError, exclusive, write_atomically
from se_core.lab.training import Interrupted, train


def test_a_finished_run_is_not_redone(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config()
    folder = train(config, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    steps: list[int] = []
    assert train(config, tmp_path, progress=steps.append) == folder
    assert steps == []
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not list(folder.glob("checkpoint-*"))


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
    folder = interrupted(config, tmp_path / "parts")
    damage(folder / which)
    assert outcome(train(config, tmp_path / "parts")) == outcome(whole)
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
    assert outcome(train(config, tmp_path / "run")) == outcome(whole)


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


@pytest.mark.parametrize("victim", ["model.safetensors", "model.safetensors.sha256", "finished.json"])
def test_a_damaged_result_is_trained_again(
    victim: str, tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = train(tiny_config(), tmp_path)
    whole = outcome(folder)
    for content in (b"", b"\xff\xfe{"):
        (folder / victim).write_bytes(content)
        assert outcome(train(tiny_config(), tmp_path)) == whole
        assert victim.removesuffix(".sha256") in capsys.readouterr().out


def test_a_damaged_log_does_not_stop_a_run(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(iterations=120)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", progress=stop_at(60))
    log = tmp_path / "parts" / config.name / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'{}\n{"step": 5\n\xff\xfe\n')
    assert outcome(train(config, tmp_path / "parts")) == outcome(whole)


def test_the_last_step_is_read_from_the_end_of_the_metrics(tmp_path: Path) -> None:
    """However long they are, and while a row is being written."""
    assert logged_step(tmp_path) == 0
    rows = [json.dumps({"step": step, "bound": "x" * (step % 100)}) + "\n" for step in range(50, 20_000, 50)]
    for text, step in (("", 0), ('{"st', 0), (rows[0], 50), ("".join(rows), 19_950), ("".join(rows)[:-9], 19_900)):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert logged_step(tmp_path) == step


def test_the_wall_time_is_that_of_all_sessions(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def progress(steps: int) -> None:
        nonlocal clock
        clock += 10 * (steps == 1)  # not those that a resumed run reports as done

    monkeypatch.setattr(runs.time, "monotonic", lambda: clock)
    stop = stop_at(20)
    with pytest.raises(Interrupted):
        train(tiny_config(), tmp_path, progress=lambda steps: (progress(steps), stop(steps)))
    folder = train(tiny_config(), tmp_path, progress=progress)
    assert json.loads((folder / "finished.json").read_text())["wall_s"] == pytest.approx(600, abs=20)


def test_what_a_killed_process_left_half_written_is_removed(tiny_config: Any, tmp_path: Path) -> None:
    left_over = tmp_path / tiny_config().name / ".checkpoint-000000020.safetensors.123.tmp"
    left_over.parent.mkdir()
    left_over.write_bytes(b"half")
    train(tiny_config(), tmp_path)
    assert not left_over.exists()


# --- the data ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_digits(tmp_path: Path) -> Path:
    folder = tmp_path / "digits"
    folder.mkdir()
    write_digits(folder, 0)
    return folder


def test_a_run_says_which_data_it_was_trained_on(tiny_config: Any, own_digits: Path, tmp_path: Path) -> None:
    """The SHA-256 of the pixels and labels themselves, taken from the files by hand."""
    folder = train(tiny_config(source=str(own_digits), iterations=2), tmp_path)
    contents = [(own_digits / f"train-{name}-ubyte").read_bytes() for name in ("images-idx3", "labels-idx1")]
    expected = hashlib.sha256(b"".join(contents)).hexdigest()
    assert json.loads((folder / "finished.json").read_text())["data_sha256"] == expected
    assert json.loads((folder / "data.json").read_text())["train"] == expected


@pytest.mark.parametrize("finished", [True, False])
def test_data_that_have_changed_are_refused_by_name(
    finished: bool, tiny_config: Any, own_digits: Path, tmp_path: Path
) -> None:
    config = tiny_config(source=str(own_digits))
    folder = train(config, tmp_path) if finished else interrupted(config, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_digits(own_digits, 1)
    with pytest.raises(DataError, match=rf"the data have changed since {folder} was trained.*bring the old data back"):
        train(config, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    if finished:
        with pytest.raises(DataError, match="the data have changed"):
            evaluate(folder, EvaluationConfig(radii=(0.0,), test_images=10))
    write_digits(own_digits, 0)
    assert train(config, tmp_path) == folder


def test_other_test_digits_are_evaluated_anew(
    tiny_config: Any, own_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = train(tiny_config(source=str(own_digits), iterations=2), tmp_path)
    config = EvaluationConfig(radii=(0.0,), test_images=10)
    first = evaluate(folder, config).read_bytes()
    training = {path: path.read_bytes() for path in own_digits.glob("train-*")}
    write_digits(own_digits, 1)
    for path, content in training.items():
        path.write_bytes(content)
    path = evaluate(folder, config)
    assert "of other test images; evaluating again" in capsys.readouterr().out
    assert json.loads(path.read_text())["test_sha256"] != json.loads(first)["test_sha256"]


def test_a_mistyped_source_leaves_no_folder(tiny_config: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train(tiny_config(source=str(tmp_path / "nowhere")), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_of_version_0_1_0_keeps_loading(tiny_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It has no data.json, and its evaluation, by an older attack, is made again with a word of why."""
    folder = train(tiny_config(), tmp_path)
    (folder / "data.json").unlink()
    assert load_run(folder)[0] == tiny_config()
    assert train(tiny_config(), tmp_path) == folder
    config = EvaluationConfig(radii=(0.0,), test_images=10)
    with pytest.raises(CheckpointError, match=r"by version 0\.1\.0, on the validation digits too"):
        evaluate(folder, replace(config, split="validation"))
    path = evaluate(folder, config)
    new = path.read_bytes()
    content = json.loads(new)
    content["companions"] = content.pop("diagnostics")
    path.write_text(json.dumps(content))
    assert evaluate(folder, config).read_bytes() == new
    assert "of another attack" in capsys.readouterr().out
