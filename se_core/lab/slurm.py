"""Where independent runs run: on a Slurm cluster, as arrays of batch jobs.

The folder of the runs lies where all nodes see it under the same path, on a file system that locks files (`flock`), and
so do the data. The login node reads both, and needs no GPU: a run's device is looked for on its node. Nothing is
remembered but the arrays written beside the runs; which of their jobs wait or run is asked of Slurm.

Runs are bitwise those of `LocalProcesses` on a machine of the same kind. Other processors and GPUs round differently;
where a partition mixes them, `--constraint` keeps a run on one kind.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from se_core.errors import InvalidValueError, SmoothEncoderError
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import evaluated
from se_core.lab.experiments import Event
from se_core.lab.runs import logged_step
from se_core.lab.slurm_array import Array

_POLL_S = 10.0  # seconds between two looks
_PATIENCE = 6  # looks until a run whose job is gone counts as lost: network file systems show files up to 60 s late
_OURS = ("--array", "-a", "--clusters", "-M", "--job-name", "-J", "--output", "-o", "--test-only", "--wait", "-W")


class SlurmError(SmoothEncoderError):
    """Slurm is not here, or has refused; the message has its own words."""


class RunsLost(SmoothEncoderError):
    """Jobs failed, were cancelled, or were killed before their runs ended. The message names runs, reasons and logs."""


class _Job(NamedTuple):
    id: str  # of the whole array
    array: Array
    task: int  # which of the array's

    def last_words(self) -> str:
        log = self.array.log(self.id, self.task)
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        name = self.array.configs[self.task].name
        return f"{name}: {said[-1]} ({log})" if said else f"{name}: its job ended before it began"


@dataclass(frozen=True)
class Slurm:
    """An executor: jobs of a Slurm cluster, `workers` at a time (as many as there are, if None), one run each.

    options: of `sbatch`, as one would type them. A run that is finished, or whose job waits or runs, is not submitted.
    At the time limit a job saves its run and is requeued. Ctrl-C ends the watching and leaves the jobs. Raises
    SlurmError where Slurm is not here or refuses, InvalidValueError for fewer than one worker and for options that are
    the executor's own, and, once nothing is left to wait for, RunsLost.
    """

    workers: int | None = None
    options: str = ""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InvalidValueError(f"workers={self.workers} must be at least 1")
        try:
            words = shlex.split(self.options)
        except ValueError as error:
            raise InvalidValueError(f"slurm={self.options!r}: {error}; check its quotes") from None
        for word in words:
            if word.split("=")[0] in _OURS:
                raise InvalidValueError(f"slurm={self.options!r}: {word} is not yours to choose; leave it")
        if not shutil.which("sbatch"):
            raise SlurmError("executor='slurm': there is no sbatch on this machine; call it on a cluster's login node")

    def __call__(
        self, configs: Sequence[RunConfig], evaluation: EvaluationConfig, runs: Path
    ) -> Generator[Event, None, None]:
        queued = _queued(evaluation, runs)  # asked first: a job that ends meanwhile leaves a finished run
        jobs: dict[RunConfig, _Job] = {}
        rest: list[RunConfig] = []
        for config in configs:
            if path := evaluated(runs / config.name, evaluation):
                yield Event(config, config.iterations, path)
            elif config in queued:
                jobs[config] = queued[config]
            else:
                rest.append(config)
        if jobs:
            tqdm.write(f"{len(jobs)} runs are in the queue already", file=sys.stderr)
        try:
            for array, command in self._submissions(rest, evaluation, runs):
                array.write()
                number = _ask(*command).split(";")[0].strip()  # on a federation the cluster's name follows
                jobs |= {config: _Job(number, array, task) for task, config in enumerate(array.configs)}
                tqdm.write(f"job array {number}: {len(array.configs)} runs submitted", file=sys.stderr)
            yield from _watch(jobs, evaluation, runs)
        except (KeyboardInterrupt, GeneratorExit):
            numbers = " ".join(dict.fromkeys(job.id for job in jobs.values()))
            said = f"the jobs go on, and the same command attaches again; to cancel them: scancel {numbers}"
            print(said, file=sys.stderr)
            raise

    def plan(self, configs: Sequence[RunConfig], evaluation: EvaluationConfig, runs: Path) -> str:
        """What a call with the same arguments would submit: commands, runs and scripts. Changes nothing."""
        queued = _queued(evaluation, runs)
        unfinished = [config for config in configs if not evaluated(runs / config.name, evaluation)]
        rest = [config for config in unfinished if config not in queued]
        finished, waiting = len(configs) - len(unfinished), len(unfinished) - len(rest)
        lines = [f"{finished} runs are finished, {waiting} are in the queue, {len(rest)} would be submitted"]
        for array, command in self._submissions(rest, evaluation, runs):
            lines += ["", shlex.join(command), "", *(f"{i:4d}  {c.name}" for i, c in enumerate(array.configs))]
            lines += ["", array.script]
        return "\n".join(lines)

    def _submissions(
        self, configs: list[RunConfig], evaluation: EvaluationConfig, runs: Path
    ) -> list[tuple[Array, list[str]]]:
        """Arrays as long as this cluster allows, and the commands that submit them."""
        if not configs:
            return []
        longest = _longest_array()
        parts = [tuple(configs[i : i + longest]) for i in range(0, len(configs), longest)]
        arrays = [Array(str(runs.absolute()), evaluation, part) for part in parts]
        at_once = max(1, (self.workers or len(configs)) // len(arrays))
        return [(array, array.command(shlex.split(self.options), at_once)) for array in arrays]


def _ask(*command: str) -> str:
    """What a command of Slurm prints; its complaint as SlurmError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SlurmError(done.stderr.strip() or f"{command[0]} ended with status {done.returncode}")
    return done.stdout


def _longest_array() -> int:
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else 1001  # Slurm's own default


def _live() -> dict[tuple[str, int], str]:
    """(job name, task) -> number of the array, of all jobs of this user that wait, run, or are being requeued."""
    lines = _ask("squeue", "--me", "--noheader", "--array", "--format=%K %F %j").splitlines()
    fields = [line.split(" ", 2) for line in lines]
    return {(name, int(task)): number for task, number, name in fields if task.isdigit()}  # N/A: not of an array


def _queued(evaluation: EvaluationConfig, runs: Path) -> dict[RunConfig, _Job]:
    """The jobs of an earlier call, or of another's slice, that train runs of this folder for this evaluation."""
    live = _live()
    files = [runs / "slurm" / f"{name}.json" for name in dict.fromkeys(name for name, _ in live)]
    arrays = {file.stem: Array.read(file) for file in files if file.exists()}
    return {
        arrays[name].configs[task]: _Job(number, arrays[name], task)
        for (name, task), number in live.items()
        if name in arrays and arrays[name].evaluation == evaluation
    }


def _watch(jobs: dict[RunConfig, _Job], evaluation: EvaluationConfig, runs: Path) -> Generator[Event, None, None]:
    """Tell how the runs of these jobs get on, and strike off those that are evaluated or lost, until none is left."""
    told: Counter[RunConfig] = Counter()
    gone: Counter[RunConfig] = Counter()
    submitted, lost = len(jobs), list[str]()
    while jobs:
        live = _live_or_all(jobs)
        for config, job in list(jobs.items()):
            if (new := logged_step(runs / config.name) - told[config]) > 0:
                told[config] += new
                yield Event(config, new)
            if (job.array.name, job.task) in live:
                gone[config] = 0
            elif path := evaluated(runs / config.name, evaluation):
                del jobs[config]
                yield Event(config, config.iterations - told[config], path)
            elif gone[config] < _PATIENCE:
                gone[config] += 1
            else:
                del jobs[config]
                lost.append(job.last_words())
                tqdm.write(f"lost: {lost[-1]}", file=sys.stderr)
        if jobs:
            time.sleep(_POLL_S)
    if lost:
        words = "\n  ".join(lost)
        raise RunsLost(f"{len(lost)} of {submitted} jobs were lost; the same command submits them again\n  {words}")


def _live_or_all(jobs: dict[RunConfig, _Job]) -> set[tuple[str, int]]:
    """The jobs that are alive; all of these while Slurm does not answer, as when its controller is started again."""
    try:
        return set(_live())
    except SlurmError as error:
        tqdm.write(f"warning: {error}; asking again", file=sys.stderr)
        return {(job.array.name, job.task) for job in jobs.values()}
