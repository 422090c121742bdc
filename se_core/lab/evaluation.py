"""How robust is a representation? The linear probe, accuracy against radius, and the diagnostics to read with them.

The threat model: the attacker knows encoder and probe, and may change every pixel by at most the radius, within
[0, 1]. The probe is a multinomial logistic regression on the raw means of the encoder, fitted on clean images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from se_core.attacks import fictive_sample, pgd
from se_core.datasets import COLOURS, Images
from se_core.lab.config import EvaluationConfig, RunConfig, digest, usable_device
from se_core.lab.probe import fit_probe
from se_core.lab.runs import check_data, images, load_run, milestones
from se_core.lab.steps import derived_generator
from se_core.lab.storage import CheckpointError, provenance, read_json, write_json
from se_core.losses import cross_entropy, margin
from se_core.networks import VAE
from se_core.objectives import elbo
from se_core.pretrained import Mean, load_pretrained
from se_core.transport import w2_squared

Logits = Callable[[Tensor], Tensor]
Settings = dict[str, Any]  # of `pgd`
Aim = str | int  # "cross_entropy", "margin", or that to the wrong class which is, at x, the likeliest but so many
Aims = Mapping[Aim, Sequence[Settings]]

CLASSES = {"digit": 10, "colour": len(COLOURS)}
ACTIVE = 0.01  # a latent is active if the variance of its mean over the data exceeds this (Burda et al., 2016)
BATCH = 500  # images at a time on a CPU, whose cache holds them
# No way of attacking does without the others (validation digits). Begun beside the image, by small steps of one size,
# it finds ten points more of a pinned ConvNET than begun anywhere or by large steps: these end in another basin. Begun
# anywhere, by steps that decay, and with targets, it finds twenty-five points more of a free smooth encoder; and begun
# in a ball twice as wide, twelve more of the colours in a VAE, and twenty in a pinned encoder.
NEAR: Settings = {"spread": 0.01, "momentum": 0.5}
ANYWHERE: Settings = {"spread": 1.0, "momentum": 0.5, "decay": True}
WIDE: Settings = ANYWHERE | {"widening": 2.0}
AIMS: Aims = {"cross_entropy": (NEAR, ANYWHERE), "margin": (NEAR, WIDE)} | dict.fromkeys(range(6), (WIDE,))


@torch.inference_mode(False)
def evaluate(folder: Path, config: EvaluationConfig, device: str = "cpu") -> Path:
    """Evaluate a finished run; returns its `evaluation-*.json`, written once and then reused.

    The file holds `records`, one per task and radius (dataset, architecture, task, method, seed, latent_dim, radius,
    accuracy, n; none of images without labels, for which there is no probe), `diagnostics`, and `along_the_way`, what
    `lab.milestones` finds; one that is damaged, of another attack (an earlier version's) or of other test images is
    written again. Raises CheckpointError, DataError (also where the training data have changed), StorageError,
    ProbeNotConverged, and InvalidValueError for a device that is not there.
    """
    device = str(usable_device(device))
    run, vae = load_run(folder)
    folder = Path(folder).expanduser()
    run = replace(run, device=device)
    train_data, test_data = images(run, "train"), images(run, config.split)
    check_data(folder, train_data.sha256)
    if config.split == "validation" and not (folder / "data.json").exists():
        raise CheckpointError(f"{folder} was trained by version 0.1.0, on the validation digits too; train it again")
    path = folder / f"evaluation-{digest(config)}.json"
    if _is_sound(path, test_data.sha256):
        return path
    vae.to(device)
    x = test_data.images(torch.arange(min(config.test_images or len(test_data), len(test_data)), device=device))
    probes = fit_probes(vae, train_data, config.l2)
    result = {
        "run": folder.name,
        "evaluation": asdict(config),
        "attack": attack_record(),
        "test_sha256": test_data.sha256,
        "provenance": provenance(device),
        "records": judged(run, vae, probes, x, test_data, config),
        "diagnostics": diagnostics(run, vae, encode_means(vae, test_data, len(x)), x),
        "along_the_way": milestones(folder),
    }
    write_json(path, result)
    return path


def evaluated(folder: Path, config: EvaluationConfig) -> Path | None:
    """The file that `evaluate` would return without writing it, if there is one. Needs the data, not the run's device.
    Raises DataError as `evaluate` does."""
    path = folder / f"evaluation-{digest(config)}.json"
    if not path.exists():
        return None
    try:
        run, _ = load_run(folder)
    except CheckpointError:
        return None
    check_data(folder, images(run, "train").sha256)
    return path if _is_sound(path, images(run, config.split).sha256) else None


def evaluate_pretrained(name: str, config: EvaluationConfig, device: str = "cpu") -> list[dict[str, Any]]:
    """The records, as in `evaluate`, of a pretrained encoder and its probes on the bundled digits; the probes are those
    that it came with, whatever `config.l2`. Raises what `load_pretrained` and `usable_device` raise."""
    device = str(usable_device(device))
    pretrained = load_pretrained(name)
    run = RunConfig(**(pretrained.record["run"] | {"source": "bundled", "device": device}))
    data = images(run, config.split)
    x = data.images(torch.arange(min(config.test_images or len(data), len(data)), device=device))
    probes = {task: probe.to(device) for task, probe in pretrained.probes.items()}
    return judged(run, pretrained.vae.to(device), probes, x, data, config)


def judged(
    run: RunConfig, vae: VAE, probes: dict[str, nn.Linear], x: Tensor, data: Images, config: EvaluationConfig
) -> list[dict[str, Any]]:
    """The records of a run: for each task, its accuracy at each radius on x, the first images of `data`."""
    records = []
    for task, probe in probes.items():
        labels = data.labels(task)[: len(x)]
        curve = accuracy_against_radius(nn.Sequential(Mean(vae.encoder), probe), x, labels, config, run.seed)
        records += [
            identity(run) | {"task": task, "radius": radius, "accuracy": accuracy, "n": len(x)}
            for radius, accuracy in zip(config.radii, curve, strict=True)
        ]
    return records


def identity(run: RunConfig) -> dict[str, Any]:
    """What tells the runs of a figure apart, as their records have it."""
    fields = {key: getattr(run, key) for key in ("dataset", "architecture", "seed", "latent_dim", "gamma")}
    return fields | {"method": run.label}


def _is_sound(path: Path, test_sha256: str) -> bool:
    if not path.exists():
        return False
    try:
        content = read_json(path)
        sound = {"records", "diagnostics"} <= set(content) and content["test_sha256"] == test_sha256
        sound = sound and content["attack"] == attack_record()
    except (CheckpointError, TypeError, KeyError):
        sound = False
    if not sound:
        print(f"note: {path} is damaged, of another attack, or of other test images; evaluating again", flush=True)
    return sound


def blocks_of(x: Tensor) -> tuple[Tensor, ...]:
    """x in parts of so many rows as its device computes at a time."""
    return x.split(BATCH if x.device.type == "cpu" else 20 * BATCH)


def encode_means(vae: VAE, data: Images, n: int | None = None) -> Tensor:
    """The representation: the means of q(Z | x) of the first n images (all by default), (n, latent_dim)."""
    n = len(data) if n is None else n
    with torch.no_grad():
        blocks = blocks_of(torch.arange(n, device=data.pixels.device))
        return torch.cat([vae.encode(data.images(block)).mean for block in blocks])


def fit_probes(vae: VAE, data: Images, l2: float) -> dict[str, nn.Linear]:
    """task -> the probe of it on the representation of the images, as in `fit_probe`."""
    means = encode_means(vae, data)
    return {task: fit_probe(means, data.labels(task), classes, l2) for task, classes in data.tasks.items()}


def accuracy_against_radius(
    logits: Logits, x: Tensor, labels: Tensor, config: EvaluationConfig, seed: int = 0, aims: Aims = AIMS
) -> list[float]:
    """The share of images that no attack of the given radius misclassifies, one number per radius.

    logits: images (B, C, H, W) -> (B, classes); x (N, C, H, W); labels (N,). The worst case per example over all
    `aims`, each with the settings of its attacks; by default the cross-entropy and the margin, begun near x and
    anywhere, and the margin to each of the six likeliest wrong classes, in a ball that is twice as wide at first. A
    restart is one attack more on each aim, of the last kind. An image lost at one radius is lost at every larger one,
    whose ball contains the first: only the survivors are attacked again.
    """
    alive = torch.arange(len(x), device=x.device)
    curve: list[float] = []
    for radius in config.radii:
        if radius == 0:
            alive = alive[_correct(logits, x, labels)]
        else:
            for aim, attacks in aims.items():
                generator = derived_generator(x.device, seed, "attack", radius, aim)
                for settings in (*attacks, *[WIDE] * (config.restarts - 1)):
                    path = {"radius": radius, "steps": config.attack_steps, "generator": generator} | settings
                    alive = _survivors(logits, aim, x, labels, alive, path)
        curve.append(len(alive) / len(x))
    return curve


def _correct(logits: Logits, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits(block).argmax(-1) for block in blocks_of(x)]) == labels


def _survivors(logits: Logits, aim: Aim, x: Tensor, labels: Tensor, alive: Tensor, path: Settings) -> Tensor:
    standing = [alive[:0]]
    for block in blocks_of(alive):
        attacked = pgd(_objective(aim, logits, x[block], labels[block]), x[block], **path)
        standing.append(block[_correct(logits, attacked, labels[block])])
    return torch.cat(standing)


def _objective(aim: Aim, logits: Logits, x: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    if isinstance(aim, str):
        return {"cross_entropy": cross_entropy, "margin": margin}[aim](logits, labels)
    with torch.no_grad():
        wrong = logits(x).scatter(-1, labels[:, None], -math.inf).argsort(-1, descending=True)
    return margin(logits, labels, wrong[:, min(aim, wrong.shape[1] - 2)])


def attack_record() -> dict[str, Any]:
    """What decides an evaluation beside its configuration: the settings of the attacks, by their aim."""
    return {str(aim): list(attacks) for aim, attacks in AIMS.items()}


def diagnostics(run: RunConfig, vae: VAE, means: Tensor, x: Tensor) -> dict[str, float]:
    """What to read with a robustness figure, for an encoder can look robust by shrinking.

    x (N, C, H, W) test images, means (N, latent_dim) their representations. Returns the ELBO in nats per example,
    the mean squared error of a reconstruction per pixel, the number of active latents, the total variance of the
    means, and the share of it that the selection mechanism moves at the run's radius: W_2^2(q(Z|x), q(Z|x')) averaged
    over images, over the total variance (NaN where that is zero). A classifier has no ELBO and reconstructs nothing:
    NaN.
    """
    generator = derived_generator(x.device, run.seed, "companions")  # their first name decides the draws
    bounds, errors, moved = [], [], []
    for block in blocks_of(x):
        x_prime = fictive_sample(vae.encoder, block, run.radius, 40, generator=generator) if run.radius else block
        with torch.no_grad():
            q = vae.encode(block)
            if run.method != "classifier":
                bounds.append(elbo(block, q, vae.decode, run.noise_variance, generator).value)
                errors.append((vae.reconstruct(block) - block).square().flatten(1).mean(-1))
            moved.append(w2_squared(q, vae.encode(x_prime)))
    variances = means.cpu().double().var(0)
    total = float(variances.sum())
    return {
        "elbo": float(torch.cat(bounds).cpu().double().mean()) if bounds else math.nan,
        "reconstruction_mse": float(torch.cat(errors).cpu().double().mean()) if errors else math.nan,
        "active_latents": int((variances > ACTIVE).sum()),
        "latent_variance": total,
        "moved_share": float(torch.cat(moved).cpu().double().mean()) / total if total else math.nan,
    }
