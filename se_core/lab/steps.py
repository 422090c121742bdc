"""One step of training: what each method maximises, and the optimiser's settings."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from se_core._compilation import compiled
from se_core.attacks import fictive_sample
from se_core.gaussians import Gaussian
from se_core.lab.config import RunConfig
from se_core.memory import Remembered
from se_core.networks import VAE
from se_core.objectives import ElboTerms, autoencoding_elbo, elbo, paired_correlation, se_elbo
from se_core.transport import entropic_cost, w2_squared


def training_step(
    config: RunConfig,
    vae: VAE,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    generator: torch.Generator,
    remembered: Remembered | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """One step of the optimiser; returns the batch means of the terms of the bound, (5,), nats per example.

    labels (B,): of the images, for a classifier.
    """
    if labels is None:
        terms = bound(config, vae, x, generator, remembered)
    else:
        terms = label_likelihood(config, vae, x, labels, generator, remembered)
    optimiser.zero_grad(set_to_none=True)
    (-terms.value.mean()).backward()
    optimiser.step()
    return torch.stack([term.detach().mean() for term in terms])


def bound(
    config: RunConfig, vae: VAE, x: Tensor, generator: torch.Generator, remembered: Remembered | None = None
) -> ElboTerms:
    """The objective of `config.method` on a batch x (B, C, H, W), fictive samples included."""
    q_a, encode = vae.encode_around(x)
    if config.method == "vae":
        terms = _called(elbo, config, x, q_a, vae.decode, config.noise_variance, generator=generator)
        return terms._replace(kl=config.beta * terms.kl)
    if config.method == "avae":
        rho = paired_correlation(config.gamma)
        return autoencoding_elbo(x, q_a, encode, vae.decode, config.noise_variance, rho, generator)
    x_prime = _neighbour(config, encode, x, _divergence(config), q_a, generator, remembered)
    settings = (vae.decode, config.noise_variance, config.gamma)
    return _called(se_elbo, config, x, q_a, encode(x_prime), *settings, generator=generator, prior=config.prior)


def _called(
    objective: Callable[..., ElboTerms],
    config: RunConfig,
    x: Tensor,
    q: Gaussian,
    *arguments: Any,
    generator: torch.Generator,
    **options: Any,
) -> ElboTerms:
    """objective(x, q, ...) with its draw from `generator`, compiled if the configuration says so."""
    if not config.compile:
        return objective(x, q, *arguments, generator, **options)
    noise = torch.randn(q.mean.shape, generator=generator, device=x.device)
    return compiled(objective)(x, q, *arguments, noise=noise, **options)


def label_likelihood(
    config: RunConfig,
    vae: VAE,
    x: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    remembered: Remembered | None = None,
) -> ElboTerms:
    """log p(label | x) of a linear head on the mean (the place of the decoder), or, where `config.radius` is positive,
    that of an adversary's x' (Madry et al., 2017); the terms of a bound, of which the others are zero."""
    q, encode = vae.encode_around(x)

    def log_likelihood(q: Gaussian) -> Tensor:
        return -nn.functional.cross_entropy(vae.decode(q.mean), labels, reduction="none")

    if config.radius:
        q = encode(_neighbour(config, encode, x, lambda _, q: -log_likelihood(q), q, generator, remembered))
    value = log_likelihood(q)
    return ElboTerms(value, *4 * [torch.zeros_like(value)])


def _neighbour(
    config: RunConfig,
    encode: Callable[[Tensor], Gaussian],
    x: Tensor,
    divergence: Callable[[Gaussian, Gaussian], Tensor],
    q: Gaussian,
    generator: torch.Generator,
    remembered: Remembered | None,
) -> Tensor:
    """x' near x: the selection mechanism's, or any if it is given no step."""
    if config.attack_steps == 0:
        noise = torch.rand(x.shape, generator=generator, device=x.device)
        return torch.clamp(x + config.radius * (2 * noise - 1), 0, 1)
    return fictive_sample(
        encode,
        x,
        config.radius,
        config.attack_steps,
        divergence,
        q_x=q,
        attack_dtype=torch.bfloat16 if config.attack_dtype == "bfloat16" else None,
        generator=generator,
        compiled=config.compile,
        memory=remembered,
    )


def _divergence(config: RunConfig) -> Callable[..., Tensor]:
    if config.divergence == "w2_squared":
        return w2_squared
    return lambda a, b: entropic_cost(a, b, config.gamma)  # the cost's gamma is that of the bound


def make_optimiser(config: RunConfig, vae: VAE) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9; the fused kernels, which change nothing but the speed."""
    device = next(vae.parameters()).device
    on_gpu = device.type == "cuda"  # there a captured step reads the learning rate from the device
    rate = torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate
    if config.optimiser == "adam":
        return torch.optim.Adam(vae.parameters(), rate, fused=True, capturable=on_gpu)
    return torch.optim.SGD(vae.parameters(), rate, momentum=0.9, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """For the next step, in the place where the optimiser has it."""
    group = optimiser.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def learning_rate(config: RunConfig, step: int) -> float:
    """That of step 1, 2, ..., iterations."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (1 + math.cos(math.pi * (step - 1) / config.iterations)) / 2


def derived_generator(device: str | torch.device, *key: float | str) -> torch.Generator:
    """A generator on `device` whose stream depends on `key` (a seed, a step, a purpose) and on nothing else."""
    return torch.Generator(device).manual_seed(derived_seed(*key))


def derived_seed(*key: float | str) -> int:
    """The seed of that generator."""
    # On the CPU a generator takes the low 32 bits of its seed, and ignores the rest without a word.
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")
