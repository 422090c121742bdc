"""Runs on a Slurm cluster of real daemons: whatever happens to their jobs, they end as they do locally."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import DEADLINE_S, ask, wait_until
from tiny_runs import outcome, reproduce_command, results_of

from se_core.lab import cli, slurm
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.executors import LocalProcesses
from se_core.lab.experiments import figure1_runs, reproduce, train_and_evaluate
from se_core.lab.slurm import RunsLost, Slurm, SlurmError
from se_core.lab.storage import read_json

EVALUATION = EvaluationConfig(radii=(0.0,), test_images=10)
RUN = RunConfig(method="vae", latent_dim=4, batch_size=16, iterations=600)  # seconds: long enough to be met alive
STOPPED = r"stopped after step (\d+) of 600; the same command resumes it"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, slurm_cluster.cluster():
        patch.setattr(slurm, "_POLL_S", 0.2)
        yield


# A background process may begin deaf to Ctrl-C; what it executes is not.
HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module", autouse=True)
def near_its_limit(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> "Watch":
    """RUN near its time limit, asleep meanwhile; begun before all tests, as Slurm looks at limits every half minute."""
    watch = Watch(tmp_path_factory.mktemp("limit"), options="--signal=B:USR1@36000 --gres=gpu:1")
    watch.until_it_trains()
    os.kill(watch.training, signal.SIGSTOP)
    ask("scontrol", "update", f"JobId={watch.job}", "TimeLimit=60")  # minutes; as if they were nearly over
    return watch


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A job that never ends, or for ever comes back, fails its test."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done in {DEADLINE_S} seconds")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN without Slurm and without interruption: its evaluation."""
    return train_and_evaluate(RUN, EVALUATION, tmp_path_factory.mktemp("alone"), lambda steps: None)


class Watch:
    """A call of the executor that has submitted one run, or found its job."""

    def __init__(
        self, runs: Path, config: RunConfig = RUN, evaluation: EvaluationConfig = EVALUATION, options: str = ""
    ) -> None:
        self.runs, self.folder = runs, runs / config.name
        self.events = Slurm(options=options)([config], evaluation, runs)

    def until_it_trains(self) -> None:
        assert next(self.events).steps > 0

    @property
    def job(self) -> str:
        names = ",".join(path.stem for path in (self.runs / "slurm").glob("*.json"))
        return ask("squeue", "--me", "--noheader", "--array", f"--name={names}", "--format=%A")

    @property
    def training(self) -> int:
        """The process that trains."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            words = path.read_bytes().decode().split("\0")
            if "se_core.lab.slurm_array" in words and any(word.startswith(str(self.runs)) for word in words):
                return int(path.parent.name)
        raise AssertionError("nothing trains")

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in (self.runs / "slurm").glob("*.log"))

    def until_it_says(self, words: str) -> int:
        """Wait for these words in the log; the number in their first group."""
        wait_until(lambda: re.search(words, self.log), f"the log says {words!r}")
        return int(re.findall(words, self.log)[-1])

    def bring_back(self) -> None:
        """Let a requeued job begin at once; Slurm would wait some seconds."""
        wait_until(
            lambda: ask("squeue", "--noheader", f"--job={self.job}", "--format=%T") == "PENDING", "it is requeued"
        )
        time.sleep(2)  # a job that begins within a second of its end is refused: "credential revoked"
        ask("scontrol", "update", f"JobId={self.job}", "StartTime=now")

    def ends_as(self, alone: Path) -> None:
        """See it end, with the bits of a run that was never interrupted."""
        told = list(self.events)
        assert [event.evaluation.name for event in told if event.evaluation] == [alone.name]
        assert outcome(self.folder) == outcome(alone.parent)
        ours, theirs = read_json(self.folder / alone.name), read_json(alone)
        assert all(ours[key] == theirs[key] for key in ("records", "diagnostics", "test_sha256"))


def test_ctrl_c_leaves_the_jobs_and_the_same_command_attaches_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a slice; a larger slice attaches to it and submits the rest; at last all is as in local processes."""
    panel = ["--panels=c", "--seeds=[0]"]
    command = reproduce_command(tmp_path / "slurm", "--executor=slurm", "--slurm=--gres=gpu:1", *panel)
    with subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *command, "--methods=[se]"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        (number,) = re.findall(r"job array (\d+): 1 runs submitted", process.stderr.readline())
        process.send_signal(signal.SIGINT)
        words = process.stderr.read()
    assert process.returncode == 130
    assert f"the jobs go on, and the same command attaches again; to cancel them: scancel {number}\n" in words
    assert "Traceback" not in words
    assert ask("squeue", "--noheader", "--array", f"--job={number}", "--format=%F")

    assert cli.main([*command[3:], "--methods=[vae,se]"]) == 0
    captured = capsys.readouterr()
    assert "1 runs are in the queue already" in captured.err
    assert captured.err.count("1 runs submitted") == 1
    local = reproduce("tiny", tmp_path / "local", LocalProcesses(1), panels="c", seeds=[0], methods=["vae", "se"])
    ours = results_of(tmp_path / "slurm")
    for key in ("records", "diagnostics", "along_the_way"):
        assert ours[key] == local[key]
    assert ours["provenance"].keys() == local["provenance"].keys()
    for run in (tmp_path / "local").glob("runs/*/finished.json"):
        assert outcome(tmp_path / "slurm" / "runs" / run.parent.name) == outcome(run.parent)

    assert cli.main([*command[3:], "--methods=[vae,se]", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("2 runs are finished, 0 are in the queue, 0 would be submitted\n")


def test_a_cancelled_and_a_killed_run_are_lost_and_the_same_call_continues(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cancelled = Watch(tmp_path)
    cancelled.until_it_trains()
    ask("scancel", cancelled.job)
    with pytest.raises(RunsLost, match=rf"{RUN.name}: ended by Slurm \(scancel, preemption\): {STOPPED}") as lost:
        list(cancelled.events)
    saved = int(re.findall(STOPPED, str(lost.value))[0])
    assert (cancelled.folder / f"checkpoint-{saved:09d}.safetensors").exists()

    killed = Watch(tmp_path)
    assert next(killed.events).steps <= saved
    with monkeypatch.context() as patch:
        (tmp_path / "squeue").write_text("#!/bin/sh\necho squeue: error: nobody answers >&2; exit 1")
        (tmp_path / "squeue").chmod(0o755)
        patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        killed.until_it_trains()  # a controller that does not answer loses nothing
    assert "warning: squeue: error: nobody answers; asking again" in capsys.readouterr().err
    os.kill(killed.training, signal.SIGKILL)
    with pytest.raises(RunsLost, match=rf"1 of 1 .*\n  {RUN.name}: .*killed by SIGKILL .* \(.*/slurm/.*_0\.log\)"):
        list(killed.events)
    Watch(tmp_path).ends_as(alone)


def test_lost_runs_are_named_with_their_reason_and_their_log(tmp_path: Path) -> None:
    """Also that a device is looked for on the node, not here."""
    diverging = RunConfig(method="vae", batch_size=16, optimiser="sgd", learning_rate=1e38, iterations=1)
    elsewhere = RunConfig(method="vae", batch_size=16, device="cuda:9", iterations=1)
    with pytest.raises(RunsLost, match="2 of 2 jobs were lost; the same command submits them again") as lost:
        list(Slurm(workers=2)([diverging, elsewhere], EVALUATION, tmp_path))
    for config, reason in (
        (diverging, "TrainingDiverged: step 1: a parameter of the networks is not finite"),
        (elsewhere, "InvalidValueError: device='cuda:9': this torch"),
    ):
        (log,) = re.findall(rf"{config.name}: {re.escape(reason)}.* \((.*)\)", str(lost.value))
        assert reason in Path(log).read_text()


def test_an_evaluation_longer_than_the_time_limit_is_not_requeued_for_ever(tmp_path: Path) -> None:
    endless = EvaluationConfig(radii=(0.1,), attack_steps=10**7, test_images=10)
    config = RunConfig(method="vae", latent_dim=4, batch_size=16, iterations=50)
    watch = Watch(tmp_path, config, endless)
    watch.until_it_trains()
    wait_until((watch.folder / "finished.json").exists, "it is trained")
    ask("scancel", "--signal=USR1", "--batch", watch.job)  # what Slurm does near the time limit
    wait_until(lambda: "the time limit is near: trained; the evaluation begins again" in watch.log, "it is warned")
    watch.bring_back()
    wait_until(lambda: watch.log.count(f"{config.name} on ") == 2, "it begins again")
    ask("scancel", "--signal=USR1", "--batch", watch.job)
    with pytest.raises(RunsLost, match=f"{config.name}: a whole time limit was not enough .*; raise --time in --slurm"):
        list(watch.events)


def test_sbatch_s_own_words_for_an_unknown_partition(tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="sbatch: error: invalid partition specified: nowhere"):
        list(Slurm(options="--partition=nowhere")([RUN], EVALUATION, tmp_path))


def test_a_dry_run_of_the_paper_submits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["reproduce", "--profile=paper", "--executor=slurm", "--slurm=--time=4:00:00 --gres=gpu:1", "--workers=90"]
    before = ask("squeue", "--me", "--noheader", "--format=%A")
    for methods, n in (("[vae,se]", 90), ("[vae,se,pinned]", 135)):
        assert cli.main([*argv, f"--methods={methods}", f"--out={tmp_path / 'out'}", "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert f"0 runs are finished, 0 are in the queue, {n} would be submitted" in shown
        assert re.findall(r"--array=\S+", shown) == [f"--array=0-{n - 1}%90"]
        assert "sbatch --signal=B:USR1@120 --time=4:00:00 --gres=gpu:1 --parsable " in shown
        listed = re.findall(r"^ *\d+  (\S+)$", shown, re.MULTILINE)
        assert sorted(listed) == sorted(run.name for run in figure1_runs("paper", methods=methods[1:-1].split(",")))
        assert 'scontrol requeue "$SLURM_JOB_ID"' in shown
    assert ask("squeue", "--me", "--noheader", "--format=%A") == before
    assert not (tmp_path / "out").exists()


def test_arrays_are_as_long_as_the_cluster_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is the daemon: it takes an array of that length, and none that is longer by one."""
    runs = [RunConfig(seed=seed) for seed in range(1002)]
    plan = Slurm(workers=90, options="--hold").plan(runs, EVALUATION, tmp_path)
    assert re.findall(r"--array=\S+", plan) == ["--array=0-1000%45", "--array=0-0%45"]
    held = ["sbatch", "--hold", "--parsable", "--output=/dev/null", "--wrap=true"]
    ask("scancel", ask(*held, "--array=0-1000"))
    assert (
        "Invalid job array specification"
        in subprocess.run([*held, "--array=0-1001"], capture_output=True, text=True).stderr
    )


def test_a_run_comes_back_from_its_time_limit_and_from_preemption(near_its_limit: Watch, alone: Path) -> None:
    """Each time it is saved at that very step."""
    watch, status = near_its_limit, Path(f"/proc/{near_its_limit.training}/status")

    def warned() -> bool:
        """Whether the stopped training has the shell's SIGINT before it."""
        pending = re.findall(r"^ShdPnd:\s*(\w+)", status.read_text(), re.MULTILINE)[0]
        return bool(int(pending, 16) & 1 << signal.SIGINT - 1)

    wait_until(warned, "Slurm warns the job")
    ask("scontrol", "update", f"JobId={watch.job}", "TimeLimit=UNLIMITED")
    os.kill(watch.training, signal.SIGCONT)
    first = watch.until_it_says(f"the time limit is near: {STOPPED}")
    watch.bring_back()
    watch.until_it_trains()
    ask("sbatch", "--partition=urgent", "--gres=gpu:2", "--output=/dev/null", "--wrap=true")
    second = watch.until_it_says(rf"ended by Slurm \(scancel, preemption\): {STOPPED}")
    assert 0 < first < second < 600
    watch.bring_back()
    watch.ends_as(alone)
