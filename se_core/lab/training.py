"""The training loop of section 6: a killed run resumes bit for bit.

Each random number comes from a generator derived from (seed, step), so that nothing but the checkpoint is needed to go
on. `se_core.lab.runs` says what a run's folder holds.
"""

import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from se_core.datasets import Images
from se_core.errors import InvalidValueError, SmoothEncoderError
from se_core.lab.captured import CapturedStep
from se_core.lab.config import RunConfig, usable_device
from se_core.lab.runs import Run, images, networks, opened
from se_core.lab.steps import (
    derived_generator,
    derived_seed,
    learning_rate,
    make_optimiser,
    set_learning_rate,
    training_step,
)
from se_core.memory import SelectionMemory
from se_core.networks import VAE
from se_core.objectives import ElboTerms

LOG_EVERY = 50
MILESTONES = frozenset(digit * 10**power for power in range(2, 7) for digit in (1, 2, 5))


class TrainingDiverged(SmoothEncoderError):
    """A term of the bound, or a parameter, is no longer finite. The last good checkpoint is kept."""


class Interrupted(Exception):
    """Ctrl-C: the run stopped cleanly after a checkpoint."""


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    config: RunConfig,
    runs: Path,
    checkpoint_every: int = 500,
    progress: Callable[[int], Any] = lambda steps: None,
    judge: Callable[[VAE], dict[str, Any]] | None = None,
) -> Path:
    """Train one run in a folder of its own under `runs`; returns that folder.

    A finished run is returned as it is, or trained again if it is damaged; an unfinished one goes on from its newest
    sound checkpoint and ends with bitwise the parameters of an uninterrupted run. progress: called with the number of
    steps just completed. judge: what to log of the networks at 100, 200, 500, 1000, ... steps and at the end; it must
    leave them as they are, and gets them in evaluation mode. Raises InvalidValueError, DataError (also where the data
    have changed since the run was begun), StorageError, TrainingDiverged, Interrupted.
    """
    if checkpoint_every < 1:
        raise InvalidValueError(f"checkpoint_every={checkpoint_every} must be at least 1")
    device = usable_device(config.device)
    data = images(config, "train")
    batches, vae = Batches(len(data), config.batch_size, config.seed, device), _untrained(config, data)
    with opened(config, Path(runs).expanduser(), data) as run:
        if run.is_finished():
            return run.folder
        vae, memory = vae.to(device), _memory(config, data)
        optimiser = make_optimiser(config, vae)
        _restore(run.resume(), vae, optimiser, memory)
        take_step = _step(config, data, vae, optimiser, memory)
        history = _History(run)
        progress(run.saved_step)
        with _StopRequest() as stop:
            for step in range(run.saved_step + 1, config.iterations + 1):
                set_learning_rate(optimiser, learning_rate(config, step))
                history.add(take_step(batches[step - 1], derived_seed(config.seed, "step", step)))
                stopping = stop.asked  # once: a wish that comes later is granted after the next step, and saved
                saving = step % checkpoint_every == 0 or stopping
                if step % LOG_EVERY == 0 or saving or step == config.iterations:
                    history.check(step, vae)
                history.judge(step, judge, vae)
                if saving:
                    run.save(step, _state(vae, optimiser, memory))
                progress(1)
                if stopping:
                    raise Interrupted(f"stopped after step {step} of {config.iterations}; the same command resumes it")
        run.finish(vae.state_dict())
    return run.folder


class Batches:
    """Batches of indices: an epoch is a permutation drawn from (seed, epoch), so that any step can be recomputed."""

    def __init__(self, n: int, batch_size: int, seed: int, device: torch.device) -> None:
        if batch_size > n:
            raise InvalidValueError(f"batch_size={batch_size} exceeds the {n} training images; choose at most {n}")
        self.n, self.batch_size, self.seed, self.device = n, batch_size, seed, device
        self.epoch = -1

    def __getitem__(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.n // self.batch_size)
        if epoch != self.epoch:
            generator = derived_generator(self.device, self.seed, "epoch", epoch)
            self.order = torch.randperm(self.n, generator=generator, device=self.device)
            self.epoch = epoch
        return self.order[position * self.batch_size : (position + 1) * self.batch_size]


def _step(
    config: RunConfig, data: Images, vae: VAE, optimiser: torch.optim.Optimizer, memory: SelectionMemory | None
) -> Callable[[Tensor, int], Tensor]:
    """(indices of a batch, seed) -> the terms of the bound, after a step on it; on a GPU it is captured."""
    device = data.pixels.device
    labels = _labels(config, data) if config.method == "classifier" else None

    def step(index: Tensor, generator: torch.Generator) -> Tensor:
        remembered = memory[index] if memory else None
        told = None if labels is None else labels[index]
        return training_step(config, vae, optimiser, data.images(index), generator, remembered, told)

    if device.type == "cuda" and config.covariance == "diagonal":  # what the full ones factorise is waited for
        return CapturedStep(step, config.batch_size, device)
    generator = torch.Generator(device)
    return lambda index, seed: step(index, generator.manual_seed(seed))


def _untrained(config: RunConfig, data: Images) -> VAE:
    """Networks made for the images; InvalidValueError where a classifier would be told nothing of them."""
    if config.method == "classifier":
        _labels(config, data)
    return networks(config, data.shape, data.tasks.get("label", 10))


def _labels(config: RunConfig, data: Images) -> Tensor:
    """What a classifier is told of the images."""
    return data.labels("label" if config.dataset == "images" else "digit")


def _memory(config: RunConfig, data: Images) -> SelectionMemory | None:
    if not config.memory:
        return None
    device = data.pixels.device
    generator = derived_generator(device, config.seed, "memory")
    return SelectionMemory(len(data), data.shape, config.radius, device, generator)


def _state(vae: VAE, optimiser: torch.optim.Optimizer, memory: SelectionMemory | None) -> dict[str, Tensor]:
    """What a checkpoint holds: the networks, the optimiser's state of each parameter by its number, the memory."""
    tensors = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    for index, parameter in enumerate(vae.parameters()):
        tensors |= {f"optimiser.{index}.{name}": value for name, value in optimiser.state[parameter].items()}
    if memory:
        tensors |= {f"memory.{name}": tensor for name, tensor in memory.state_dict().items()}
    return tensors


def _restore(
    tensors: dict[str, Tensor], vae: VAE, optimiser: torch.optim.Optimizer, memory: SelectionMemory | None
) -> None:
    """The reverse of `_state`; nothing where there is no checkpoint."""
    if not tensors:
        return
    vae.load_state_dict({k.removeprefix("vae."): v for k, v in tensors.items() if k.startswith("vae.")})
    if memory:
        memory.load_state_dict({k.removeprefix("memory."): v for k, v in tensors.items() if k.startswith("memory.")})
    for index, parameter in enumerate(vae.parameters()):
        prefix = f"optimiser.{index}."
        optimiser.state[parameter] = {
            k.removeprefix(prefix): v.to(parameter.device) for k, v in tensors.items() if k.startswith(prefix)
        }


class _History:
    """The terms of the bound since they were last looked at; they stay on the device, so that no step waits."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.terms: list[Tensor] = []

    def add(self, terms: Tensor) -> None:
        self.terms.append(terms)

    def check(self, step: int, vae: VAE) -> None:
        """Log the last row at every LOG_EVERY steps; TrainingDiverged names the first term that is not finite."""
        rows = torch.stack(self.terms).tolist()
        for at, row in enumerate(rows, step - len(rows) + 1):
            for name, value in zip(ElboTerms._fields, row, strict=True):
                if not math.isfinite(value):
                    raise TrainingDiverged(self._explain(at, f"the term {name}={value} is not finite"))
        if not all(bool(p.isfinite().all()) for p in vae.parameters()):
            raise TrainingDiverged(self._explain(step, "a parameter of the networks is not finite"))
        if step % LOG_EVERY == 0:
            value, *costs = rows[-1]
            self.run.log(step, {"bound": value - sum(costs)} | dict(zip(ElboTerms._fields, rows[-1], strict=True)))
        self.terms.clear()

    def judge(self, step: int, judge: Callable[[VAE], dict[str, Any]] | None, vae: VAE) -> None:
        """Log what the judge finds; before the checkpoint of this step, for a row beyond one is written again."""
        if judge and (step in MILESTONES or step == self.run.config.iterations):
            self.run.log(step, judge(vae.eval()))
            vae.train()

    def _explain(self, step: int, what: str) -> str:
        saved, config = self.run.saved_step, self.run.config
        left = f"the last good checkpoint, step {saved}, is kept" if saved else "nothing was saved"
        return (
            f"step {step}: {what}; {left} in {self.run.folder}; lower learning_rate={config.learning_rate} or raise "
            f"noise_variance={config.noise_variance}"
        )


class _StopRequest:
    """Ctrl-C asks for a stop after the current step instead of breaking it in two."""

    asked = False

    def __enter__(self) -> "_StopRequest":
        # Signal handlers belong to the main thread; elsewhere (a notebook's helper thread) Ctrl-C is not ours to take.
        self.owns_signal = threading.current_thread() is threading.main_thread()
        if self.owns_signal:
            self.previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *exception: object) -> None:
        if self.owns_signal:
            signal.signal(signal.SIGINT, self.previous)
