"""The command line: what it accepts, and what it says when it does not."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from se_core.errors import SmoothEncoderError
from se_core.lab import cli
from se_core.lab.config import RunConfig
from se_core.lab.executors import LocalProcesses
from se_core.lab.runs import load_run
from se_core.lab.storage import CheckpointError

TINY = ["--latent-dim=4", "--attack-steps", "2", "--batch_size", "16", "--iterations", "60"]


def _fails(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """Run a command that must fail; what it said."""
    status: Any
    try:
        status = cli.main(argv)
    except SystemExit as error:  # the parser's own way of refusing
        status = error.code
    assert status in (1, 2)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_train_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "--runs", str(tmp_path), *TINY, "--gamma=2"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    config, _ = load_run(folder)
    assert config == RunConfig(latent_dim=4, attack_steps=2, batch_size=16, iterations=60, gamma=2.0)
    assert cli.main(["evaluate", str(folder), "--radii", "[0.0, 0.1]", "--attack-steps=2", "--test-images=50"]) == 0
    line, path = capsys.readouterr().out.splitlines()
    records = json.loads(Path(path).read_text())["records"]
    assert [r["radius"] for r in records] == [0.0, 0.1]
    assert f"digit 0: {100 * records[0]['accuracy']:.0f}, 0.1: {100 * records[1]['accuracy']:.0f}" in line


def test_a_configuration_file_is_read_and_flags_win(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"latent_dim": 4, "iterations": 55, "batch_size": 16, "method": "vae"}))
    assert cli.main(["train", "--config", str(file), "--iterations=51", "--runs", str(tmp_path)]) == 0
    config, _ = load_run(Path(capsys.readouterr().out.strip()))
    assert (config.latent_dim, config.iterations, config.method) == (4, 51, "vae")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"gammma": 1.0}, "gammma"),
        ({"latent_dim": "many"}, "latent_dim"),
        ({"latent_dim": 2.5}, "latent_dim"),
        ({"compile": "perhaps"}, "compile='perhaps' must be of type bool"),
        ({"method": "SE"}, "method='SE' is unknown; choose one of vae, se, avae, classifier"),
    ],
)
def test_an_unknown_or_ill_typed_key_is_named(
    content: dict, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    assert expected in _fails(["train", "--config", str(file), "--runs", str(tmp_path / "runs")], capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "- gamma\n"])
def test_a_configuration_file_without_options_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "run.yaml").write_text(content)
    message = _fails(["train", f"--config={tmp_path / 'run.yaml'}", f"--runs={tmp_path / 'runs'}"], capsys)
    assert "the configuration file holds no options; write one a line, as gamma: 1.0" in message
    assert not (tmp_path / "runs").exists()


def _help(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit, match="0"):
        cli.main([*argv, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["data", "train", "evaluate", "compare", "reproduce"])
def test_help_has_words_for_every_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Not only its type: what stands before "(type: ..." on the line of an option."""
    monkeypatch.setenv("COLUMNS", "400")  # a line for each
    (line,) = re.findall(rf"^    {command} +(.+)$", _help([], capsys), re.MULTILINE)
    assert len(line.split()) > 3
    shown = _help([command], capsys)
    options = re.findall(r"^  (--\S+|runs?)(?: [^ ]+)*  +(.*)$", shown, re.MULTILINE)
    said = {name: words.partition("(type:")[0] for name, words in options}
    assert set(said) >= set(re.findall(r"\[(--\w+|runs?)\b", shown))  # those of the usage
    assert not [name for name, words in said.items() if len(words.split()) < 2]


def test_help_knows_the_docstrings_and_the_choices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for command in ("train", "reproduce"):
        shown = _help([command], capsys)
        assert re.search(r"--gamma GAMMA +coupling strength, >= 0\.", shown)
        assert "--schedule {constant,cosine}" in shown
    assert "--architecture {mlp,conv}" in _help(["train"], capsys)
    assert "--split {test,validation}" in _help(["evaluate"], capsys)
    assert "--profile {tiny,small,full,paper}" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gamma=-1"], "gamma=-1.0 must be a finite number >= 0"),
        (["--gamma=.nan"], "gamma=nan"),
        (["--radius=-0.1"], "radius=-0.1 must be a finite number >= 0"),
        (["--method=SE"], "method='SE' is unknown; choose one of vae, se, avae"),
        (["--source=nowhere"], "nowhere"),
        (["--iteration=5"], "nrecognized arguments: --iteration=5; --help after a command lists its options"),
        (["--gamma=nan"], "gamma='nan' must be of type float; YAML writes .nan and .inf"),
        (["--latent-dim=2.5"], "latent_dim='2.5' must be of type int"),
    ],
)
def test_bad_values_are_explained(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert expected in _fails(["train", "--runs", str(tmp_path), *arguments], capsys)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_an_output_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for argv in (["train", "--runs"], ["reproduce", "--profile=tiny", "--out"]):
        message = _fails([*argv, str(tmp_path / "file")], capsys)
        assert "cannot write to" in message
        assert "choose another output folder" in message


def test_a_damaged_model_is_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", "--runs", str(tmp_path), *TINY]) == 0
    folder = Path(capsys.readouterr().out.strip())
    model = folder / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-3])
    assert "is damaged: its SHA-256" in _fails(["evaluate", str(folder)], capsys)
    with pytest.raises(CheckpointError):
        load_run(folder)


def test_unknown_profiles_and_workers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "choose one of tiny, small, full, paper" in _fails(["reproduce", "--profile=huge"], capsys)
    assert "seeds='0' must be a list, as [0]" in _fails(["reproduce", "--seeds=0"], capsys)
    argv = ["reproduce", "--profile=tiny", "--workers=0", f"--out={tmp_path}"]
    assert "workers=0 must be at least 1" in _fails(argv, capsys)


def test_reproduce_passes_its_flags_to_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: dict = {}

    def reproduce(profile: str, out: Path, execute: LocalProcesses, **overrides: object) -> None:
        asked.update(profile=profile, out=out, workers=execute.workers, **overrides)
        raise SmoothEncoderError("enough")

    monkeypatch.setattr(cli, "reproduce", reproduce)
    argv = ["reproduce", "--attack-dtype=bfloat16", "--compile=true", "--gamma=3", f"--out={tmp_path}", "--workers=5"]
    argv += ["--panels=ab", "--seeds=[0,2]", "--methods=[vae,pinned]"]
    assert "enough" in _fails(argv, capsys)
    expected = {"attack_dtype": "bfloat16", "compile": True, "gamma": 3.0, "profile": "small", "out": tmp_path}
    assert asked == expected | {"workers": 5, "panels": "ab", "seeds": [0, 2], "methods": ["vae", "pinned"]}

    for device, workers in (("cpu", 3), ("cuda", 1), ("mps", 1)):
        monkeypatch.setattr(cli, "_cores", lambda: 3)
        assert "enough" in _fails(["reproduce", f"--device={device}", f"--out={tmp_path}"], capsys)
        assert (asked["workers"], asked["device"]) == (workers, device)


def test_a_terminal_sees_progress_with_rate_and_remaining_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["train", "--runs", str(tmp_path), *TINY]) == 0
    shown = capsys.readouterr().err
    assert "step/s" in shown or "s/step" in shown
    assert "<" in shown  # elapsed<remaining
    assert "60/60" in shown


def test_nan_is_what_yaml_calls_nan() -> None:
    """The test above relies on it: `.nan` reaches the configuration as a float."""
    assert math.isnan(yaml.safe_load(".nan"))


def test_ctrl_c_during_an_evaluation_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate", interrupted)
    assert cli.main(["evaluate", str(tmp_path)]) == 130
    assert "stopped; the same command continues" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def train(*arguments: object) -> None:
        raise ValueError("not one of ours")

    monkeypatch.setattr(cli, "train", train)
    with pytest.raises(ValueError, match="not one of ours"):
        cli.main(["train", "--runs", str(tmp_path), *TINY])


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--gamma=-1", "--runs=OUT"],
        ["train", "--source=nowhere", "--runs=OUT"],
        ["train", "--batch-size=8335", "--runs=OUT"],
        ["reproduce", "--profile=huge", "--out=OUT"],
        ["reproduce", "--profile=tiny", "--workers=0", "--out=OUT"],
        ["reproduce", "--profile=tiny", "--gamma=-1", "--out=OUT"],
        ["reproduce", "--profile=tiny", "--device=tpu", "--out=OUT"],
        ["reproduce", "--profile=tiny", "--slurm=--time=60", "--out=OUT"],
        ["reproduce", "--profile=tiny", "--dry-run", "--out=OUT"],
        ["reproduce", "--profile=tiny", "--executor=slurm", "--slurm=--array=0-3", "--out=OUT"],
        ["reproduce", "--profile=tiny", "--executor=slurm", "--out=OUT", "--workers=0"],
    ],
)
def test_what_cannot_run_is_refused_before_a_folder_is_made(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _fails([argument.replace("OUT", str(tmp_path / "out")) for argument in argv], capsys)
    assert not (tmp_path / "out").exists()


def _run(argv: list[str], **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "se_core.lab.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_the_table_survives_a_terminal_of_ascii_and_a_matplotlibrc_of_latex(whole: Path, tmp_path: Path) -> None:
    """What runs last must not fail: the runs of a finished reproduction, drawn and printed again."""
    shutil.copytree(whole, tmp_path / "out")
    for picture in (*(tmp_path / "out").glob("*.png"), *(tmp_path / "out").glob("*.svg")):
        picture.unlink()
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.format: pdf\nfont.family: No Such Font\n")
    argv = ["reproduce", "--profile=tiny", f"--out={tmp_path / 'out'}"]
    done = _run(argv, MATPLOTLIBRC=str(tmp_path), PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "| gain |" in done.stdout
    for picture in ("figure1.png", "attacked_digits.png"):
        assert (tmp_path / "out" / picture).read_bytes() == (whole / picture).read_bytes()


def test_a_closed_pipe_is_no_traceback(whole: Path) -> None:
    command = [sys.executable, "-m", "se_core.lab.cli", "reproduce", "--profile=tiny", f"--out={whole}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # as `| head` does
        said = process.stderr.read()
    assert process.returncode == 141
    assert "Traceback" not in said
    assert "Broken" not in said


def test_slurm_is_asked_for_by_name_and_has_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = ["reproduce", "--profile=tiny", f"--out={tmp_path / 'out'}"]
    monkeypatch.setenv("PATH", str(tmp_path))
    for more, words in (
        (["--executor=slurm"], "there is no sbatch on this machine; call it on a cluster's login node"),
        (["--executor=slurm", "--slurm=-p gpu -J mine"], "slurm='-p gpu -J mine': -J is not yours to choose; leave it"),
        (["--executor=slurm", "--slurm='"], "check its quotes"),
        (["--executor=slurm", "--device=auto"], "device='auto': which, this machine cannot tell for others"),
        (["--slurm=-p gpu"], "are for --executor slurm; add it, or leave them"),
        (["--executor=pbs"], "pbs"),
    ):
        assert words in _fails([*argv, *more], capsys)
        assert not (tmp_path / "out").exists()


def test_evaluate_wants_one_subject(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for argv in (["evaluate"], ["evaluate", str(tmp_path), "--pretrained", "mnist-conv-vae"]):
        assert "takes the folder of a run, or --pretrained NAME: one of the two" in _fails(argv, capsys)
    assert "name='mnist' is unknown; choose one of" in _fails(["evaluate", "--pretrained", "mnist"], capsys)
