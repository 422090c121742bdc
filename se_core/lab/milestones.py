"""What is seen of a run along the way, on validation images: how robustness grows with the length of training."""

from collections.abc import Callable
from typing import Any

from torch import nn

from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import (
    BATCH,
    NEAR,
    Aims,
    accuracy_against_radius,
    diagnostics,
    encode_means,
    fit_probes,
)
from se_core.lab.runs import images
from se_core.networks import VAE
from se_core.pretrained import Mean

SHORT: Aims = {"cross_entropy": (NEAR,), "margin": (NEAR,)}


def judge_on_the_way(run: RunConfig) -> Callable[[VAE], dict[str, Any]]:
    """What `train` logs of a run now and then: the accuracy of its representation without and with a short attack, task
    by task and radius by radius, and its diagnostics, on the first validation images; the probe is fitted on the first
    5,000 training images."""
    short = EvaluationConfig(radii=(0.0, 0.05, 0.1), attack_steps=10, test_images=BATCH, split="validation")
    known, held_out = images(run, "train"), images(run, "validation")
    known, held_out = known.subset(0, min(5000, len(known))), held_out.subset(0, min(BATCH, len(held_out)))
    x = held_out.images()

    def judge(vae: VAE) -> dict[str, Any]:
        accuracy = {}
        for task, probe in fit_probes(vae, known, short.l2).items():
            logits = nn.Sequential(Mean(vae.encoder), probe)
            accuracy[task] = accuracy_against_radius(logits, x, held_out.labels(task), short, run.seed, SHORT)
        found = diagnostics(run, vae, encode_means(vae, held_out), x)
        return {"validation": {"radii": short.radii, "accuracy": accuracy} | found}

    return judge
