"""Everything that decides an outcome: the configuration of a run and of its evaluation, refused early."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, cast, get_args, get_origin

import torch

from se_core.attacks import Attack
from se_core.datasets import Colouring, DatasetName
from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.networks import Architecture, Covariance, Initialisation, Scale
from se_core.objectives import Prior

_YOUNGER = {"image_size": 0, "skip_damaged": False}  # than runs that must keep their names: no part of them if unset


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the outcome of a run.

    Args:
        dataset: "mnist", "colour-mnist", or "images" of your own.
        source: "bundled", or a folder as in `se_core.datasets.load`.
        colouring: for colour MNIST, one "random" colour per digit or each digit in "all" seven.
        architecture: "mlp" (4 x 200 ReLU) or "conv".
        latent_dim: dimension D_z of the representation.
        covariance: of q(Z | X), "diagonal" as in section 6, or "full".
        initialisation: "variance-preserving" or "pytorch".
        method: "vae" (the ELBO), "se" (the SE-ELBO), "avae" (the autoencoding VAE, at the correlation of gamma), or
            "classifier" (the ceiling: the encoder and a linear head, trained on the labels of the digits).
        gamma: coupling strength, >= 0.
        radius: selection radius epsilon in pixels scaled to [0, 1]; of a classifier, that of its adversary.
        attack_steps: budget L of the selection mechanism; with 0 the neighbour is a random one.
        divergence: what the selection maximises, "w2_squared" or "entropic_cost".
        noise_variance: observation variance v > 0.
        iterations: number of training steps.
        batch_size: images per step.
        optimiser: "adam", or "sgd" with momentum 0.9.
        learning_rate: step size of the optimiser.
        seed: of initialisation, batches, colours and noise.
        device: "cpu", "cuda", "cuda:N" or "mps"; "auto" becomes what this machine has, so that the name tells.
        attack_dtype: precision of the selection's gradients, "float32" or "bfloat16".
        compile: run the selection and the bound under torch.compile.
        scale: of the latent means, "free" as in the paper, or "pinned" (ours).
        memory: let the selection go on from where each image's last attack ended (ours), instead of starting anew.
        schedule: of the learning rate, "constant" or "cosine" to zero.
        prior: of the pair of latents in the SE-ELBO, "independent" as in the paper, or "paired" (ours).
        beta: weight of the KL term of the VAE (Higgins et al., 2017).
        image_size: for your own images, the side in pixels to which they are cropped and resized; 0 leaves them.
        skip_damaged: for your own images, leave out the files that cannot be read.

    Raises InvalidTypeError and InvalidValueError, which name the field, its value, and the choices.
    """

    dataset: DatasetName = "mnist"
    source: str = "bundled"
    colouring: Colouring = "random"
    architecture: Architecture = "mlp"
    latent_dim: int = 64
    covariance: Covariance = "diagonal"
    initialisation: Initialisation = "variance-preserving"
    method: Literal["vae", "se", "avae", "classifier"] = "se"
    gamma: float = 1.0
    radius: float = 0.2
    attack_steps: int = 20
    divergence: Literal["w2_squared", "entropic_cost"] = "w2_squared"
    noise_variance: float = 0.1
    iterations: int = 10_000
    batch_size: int = 64
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    attack_dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    scale: Scale = "free"
    memory: bool = False
    schedule: Literal["constant", "cosine"] = "constant"
    prior: Prior = "independent"
    beta: float = 1.0
    image_size: int = 0
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        _declare_types(self)
        at_least = {"latent_dim": 1, "attack_steps": 0, "iterations": 1, "batch_size": 1, "image_size": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise InvalidValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("gamma", "radius", "beta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InvalidValueError(f"{name}={getattr(self, name)} must be a finite number >= 0")
        for name in ("noise_variance", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidValueError(f"{name}={getattr(self, name)} must be a finite number > 0")
        object.__setattr__(self, "device", device_name(self.device))
        self._check_what_belongs_together()
        if not -(2**63) <= self.seed < 2**63:
            raise InvalidValueError(f"seed={self.seed} must fit into 64 bits")

    def _check_what_belongs_together(self) -> None:
        if self.dataset == "images" and self.source == "bundled":
            raise InvalidValueError("dataset='images' needs source=FOLDER, the folder that holds them")
        if self.dataset != "images" and (self.image_size or self.skip_damaged):
            raise InvalidValueError(
                f"image_size={self.image_size} and skip_damaged={self.skip_damaged} are of dataset='images'; leave "
                f"them for dataset={self.dataset!r}"
            )
        if self.covariance == "full" and (self.compile or self.attack_dtype != "float32"):
            raise InvalidValueError(
                "covariance='full' has no compiled and no bfloat16 attack; leave compile and attack_dtype"
            )
        if self.covariance == "full" and self.scale == "pinned":
            raise InvalidValueError("scale='pinned' needs covariance='diagonal'")
        if self.covariance == "full" and self.device == "mps":
            raise InvalidValueError("covariance='full' needs float64, which device='mps' has not; choose cpu or cuda")
        if self.scale == "pinned" and self.batch_size < 2:
            raise InvalidValueError("scale='pinned' takes its statistics of a batch; choose batch_size >= 2")
        if self.memory and not (self.radius > 0 and self.attack_steps > 0):
            raise InvalidValueError(
                f"memory needs a radius > 0 and attack_steps >= 1, got radius={self.radius}, "
                f"attack_steps={self.attack_steps}"
            )
        for name, methods, default in (
            ("memory", ("se", "classifier"), False),
            ("prior", ("se",), "independent"),
            ("beta", ("vae",), 1.0),
        ):
            if self.method not in methods and getattr(self, name) != default:
                raise InvalidValueError(
                    f"{name}={getattr(self, name)!r} is of method={' or '.join(map(repr, methods))}; leave it for "
                    f"method={self.method!r}"
                )

    @property
    def name(self) -> str:
        """The name of the run's folder: what it is, and a hash of all of the above."""
        return f"{self.dataset}-{self.architecture}-{self.method}-{digest(self)}"

    @property
    def label(self) -> str:
        """What the method is called in records and pictures: "vae" or "beta-vae"; "se", or what is left of it: without
        an adversary "radius-0" or "random-neighbour"; ours, "remembered" (with a memory) and "paired"; "avae"; "labels"
        or "adversarial-labels". The pinned scale goes before it; of the smooth encoder with both, "pinned" says all."""
        match self.method:
            case "vae":
                name = "vae" if self.beta == 1 else "beta-vae"
            case "classifier":
                name = "adversarial-labels" if self.radius else "labels"
            case "se":
                name = self._label_of_se()
            case _:
                name = self.method
        if self.scale == "free":
            return name
        return "pinned" if name in ("se", "remembered") else f"pinned-{name}"

    def _label_of_se(self) -> str:
        if self.radius == 0:
            return "radius-0"
        if self.attack_steps == 0:
            return "random-neighbour"
        if self.prior == "paired":
            return "paired"
        return "remembered" if self.memory else "se"

    @property
    def data(self) -> tuple[str, ...]:
        """What makes two runs comparable: the data set; of your own images also the folder, and their size."""
        return (self.dataset, self.source, str(self.image_size)) if self.dataset == "images" else (self.dataset,)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a digit, (C, H, W); that of other images is what `runs.read` finds."""
        return 1 if self.dataset == "mnist" else 3, 28, 28


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is evaluated.

    Args:
        radii: attack radii, ascending, in pixels scaled to [0, 1].
        attack_steps: steps of each attack on the classifier.
        restarts: 1 for the attacks that `accuracy_against_radius` has; each more is one more on each of its aims.
        test_images: number of images, from the first of the split; 0 means all.
        l2: penalty of the probe, l2 / 2 times the squared norm of its weights, against the mean cross-entropy.
        split: "test" for what is published, "validation" for whatever is chosen.
        along_the_way: judge the run on validation digits at 100, 200, 500, ... steps of its training, too.

    Raises InvalidTypeError and InvalidValueError, which name the field and its value.
    """

    radii: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    attack_steps: int = 40
    restarts: int = 1
    test_images: int = 1000
    l2: float = 1e-3
    split: Literal["test", "validation"] = "test"
    along_the_way: bool = False

    def __post_init__(self) -> None:
        _declare_types(self)
        object.__setattr__(self, "radii", tuple(map(float, self.radii)))
        if not self.radii or any(not r >= 0 for r in self.radii) or list(self.radii) != sorted(set(self.radii)):
            raise InvalidValueError(f"radii={self.radii} must be nonnegative, ascending and distinct")
        for radius in self.radii:
            Attack(radius, self.attack_steps, restarts=self.restarts)
        if not self.l2 >= 0:
            raise InvalidValueError(f"l2={self.l2} must be at least 0")
        if self.test_images < 0 or self.test_images == 1:
            raise InvalidValueError(
                f"test_images={self.test_images} must be at least 2 (a variance needs two), or 0 for all"
            )


def usable_device(name: str) -> torch.device:
    """The device of this name, as in `device_name`; InvalidValueError where this machine has none."""
    device = torch.device(device_name(name))
    if (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise InvalidValueError(
            f"device={name!r}: this torch ({torch.__version__}) finds no such GPU; use device='cpu'"
        )
    return device


def device_name(name: str) -> str:
    """`name`; for "auto" the first that this machine has of cuda, mps and cpu. InvalidValueError for any other."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise InvalidValueError(f"device={name!r} is unknown; choose auto, cpu, mps, cuda or cuda:N")
    return name


def digest(config: Any) -> str:
    """Twelve hexadecimal digits that name a configuration, a dataclass of plain values."""
    content = {key: value for key, value in asdict(config).items() if key not in _YOUNGER or value != _YOUNGER[key]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _declare_types(config: Any) -> None:
    """Give each field of a frozen dataclass the plain type it declares, so that equal configurations are one.

    Raises InvalidTypeError for a value that is not of that type already, up to the kinds of number; InvalidValueError
    for one that is not among the choices that a field declares.
    """
    for field in fields(config):
        value, choices = getattr(config, field.name), get_args(field.type) if get_origin(field.type) is Literal else ()
        kind = str if choices else cast(type, field.type)
        accepted: Any = {int: Integral, float: Real, bool: bool, str: str}.get(kind, object)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise InvalidTypeError(
                f"{field.name}={value!r} must be of type {kind.__name__}, not {type(value).__name__}"
            )
        if choices and value not in choices:
            raise InvalidValueError(f"{field.name}={value!r} is unknown; choose one of {', '.join(choices)}")
        if kind in (int, float):
            object.__setattr__(config, field.name, kind(value))
