"""Smooth encoders: Gaussian optimal transport, the SE-ELBO, and robust representations.

The names below are what one needs to train a smooth encoder; each module's docstring says what else it holds.
"""

from se_core.attacks import fictive_sample, pgd
from se_core.datasets import load
from se_core.errors import SmoothEncoderError
from se_core.gaussians import DiagonalGaussian, FullGaussian
from se_core.memory import SelectionMemory
from se_core.networks import VAE, build_vae
from se_core.objectives import elbo, se_elbo
from se_core.pretrained import load_pretrained

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "DiagonalGaussian",
    "FullGaussian",
    "SelectionMemory",
    "SmoothEncoderError",
    "build_vae",
    "elbo",
    "fictive_sample",
    "load",
    "load_pretrained",
    "pgd",
    "se_elbo",
]
