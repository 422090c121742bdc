"""Figure 1 end to end at its smallest size, through the command line, interrupted and not."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from se_core.lab.experiments import (
    CLASSES,
    PANELS,
    PROFILES,
    claims,
    curve,
    figure1_runs,
    mean_and_interval,
    reproduce,
    select,
)
from se_core.lab.figures import METHODS, draw, figure1, results_digest, table
from se_core.lab.storage import StorageError

FIELDS = {"dataset", "architecture", "task", "method", "seed", "latent_dim", "radius", "accuracy", "n"}


def _command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "se_core.lab.cli", "reproduce", "--profile", "tiny", "--out", str(out), *more]


def _kill_family(process: subprocess.Popen) -> None:
    """kill -9 of the parent alone; its workers must end by themselves."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted `se-core reproduce --profile tiny`; what it printed is in `printed`."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = subprocess.run(_command(out, "--workers", "1"), capture_output=True, text=True, check=True)
    (out / "printed").write_text(done.stdout)
    return out


def _results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_results_hold_records_and_provenance(whole: Path) -> None:
    results = _results(whole)
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
    assert len(results["companions"]) == len(results["provenance"]["runs"])


def test_pictures_and_table_are_left(whole: Path) -> None:
    for name in ("figure1", "attacked_digits"):
        assert (whole / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (whole / f"{name}.svg").read_text()
    printed = (whole / "printed").read_text()
    assert table(_results(whole)) in printed
    assert f"{whole}/figure1.png" in printed
    assert printed.count("accuracy in %") == len(_results(whole)["provenance"]["runs"])  # fixed rows, not a bar


def test_pictures_say_which_results_they_show_and_repeat_byte_for_byte(whole: Path, tmp_path: Path) -> None:
    results = _results(whole)
    assert results_digest(results).encode() in (whole / "figure1.png").read_bytes()
    assert results_digest(results) in (whole / "figure1.svg").read_text()
    (tmp_path / "runs").symlink_to(whole / "runs")
    draw(results, tmp_path)
    for path in (*tmp_path.glob("*.png"), *tmp_path.glob("*.svg")):
        assert path.read_bytes() == (whole / path.name).read_bytes(), path.name


def test_the_picture_shows_the_records(whole: Path) -> None:
    """The lines drawn, read back from the axes, are the means of the records."""
    results = _results(whole)
    axes = figure1(results).axes
    assert [a.get_title(loc="left") for a in axes] == [panel.title for panel in PANELS]
    for panel, panel_axes in zip(PANELS, axes, strict=True):
        lines = {line.get_label(): line for line in panel_axes.lines}
        for method, style in METHODS.items():
            chosen = select(results["records"], panel, method)
            line = lines[style["label"]]
            for radius, drawn in zip(line.get_xdata(), line.get_ydata(), strict=True):
                accuracies = [r["accuracy"] for r in chosen if r["radius"] == radius]
                assert drawn == pytest.approx(100 * sum(accuracies) / len(accuracies))


@pytest.mark.parametrize("moment", ["first checkpoint folder", "first finished run", "first evaluation", "nearly done"])
def test_kill_9_at_any_moment_and_the_same_command_ends_the_same(moment: str, whole: Path, tmp_path: Path) -> None:
    def reached() -> bool:
        runs = tmp_path / "runs"
        match moment:
            case "first checkpoint folder":
                return any(runs.glob("*/config.json"))
            case "first finished run":
                return any(runs.glob("*/finished.json"))
            case "first evaluation":
                return any(runs.glob("*/evaluation-*.json"))
            case _:
                return len(list(runs.glob("*/evaluation-*.json"))) >= 10

    process = subprocess.Popen(_command(tmp_path), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    _kill_family(process)
    assert not (tmp_path / "results.json").exists()
    subprocess.run(_command(tmp_path), check=True, stdout=subprocess.DEVNULL)
    interrupted, reference = _results(tmp_path), _results(whole)
    assert interrupted["records"] == reference["records"]
    assert interrupted["companions"] == reference["companions"]
    models = sorted(path.relative_to(whole) for path in whole.glob("runs/*/model.safetensors"))
    assert len(models) == len(reference["provenance"]["runs"])
    for path in models:
        assert (tmp_path / path).read_bytes() == (whole / path).read_bytes()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(_command(tmp_path, "--workers", "2"), stdout=subprocess.DEVNULL)
    while not any((tmp_path / "runs").glob("*/config.json")):
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        _kill_family(process)
        pytest.skip("this system lists no children of a process in /proc")
    pids = [int(pid) for pid in children.read_text().split()]
    _kill_family(process)
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    assert len(pids) >= 2


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(_command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not any((tmp_path / "runs").glob("*/config.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command continues" in message
    assert "Traceback" not in message


def test_two_reproductions_do_not_share_a_folder(tmp_path: Path) -> None:
    from se_core.lab.storage import exclusive

    with exclusive(tmp_path), pytest.raises(StorageError, match="another process is writing"):
        reproduce("tiny", tmp_path, workers=1)


def test_the_paper_profile_is_the_paper() -> None:
    """Appendix 7: 300K iterations, L = 20, latents 32, 64, 128, radius 0.2, gamma 1, both data sets and networks."""
    runs = figure1_runs("paper")
    assert {(r.iterations, r.attack_steps, r.radius, r.gamma) for r in runs} == {(300_000, 20, 0.2, 1.0)}
    assert {r.latent_dim for r in runs} == {32, 64, 128}
    assert {(r.dataset, r.architecture) for r in runs} == {("colour-mnist", "mlp"), ("mnist", "mlp"), ("mnist", "conv")}
    assert len({r.seed for r in runs}) == 5
    assert len(runs) == len(set(runs)) == 5 * 3 * 3 * 2


@pytest.mark.parametrize("profile", PROFILES)
def test_vae_and_smooth_encoder_differ_in_the_method_alone(profile: str) -> None:
    from dataclasses import replace

    runs = figure1_runs(profile)
    assert {replace(r, method="se") for r in runs if r.method == "vae"} == {r for r in runs if r.method == "se"}


def test_an_unknown_profile_names_the_choices() -> None:
    with pytest.raises(ValueError, match="profile='large' is unknown; choose one of tiny, small, paper"):
        figure1_runs("large")


def test_the_interval_is_students() -> None:
    accuracies = [0.41, 0.44, 0.39, 0.46]
    mean, half = mean_and_interval(accuracies)
    low, high = stats.t.interval(0.95, 3, loc=sum(accuracies) / 4, scale=stats.sem(accuracies))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)
    assert math.isnan(mean_and_interval([0.5])[1])
    assert mean_and_interval([0.5, 0.5]) == (0.5, 0.0)


def test_claims_are_computed_from_the_records() -> None:
    """A made-up experiment whose answers can be read off: the smooth encoder is twice as accurate under attack."""
    records = [
        {"dataset": p.dataset, "architecture": p.architecture, "task": p.task, "method": method, "seed": seed,
         "radius": radius, "accuracy": accuracy * (1 if method == "vae" else 2) + 0.001 * seed}
        for p in PANELS
        for method in METHODS
        for seed in (-1, 0, 1)
        for radius, accuracy in {0.0: 0.45, 0.02: 0.3, 0.05: 0.2, 0.2: 0.1, 0.4: 0.01}.items()
    ]  # fmt: skip
    for claim, panel in zip(claims(records), PANELS, strict=True):
        assert claim["robustness"] == pytest.approx({"vae": 0.2, "se": 0.4})
        assert claim["gain"] == pytest.approx(2.0)
        assert claim["apart"]
        assert claim["nominal"] == pytest.approx({"vae": 0.45, "se": 0.9})
        assert claim["last"] == pytest.approx({"vae": 0.01, "se": 0.02})
        assert claim["chance"] == 1 / CLASSES[panel.task]
    noisy = [r | {"accuracy": r["accuracy"] + 0.2 * r["seed"]} for r in records]
    assert not any(claim["apart"] for claim in claims(noisy))
    assert curve(records, PANELS[0], "vae")[0.05][0] == pytest.approx(0.2)
