"""How the library is called, for mypy and not for pytest: `make lint` fails where a call is not typed as it works.

An ignored line must be an error: mypy warns of an `ignore` that it does not need.
"""

from typing import Any, assert_type

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from torch.utils.data import DataLoader

from se_core import VAE, DiagonalGaussian, build_vae, elbo, fictive_sample, load, pgd, se_elbo
from se_core.gaussians import FullGaussian, as_gaussian, entropy
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.objectives import ElboTerms, autoencoding_elbo, reparameterised_sample
from se_core.transport import coupling, w2_squared


def normal(x: Tensor) -> "Independent[Normal]":
    return Independent(Normal(x.flatten(1), 1.0), 1)


def correlated(x: Tensor) -> MultivariateNormal:
    return MultivariateNormal(x.flatten(1), torch.eye(784))


def any_of_torch(x: Tensor) -> Distribution:
    return normal(x)


def bounds(x: Tensor, vae: VAE, theirs: nn.Module) -> None:
    """Posteriors of ours, of torch, of a module that says nothing of its output, and of either kind mixed."""
    ours = DiagonalGaussian(x.flatten(1), x.flatten(1))
    for q in (ours, ours.full(), normal(x), correlated(x), any_of_torch(x), vae.encode(x), theirs(x)):
        assert_type(elbo(x, q, vae.decode, 0.1), ElboTerms)
        assert_type(se_elbo(x, q, ours, vae.decoder, torch.tensor(0.1), torch.ones(8), prior="paired"), ElboTerms)
        assert_type(autoencoding_elbo(x, q, normal, vae.decode, 0.1, 0.5), ElboTerms)
        assert_type(reparameterised_sample(q), Tensor)
        assert_type(w2_squared(q, ours) + entropy(q) + coupling(q, q, 1).gamma, Tensor)
        assert_type(as_gaussian(q), DiagonalGaussian | FullGaussian)
    elbo(x, (x, x), vae.decode, 0.1)  # type: ignore[arg-type]
    se_elbo(x, ours, ours, vae.decode, 0.1, 1.0, prior="pared")  # type: ignore[arg-type]


def attacks(x: Tensor, vae: VAE, theirs: nn.Module) -> None:
    for encoder in (vae.encoder, vae.encode, vae.encode_around(x)[1], theirs, normal, correlated, any_of_torch):
        assert_type(fictive_sample(encoder, x, radius=0.2, steps=5, q_x=normal(x)), Tensor)
    assert_type(pgd(lambda x: x.flatten(1).sum(1), x, 0.1, 3), Tensor)


def choices() -> None:
    assert_type(build_vae("conv", 1, 64, covariance="diagonal", scale="pinned"), VAE)
    build_vae("cnn", 1, 64)  # type: ignore[arg-type]
    RunConfig(dataset="colour-mnist", method="avae", schedule="cosine")
    RunConfig(dataset="cifar")  # type: ignore[arg-type]
    RunConfig(method="SE", optimiser="Adam")  # type: ignore[arg-type]
    EvaluationConfig(split="train")  # type: ignore[arg-type]


def data() -> None:
    load("minst", "train")  # type: ignore[call-overload]
    digits = load("mnist", "train")
    assert_type(digits[0], tuple[Tensor, ...])
    batches: DataLoader[Any] = DataLoader(digits, batch_size=64)
    assert_type(digits.images(slice(0, len(batches))), Tensor)
