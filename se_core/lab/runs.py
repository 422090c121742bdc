"""The folder of one run: what it was made from, its checkpoints, its metrics, and whether it is finished.

A run's folder is named by a hash of its configuration. It holds `config.json`, `data.json` (the SHA-256 of the data it
is trained on, the shape of an image, and how many labels there are), `metrics.jsonl`, the last two checkpoints, and,
once finished, `model.safetensors` and `finished.json`.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se_core.datasets import DataError, Images, Split, load
from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.lab.config import RunConfig
from se_core.lab.storage import (
    CheckpointError,
    StorageError,
    checksum_file,
    exclusive,
    provenance,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
)
from se_core.networks import VAE, build_vae


class Run:
    """One run in its folder: where training left off, and what it has written."""

    def __init__(self, config: RunConfig, folder: Path, data_sha256: str) -> None:
        self.config, self.folder, self.data_sha256 = config, folder, data_sha256
        self.saved_step = 0
        self.started, self.earlier_s = time.monotonic(), 0.0
        self.provenance = provenance(config.device)  # now: what cannot be told must not be noticed after the work

    def is_finished(self) -> bool:
        """Whether the run is marked as finished and its model is sound; a damaged one is named."""
        if not (self.folder / "finished.json").exists():
            return False
        try:
            read_json(self.folder / "finished.json")
            read_tensors(self.folder / "model.safetensors")
        except CheckpointError as error:
            print(f"warning: {error}. That is done now", flush=True)
            return False
        return True

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def resume(self) -> dict[str, Tensor]:
        """The tensors of the newest sound checkpoint, or none; `saved_step` says of which step.

        Damaged ones are named, never loaded. Rows of metrics that training will write again are dropped.
        """
        damaged: list[str] = []
        tensors: dict[str, Tensor] = {}
        for path in reversed(self.checkpoints()):
            try:
                tensors = read_tensors(path)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            self.saved_step = int(path.stem.removeprefix("checkpoint-"))
            self.earlier_s = float(tensors.pop("wall_s"))
            break
        for message in damaged:
            print(f"warning: {message}; going on from step {self.saved_step}", flush=True)
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_text(errors="replace").splitlines() if metrics.exists() else []
        valid = [line for line in lines if 0 < _logged_step(line) <= self.saved_step]
        write_atomically(metrics, "".join(line + "\n" for line in valid).encode())
        return tensors

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write the checkpoint of `step`, and remove all but the last two."""
        wall_s = torch.tensor(self.wall_s(), dtype=torch.float64)
        try:
            write_tensors(self.folder / f"checkpoint-{step:09d}.safetensors", tensors | {"wall_s": wall_s})
        except StorageError as error:
            raise StorageError(f"{error}; training continues from step {self.saved_step}") from error
        self.saved_step = step
        self._remove(self.checkpoints()[:-2])

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append a row to the metrics."""
        try:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self.folder}/metrics.jsonl: {error.strerror}; "
                f"training continues from step {self.saved_step} when the same command is run again"
            ) from error

    def wall_s(self) -> float:
        """Seconds spent on the run, in all sessions."""
        return self.earlier_s + time.monotonic() - self.started

    def finish(self, model: dict[str, Tensor]) -> None:
        """Write the trained model, mark the run as finished, and remove its checkpoints."""
        write_tensors(self.folder / "model.safetensors", model)
        record = {
            "iterations": self.config.iterations,
            "wall_s": round(self.wall_s(), 3),
            "data_sha256": self.data_sha256,
            "provenance": self.provenance,
        }
        write_json(self.folder / "finished.json", record)
        self._remove(self.checkpoints())

    def _remove(self, checkpoints: list[Path]) -> None:
        for path in checkpoints:
            path.unlink()
            checksum_file(path).unlink(missing_ok=True)


@contextmanager
def opened(config: RunConfig, runs: Path, data: Images) -> Iterator[Run]:
    """The run of `config` on the training images `data`, in its folder under `runs`, for this process alone.

    Raises StorageError where it cannot be written or another process holds it, DataError where the run was begun on
    other data.
    """
    run = Run(config, runs / config.name, data.sha256)
    with exclusive(run.folder):
        check_data(run.folder, data.sha256)
        if not (run.folder / "finished.json").exists():
            write_json(run.folder / "config.json", asdict(config))
            write_json(run.folder / "data.json", {"train": data.sha256, "shape": data.shape, "tasks": data.tasks})
        yield run


def check_data(folder: Path, data_sha256: str) -> None:
    """Refuse, with a DataError, data that are not those the run in `folder` was trained on.

    A run that does not say on which data it was trained, made by version 0.1.0, is taken at its word.
    """
    if not (folder / "data.json").exists():
        return
    try:
        recorded = read_json(folder / "data.json")["train"]
    except (CheckpointError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/data.json is damaged: {error}; delete {folder} and train again") from error
    if recorded != data_sha256:
        raise DataError(
            f"the data have changed since {folder} was trained: their SHA-256 was {recorded} and is {data_sha256}; "
            "bring the old data back, or train on the new in another folder of runs"
        )


def load_run(folder: Path) -> tuple[RunConfig, VAE]:
    """The configuration and the trained networks (on the CPU) of a finished run. Raises CheckpointError."""
    folder = Path(folder).expanduser()
    if not (folder / "finished.json").exists():
        raise CheckpointError(f"{folder} holds no finished run; train it first (se-core train)")
    try:
        config = RunConfig(**(read_json(folder / "config.json") | {"device": "cpu"}))
    except (CheckpointError, InvalidValueError, InvalidTypeError, TypeError) as error:
        raise CheckpointError(f"{folder}/config.json is damaged: {error}; delete {folder} and train again") from error
    tensors = read_tensors(folder / "model.safetensors")
    vae = networks(config, *_made_for(folder, config))
    vae.load_state_dict(tensors)
    return config, vae.eval()


def _made_for(folder: Path, config: RunConfig) -> tuple[tuple[int, int, int], int]:
    """The shape of an image, and the number of labels, of a run that has them on record; else those of digits."""
    record = read_json(folder / "data.json") if config.dataset == "images" else {}
    try:
        channels, height, width = map(int, record.get("shape", config.shape))
        return (channels, height, width), record.get("tasks", {}).get("label", 10)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}/data.json is damaged: {error}; delete {folder} and train again") from error


def images(config: RunConfig, split: Split) -> Images:
    """The images of a run, on its device: "train", "validation", which neither encoder nor probe is ever trained on, or
    "test". Of digits, the validation images are the last sixth of those for training. Raises DataError."""
    return read(config, split).to(config.device)


def read(config: RunConfig, split: Split) -> Images:
    """`images`, on the CPU."""
    if config.dataset == "images":
        return load("images", split, config.source, image_size=config.image_size, skip_damaged=config.skip_damaged)
    if split == "test":
        return load(config.dataset, "test", config.source, "random", config.seed)
    colouring = config.colouring if split == "train" else "random"
    data = load(config.dataset, "train", config.source, colouring, config.seed)
    digits = len(data.pixels)
    cut = (digits - digits // 6) * (len(data) // digits)  # all colours of a digit stand together
    return data.subset(0, cut) if split == "train" else data.subset(cut, len(data))


def networks(config: RunConfig, shape: tuple[int, int, int] | None = None, classes: int = 10) -> VAE:
    """The networks of a run before its first step, on the CPU; a classifier's head is in the place of the decoder.

    shape: of an image, (C, S, S), by default a digit's; classes: that a classifier tells apart.
    """
    channels, side, _ = shape or config.shape
    vae = build_vae(
        config.architecture,
        channels,
        config.latent_dim,
        config.covariance,
        config.initialisation,
        config.seed,
        config.scale,
        side,
    )
    if config.method == "classifier":
        vae.decoder = nn.utils.skip_init(nn.Linear, config.latent_dim, classes)
        for parameter in vae.decoder.parameters():
            nn.init.zeros_(parameter)
    return vae


def milestones(folder: Path) -> list[dict[str, Any]]:
    """The rows that `judge_on_the_way` left in a run's metrics, with their steps."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{"step": row["step"]} | row["validation"] for row in rows if "validation" in row]


def logged_step(folder: Path) -> int:
    """The step of the last row of a run's metrics, read from the end of the file; 0 where there is none."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    return next(filter(None, map(_logged_step, reversed(lines))), 0)


def _logged_step(line: str) -> int:
    """The step of a row of metrics.jsonl; 0 for a row that is damaged or cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
