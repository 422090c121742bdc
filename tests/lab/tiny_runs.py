"""What the tests of the laboratory do with runs: look at their outcome, stop them, reproduce a tiny Figure 1."""

import json
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from se_core.lab.config import RunConfig
from se_core.lab.training import Interrupted, train


def outcome(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.safetensors").read_bytes(), (folder / "metrics.jsonl").read_bytes()


def stop_at(step: int) -> Callable[[int], None]:
    """A progress callback that presses Ctrl-C after `step` steps of this call."""
    done = 0

    def progress(steps: int) -> None:
        nonlocal done
        done += steps
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return progress


def interrupted(config: RunConfig, runs: Path) -> Path:
    """A run stopped after step 40, with checkpoints at 20 and 40."""
    with pytest.raises(Interrupted):
        train(config, runs, checkpoint_every=20, progress=stop_at(39))
    folder = runs / config.name
    assert [p.stem for p in sorted(folder.glob("checkpoint-*.safetensors"))] == [
        "checkpoint-000000020",
        "checkpoint-000000040",
    ]
    return folder


def reproduce_command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "se_core.lab.cli", "reproduce", "--profile", "tiny", "--out", str(out), *more]


def results_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def write_digits(folder: Path, seed: int) -> None:
    """Twenty random digits of each split, as IDX files."""
    draw = np.random.default_rng(seed)
    for split in ("train", "t10k"):
        for name, values in (("images-idx3", draw.integers(0, 256, (20, 28, 28))), ("labels-idx1", np.arange(20) % 10)):
            header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{split}-{name}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
