"""What a selection memory is worth: at equal numbers of steps and seeds, against starting each attack anew.

    .venv/bin/python benchmarks/memory.py --out book/results/memory.json

For each gamma and seed the mechanisms train side by side, a step of each in turn, on the same batches. Then, of each
encoder: W_2^2 that its own mechanism finds on training images (a memory's from what it holds), as a share of what 100
steps find; the mean accuracy over the radii from 0.02 to 0.2 on validation digits; and the median CPU time of a step
of one thread.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from se_core.attacks import fictive_sample
from se_core.datasets import DigitImages
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import accuracy_against_radius, encode_means
from se_core.lab.experiments import PROFILES
from se_core.lab.probe import fit_probe
from se_core.lab.runs import images, networks
from se_core.lab.statistics import robustness
from se_core.lab.steps import derived_generator, learning_rate, make_optimiser, training_step
from se_core.lab.storage import provenance, write_json
from se_core.lab.training import Batches
from se_core.memory import Remembered, SelectionMemory
from se_core.networks import VAE
from se_core.transport import w2_squared

MECHANISMS: dict[str, dict[str, Any]] = {
    "anew, L = 20": {"attack_steps": 20},
    "anew, L = 5": {"attack_steps": 5},
    "remembered, L = 1": {"attack_steps": 1, "memory": True},
    "remembered, L = 2": {"attack_steps": 2, "memory": True},
}
GAMMAS = (1.0, 10.0)
IMAGES = 500
EVALUATION = EvaluationConfig(test_images=IMAGES, attack_steps=30, radii=(0.0, 0.02, 0.05, 0.1, 0.15, 0.2))


class Trainer:
    """One run, step by step."""

    def __init__(self, config: RunConfig, data: DigitImages) -> None:
        self.config, self.data = config, data
        self.vae = networks(config)
        self.optimiser = make_optimiser(config, self.vae)
        self.batches = Batches(len(data), config.batch_size, config.seed, data.pixels.device)
        self.memory = None
        if config.memory:
            generator = derived_generator("cpu", config.seed, "memory")
            self.memory = SelectionMemory(len(data), data.shape, config.radius, generator=generator)
        self.seconds: list[float] = []

    def step(self, number: int) -> None:
        started = time.process_time()
        index = self.batches[number - 1]
        generator = derived_generator("cpu", self.config.seed, "step", number)
        self.optimiser.param_groups[0]["lr"] = learning_rate(self.config, number)
        remembered = self.memory[index] if self.memory else None
        training_step(self.config, self.vae, self.optimiser, self.data.images(index), generator, remembered)
        self.seconds.append(time.process_time() - started)

    def found(self, index: Tensor) -> float:
        """W_2^2 that the mechanism finds for the images at `index`, on average, over what 100 steps find."""
        remembered = self.memory[index] if self.memory else None
        return self._moved(index, self.config.attack_steps, remembered) / self._moved(index, 100)

    def _moved(self, index: Tensor, steps: int, remembered: Remembered | None = None) -> float:
        x, encoder = self.data.images(index), self.vae.encoder
        generator = derived_generator("cpu", self.config.seed, "found", steps)
        x_prime = fictive_sample(encoder, x, self.config.radius, steps, generator=generator, memory=remembered)
        with torch.no_grad():
            return float(w2_squared(encoder(x), encoder(x_prime)).double().mean())


def _accuracies(vae: VAE, train: DigitImages, validation: DigitImages, seed: int) -> dict[float, float]:
    probe = fit_probe(encode_means(vae, train), train.labels("digit"), 10, EVALUATION.l2)
    x, labels = validation.images(slice(IMAGES)), validation.labels("digit")[:IMAGES]

    def logits(x: Tensor) -> Tensor:
        return probe(vae.encode(x).mean)

    curve = accuracy_against_radius(logits, x, labels, EVALUATION, seed)
    return dict(zip(EVALUATION.radii, curve, strict=True))


def _study(gamma: float, seed: int, steps: int) -> list[dict[str, Any]]:
    """A row for each mechanism."""
    setting = PROFILES["small"].run | {"gamma": gamma, "seed": seed, "iterations": steps}
    configs = {name: RunConfig(**(setting | change)) for name, change in MECHANISMS.items()}
    train, validation = (images(configs["anew, L = 5"], split) for split in ("train", "validation"))
    trainers = {name: Trainer(config, train) for name, config in configs.items()}
    for number in trange(1, steps + 1, disable=not os.isatty(2)):
        for trainer in trainers.values():
            trainer.step(number)
    rows = []
    index = torch.arange(len(train))[:: len(train) // IMAGES][:IMAGES]
    for name, trainer in trainers.items():
        accuracies = _accuracies(trainer.vae, train, validation, seed)
        row = {"mechanism": name, "gamma": gamma, "seed": seed, "share_found": round(trainer.found(index), 4)}
        row |= {"accuracy": accuracies[0.0], "robustness": round(robustness(accuracies), 4)}
        rows.append(row | {"ms": round(1e3 * statistics.median(trainer.seconds), 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for gamma in GAMMAS:
        for seed in range(arguments.seeds):
            rows += (new := _study(gamma, seed, arguments.steps))
            for row in new:
                print(
                    f"gamma {gamma:4.0f}, seed {seed}, {row['mechanism']:18s} finds {row['share_found']:6.1%} of W_2^2,"
                    f" robustness {row['robustness']:.3f}, accuracy {row['accuracy']:.3f}, {row['ms']:6.2f} ms a step",
                    flush=True,
                )
    if arguments.out:
        header = {"provenance": provenance(), "steps": arguments.steps, "images": IMAGES, "radii": EVALUATION.radii}
        write_json(arguments.out, header | {"rows": rows})


if __name__ == "__main__":
    main()
