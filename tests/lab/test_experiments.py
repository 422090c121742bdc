"""Figure 1 end to end at its smallest size, through the command line, interrupted and not."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from tiny_runs import results_of

from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import identity
from se_core.lab.executors import LocalProcesses
from se_core.lab.experiments import (
    CONTROLS,
    PANELS,
    PROFILES,
    Event,
    ProfileName,
    figure1_runs,
    reproduce,
    row,
    run_all,
)
from se_core.lab.figures import METHODS
from se_core.lab.statistics import select
from se_core.lab.storage import StorageError, exclusive, write_json

FIELDS = {"dataset", "architecture", "task", "method", "seed", "latent_dim", "radius", "accuracy", "n"}


def test_results_hold_records_and_provenance(whole: Path) -> None:
    results = results_of(whole)
    size = PROFILES["tiny"]
    per_run = len(size.evaluation.radii)
    curves = len(PANELS) * len(METHODS)
    assert len(results["records"]) == curves * len(size.seeds) * len(size.latent_dims) * per_run
    for record in results["records"]:
        assert {"dataset", "architecture", "task", "method", "seed", "latent_dim", "radius", "accuracy", "n"} <= set(
            record
        )
        assert 0 <= record["accuracy"] <= 1
        assert record["n"] == size.evaluation.test_images
    for panel in PANELS:
        for method in METHODS:
            assert {r["seed"] for r in select(results["records"], panel, method)} == set(size.seeds)
    assert {"commit", "torch", "device", "profile", "seeds", "runs", "evaluation", "wall_s"} <= set(
        results["provenance"]
    )
    assert len(results["diagnostics"]) == len(results["provenance"]["runs"])


def test_results_say_where_their_runs_were_made(whole: Path, tmp_path: Path) -> None:
    """Which may be another machine than the one that puts them together."""
    shutil.copytree(whole / "runs", tmp_path / "runs")
    (config,) = figure1_runs("tiny", "c", [0], ["vae"])
    record = tmp_path / "runs" / config.name / "finished.json"
    finished = json.loads(record.read_text())
    finished["provenance"] |= {"device": "NVIDIA A100", "machine": "aarch64"}
    record.write_text(json.dumps(finished))
    origin = reproduce("tiny", tmp_path, LocalProcesses(1), "c", [0], ["vae"])["provenance"]
    assert origin["device"] == "NVIDIA A100; cpu"
    assert origin["machine"] == f"aarch64; {results_of(whole)['provenance']['machine']}"


def test_two_reproductions_do_not_share_a_folder(tmp_path: Path) -> None:

    with exclusive(tmp_path), pytest.raises(StorageError, match="another process is writing"):
        reproduce("tiny", tmp_path, LocalProcesses(1))


def test_the_paper_profile_is_the_paper() -> None:
    """Appendix 7: 300K iterations, L = 20, latents 32, 64, 128, radius 0.2, gamma 1, both data sets and networks."""
    runs = figure1_runs("paper")
    papers = [r for r in runs if r.label != "pinned"]
    assert {(r.iterations, r.attack_steps, r.radius, r.gamma, r.memory) for r in papers} == {
        (300_000, 20, 0.2, 1.0, False)
    }
    assert {r.latent_dim for r in runs} == {32, 64, 128}
    assert {(r.dataset, r.architecture) for r in runs} == {("colour-mnist", "mlp"), ("mnist", "mlp"), ("mnist", "conv")}
    assert len({r.seed for r in runs}) == 5
    assert len(papers) == len(set(papers)) == 5 * 3 * 3 * 2
    assert len(runs) == len(set(runs)) == 5 * 3 * 3 * 3


@pytest.mark.parametrize("profile", PROFILES)
def test_methods_differ_in_themselves_alone(profile: str) -> None:
    """Nothing but what the profile and `METHODS` name: same steps, same data, same schedule, same seeds."""
    runs = figure1_runs(profile)
    assert {replace(r, method="se") for r in runs if r.label == "vae"} == {r for r in runs if r.label == "se"}
    own = {"method": "se", "scale": "free", "gamma": 1.0, "memory": False, "attack_steps": 1, "prior": "independent"}
    own |= {"beta": 1.0, "radius": 0.2}
    papers = {replace(r, **own) for r in runs if r.label == "se"}
    controls = CONTROLS if PROFILES[profile].controls else {}
    for method in METHODS:
        assert {replace(r, **own) for r in runs if r.label == method} == papers
    for method in controls:
        assert {replace(r, **own) for r in runs if r.label == method} == {r for r in papers if r.dataset == "mnist"}
    assert len(runs) == len(METHODS) * len(papers) + len(controls) * sum(r.dataset == "mnist" for r in papers)


def test_the_slices_of_a_profile_are_the_whole() -> None:
    whole = figure1_runs("full")
    slices = [figure1_runs("full", panels, [seed]) for panels in ("ab", "c", "d") for seed in PROFILES["full"].seeds]
    assert set(whole) == {run for part in slices for run in part}
    assert len(whole) == sum(map(len, slices))
    assert {(r.dataset, r.architecture, r.seed) for r in slices[-1]} == {("mnist", "conv", 2)}
    for panels in ("", "e", "ax"):
        with pytest.raises(ValueError, match=f"panels='{panels}' must be letters of abcd"):
            figure1_runs("full", panels)
    with pytest.raises(ValueError, match=r"seeds=\[3\] must be some of profile 'full': 0, 1, 2"):
        figure1_runs("full", seeds=[3])
    chosen = figure1_runs("full", "abd", [1], ["pinned", "labels"])
    assert {(r.architecture, r.label) for r in chosen} == {("mlp", "pinned"), ("conv", "pinned"), ("conv", "labels")}
    for profile, method in (("full", "sse"), ("small", "labels")):
        with pytest.raises(
            ValueError, match=rf"methods=\['{method}'\] must be some of profile '{profile}': vae, se, pin"
        ):
            figure1_runs(profile, methods=[method])


def test_what_the_methods_differ_in_is_not_for_every_run() -> None:
    with pytest.raises(ValueError, match="scale='pinned' is what the methods of Figure 1 differ in; leave it"):
        figure1_runs("tiny", scale="pinned")
    with pytest.raises(ValueError, match=r"method 'pinned' of Figure 1: memory needs a radius > 0"):
        figure1_runs("tiny", radius=0.0)


def test_an_unknown_profile_names_the_choices() -> None:
    assert get_args(ProfileName) == tuple(PROFILES)
    with pytest.raises(ValueError, match="profile='large' is unknown; choose one of tiny, small, full, paper"):
        figure1_runs("large")


def test_accuracies_name_their_radii(tiny_config: Callable[..., RunConfig]) -> None:
    curves = {"colour": {0.0: 0.996, 0.05: 0.5}, "digit": {0.0: 0.8, 0.05: 0.0}}
    records = [
        identity(tiny_config(dataset="colour-mnist", seed=3)) | {"task": task, "radius": radius, "accuracy": accuracy}
        for task, curve in curves.items()
        for radius, accuracy in curve.items()
    ]
    line = row(records)
    assert line.split("  accuracy in % by radius: ")[1] == "colour 0: 100, 0.05: 50; digit 0: 80, 0.05: 0"
    assert line.startswith("colour-mnist mlp  se                 D_z   4 seed 3")


def test_the_bar_of_a_terminal_says_what_is_done(
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = tmp_path / "evaluation.json"
    write_json(done, {"records": [identity(tiny_config()) | {"task": "digit", "radius": 0.0, "accuracy": 0.5}]})

    def execute(configs: Sequence[RunConfig], evaluation: EvaluationConfig, runs: Path) -> Generator[Event, None, None]:
        for config in configs:
            yield Event(config, config.iterations)
            yield Event(config, evaluation=done)

    run_all([tiny_config(), tiny_config(seed=1)], EvaluationConfig(), tmp_path, execute)
    last = capsys.readouterr().err.rstrip("\n").split("\r")[-1]
    assert re.fullmatch(r"runs 100\.0 %\|.*\| \d\d:\d\d elapsed, \d\d:\d\d to go, 2 of 2 done *", last)
