"""The `se-core` command: data, train, evaluate, compare, reproduce."""

import io
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from se_core import __version__
from se_core.datasets import fetch
from se_core.errors import InvalidValueError, SmoothEncoderError
from se_core.lab.comparison import compare, comparison_table
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import evaluate, evaluate_pretrained
from se_core.lab.executors import LocalProcesses, configure_process
from se_core.lab.experiments import (
    PANEL_LETTERS,
    PROFILES,
    ProfileName,
    examples,
    figure1_runs,
    longest_first,
    reproduce,
    row,
    summary,
)
from se_core.lab.figures import draw
from se_core.lab.slurm import Slurm
from se_core.lab.storage import read_json
from se_core.lab.tables import accuracy_table
from se_core.lab.training import Interrupted, train
from se_core.pretrained import PRETRAINED

_DEVICE = "cpu, cuda, cuda:N, mps, or auto: what there is"
# What the figure varies itself, what only a control has, and what is not of digits.
_OWN = {
    "dataset", "architecture", "method", "seed", "latent_dim", "scale", "beta", "image_size", "skip_damaged"
}  # fmt: skip


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _command(description: str) -> ArgumentParser:
    return ArgumentParser(description=description, allow_abbrev=False, exit_on_error=False)


def _parser() -> ArgumentParser:
    data = _command("Fetch the full MNIST, verify it, and leave a tree that torchvision accepts.")
    data.add_argument("--root", type=Path, default=Path("data"), help="where to put it")

    training = _command("Train one run; the same command resumes or returns it.")
    training.add_argument("--config", action="config", help="a YAML file with any of the options below")
    training.add_class_arguments(RunConfig)
    training.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that holds the runs")
    training.add_argument("--checkpoint_every", type=int, default=500, help="steps between two checkpoints")

    evaluation = _command("Evaluate a finished run, or a pretrained encoder: accuracy against radius.")
    evaluation.add_argument("run", type=Path, nargs="?", help="the folder of a finished run")
    evaluation.add_argument("--pretrained", type=str, default=None, help=f"one of {', '.join(PRETRAINED)}")
    evaluation.add_argument("--config", action="config", help="a YAML file with any of the options below")
    evaluation.add_class_arguments(EvaluationConfig)
    evaluation.add_argument("--device", type=str, default="cpu", help=_DEVICE)

    comparison = _command("Evaluate finished runs of the same data side by side: a table and pictures.")
    comparison.add_argument("runs", type=Path, nargs="+", help="the folders of finished runs")
    comparison.add_argument("--out", type=Path, default=Path("runs/compared"), help="output folder")
    comparison.add_argument("--config", action="config", help="a YAML file with any of the options below")
    comparison.add_class_arguments(EvaluationConfig)
    comparison.add_argument("--device", type=str, default="cpu", help=_DEVICE)

    parser = _command("Smooth encoders: train, attack, compare.")
    parser.prog = "se-core"
    parser.add_argument("--version", action="version", version=f"se-core {__version__}")
    subcommands = parser.add_subcommands()
    commands = {"data": data, "train": training, "evaluate": evaluation, "compare": comparison}
    for name, command in (commands | {"reproduce": _reproduction()}).items():
        subcommands.add_subcommand(name, command, help=command.description)
    return parser


def _reproduction() -> ArgumentParser:
    figure1 = _command("Figure 1 of the paper, end to end; the same command continues.")
    figure1.add_argument("--config", action="config", help="a YAML file with any of the options below")
    figure1.add_argument("--profile", type=ProfileName, default="small", help="how large")
    figure1.add_argument("--panels", type=str, default=PANEL_LETTERS, help="letters of the panels to reproduce")
    figure1.add_argument("--seeds", type=list[int], default=None, help="some of the profile's, as [0,1]; all if absent")
    figure1.add_argument("--methods", type=list[str], default=None, help="some, as [vae,pinned]; all if absent")
    figure1.add_argument("--out", type=Path, default=None, help="output folder; runs/figure1-PROFILE if absent")
    figure1.add_argument(
        "--workers", type=int, default=None, help="runs at a time; one a core, on a GPU just one, of slurm all"
    )
    figure1.add_argument("--executor", type=Literal["local", "slurm"], default="local", help="what runs them")
    figure1.add_argument("--slurm", type=str, default="", help="options of sbatch: '--partition=gpu --time=4:00:00'")
    figure1.add_argument("--dry_run", action="store_true", help="show what slurm would be given, and submit nothing")
    every_run = figure1.add_argument_group("of every run, in the place of what the profile says")
    every_run.add_class_arguments(RunConfig, as_group=False, skip=_OWN)
    figure1.set_defaults({field.name: None for field in fields(RunConfig) if field.name not in _OWN})
    return figure1


def _prepared(command: str, arguments: Namespace) -> Callable[[], None]:
    """What the command will do, once everything that its arguments say has been checked."""

    def fields_of(kind: Any) -> Any:
        return kind(**{field.name: arguments[field.name] for field in fields(kind)})

    match command:
        case "data":
            return lambda: print(fetch(arguments.root))
        case "train":
            return partial(_train, fields_of(RunConfig), arguments.runs, arguments.checkpoint_every)
        case "evaluate":
            if (arguments.run is None) == (arguments.pretrained is None):
                raise InvalidValueError("evaluate takes the folder of a run, or --pretrained NAME: one of the two")
            subject = arguments.run or arguments.pretrained
            return partial(_evaluate, subject, fields_of(EvaluationConfig), arguments.device)
        case "compare":
            return partial(
                _compare, arguments.runs, fields_of(EvaluationConfig), arguments.out.expanduser(), arguments.device
            )
        case _:
            names = {field.name for field in fields(RunConfig)} & set(arguments.keys())
            overrides = {name: arguments[name] for name in names if arguments[name] is not None}
            overrides |= {"panels": arguments.panels, "seeds": arguments.seeds, "methods": arguments.methods}
            configs = figure1_runs(arguments.profile, **overrides)
            out = (arguments.out or Path("runs") / f"figure1-{arguments.profile}").expanduser()
            execute = _executor(arguments, configs[0].device)
            if isinstance(execute, Slurm) and arguments.dry_run:
                runs = longest_first(configs), PROFILES[arguments.profile].evaluation, out / "runs"
                return lambda: print(execute.plan(*runs))
            return partial(_reproduce, arguments.profile, out, execute, overrides)


def _executor(arguments: Namespace, device: str) -> LocalProcesses | Slurm:
    if arguments.executor == "slurm":
        if arguments.device == "auto":
            raise InvalidValueError("device='auto': which, this machine cannot tell for others; choose cpu or cuda")
        return Slurm(arguments.workers, arguments.slurm)
    if arguments.slurm or arguments.dry_run:
        raise InvalidValueError("--slurm and --dry-run are for --executor slurm; add it, or leave them")
    workers = _cores() if device == "cpu" else 1
    return LocalProcesses(workers if arguments.workers is None else arguments.workers)


def _train(config: RunConfig, runs: Path, checkpoint_every: int) -> None:
    with tqdm(total=config.iterations, unit="step", desc=config.name, disable=not sys.stderr.isatty()) as bar:
        folder = train(config, runs, checkpoint_every, bar.update)
    print(folder)


def _evaluate(subject: Path | str, config: EvaluationConfig, device: str) -> None:
    if isinstance(subject, str):
        print(row(evaluate_pretrained(subject, config, device)))
    else:
        path = evaluate(subject, config, device)
        print(summary(read_json(path)))
        print(path)


def _compare(folders: list[Path], config: EvaluationConfig, out: Path, device: str) -> None:
    print(comparison_table(compare(folders, config, out, device)))
    print("\n" + "  ".join(str(path) for path in (*sorted(out.glob("*.png")), out / "results.json")))


def _reproduce(profile: ProfileName, out: Path, execute: LocalProcesses | Slurm, overrides: dict[str, Any]) -> None:
    results = reproduce(profile, out, execute, **overrides)
    draw(results, examples(results, out), out)
    print(accuracy_table(results["records"]))
    print("\n" + "  ".join(str(path) for path in (*sorted(out.glob("*.png")), out / "results.json")))


def _underscored(argument: str) -> str:
    """--attack-dtype and --attack_dtype are the same option."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _explained(message: str) -> str:
    """What the parser says; of a wrong value in the words of `RunConfig`, instead of Python's names of types."""
    if message.startswith("Unexpected config"):
        return "the configuration file holds no options; write one a line, as gamma: 1.0"
    wrong = re.fullmatch(r'Parser key "(.+)":\s+Expected a (.+)\. Got value: (.*)', message, re.DOTALL)
    if not wrong:
        return f"{' '.join(message.split()).rstrip('.')}; --help after a command lists its options"
    name, kind, value = wrong.groups()
    if "Literal[" in kind:
        choices = ", ".join(re.findall("'(.+?)'", kind))
        return f"{name}={value!r} is unknown; choose one of {choices}"
    kind = kind.removeprefix("<class '").removesuffix("'>")
    if kind in ("list", "tuple"):
        return f"{name}={value!r} must be a list, as [{value}]"
    remedy = "; YAML writes .nan and .inf" if value.lstrip("+-").lower() in ("nan", "inf") else ""
    return f"{name}={value!r} must be of type {kind}{remedy}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; 0 on success, 1 on an error that was explained, 130 after Ctrl-C, 141 where nobody
    reads any more. A bug keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of ASCII shows ? for ±
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().parse_args([_underscored(argument) for argument in argv])
    except ArgumentError as error:
        print(f"se-core: {_explained(str(error))}", file=sys.stderr)
        return 2
    configure_process()
    command = arguments.subcommand
    try:
        _prepared(command, arguments[command])()
        sys.stdout.flush()
    except SmoothEncoderError as error:
        print(f"se-core {command}: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as interruption:
        print(f"se-core {command}: {str(interruption) or 'stopped; the same command continues'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
