"""The training loop of section 6: one run is one folder, and a killed run resumes bit for bit.

A run's folder is named by a hash of its configuration and holds `config.json`, `metrics.jsonl`, the last two
checkpoints, and, once finished, `model.safetensors` and `finished.json`. Each random number comes from a generator
derived from (seed, step), so that nothing but the checkpoint is needed to go on.
"""

import hashlib
import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from se_core.attacks import fictive_sample
from se_core.datasets import load
from se_core.lab.storage import (
    CheckpointError,
    StorageError,
    checksum_file,
    declare_types,
    digest,
    exclusive,
    provenance,
    read_json,
    read_tensors,
    write_atomically,
    write_tensors,
)
from se_core.networks import ARCHITECTURES, COVARIANCES, INITIALISATIONS, VAE, build_vae
from se_core.objectives import ElboTerms, elbo, se_elbo
from se_core.transport import entropic_cost, w2_squared

LOG_EVERY = 50

_CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": ("mnist", "colour-mnist"),
    "colouring": ("random", "all"),
    "architecture": ARCHITECTURES,
    "covariance": COVARIANCES,
    "initialisation": INITIALISATIONS,
    "method": ("vae", "se"),
    "divergence": ("w2_squared", "entropic_cost"),
    "optimiser": ("adam", "sgd"),
    "attack_dtype": ("float32", "bfloat16"),
}


class TrainingDiverged(Exception):
    """A term of the bound, or a parameter, is no longer finite. The last good checkpoint is kept."""


class Interrupted(Exception):
    """Ctrl-C: the run stopped cleanly after a checkpoint."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of a run.

    Args:
        dataset: "mnist" or "colour-mnist".
        source: "bundled", or a folder as in `se_core.datasets.load`.
        colouring: for colour MNIST, one "random" colour per digit or each digit in "all" seven.
        architecture: "mlp" (4 x 200 ReLU) or "conv".
        latent_dim: dimension D_z of the representation.
        covariance: of q(Z | X), "diagonal" as in section 6, or "full".
        initialisation: "variance-preserving" or "pytorch".
        method: "vae" (the ELBO) or "se" (the SE-ELBO).
        gamma: coupling strength, >= 0.
        radius: selection radius epsilon in pixels scaled to [0, 1].
        attack_steps: budget L of the selection mechanism.
        divergence: what the selection maximises, "w2_squared" or "entropic_cost".
        noise_variance: observation variance v > 0.
        iterations: number of training steps.
        batch_size: images per step.
        optimiser: "adam", or "sgd" with momentum 0.9.
        learning_rate: step size of the optimiser.
        seed: of initialisation, batches, colours and noise.
        device: "cpu", "cuda" or "cuda:N".
        attack_dtype: precision of the selection's gradients, "float32" or "bfloat16".
        compile: run the selection under torch.compile.
    """

    dataset: str = "mnist"
    source: str = "bundled"
    colouring: str = "random"
    architecture: str = "mlp"
    latent_dim: int = 64
    covariance: str = "diagonal"
    initialisation: str = "variance-preserving"
    method: str = "se"
    gamma: float = 1.0
    radius: float = 0.2
    attack_steps: int = 20
    divergence: str = "w2_squared"
    noise_variance: float = 0.1
    iterations: int = 10_000
    batch_size: int = 64
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    attack_dtype: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        declare_types(self)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}")
        for name in ("latent_dim", "attack_steps", "iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("gamma", "radius"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number >= 0")
        for name in ("noise_variance", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number > 0")
        if self.covariance == "full" and (self.compile or self.attack_dtype != "float32"):
            raise ValueError("covariance='full' has no compiled and no bfloat16 attack; leave compile and attack_dtype")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device={self.device!r} is unknown; choose cpu, cuda or cuda:N")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must fit into 64 bits")

    @property
    def name(self) -> str:
        """The name of the run's folder: what it is, and a hash of all of the above."""
        return f"{self.dataset}-{self.architecture}-{self.method}-{digest(self)}"


def usable_device(name: str) -> torch.device:
    """The device of this name; ValueError where this machine has none."""
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r}: this torch ({torch.__version__}) finds no such GPU; use device='cpu'")
    return device


def derived_generator(device: str | torch.device, *key: float | str) -> torch.Generator:
    """A generator on `device` whose stream depends on `key` (a seed, a step, a purpose) and on nothing else."""
    # On the CPU a generator takes the low 32 bits of its seed, and ignores the rest without a word.
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")
    return torch.Generator(device).manual_seed(seed)


def _networks(config: RunConfig, channels: int) -> VAE:
    return build_vae(
        config.architecture, channels, config.latent_dim, config.covariance, config.initialisation, config.seed
    )


def make_optimiser(config: RunConfig, vae: VAE) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9; the fused kernels, which change nothing but the speed."""
    if config.optimiser == "adam":
        return torch.optim.Adam(vae.parameters(), config.learning_rate, fused=True)
    return torch.optim.SGD(vae.parameters(), config.learning_rate, momentum=0.9, fused=True)


def bound(config: RunConfig, vae: VAE, x: Tensor, generator: torch.Generator) -> ElboTerms:
    """The objective of `config.method` on a batch x (B, C, 28, 28), fictive samples included."""
    q_a = vae.encode(x)
    if config.method == "vae":
        return elbo(x, q_a, vae.decode, config.noise_variance, generator)
    # The cost's gamma is that of the bound; W_2^2 has none.
    divergence = w2_squared if config.divergence == "w2_squared" else _entropic_cost_at(config.gamma)
    x_prime = fictive_sample(
        vae.encoder,
        x,
        config.radius,
        config.attack_steps,
        divergence,
        q_x=q_a,
        attack_dtype=torch.bfloat16 if config.attack_dtype == "bfloat16" else None,
        generator=generator,
        compiled=config.compile,
    )
    return se_elbo(x, q_a, vae.encode(x_prime), vae.decode, config.noise_variance, config.gamma, generator)


def _entropic_cost_at(gamma: float) -> Callable[..., Tensor]:
    return lambda a, b: entropic_cost(a, b, gamma)


def training_step(
    config: RunConfig, vae: VAE, optimiser: torch.optim.Optimizer, x: Tensor, generator: torch.Generator
) -> Tensor:
    """One step of the optimiser; returns the batch means of the terms of the bound, (5,), nats per example."""
    terms = bound(config, vae, x, generator)
    optimiser.zero_grad(set_to_none=True)
    (-terms.value.mean()).backward()
    optimiser.step()
    return torch.stack([term.detach().mean() for term in terms])


class _Batches:
    """Batches of indices: an epoch is a permutation drawn from (seed, epoch), so that any step can be recomputed."""

    def __init__(self, n: int, batch_size: int, seed: int, device: torch.device) -> None:
        if batch_size > n:
            raise ValueError(f"batch_size={batch_size} exceeds the {n} training images; choose at most {n}")
        self.n, self.batch_size, self.seed, self.device = n, batch_size, seed, device
        self.epoch = -1

    def __getitem__(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.n // self.batch_size)
        if epoch != self.epoch:
            generator = derived_generator(self.device, self.seed, "epoch", epoch)
            self.order = torch.randperm(self.n, generator=generator, device=self.device)
            self.epoch = epoch
        return self.order[position * self.batch_size : (position + 1) * self.batch_size]


class _StopRequest:
    """Ctrl-C asks for a stop after the current step instead of breaking it in two."""

    def __init__(self) -> None:
        self.asked = False

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


def _logged_step(line: str) -> int:
    """The step of a row of metrics.jsonl; 0 for a row that is damaged or cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0


class _Run:
    """The folder of one run: where training left off, and what it has written."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.saved_step = 0
        self.started, self.earlier_s = time.monotonic(), 0.0

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def resume(self, vae: VAE, optimiser: torch.optim.Optimizer) -> int:
        """Load the newest sound checkpoint; the step it was taken at, or 0. Damaged ones are named, never loaded."""
        damaged: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                tensors = read_tensors(path)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            vae.load_state_dict({k.removeprefix("vae."): v for k, v in tensors.items() if k.startswith("vae.")})
            for index, parameter in enumerate(vae.parameters()):
                prefix = f"optimiser.{index}."
                optimiser.state[parameter] = {
                    k.removeprefix(prefix): v.to(parameter.device) for k, v in tensors.items() if k.startswith(prefix)
                }
            self.saved_step = int(path.stem.removeprefix("checkpoint-"))
            self.earlier_s = float(tensors["wall_s"])
            break
        for message in damaged:
            print(f"warning: {message}; going on from step {self.saved_step}", flush=True)
        self._trim_metrics()
        return self.saved_step

    def _trim_metrics(self) -> None:
        """Drop the rows that training will write again, and a last one cut short."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        kept = [line for line in lines if 0 < _logged_step(line) <= self.saved_step]
        write_atomically(path, "".join(line + "\n" for line in kept).encode())

    def refuse_infinite(self, step: int, vae: VAE) -> None:
        if not all(bool(p.isfinite().all()) for p in vae.parameters()):
            raise TrainingDiverged(self.diverged(step, "a parameter of the networks is not finite"))

    def save(self, step: int, vae: VAE, optimiser: torch.optim.Optimizer) -> None:
        self.refuse_infinite(step, vae)
        parameters = list(vae.parameters())
        tensors = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
        tensors["wall_s"] = torch.tensor(self.wall_s(), dtype=torch.float64)
        for index, parameter in enumerate(parameters):
            for name, value in optimiser.state[parameter].items():
                tensors[f"optimiser.{index}.{name}"] = value
        try:
            write_tensors(self.folder / f"checkpoint-{step:09d}.safetensors", tensors)
        except StorageError as error:
            raise StorageError(f"{error}; training continues from step {self.saved_step}") from error
        self.saved_step = step
        for old in self.checkpoints()[:-2]:
            old.unlink()
            checksum_file(old).unlink(missing_ok=True)

    def check(self, first_step: int, history: list[Tensor]) -> list[list[float]]:
        """The history of terms on the host; TrainingDiverged names the first step and term that is not finite."""
        rows = torch.stack(history).tolist() if history else []
        for step, row in enumerate(rows, first_step):
            for term, value in zip(ElboTerms._fields, row, strict=True):
                if not math.isfinite(value):
                    raise TrainingDiverged(self.diverged(step, f"the term {term}={value} is not finite"))
        return rows

    def diverged(self, step: int, what: str) -> str:
        kept = f"the last good checkpoint, step {self.saved_step}, is kept" if self.saved_step else "nothing was saved"
        return (
            f"step {step}: {what}; {kept} in {self.folder}; lower learning_rate={self.config.learning_rate} or raise "
            f"noise_variance={self.config.noise_variance}"
        )

    def log(self, step: int, row: list[float]) -> None:
        values = dict(zip(ElboTerms._fields, row, strict=True))
        record = {"step": step, "bound": row[0] - sum(row[1:]), **values}
        try:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self.folder}/metrics.jsonl: {error.strerror}; "
                f"training continues from step {self.saved_step} when the same command is run again"
            ) from error

    def wall_s(self) -> float:
        """Seconds spent on the run, in all sessions."""
        return self.earlier_s + time.monotonic() - self.started

    def finish(self, vae: VAE) -> None:
        self.refuse_infinite(self.config.iterations, vae)
        write_tensors(self.folder / "model.safetensors", vae.state_dict())
        record = {
            "iterations": self.config.iterations,
            "wall_s": round(self.wall_s(), 3),
            "provenance": provenance(self.config.device),
        }
        write_atomically(self.folder / "finished.json", json.dumps(record, indent=1).encode())
        for path in self.checkpoints():
            path.unlink()
            checksum_file(path).unlink(missing_ok=True)


def train(
    config: RunConfig,
    runs: Path,
    checkpoint_every: int = 500,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Train one run in a folder of its own under `runs`; returns that folder.

    A finished run is returned as it is, or trained again if it is damaged; an unfinished one goes on from its newest
    sound checkpoint and ends with bitwise the parameters of an uninterrupted run. progress: called with the number of
    steps just completed. Raises ValueError, DataError, StorageError, TrainingDiverged, Interrupted.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every} must be at least 1")
    device = usable_device(config.device)
    folder = Path(runs) / config.name
    with exclusive(folder):
        if _is_finished(folder):
            return folder
        data = load(config.dataset, "train", config.source, config.colouring, config.seed).to(device)
        vae = _networks(config, data.channels).to(device)
        optimiser = make_optimiser(config, vae)
        batches = _Batches(len(data), config.batch_size, config.seed, device)
        write_atomically(folder / "config.json", json.dumps(asdict(config), indent=1).encode())

        run = _Run(config, folder)
        done = run.resume(vae, optimiser)
        if progress and done:
            progress(done)
        history: list[Tensor] = []
        with _StopRequest() as stop:
            for step in range(done + 1, config.iterations + 1):
                generator = derived_generator(device, config.seed, "step", step)
                x = data.images(batches[step - 1])
                try:
                    history.append(training_step(config, vae, optimiser, x, generator))
                except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # of what is not finite
                    raise TrainingDiverged(run.diverged(step, f"the plan cannot be computed ({error})")) from error
                stopping = stop.asked  # asked once: a wish that comes later is granted after the next step, and saved
                logs, saves = step % LOG_EVERY == 0, step % checkpoint_every == 0 or stopping
                if logs or saves or step == config.iterations:
                    rows = run.check(step - len(history) + 1, history)
                    history.clear()
                    if logs:
                        run.log(step, rows[-1])
                if saves:
                    run.save(step, vae, optimiser)
                if progress:
                    progress(1)
                if stopping:
                    raise Interrupted(f"stopped after step {step} of {config.iterations}; the same command resumes it")
            run.finish(vae)
    return folder


def _is_finished(folder: Path) -> bool:
    """Whether the run is marked as finished and its model is sound."""
    if not (folder / "finished.json").exists():
        return False
    try:
        read_json(folder / "finished.json")
        read_tensors(folder / "model.safetensors")
    except CheckpointError as error:
        print(f"warning: {error}. That is done now", flush=True)
        return False
    return True


def load_run(folder: Path) -> tuple[RunConfig, VAE]:
    """The configuration and the trained networks (on the CPU) of a finished run. Raises CheckpointError."""
    folder = Path(folder)
    if not (folder / "finished.json").exists():
        raise CheckpointError(f"{folder} holds no finished run; train it first (se-core train)")
    try:
        config = RunConfig(**(read_json(folder / "config.json") | {"device": "cpu"}))
    except (CheckpointError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}/config.json is damaged: {error}; delete {folder} and train again") from error
    tensors = read_tensors(folder / "model.safetensors")
    channels = 1 if config.dataset == "mnist" else 3
    vae = _networks(config, channels)
    vae.load_state_dict(tensors)
    return config, vae.eval()
