"""Processes that run runs: stopped, killed, orphaned, and called from anywhere."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import outcome, reproduce_command, results_of

from se_core.lab import executors
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.executors import LocalProcesses, WorkerKilled
from se_core.lab.training import TrainingDiverged, train


def _kill_family(process: subprocess.Popen) -> None:
    """kill -9 of the parent alone; its workers must end by themselves."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("moment", ["first checkpoint folder", "first finished run", "first evaluation", "nearly done"])
def test_kill_9_at_any_moment_and_the_same_command_ends_the_same(moment: str, whole: Path, tmp_path: Path) -> None:
    def reached() -> bool:
        runs = tmp_path / "runs"
        match moment:
            case "first checkpoint folder":
                return any(runs.glob("*/config.json"))
            case "first finished run":
                return any(runs.glob("*/finished.json"))
            case "first evaluation":
                return any(runs.glob("*/evaluation-*.json"))
            case _:
                return len(list(runs.glob("*/evaluation-*.json"))) >= 10

    process = subprocess.Popen(reproduce_command(tmp_path), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    _kill_family(process)
    assert not (tmp_path / "results.json").exists()
    subprocess.run(reproduce_command(tmp_path), check=True, stdout=subprocess.DEVNULL)
    interrupted, reference = results_of(tmp_path), results_of(whole)
    assert interrupted["records"] == reference["records"]
    assert interrupted["diagnostics"] == reference["diagnostics"]
    models = sorted(path.relative_to(whole) for path in whole.glob("runs/*/model.safetensors"))
    assert len(models) == len(reference["provenance"]["runs"])
    for path in models:
        assert (tmp_path / path).read_bytes() == (whole / path).read_bytes()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(reproduce_command(tmp_path, "--workers", "2"), stdout=subprocess.DEVNULL)
    while not any((tmp_path / "runs").glob("*/config.json")):
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        _kill_family(process)
        pytest.skip("this system lists no children of a process in /proc")
    pids = [int(pid) for pid in children.read_text().split()]
    _kill_family(process)
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    assert len(pids) >= 2


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        reproduce_command(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs inherit deafness
    )
    while not any((tmp_path / "runs").glob("*/config.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command continues" in message
    assert "Traceback" not in message


UNGUARDED = """
from pathlib import Path
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.executors import LocalProcesses
from se_core.lab.experiments import run_all
config = RunConfig(latent_dim=4, attack_steps=2, batch_size=16, iterations=5)
evaluation = EvaluationConfig(radii=(0.0,), test_images=10)
print("accuracy", run_all([config], evaluation, Path("runs"), LocalProcesses(1))[0]["records"][0]["accuracy"])
"""


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """The workers never import the caller's main module."""
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("accuracy 0.") == 1


def _configs(n: int, **fields: Any) -> list[RunConfig]:
    return [
        RunConfig(**({"latent_dim": 4, "attack_steps": 2, "batch_size": 16, "iterations": 5, "seed": seed} | fields))
        for seed in range(n)
    ]


EVALUATION = EvaluationConfig(radii=(0.0,), test_images=10)


def test_the_caller_s_environment_and_signals_are_left_alone(tmp_path: Path) -> None:
    environment, handler, threads = dict(os.environ), signal.getsignal(signal.SIGINT), torch.get_num_threads()
    events = list(LocalProcesses(2)(_configs(3), EVALUATION, tmp_path))
    assert dict(os.environ) == environment
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.get_num_threads() == threads
    assert {event.config for event in events if event.evaluation} == set(_configs(3))


def _children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system lists no children in /proc")
def test_a_killed_worker_is_named_with_its_run_and_what_killed_it(tmp_path: Path) -> None:
    before = set(_children())
    (config,) = _configs(1, iterations=100_000)
    events = LocalProcesses(1)([config], EVALUATION, tmp_path)
    next(events)
    (worker,) = set(_children()) - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(
        WorkerKilled, match=rf"killed by SIGKILL \(too little memory\?\) while working on {config.name}"
    ):
        list(events)
    assert not set(_children()) - before


def test_a_worker_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors.sys, "executable", "/bin/false")
    with pytest.raises(WorkerKilled, match=r"ended with status 1 \(its own words are above\) while starting"):
        list(LocalProcesses(1)(_configs(1), EVALUATION, tmp_path))


def test_an_explained_error_of_a_run_arrives_as_itself(tmp_path: Path) -> None:
    configs = [*_configs(1, optimiser="sgd", learning_rate=1e38, iterations=1), *_configs(2)]
    with pytest.raises(TrainingDiverged, match="step 1: a parameter of the networks is not finite"):
        list(LocalProcesses(1)(configs, EVALUATION, tmp_path))


def test_ctrl_c_stops_all_and_the_same_call_continues(tmp_path: Path) -> None:
    configs = _configs(2, iterations=500)
    alone = [train(config, tmp_path / "whole") for config in configs]
    events = LocalProcesses(2)(configs, EVALUATION, tmp_path / "parts")
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt)  # as it arrives while the caller waits
    saved = list((tmp_path / "parts").glob("*/checkpoint-*.safetensors"))
    assert saved
    assert not list((tmp_path / "parts").glob("*/finished.json"))
    list(LocalProcesses(2)(configs, EVALUATION, tmp_path / "parts"))
    for folder in alone:
        assert outcome(tmp_path / "parts" / folder.name) == outcome(folder)


def test_a_device_that_is_not_there_is_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"device='cuda:99': this torch .* finds no such GPU"):
        list(LocalProcesses(1)([*_configs(1), *_configs(1, device="cuda:99")], EVALUATION, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_at_least_one(workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers={workers} must be at least 1"):
        LocalProcesses(workers)
