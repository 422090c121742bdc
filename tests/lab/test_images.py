"""Runs on one's own images: trained, resumed, evaluated and compared as runs on digits are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import interrupted, outcome

from se_core.datasets import DataError
from se_core.errors import InvalidValueError
from se_core.lab.cli import main
from se_core.lab.comparison import compare, comparison_table
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import evaluate
from se_core.lab.experiments import run_all, train_and_evaluate
from se_core.lab.judges import JudgeConfig, judge
from se_core.lab.runs import images, load_run
from se_core.lab.storage import CheckpointError, read_json
from se_core.lab.training import train

SHORT = EvaluationConfig(radii=(0.0, 0.05), attack_steps=2, test_images=20)
COLOURS = {"apple": (200, 40, 40), "leaf": (40, 200, 40), "sky": (40, 40, 200)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around a colour, which is the label: 12 x 12 pixels, so that no size is 28."""
    root, draw = tmp_path_factory.mktemp("pictures") / "pictures", np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (root / label).mkdir(parents=True)
        for i in range(60):
            pixels = np.clip(colour + draw.normal(0, 20, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


@pytest.fixture
def config(tiny_config: Any, folder: Path) -> Callable[..., RunConfig]:
    return lambda **fields: tiny_config(**({"dataset": "images", "source": str(folder)} | fields))


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, (3, 12, 12)),
        ({"architecture": "conv", "image_size": 32, "iterations": 3}, (3, 32, 32)),
        ({"scale": "pinned", "gamma": 10.0, "memory": True, "attack_steps": 1}, (3, 12, 12)),
        ({"method": "classifier"}, (3, 12, 12)),
    ],
    ids=["mlp", "conv", "remembered", "classifier"],
)
def test_a_run_is_trained_probed_and_attacked(config: Any, tmp_path: Path, fields: dict, shape: tuple) -> None:
    run = config(**fields)
    path = evaluate(train(run, tmp_path), SHORT)
    assert images(run, "test").shape == shape
    loaded, vae = load_run(tmp_path / run.name)
    assert loaded == run
    x = images(run, "test").images()
    width = 3 if run.method == "classifier" else shape
    assert vae.decode(vae.encode(x).mean).shape[1:] == (torch.Size([3]) if run.method == "classifier" else shape), width
    records = read_json(path)["records"]
    assert [(r["dataset"], r["task"], r["radius"]) for r in records] == [("images", "label", r) for r in SHORT.radii]
    if run.iterations > 3:
        assert records[0]["accuracy"] == 1.0  # three colours: a linear probe tells them apart


def test_a_run_resumes_bit_for_bit(config: Any, tmp_path: Path) -> None:
    run = config(memory=True)
    whole = train(run, tmp_path / "whole")
    stopped = interrupted(run, tmp_path / "stopped")
    assert outcome(train(run, tmp_path / "stopped")) == outcome(whole)
    assert stopped.name == whole.name


def test_splits_do_not_meet(config: Any) -> None:
    files = [set(images(config(), split).files) for split in ("train", "validation", "test")]
    assert len(set.union(*files)) == sum(map(len, files)) == 180


def test_a_folder_that_has_changed_is_noticed(config: Any, folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    run = config(source=str(own), iterations=2)
    finished = train(run, tmp_path / "runs")
    path = own / images(run, "train").files[0]
    shutil.move(path, own / next(label for label in COLOURS if label != path.parent.name) / "moved.png")
    for again in (lambda: train(run, tmp_path / "runs"), lambda: evaluate(finished, SHORT)):
        with pytest.raises(DataError, match=f"the data have changed since {finished} was trained"):
            again()


def test_the_record_of_the_images_is_needed(config: Any, tmp_path: Path) -> None:
    finished = train(config(iterations=2), tmp_path)
    (finished / "data.json").write_text(json.dumps({"train": "", "shape": [3]}))
    with pytest.raises(CheckpointError, match=r"data\.json is damaged"):
        load_run(finished)


def test_nothing_is_written_where_no_network_fits(config: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="image_size=30 must be a multiple of 4"):
        train(config(architecture="conv", image_size=30), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_damaged_files_are_left_out_on_request(config: Any, folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    (own / "sky" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"sky/3\.png"):
        train(config(source=str(own)), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert evaluate(train(config(source=str(own), skip_damaged=True, iterations=2), tmp_path / "runs"), SHORT).exists()


def test_without_labels_there_is_everything_but_a_probe(
    config: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = config(source=str(folder / "sky"), iterations=2, batch_size=8)
    path = train_and_evaluate(run, EvaluationConfig(test_images=20, along_the_way=True), tmp_path, lambda steps: None)
    found = read_json(path)
    assert found["records"] == []
    assert found["diagnostics"]["elbo"] < 0
    assert [row["accuracy"] for row in found["along_the_way"]] == [{}]
    assert main(["evaluate", str(path.parent), "--test-images=20"]) == 0
    assert f"{run.name}   no labels, so no probe and no accuracy: elbo -" in capsys.readouterr().out
    results = compare([path.parent], SHORT, tmp_path / "compared")
    assert "| se | none |" in str(comparison_table(results))
    assert not (tmp_path / "compared" / "accuracy.png").exists()
    assert (tmp_path / "compared" / "attacked_images.png").exists()
    with pytest.raises(InvalidValueError, match="these images have no labels"):
        train(config(source=str(folder / "sky"), method="classifier", batch_size=8), tmp_path)
    with pytest.raises(InvalidValueError, match="its images have no labels, so there is no classifier to judge"):
        judge([path.parent], JudgeConfig(), tmp_path / "judged")


def test_many_runs_are_trained_and_told(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def execute(configs: Any, evaluation: EvaluationConfig, runs: Path) -> Any:
        from se_core.lab.experiments import Event

        for one in configs:
            yield Event(one, one.iterations, train_and_evaluate(one, evaluation, runs, lambda steps: None))

    configs = [config(iterations=2), config(iterations=2, method="vae")]
    assert len(run_all(configs, SHORT, tmp_path, execute)) == 2
    assert capsys.readouterr().out.count("images       mlp") == 2


def test_runs_are_compared(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Curves pool seeds and nothing else; the table holds the means of the evaluations."""
    runs = [config(iterations=2, seed=seed) for seed in (0, 1)]
    runs += [config(iterations=2, gamma=3.0), config(iterations=2, method="vae")]
    finished = [train(run, tmp_path / "runs") for run in runs]
    options = ["--radii=[0.0, 0.05]", "--attack-steps=2", "--test-images=20", f"--out={tmp_path / 'out'}"]
    assert main(["compare", *map(str, finished), *options]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line.split("|")[3:] for line in printed.splitlines() if "| label |" in line}
    assert list(rows) == ["se, gamma 1.0", "se, gamma 3.0", "vae"]
    records = [read_json(evaluate(folder, SHORT))["records"] for folder in finished]
    for name, chosen in zip(rows, ([0, 1], [2], [3]), strict=True):
        for place in (0, 1):
            mean = sum(records[i][place]["accuracy"] for i in chosen) / len(chosen)
            assert int(rows[name][place]) == round(100 * mean)
    for name in ("accuracy.png", "attacked_images.png", "accuracy.svg", "results.json"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


def test_runs_of_different_data_are_not_compared(config: Any, tmp_path: Path) -> None:
    finished = [train(config(iterations=2, **size), tmp_path) for size in ({}, {"image_size": 8})]
    with pytest.raises(InvalidValueError, match=r"is of the data .*'8'.*, .* of .*'0'"):
        compare(finished, SHORT, tmp_path / "out")
    assert not (tmp_path / "out").exists()
