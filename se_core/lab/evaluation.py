"""How robust is a representation? The linear probe, accuracy against radius, and what to read beside them.

The threat model: the attacker knows encoder and probe, and may change every pixel by at most the radius, within
[0, 1]. The probe is a multinomial logistic regression on the raw means of the encoder, fitted on clean images.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from se_core.attacks import cross_entropy, fictive_sample, margin, pgd
from se_core.datasets import COLOURS, DigitImages, load
from se_core.lab.storage import CheckpointError, declare_types, digest, provenance, read_json, write_atomically
from se_core.lab.training import derived_generator, load_run, usable_device
from se_core.networks import VAE
from se_core.objectives import elbo
from se_core.transport import w2_squared

RADII = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
ACTIVE = 0.01  # a latent is active if the variance of its mean over the data exceeds this (Burda et al., 2016)

BATCH = 500


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is evaluated.

    Args:
        radii: attack radii, ascending, in pixels scaled to [0, 1].
        attack_steps: steps of each attack on the classifier.
        restarts: random starts of each attack, for each of the two objectives.
        test_images: number of test images, from the first; 0 means all.
        l2: penalty of the probe, l2 / 2 times the squared norm of its weights, against the mean cross-entropy.
    """

    radii: tuple[float, ...] = RADII
    attack_steps: int = 40
    restarts: int = 1
    test_images: int = 1000
    l2: float = 1e-3

    def __post_init__(self) -> None:
        declare_types(self)
        object.__setattr__(self, "radii", tuple(map(float, self.radii)))
        if not self.radii or any(not r >= 0 for r in self.radii) or list(self.radii) != sorted(set(self.radii)):
            raise ValueError(f"radii={self.radii} must be nonnegative, ascending and distinct")
        if self.attack_steps < 1 or self.restarts < 1 or not self.l2 >= 0:
            raise ValueError(
                f"attack_steps={self.attack_steps} and restarts={self.restarts} must be at least 1, and "
                f"l2={self.l2} at least 0"
            )
        if self.test_images < 0 or self.test_images == 1:
            raise ValueError(f"test_images={self.test_images} must be at least 2 (a variance needs two), or 0 for all")


class _Mean(nn.Module):
    """x -> the mean of q(Z | x), the representation that the probe sees."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).mean


def encode_means(vae: VAE, data: DigitImages, n: int | None = None) -> Tensor:
    """The representation: the means of q(Z | x) of the first n images (all by default), (n, latent_dim)."""
    n = len(data) if n is None else n
    device = data.pixels.device
    with torch.no_grad():
        blocks = [
            vae.encode(data.images(torch.arange(i, min(i + BATCH, n), device=device))).mean for i in range(0, n, BATCH)
        ]
    return torch.cat(blocks)


def fit_probe(means: Tensor, labels: Tensor, classes: int, l2: float) -> nn.Linear:
    """Multinomial logistic regression, minimising the mean cross-entropy (nats) + l2/2 ||W||^2 to convergence.

    means (N, latent_dim), labels (N,) int64 in [0, classes). L-BFGS in float64; the problem is convex, so the answer
    depends on the data alone. Raises RuntimeError if the gradient's largest entry stays above 1e-6.
    """
    # The same problem in coordinates of unit curvature, whatever the scale of each latent: W = V diag(unit).
    centre, variance = means.double().mean(0), means.double().var(0)
    unit = (variance + l2).clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    features = (means.double() - centre) * unit
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=means.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=means.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=2000,
        max_eval=4000,
        history_size=30,
        tolerance_grad=1e-7,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        penalty = l2 / 2 * (weight * unit).square().sum()
        value = nn.functional.cross_entropy(features @ weight.T + bias, labels) + penalty
        value.backward()
        return value

    optimiser.step(loss)
    loss()
    residual = max(float(p.grad.abs().max()) for p in (weight, bias) if p.grad is not None)
    if not residual <= 1e-6:
        raise RuntimeError(f"the probe did not converge: gradient {residual:.1e} after L-BFGS; raise l2={l2}")
    probe = nn.Linear(features.shape[1], classes).to(means.device)
    with torch.no_grad():
        probe.weight.copy_(weight * unit)
        probe.bias.copy_(bias - (weight * unit) @ centre)
    return probe.requires_grad_(False)


def accuracy_against_radius(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    config: EvaluationConfig,
    seed: int = 0,
) -> list[float]:
    """The share of images that no attack of the given radius misclassifies, one number per radius.

    logits: images (B, C, 28, 28) -> (B, classes); x (N, C, 28, 28); labels (N,). The worst case per example over the
    cross-entropy, the margin loss and all restarts. An image lost at one radius is lost at every larger one, whose
    ball contains the first: only the survivors are attacked again.
    """
    alive = torch.arange(len(x), device=x.device)
    curve: list[float] = []
    for radius in config.radii:
        if radius == 0:
            alive = alive[_correct(logits, x, labels)]
        else:
            for objective in (cross_entropy, margin):
                generator = derived_generator(x.device, seed, "attack", radius, objective.__name__)
                alive = _survivors(logits, objective, x, labels, alive, radius, config, generator)
        curve.append(len(alive) / len(x))
    return curve


def _correct(logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits(a).argmax(-1) == b for a, b in zip(x.split(BATCH), labels.split(BATCH), strict=True)])


def _survivors(
    logits: Callable[[Tensor], Tensor],
    objective: Callable[..., Callable[[Tensor], Tensor]],
    x: Tensor,
    labels: Tensor,
    alive: Tensor,
    radius: float,
    config: EvaluationConfig,
    generator: torch.Generator,
) -> Tensor:
    for _ in range(config.restarts):
        kept = []
        for block in alive.split(BATCH):
            loss = objective(logits, labels[block])
            attacked = pgd(loss, x[block], radius, config.attack_steps, generator=generator)
            kept.append(block[_correct(logits, attacked, labels[block])])
        alive = torch.cat(kept) if kept else alive
    return alive


def companions(vae: VAE, means: Tensor, x: Tensor, noise_variance: float, radius: float, seed: int) -> dict[str, float]:
    """What to read beside a robustness figure, for an encoder can look robust by shrinking.

    x (N, C, 28, 28) test images, means (N, latent_dim) their representations. Returns the ELBO in nats per example,
    the mean squared error of a reconstruction per pixel, the number of active latents, the total variance of the
    means, and the share of it that the selection mechanism moves at `radius`: W_2^2(q(Z|x), q(Z|x')) averaged over
    images, over the total variance (NaN where that is zero).
    """
    generator = derived_generator(x.device, seed, "companions")
    bounds, errors, moved = [], [], []
    for block in x.split(BATCH):
        x_prime = fictive_sample(vae.encoder, block, radius, steps=40, generator=generator) if radius else block
        with torch.no_grad():
            q = vae.encode(block)
            bounds.append(elbo(block, q, vae.decode, noise_variance, generator).value)
            errors.append((vae.reconstruct(block) - block).square().flatten(1).mean(-1))
            moved.append(w2_squared(q, vae.encode(x_prime)))
    variances = means.double().var(0)
    total = float(variances.sum())
    return {
        "elbo": float(torch.cat(bounds).double().mean()),
        "reconstruction_mse": float(torch.cat(errors).double().mean()),
        "active_latents": int((variances > ACTIVE).sum()),
        "latent_variance": total,
        "moved_share": float(torch.cat(moved).double().mean()) / total if total else math.nan,
    }


def _is_sound(path: Path) -> bool:
    try:
        return path.exists() and {"records", "companions"} <= set(read_json(path))
    except (CheckpointError, TypeError):
        return False


def evaluate(folder: Path, config: EvaluationConfig, device: str = "cpu") -> Path:
    """Evaluate a finished run; returns its `evaluation-*.json`, written once and then reused.

    The file holds `records`, one per task and radius (dataset, architecture, task, method, seed, latent_dim, radius,
    accuracy, n), and `companions`; a damaged one is written again. Raises CheckpointError, DataError, StorageError,
    ValueError for a device that is not there, and RuntimeError where the probe does not converge.
    """
    usable_device(device)
    run, vae = load_run(folder)
    path = Path(folder) / f"evaluation-{digest(config)}.json"
    if _is_sound(path):
        return path
    vae.to(device)
    train_data = load(run.dataset, "train", run.source, run.colouring, run.seed).to(device)
    test_data = load(run.dataset, "test", run.source, "random", run.seed).to(device)
    n = min(config.test_images or len(test_data), len(test_data))
    x = test_data.images(torch.arange(n, device=device))
    means = encode_means(vae, train_data)

    records = []
    for task in ("digit",) if run.dataset == "mnist" else ("colour", "digit"):
        classes = 10 if task == "digit" else len(COLOURS)
        probe = fit_probe(means, train_data.labels(task), classes, config.l2)
        classifier = nn.Sequential(_Mean(vae.encoder), probe)
        curve = accuracy_against_radius(classifier, x, test_data.labels(task)[:n], config, run.seed)
        about = {key: getattr(run, key) for key in ("dataset", "architecture", "method", "seed", "latent_dim", "gamma")}
        for radius, accuracy in zip(config.radii, curve, strict=True):
            records.append(about | {"task": task, "radius": radius, "accuracy": accuracy, "n": n})
    beside = companions(vae, encode_means(vae, test_data, n), x, run.noise_variance, run.radius, run.seed)
    about = {"run": run.name, "evaluation": asdict(config), "provenance": provenance(device)}
    result = about | {"records": records, "companions": beside}
    write_atomically(path, json.dumps(result, indent=1).encode())
    return path
