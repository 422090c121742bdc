"""Trained encoders by name, with the probes and the record of each.

`PRETRAINED` lists the names: data, architecture and method, as "mnist-conv-pinned". The weights are kept in half
precision, with the SHA-256 that the record names.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from se_core._idx import DataError
from se_core.errors import InvalidValueError
from se_core.networks import VAE, build_vae

_FOLDER = Path(__file__).parent / "weights"
PRETRAINED = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@dataclass(frozen=True)
class Pretrained:
    """A trained encoder and decoder, and what is known of them.

    Attributes:
        vae: the networks, float32, on the CPU, in evaluation mode.
        probes: task ("digit", "colour") -> the linear probe, latent means (B, latent_dim) -> logits (B, classes).
        record: how it was trained (`run`, `trained`), and what these weights are worth: accuracies on the first `n`
            bundled test digits, task by task and radius by radius (`bundled`), under the attack of `evaluation`.
    """

    vae: VAE
    probes: dict[str, nn.Linear]
    record: dict[str, Any]

    def classifier(self, task: str = "digit") -> nn.Sequential:
        """Images (B, C, 28, 28) -> logits (B, classes): the probe on the encoder's means."""
        if task not in self.probes:
            raise InvalidValueError(f"task={task!r} is unknown; choose one of {', '.join(self.probes)}")
        return nn.Sequential(Mean(self.vae.encoder), self.probes[task])


class Mean(nn.Module):
    """x -> the mean of q(Z | x), the representation that a probe sees."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, 28, 28) -> (B, latent_dim)."""
        return self.encoder(x).mean


def load_pretrained(name: str) -> Pretrained:
    """The encoder of this name, one of `PRETRAINED`.

    Raises InvalidValueError for an unknown name, DataError for weights whose SHA-256 is not the recorded one.
    """
    if name not in PRETRAINED:
        raise InvalidValueError(f"name={name!r} is unknown; choose one of {', '.join(PRETRAINED)}")
    record = json.loads((_FOLDER / f"{name}.json").read_text())
    path = _FOLDER / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; install the package again") from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != record["sha256"]:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {actual}, recorded is {record['sha256']}; nothing was loaded; install "
            "the package again"
        )
    tensors = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in load(content).items()}
    run = record["run"]
    channels = 1 if run["dataset"] == "mnist" else 3
    vae = build_vae(run["architecture"], channels, run["latent_dim"], scale=run["scale"])
    vae.load_state_dict({k.removeprefix("vae."): v for k, v in tensors.items() if k.startswith("vae.")})
    probes = {}
    for key, weight in sorted(tensors.items()):  # safetensors gives them in any order
        if key.startswith("probe.") and key.endswith(".weight"):
            task = key.split(".")[1]
            with torch.random.fork_rng(devices=[]):  # what it is initialised with is overwritten
                probes[task] = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
            probes[task].load_state_dict({"weight": weight, "bias": tensors[f"probe.{task}.bias"]})
    return Pretrained(vae.eval(), probes, record)
