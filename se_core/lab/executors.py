"""Where independent runs run: so many at a time, in processes of this machine.

Each process is a fresh interpreter of one thread that reads runs from its standard input and answers on its standard
output. It shares nothing with the caller, whose environment, signals and main module are left alone; it ends when the
caller does, however that ends.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from se_core.errors import InvalidValueError, SmoothEncoderError
from se_core.lab.config import EvaluationConfig, RunConfig, usable_device
from se_core.lab.experiments import Event, train_and_evaluate
from se_core.lab.training import Interrupted

_READY, _STOP, _END = "ready", "stop", "end"
_REPORT_S = 0.2  # seconds between two reports of one run's steps


class WorkerKilled(SmoothEncoderError):
    """A worker process ended without an answer, as when the system runs out of memory."""


@dataclass(frozen=True)
class LocalProcesses:
    """An executor: processes of this machine, `workers` at a time, each of one thread.

    On few cores, several processes of one thread beat one process of several. Ctrl-C stops trainings at their next step
    and saves them, and sees evaluations through; a second one ends all at once. Raises InvalidValueError for fewer than
    one worker and for a device that is not there, WorkerKilled where a process ends by itself, and what a run raises.
    """

    workers: int

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InvalidValueError(f"workers={self.workers} must be at least 1")

    def __call__(
        self, configs: Sequence[RunConfig], evaluation: EvaluationConfig, runs: Path
    ) -> Generator[Event, None, None]:
        for device in {config.device for config in configs}:
            usable_device(device)
        jobs: queue.SimpleQueue[RunConfig] = queue.SimpleQueue()
        for config in configs:
            jobs.put(config)
        heard: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        team: list[_Worker] = []
        try:
            for _ in range(min(self.workers, len(configs))):
                team.append(_Worker(jobs, evaluation, runs, heard))
            finished = 0
            while finished < len(configs):
                message = _next(heard)
                if isinstance(message, BaseException):
                    raise message
                finished += message.evaluation is not None
                yield message
        except BaseException:
            print("stopping: training is saved, evaluations under way are finished; Ctrl-C again stops at once",
                  file=sys.stderr)  # fmt: skip
            for worker in team:
                worker.tell(_STOP)
            raise
        finally:
            try:
                for worker in team:
                    worker.end()
            except BaseException:
                for worker in team:
                    worker.process.kill()
                raise


def _next(heard: "queue.SimpleQueue[Event | BaseException]") -> Event | BaseException:
    while True:
        try:
            return heard.get(timeout=0.5)  # a wait without end would not notice Ctrl-C on Windows
        except queue.Empty:
            pass


class _Worker:
    """One process, and the thread that hands it runs and passes on what it says."""

    def __init__(
        self,
        jobs: "queue.SimpleQueue[RunConfig]",
        evaluation: EvaluationConfig,
        runs: Path,
        heard: "queue.SimpleQueue[Event | BaseException]",
    ) -> None:
        self.jobs, self.evaluation, self.runs, self.heard = jobs, evaluation, runs, heard
        self.stopping = False
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # wherever the caller finds the package
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from se_core.lab.executors import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | one_thread | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C in a terminal is for the caller, who tells
        )
        self.thread = threading.Thread(target=self._attend, daemon=True)
        self.thread.start()

    def tell(self, message: Any) -> None:
        self.stopping |= message == _STOP
        with suppress(OSError):  # it has ended; the thread that listens finds out why
            pickle.dump(message, self.process.stdin)  # type: ignore[arg-type]
            self.process.stdin.flush()  # type: ignore[union-attr]

    def end(self) -> None:
        """Wait until what it does is done."""
        self.tell(_END)
        self.thread.join()
        with suppress(OSError), self.process:
            pass  # waits for it, and closes its pipes, of which one may be broken

    def _attend(self) -> None:
        doing = "starting"
        try:
            self._hear()
            while not self.stopping:
                config = self.jobs.get_nowait()
                doing = f"working on {config.name}"
                self.tell((config, self.evaluation, self.runs))
                answer: Any = 0
                while isinstance(answer, int):
                    answer = self._hear()
                    self.heard.put(Event(config, answer) if isinstance(answer, int) else _outcome(config, answer))
        except queue.Empty:
            pass
        except EOFError:
            how = _death(self.process.wait())
            self.heard.put(WorkerKilled(f"a worker process {how} while {doing}; the same command continues"))

    def _hear(self) -> Any:
        return pickle.load(self.process.stdout)  # type: ignore[arg-type]


def _outcome(config: RunConfig, answer: Path | BaseException) -> Event | BaseException:
    return answer if isinstance(answer, BaseException) else Event(config, evaluation=answer)


def _death(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name} (too little memory?)"
    return f"ended with status {status} (its own words are above)"


def configure_process() -> None:
    """Settings for a process of our own, never for an importer's: one thread, and GPU kernels that repeat bit for bit.

    Several runs are several processes; on few cores, more threads in one process are slower than one.
    """
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True


def serve() -> None:
    """What a worker process does: train and evaluate the runs it is told, until it is told to end."""
    configure_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # `train` takes Ctrl-C while it runs; an evaluation is seen through
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not mix with the answers
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(told, stop), daemon=True).start()

    def say(message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    say(_READY)
    while (job := told.get()) != _END:
        if not stop.is_set():
            say(_attempt(job, _Progress(say, stop)))


def _listen(told: "queue.SimpleQueue[Any]", stop: threading.Event) -> None:
    message = None
    try:
        while message != _END:  # and no longer: a thread that still reads would disturb the end of the interpreter
            message = pickle.load(sys.stdin.buffer)
            if message == _STOP:
                stop.set()
            else:
                told.put(message)
    except EOFError:
        os._exit(1)  # a parent killed at any moment leaves nobody behind to write in its folder


def _attempt(job: tuple[RunConfig, EvaluationConfig, Path], progress: Callable[[int], None]) -> Path | BaseException:
    try:
        return train_and_evaluate(*job, progress)
    except (SmoothEncoderError, Interrupted) as explained:
        return explained
    except BaseException as error:
        traceback.print_exc()  # a traceback does not travel
        return RuntimeError(f"{job[0].name} failed with {type(error).__name__}: {error}; its traceback is above")


class _Progress:
    """Counts steps, reports them now and then, and turns the wish to stop into Ctrl-C."""

    def __init__(self, say: Callable[[int], None], stop: threading.Event) -> None:
        self.say, self.stop = say, stop
        self.steps, self.reported = 0, time.monotonic()

    def __call__(self, steps: int) -> None:
        self.steps += steps
        if self.stop.is_set():
            signal.raise_signal(signal.SIGINT)
        if time.monotonic() - self.reported > _REPORT_S:
            self.say(self.steps)
            self.steps, self.reported = 0, time.monotonic()
