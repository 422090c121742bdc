"""Finished runs before two judges, our attack and AutoAttack, and before the checks of `masking`."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from se_core.errors import InvalidValueError
from se_core.lab.autoattack import STANDARD, autoattack_against_radius
from se_core.lab.config import EvaluationConfig, RunConfig, usable_device
from se_core.lab.evaluation import accuracy_against_radius, fit_probes, identity
from se_core.lab.masking import masking
from se_core.lab.runs import check_data, images, load_run
from se_core.lab.storage import CheckpointError, checksum_file, exclusive, provenance, read_json, write_json
from se_core.networks import VAE
from se_core.pretrained import Mean

T = TypeVar("T")


@dataclass(frozen=True)
class JudgeConfig:
    """How runs are judged.

    Args:
        evaluation: our attack, the radii of both judges, the images and the probe.
        masking_radius: attack radius of the checks of `masking`, in pixels scaled to [0, 1].
        masking_images: number of images in them, from the first of those of the evaluation.

    Raises InvalidValueError, which names the field and its value.
    """

    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(radii=(0.05, 0.1, 0.2)))
    masking_radius: float = 0.1
    masking_images: int = 500

    def __post_init__(self) -> None:
        if not self.evaluation.radii[0] > 0:
            raise InvalidValueError(f"evaluation.radii={self.evaluation.radii} must be positive; AutoAttack needs room")
        if not (math.isfinite(self.masking_radius) and self.masking_radius > 0):
            raise InvalidValueError(f"masking_radius={self.masking_radius} must be a finite number > 0")
        if self.masking_images < 1:
            raise InvalidValueError(f"masking_images={self.masking_images} must be at least 1")


class Suspect(NamedTuple):
    """A run that stands before the judges."""

    run: RunConfig
    vae: VAE
    probes: dict[str, nn.Linear]
    x: Tensor
    labels: dict[str, Tensor]

    def classifier(self, task: str) -> nn.Sequential:
        """Images (B, C, 28, 28) -> logits (B, classes)."""
        return nn.Sequential(Mean(self.vae.encoder), self.probes[task])


@torch.inference_mode(False)
def judge(
    folders: Sequence[Path],
    config: JudgeConfig,
    out: Path,
    device: str = "cpu",
    tell: Callable[[dict[str, Any]], Any] = lambda judgement: None,
) -> dict[str, Any]:
    """Judge finished runs: {provenance, config, judgements}, a judgement for each folder.

    A judgement (run, model_sha256, config, provenance, tasks) is written to `out`/RUN.json as soon as it is made and
    passed to `tell`; one that is there already, of the same model and config, is not made again. Each of its tasks has
    the run's identity, n, radii, the accuracies `ours` and `autoattack`, their `difference` (positive where our attack
    is the weaker), the share left by each attack (`after`), `seconds` of CPU time, and the rows of `masking`, whose
    transferred attacks come from the other folders of the same data.

    Raises CheckpointError, DataError, StorageError, ProbeNotConverged, AutoAttackMissing, and InvalidValueError for
    folders of one name and a device that is not there.
    """
    device = str(usable_device(device))
    by_name = {Path(folder).expanduser().resolve().name: Path(folder).expanduser() for folder in folders}
    if not len(by_name) == len(folders) > 0:
        raise InvalidValueError(f"folders={[str(f) for f in folders]} must be one or more, each of another name")
    suspects: dict[str, Suspect] = {}

    def suspect(name: str) -> Suspect:
        if name not in suspects:
            suspects[name] = _suspect(by_name[name], config.evaluation, device)
        return suspects[name]

    judgements = []
    with exclusive(out):
        for name, folder in by_name.items():
            path, header = out / f"{name}.json", {"run": name} | _cause(folder, config)
            if not _is_made(path, header):
                data = suspect(name).run.data
                others = {n: suspect(n) for n, other in by_name.items() if load_run(other)[0].data == data}
                del others[name]
                found = [_judged(suspect(name), task, others, config) for task in suspect(name).probes]
                write_json(path, header | {"provenance": provenance(device), "tasks": found})
            judgements.append(read_json(path))
            tell(judgements[-1])
    return {"provenance": provenance(device), "config": asdict(config), "judgements": judgements}


def _cause(folder: Path, config: JudgeConfig) -> dict[str, Any]:
    """What decides a judgement: the model, by the checksum beside it, and the configuration."""
    try:
        (sha256, *_) = checksum_file(folder / "model.safetensors").read_text(errors="replace").split()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no finished run; train it first (se-core train)") from error
    return {"model_sha256": sha256, "config": json.loads(json.dumps(asdict(config)))}


def _is_made(path: Path, header: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    try:
        content = read_json(path)
        made = {key: content[key] for key in header} == header
    except (CheckpointError, TypeError, KeyError):
        made = False
    if not made:
        print(f"note: {path} is damaged, or of another model or configuration; judging again", flush=True)
    return made


def _suspect(folder: Path, config: EvaluationConfig, device: str) -> Suspect:
    run, vae = load_run(folder)
    run = replace(run, device=device)
    known, unseen = images(run, "train"), images(run, config.split)
    check_data(folder, known.sha256)
    vae.requires_grad_(False).to(device)
    x = unseen.images(torch.arange(min(config.test_images or len(unseen), len(unseen)), device=device))
    probes = fit_probes(vae, known, config.l2)
    if not probes:
        raise InvalidValueError(f"{folder}: its images have no labels, so there is no classifier to judge")
    return Suspect(run, vae, probes, x, {task: unseen.labels(task)[: len(x)] for task in probes})


def _judged(suspect: Suspect, task: str, others: dict[str, Suspect], config: JudgeConfig) -> dict[str, Any]:
    seed, radii, n = suspect.run.seed, config.evaluation.radii, config.masking_images
    logits, x, labels = suspect.classifier(task), suspect.x, suspect.labels[task]
    sources = {name: other.classifier(task) for name, other in others.items()}
    encoder, probe, radius = suspect.vae.encoder, suspect.probes[task], config.masking_radius
    ours, our_s = _timed(lambda: accuracy_against_radius(logits, x, labels, config.evaluation, seed))
    after, their_s = _timed(lambda: autoattack_against_radius(logits, x, labels, radii, seed))
    rows, masking_s = _timed(
        lambda: masking(encoder, probe, x[:n], labels[:n], radius, config.evaluation, sources, seed)
    )
    theirs = [row[STANDARD[-1]] for row in after]
    return identity(suspect.run) | {
        "task": task,
        "n": len(x),
        "radii": list(radii),
        "ours": ours,
        "autoattack": theirs,
        "difference": [a - b for a, b in zip(ours, theirs, strict=True)],
        "after": after,
        "masking": {"radius": radius, "n": len(x[:n]), "rows": rows},
        "seconds": {"ours": our_s, "autoattack": their_s, "masking": masking_s},
    }


def _timed(compute: Callable[[], T]) -> tuple[T, float]:
    """What is computed, and the seconds of CPU time that it took."""
    start = time.process_time()
    return compute(), round(time.process_time() - start, 1)
