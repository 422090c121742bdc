"""Configurations: refused early, and equal ones are one."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch

from se_core.errors import InvalidTypeError, InvalidValueError
from se_core.lab.config import EvaluationConfig, RunConfig, digest, usable_device
from se_core.lab.experiments import CONTROLS, METHODS
from se_core.lab.training import train

RESULTS = Path(__file__).parents[2] / "book" / "results"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": -1.0}, r"gamma=-1\.0 must be a finite number >= 0"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"radius": -0.2}, r"radius=-0\.2 must be a finite number >= 0"),
        ({"radius": math.nan}, "radius=nan"),
        ({"noise_variance": 0.0}, r"noise_variance=0\.0 must be a finite number > 0"),
        ({"learning_rate": -1e-3}, r"learning_rate=-0\.001"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"dataset": "cifar"}, "dataset='cifar' is unknown; choose one of mnist, colour-mnist"),
        ({"method": "SE"}, "method='SE' is unknown; choose one of vae, se, avae"),
        ({"dataset": "images"}, "dataset='images' needs source=FOLDER"),
        ({"image_size": 32}, "image_size=32 and skip_damaged=False are of dataset='images'; leave them for"),
        ({"skip_damaged": True}, "skip_damaged=True are of dataset='images'; leave them for dataset='mnist'"),
        ({"dataset": "images", "source": "x", "image_size": -1}, "image_size=-1 must be at least 0"),
        ({"covariance": "full", "compile": True}, "covariance='full' has no compiled"),
        ({"covariance": "full", "scale": "pinned"}, "scale='pinned' needs covariance='diagonal'"),
        ({"scale": "pinned", "batch_size": 1}, "choose batch_size >= 2"),
        ({"memory": True, "radius": 0.0}, r"memory needs a radius > 0 .*, got radius=0\.0"),
        ({"memory": True, "attack_steps": 0}, "memory needs .* attack_steps >= 1, got .* attack_steps=0"),
        ({"attack_steps": -1}, "attack_steps=-1 must be at least 0"),
        ({"memory": True, "method": "vae"}, "memory=True is of method='se' or 'classifier'; leave it for method='vae'"),
        ({"beta": 2.0}, r"beta=2\.0 is of method='vae'; leave it for method='se'"),
        ({"beta": -1.0, "method": "vae"}, r"beta=-1\.0 must be a finite number >= 0"),
        ({"prior": "paired", "method": "avae"}, "prior='paired' is of method='se'; leave it for method='avae'"),
        ({"batch_size": 8_335}, "batch_size=8335 exceeds the 8334 training images"),
    ],
)
def test_bad_configurations_are_refused_before_any_work(fields: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(RunConfig(**fields), tmp_path)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for one is no error")
def test_a_missing_gpu_is_explained(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = RunConfig(device="cuda")  # a result made elsewhere can be read here
    with pytest.raises(ValueError, match="finds no such GPU; use device='cpu'"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="device='meta' is unknown; choose auto, cpu, mps, cuda or cuda:N"):
        RunConfig(device="meta")


def test_the_folder_is_named_by_every_field() -> None:
    base = RunConfig()
    changed = {
        "dataset": "colour-mnist", "source": "data", "colouring": "all", "architecture": "conv", "latent_dim": 65,
        "covariance": "full",
        "initialisation": "pytorch", "method": "vae", "gamma": 2.0, "radius": 0.1, "attack_steps": 3,
        "divergence": "entropic_cost", "noise_variance": 0.2, "iterations": 7, "batch_size": 3, "optimiser": "sgd",
        "learning_rate": 0.1, "seed": 5, "device": "cuda", "attack_dtype": "bfloat16", "compile": True,
        "scale": "pinned", "memory": True, "schedule": "cosine", "prior": "paired",
        "beta": 2.0, "image_size": 32, "skip_damaged": True,
    }  # fmt: skip
    assert set(changed) == set(asdict(base))
    images = {"dataset": "images", "source": "folder"}
    needed = {"beta": {"method": "vae"}, "image_size": images, "skip_damaged": images}
    names = {RunConfig(**needed.get(field, {}), **{field: value}).name for field, value in changed.items()}
    assert len(names | {base.name}) == len(changed) + 1


def test_runs_that_were_published_keep_their_names() -> None:
    """Of version 0.1.0, before there were images of one's own; and that under which a judgement is committed."""
    assert RunConfig().name == "mnist-mlp-se-154e0f31b63a"
    assert digest(EvaluationConfig()) == "57c4b27b8ead"
    full, judged = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("figure1-full", "judges"))
    names = {RunConfig(**run).name for run in full["provenance"]["runs"]}
    assert {judgement["run"] for judgement in judged["judgements"]} <= names


@pytest.mark.parametrize("config", [RunConfig, EvaluationConfig])
def test_declared_choices_are_taken_and_others_refused(config: type) -> None:
    """What a type checker, the help and an editor know is what is checked."""
    declared = {f.name: get_args(f.type) for f in fields(config) if get_origin(f.type) is Literal}
    assert declared
    for name, choices in declared.items():
        for choice in choices:
            folder = {"source": "folder"} if choice == "images" else {}
            assert getattr(config(**{name: choice}, **folder), name) == choice
        with pytest.raises(InvalidValueError, match=f"{name}='none' is unknown; choose one of {', '.join(choices)}$"):
            config(**{name: "none"})
        with pytest.raises(InvalidTypeError, match=f"{name}=3 must be of type str, not int"):
            config(**{name: 3})


def test_equal_configurations_are_one(tmp_path: Path) -> None:
    import numpy as np

    assert RunConfig(gamma=1).name == RunConfig(gamma=1.0).name == RunConfig(gamma=np.float32(1)).name
    assert RunConfig(latent_dim=np.int64(8)).name == RunConfig(latent_dim=8).name
    for field, value in (("latent_dim", 8.0), ("seed", 1.5), ("gamma", "1"), ("compile", 1), ("batch_size", True)):
        with pytest.raises(TypeError, match=f"{field}=.* must be of type"):
            RunConfig(**{field: value})


def test_each_method_of_figure_1_has_a_name_of_its_own() -> None:
    """And the names of `METHODS` and `CONTROLS` are those that their runs have in the records."""
    labels = {name: RunConfig(**changes).label for name, changes in (METHODS | CONTROLS).items()}
    assert labels == {name: name for name in (*METHODS, *CONTROLS)}
    free = {RunConfig(method=method).label for method in ("vae", "avae", "classifier")}
    assert {RunConfig(method=method, scale="pinned").label for method in ("vae", "avae", "classifier")} == {
        f"pinned-{label}" for label in free
    }


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", ""])
def test_an_unknown_device_is_named_wherever_it_is_asked_for(name: str) -> None:
    for ask in (lambda: RunConfig(device=name), lambda: usable_device(name)):
        with pytest.raises(ValueError, match=f"device='{name}' is unknown; choose auto, cpu, mps, cuda or cuda:N"):
            ask()


@pytest.mark.parametrize(
    ("cuda", "mps", "found"), [(1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")], ids=["cuda", "mps", "cpu"]
)
def test_auto_is_what_the_machine_has_and_the_run_is_named_by_it(
    cuda: int, mps: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert usable_device("auto") == torch.device(found)
    assert RunConfig(device="auto") == RunConfig(device=found)
    assert RunConfig(device="auto").name == RunConfig(device=found).name


def test_a_device_without_float64_is_not_asked_for_full_covariances() -> None:
    with pytest.raises(ValueError, match="float64, which device='mps' has not; choose cpu or cuda"):
        RunConfig(device="mps", covariance="full")
