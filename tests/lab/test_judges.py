"""Finished runs before the judges: what is written, and what is not done again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from se_core.lab import judges
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import accuracy_against_radius, encode_means
from se_core.lab.judges import JudgeConfig, judge
from se_core.lab.probe import fit_probe
from se_core.lab.runs import images, load_run
from se_core.lab.storage import CheckpointError, read_json, write_json
from se_core.lab.training import train
from se_core.pretrained import Mean

CONFIG = JudgeConfig(EvaluationConfig(radii=(0.02, 0.05), attack_steps=3, test_images=30), 0.05, masking_images=20)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folders(runs: Path) -> list[Path]:
    tiny = {"latent_dim": 4, "batch_size": 16, "iterations": 60, "attack_steps": 2}
    kinds = ({"method": "vae"}, {"method": "se", "seed": 1}, {"dataset": "colour-mnist", "method": "vae"})
    return [train(RunConfig(**tiny, **kind), runs) for kind in kinds]


@pytest.fixture(autouse=True)
def a_short_autoattack(shortened: Callable[..., None]) -> None:
    shortened(queries=20, steps=2)


def test_each_run_is_judged_twice_and_checked(folders: list[Path], tmp_path: Path) -> None:
    told: list[dict] = []
    result = judge(folders, CONFIG, tmp_path, tell=told.append)
    assert result["judgements"] == told == [read_json(tmp_path / f"{folder.name}.json") for folder in folders]
    assert all({"commit", "torch"} <= judgement["provenance"].keys() for judgement in (result, *told))
    assert [judgement["run"] for judgement in told] == [folder.name for folder in folders]
    judged = [task for judgement in told for task in judgement["tasks"]]
    identities = [(t["dataset"], t["architecture"], t["method"], t["seed"], t["latent_dim"], t["task"]) for t in judged]
    assert identities == [
        ("mnist", "mlp", "vae", 0, 4, "digit"),
        ("mnist", "mlp", "se", 1, 4, "digit"),
        ("colour-mnist", "mlp", "vae", 0, 4, "colour"),  # seven classes
        ("colour-mnist", "mlp", "vae", 0, 4, "digit"),
    ]
    for task in judged:
        assert task["n"] == 30
        assert task["radii"] == [0.02, 0.05]
        assert task["autoattack"] == [after["square"] for after in task["after"]]
        assert task["difference"] == [a - b for a, b in zip(task["ours"], task["autoattack"], strict=True)]
        assert task["masking"]["radius"] == 0.05
        assert task["masking"]["n"] == 20
        shares = [20 * row["accuracy"] for row in task["masking"]["rows"]]
        assert shares == pytest.approx([round(share) for share in shares])
        assert set(task["seconds"]) == {"ours", "autoattack", "masking"}
    transferred = [[r["check"] for r in t["masking"]["rows"] if "transferred" in r["check"]] for t in judged]
    assert transferred == [[f"transferred from {folders[1].name}"], [f"transferred from {folders[0].name}"], [], []]


def test_our_accuracy_is_that_of_the_evaluation(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same probe, images and seed."""
    seeds = []
    for name in ("accuracy_against_radius", "autoattack_against_radius", "masking"):
        function = getattr(judges, name)
        monkeypatch.setattr(judges, name, lambda *a, function=function: (seeds.append(a[-1]), function(*a))[1])
    ((task,),) = (j["tasks"] for j in judge(folders[1:2], CONFIG, tmp_path)["judgements"])
    run, vae = load_run(folders[1])
    assert seeds == 3 * [run.seed] == [1, 1, 1]
    known, unseen = images(run, "train"), images(run, "test")
    probe = fit_probe(encode_means(vae, known), known.digits, 10, 1e-3)
    x, labels = unseen.images(torch.arange(30)), unseen.digits[:30]
    classifier = nn.Sequential(Mean(vae.encoder), probe)
    assert task["ours"] == accuracy_against_radius(classifier, x, labels, CONFIG.evaluation, 1)


def test_what_is_judged_is_not_judged_again(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is interrupted is continued by the same call; another model or config is judged anew."""
    pair, done, ends_after = folders[:2], [], [1]

    def judged(suspect: Any, *_: Any) -> dict:
        if len(done) == ends_after[0]:
            raise KeyboardInterrupt
        done.append(suspect.run.seed)
        return {"task": "digit"}

    monkeypatch.setattr(judges, "_judged", judged)
    with pytest.raises(KeyboardInterrupt):
        judge(pair, CONFIG, tmp_path)
    ends_after[0] = 10
    first = judge(pair, CONFIG, tmp_path)
    assert done == [0, 1]
    assert judge(pair, CONFIG, tmp_path) == first
    assert done == [0, 1]
    path = tmp_path / f"{pair[1].name}.json"
    for content in (read_json(path) | {"model_sha256": "0"}, {}):
        write_json(path, content)
        assert [j["tasks"] for j in judge(pair, CONFIG, tmp_path)["judgements"]] == 2 * [[{"task": "digit"}]]
    path.write_bytes(b"{")
    judge(pair, CONFIG, tmp_path)
    assert done == [0, 1, 1, 1, 1]
    judge(pair, JudgeConfig(CONFIG.evaluation, 0.1, masking_images=20), tmp_path)
    assert done == [0, 1, 1, 1, 1, 0, 1]


def test_folders_that_cannot_be_judged_are_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished run; train it first"):
        judge([tmp_path / "nothing"], CONFIG, tmp_path / "out")
    for none_or_twice in ([], [folders[0], folders[0]]):
        with pytest.raises(ValueError, match=r"folders=.* must be one or more, each of another name"):
            judge(none_or_twice, CONFIG, tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluation": EvaluationConfig()}, r"evaluation.radii=\(0.0, .* must be positive"),
        ({"masking_radius": 0.0}, "masking_radius=0.0 must be a finite number > 0"),
        ({"masking_radius": float("nan")}, "masking_radius=nan must be a finite number > 0"),
        ({"masking_images": 0}, "masking_images=0 must be at least 1"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgeConfig(**fields)
