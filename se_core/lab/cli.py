"""The `se-core` command: data, train, evaluate, reproduce."""

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from se_core.datasets import DataError, fetch
from se_core.lab.evaluation import EvaluationConfig, evaluate
from se_core.lab.experiments import PROFILES, WorkerKilled, configure_process, reproduce, row
from se_core.lab.figures import draw, table
from se_core.lab.storage import CheckpointError, StorageError
from se_core.lab.training import Interrupted, RunConfig, TrainingDiverged, train

ERRORS = (ValueError, TypeError, RuntimeError, DataError, CheckpointError, StorageError, TrainingDiverged, WorkerKilled)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _command(description: str) -> ArgumentParser:
    return ArgumentParser(description=description, allow_abbrev=False)


def _parser() -> ArgumentParser:
    data = _command("Fetch the full MNIST, verify it, and leave a tree that torchvision accepts.")
    data.add_argument("--root", type=Path, default=Path("data"), help="where to put it")

    training = _command("Train one run; the same command resumes or returns it.")
    training.add_argument("--config", action="config", help="a YAML file with any of the options below")
    training.add_class_arguments(RunConfig)
    training.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that holds the runs")
    training.add_argument("--checkpoint_every", type=int, default=500, help="steps between two checkpoints")

    evaluation = _command("Evaluate a finished run: probe, accuracy against radius, companions.")
    evaluation.add_argument("run", type=Path, help="the folder of a finished run")
    evaluation.add_argument("--config", action="config", help="a YAML file with any of the options below")
    evaluation.add_class_arguments(EvaluationConfig)
    evaluation.add_argument("--device", type=str, default="cpu")

    figure1 = _command("Figure 1 of the paper, end to end; the same command continues.")
    figure1.add_argument("--config", action="config", help="a YAML file with any of the options below")
    figure1.add_argument("--profile", type=str, default="small", help=f"one of {', '.join(PROFILES)}")
    figure1.add_argument("--out", type=Path | None, default=None, help="output folder; runs/figure1-PROFILE if absent")
    figure1.add_argument("--workers", type=int, default=_cores(), help="processes, of one thread each")
    for field in fields(RunConfig):
        if field.name not in ("dataset", "architecture", "method", "seed", "latent_dim"):  # the figure's own
            kind: Any = field.type
            figure1.add_argument(f"--{field.name}", type=kind | None, default=None, help="of every run")

    parser = ArgumentParser(prog="se-core", description="Smooth encoders: train, attack, compare.", allow_abbrev=False)
    commands = parser.add_subcommands()
    commands.add_subcommand("data", data)
    commands.add_subcommand("train", training)
    commands.add_subcommand("evaluate", evaluation)
    commands.add_subcommand("reproduce", figure1)
    return parser


def _run_config(arguments: Namespace) -> RunConfig:
    return RunConfig(**{field.name: arguments[field.name] for field in fields(RunConfig)})


def _train(arguments: Namespace) -> None:
    config = _run_config(arguments)
    terminal = sys.stderr.isatty()
    with tqdm(total=config.iterations, unit="step", desc=config.name, disable=not terminal) as bar:
        folder = train(config, arguments.runs, arguments.checkpoint_every, bar.update if terminal else None)
    print(folder)


def _evaluate(arguments: Namespace) -> None:
    config = EvaluationConfig(**{field.name: arguments[field.name] for field in fields(EvaluationConfig)})
    path = evaluate(arguments.run, config, arguments.device)
    print(row(path))
    print(path)


def _reproduce(arguments: Namespace) -> None:
    out = arguments.out or Path("runs") / f"figure1-{arguments.profile}"
    names = {field.name for field in fields(RunConfig)} & set(arguments.keys())
    overrides = {name: arguments[name] for name in names if arguments[name] is not None}
    results = reproduce(arguments.profile, out, arguments.workers, **overrides)
    draw(results, out)
    print(table(results))
    print(f"\n{out}/figure1.png  {out}/attacked_digits.png  {out}/results.json")


def _underscored(argument: str) -> str:
    """--attack-dtype and --attack_dtype are the same option."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; 0 on success, 1 on an error that was explained, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args([_underscored(argument) for argument in argv])
    configure_process()
    command = arguments.subcommand
    action = {"data": lambda a: print(fetch(a.root)), "train": _train, "evaluate": _evaluate, "reproduce": _reproduce}
    try:
        action[command](arguments[command])
    except ERRORS as error:
        print(f"se-core {command}: {error}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as interruption:
        print(f"se-core {command}: {str(interruption) or 'stopped; the same command continues'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
