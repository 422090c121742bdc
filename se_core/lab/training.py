"""The training loop of section 6: a killed run resumes bit for bit.

Each random number comes from a generator derived from (seed, step), so that nothing but the checkpoint is needed to go
on. `se_core.lab.runs` says what a run's folder holds.
"""

import hashlib
import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from se_core.attacks import fictive_sample
from se_core.errors import InvalidValueError, SmoothEncoderError
from se_core.lab.config import RunConfig, usable_device
from se_core.lab.runs import Run, images, networks, opened
from se_core.memory import Remembered, SelectionMemory
from se_core.networks import VAE
from se_core.objectives import ElboTerms, autoencoding_elbo, elbo, paired_correlation, se_elbo
from se_core.transport import entropic_cost, w2_squared

LOG_EVERY = 50


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
) -> Path:
    """Train one run in a folder of its own under `runs`; returns that folder.

    A finished run is returned as it is, or trained again if it is damaged; an unfinished one goes on from its newest
    sound checkpoint and ends with bitwise the parameters of an uninterrupted run. progress: called with the number of
    steps just completed. Raises InvalidValueError, DataError (also where the data have changed since the run was
    begun), StorageError, TrainingDiverged, Interrupted.
    """
    if checkpoint_every < 1:
        raise InvalidValueError(f"checkpoint_every={checkpoint_every} must be at least 1")
    device = usable_device(config.device)
    data = images(config, "train")
    batches = Batches(len(data), config.batch_size, config.seed, device)
    with opened(config, Path(runs).expanduser(), data.sha256) as run:
        if run.is_finished():
            return run.folder
        vae = networks(config).to(device)
        optimiser = make_optimiser(config, vae)
        memory = SelectionMemory(len(data), data.shape, config.radius, device) if config.memory else None
        _restore(run.resume(), vae, optimiser, memory)
        progress(run.saved_step)
        history = _History(run)
        with _StopRequest() as stop:
            for step in range(run.saved_step + 1, config.iterations + 1):
                index = batches[step - 1]
                generator = derived_generator(device, config.seed, "step", step)
                optimiser.param_groups[0]["lr"] = learning_rate(config, step)
                remembered = memory[index] if memory else None
                history.add(training_step(config, vae, optimiser, data.images(index), generator, remembered))
                stopping = stop.asked  # once: a wish that comes later is granted after the next step, and saved
                saving = step % checkpoint_every == 0 or stopping
                if step % LOG_EVERY == 0 or saving or step == config.iterations:
                    history.check(step, vae)
                if saving:
                    run.save(step, _state(vae, optimiser, memory))
                progress(1)
                if stopping:
                    raise Interrupted(f"stopped after step {step} of {config.iterations}; the same command resumes it")
        run.finish(vae.state_dict())
    return run.folder


def training_step(
    config: RunConfig,
    vae: VAE,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    generator: torch.Generator,
    remembered: Remembered | None = None,
) -> Tensor:
    """One step of the optimiser; returns the batch means of the terms of the bound, (5,), nats per example."""
    terms = bound(config, vae, x, generator, remembered)
    optimiser.zero_grad(set_to_none=True)
    (-terms.value.mean()).backward()
    optimiser.step()
    return torch.stack([term.detach().mean() for term in terms])


def bound(
    config: RunConfig, vae: VAE, x: Tensor, generator: torch.Generator, remembered: Remembered | None = None
) -> ElboTerms:
    """The objective of `config.method` on a batch x (B, C, 28, 28), fictive samples included."""
    q_a, encode = vae.encode_around(x)
    if config.method == "vae":
        return elbo(x, q_a, vae.decode, config.noise_variance, generator)
    if config.method == "avae":
        rho = paired_correlation(config.gamma)
        return autoencoding_elbo(x, q_a, encode, vae.decode, config.noise_variance, rho, generator)
    x_prime = fictive_sample(
        encode,
        x,
        config.radius,
        config.attack_steps,
        _divergence(config),
        q_x=q_a,
        attack_dtype=torch.bfloat16 if config.attack_dtype == "bfloat16" else None,
        generator=generator,
        compiled=config.compile,
        memory=remembered,
    )
    prior: Any = config.prior
    return se_elbo(x, q_a, encode(x_prime), vae.decode, config.noise_variance, config.gamma, generator, prior=prior)


def _divergence(config: RunConfig) -> Callable[..., Tensor]:
    if config.divergence == "w2_squared":
        return w2_squared
    return lambda a, b: entropic_cost(a, b, config.gamma)  # the cost's gamma is that of the bound


def make_optimiser(config: RunConfig, vae: VAE) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9; the fused kernels, which change nothing but the speed."""
    if config.optimiser == "adam":
        return torch.optim.Adam(vae.parameters(), config.learning_rate, fused=True)
    return torch.optim.SGD(vae.parameters(), config.learning_rate, momentum=0.9, fused=True)


def learning_rate(config: RunConfig, step: int) -> float:
    """That of step 1, 2, ..., iterations."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (1 + math.cos(math.pi * (step - 1) / config.iterations)) / 2


def derived_generator(device: str | torch.device, *key: float | str) -> torch.Generator:
    """A generator on `device` whose stream depends on `key` (a seed, a step, a purpose) and on nothing else."""
    # On the CPU a generator takes the low 32 bits of its seed, and ignores the rest without a word.
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")
    return torch.Generator(device).manual_seed(seed)


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
