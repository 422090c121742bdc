"""Figure 1 as data: which panels, which runs at which size, and what they measured.

A profile chooses sizes, and the gamma of the pinned ConvNET; the settings that the methods share (noise variance,
initialisation, optimiser, schedule, number of steps, probe) are the same in all of them. Runs are independent; an
executor (`se_core.lab.executors`) decides where they run.
"""

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from se_core.datasets import DatasetName
from se_core.errors import InvalidValueError
from se_core.lab.config import EvaluationConfig, RunConfig
from se_core.lab.evaluation import evaluate
from se_core.lab.milestones import judge_on_the_way
from se_core.lab.runs import load_run, read
from se_core.lab.storage import exclusive, machines_of, provenance, read_json, write_json
from se_core.lab.training import Interrupted, train
from se_core.networks import VAE, Architecture

_BAR = "{desc} {percentage:5.1f} %|{bar}| {elapsed} elapsed, {remaining} to go{postfix}"  # tqdm puts the comma


@dataclass(frozen=True)
class Panel:
    """One panel of Figure 1."""

    letter: str
    dataset: DatasetName
    architecture: Architecture
    task: str

    @property
    def title(self) -> str:
        data = {"mnist": "MNIST", "colour-mnist": "colour MNIST"}.get(self.dataset, self.dataset)
        network = "MLP" if self.architecture == "mlp" else "ConvNET"
        return f"({self.letter}) {data}, {network}, {self.task}"


PANELS = (
    Panel("a", "colour-mnist", "mlp", "colour"),
    Panel("b", "colour-mnist", "mlp", "digit"),
    Panel("c", "mnist", "mlp", "digit"),
    Panel("d", "mnist", "conv", "digit"),
)

PANEL_LETTERS = "".join(panel.letter for panel in PANELS)

# What each method changes, by its name in records and pictures; ours, the last, was chosen on validation digits.
METHODS: dict[str, dict[str, Any]] = {
    "vae": {"method": "vae"},
    "se": {"method": "se"},  # the paper's, at its gamma = 1
    "pinned": {"method": "se", "scale": "pinned", "gamma": 10.0, "memory": True, "attack_steps": 1},
}
# What the methods are to be compared with; each answers one question.
CONTROLS: dict[str, dict[str, Any]] = {
    "beta-vae": {"method": "vae", "beta": 2.0},  # is it the second KL term?
    "radius-0": {"method": "se", "radius": 0.0},  # is it the terms, without a neighbour?
    "random-neighbour": {"method": "se", "attack_steps": 0},  # is it any neighbour, or the adversary's?
    "remembered": METHODS["pinned"] | {"scale": "free"},  # is it gamma and the memory, without the pin?
    "pinned-paired": METHODS["pinned"] | {"prior": "paired"},  # does a tight bound cost robustness?
    "avae": {"method": "avae", "gamma": 10.0},  # do samples of its own do instead of an adversary?
    "labels": {"method": "classifier", "radius": 0.0},  # the same encoder, told what will be asked
    "adversarial-labels": {"method": "classifier", "memory": True, "attack_steps": 1},  # the ceiling
}


@dataclass(frozen=True)
class Profile:
    """The size of a reproduction: seeds, latent dimensions, and what each run and evaluation is given."""

    seeds: tuple[int, ...]
    latent_dims: tuple[int, ...]
    run: dict[str, Any]
    conv: dict[str, Any] = field(default_factory=dict)  # what the convolutional runs change, and some methods of theirs
    conv_methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    controls: bool = False  # on MNIST, in panels (c) and (d)


_ALL_DIGITS: dict[str, Any] = {"source": "data", "colouring": "all"}
ProfileName = Literal["tiny", "small", "full", "paper"]
PROFILES: dict[ProfileName, Profile] = {
    "tiny": Profile(
        seeds=(0, 1),
        latent_dims=(8,),
        run={"iterations": 30, "attack_steps": 2},
        evaluation=EvaluationConfig(radii=(0.0, 0.05, 0.4), attack_steps=3, test_images=60),
    ),
    "small": Profile(
        seeds=(0, 1, 2),
        latent_dims=(64,),
        run={"iterations": 1800, "attack_steps": 5, "learning_rate": 3e-3, "schedule": "cosine"},
        conv={"iterations": 800},
        evaluation=EvaluationConfig(test_images=200),
    ),
    "full": Profile(
        seeds=(0, 1, 2),
        latent_dims=(64,),
        run=_ALL_DIGITS
        | {"iterations": 30_000, "attack_steps": 5, "learning_rate": 2e-3, "schedule": "cosine", "compile": True},
        conv_methods={"pinned": {"gamma": 20.0}},  # chosen on validation digits, as the ten of the MLPs
        evaluation=EvaluationConfig(along_the_way=True),
        controls=True,
    ),
    "paper": Profile(
        seeds=(0, 1, 2, 3, 4),
        latent_dims=(32, 64, 128),
        run=_ALL_DIGITS | {"iterations": 300_000, "attack_steps": 20},
        evaluation=EvaluationConfig(attack_steps=100, restarts=5, test_images=0, along_the_way=True),
    ),
}


def figure1_runs(
    profile: ProfileName,
    panels: str = PANEL_LETTERS,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    **overrides: Any,
) -> list[RunConfig]:
    """The runs behind Figure 1 at the size of `profile`; `overrides` replace fields of every `RunConfig`.

    panels: letters, of those panels alone; seeds: those alone, of the profile's; methods: those alone, of `METHODS`
    and, on MNIST, of `CONTROLS`. Raises InvalidValueError for an unknown profile, panel, seed or method, TypeError for
    an unknown field and for one that the figure varies itself.
    """
    if profile not in PROFILES:
        raise InvalidValueError(f"profile={profile!r} is unknown; choose one of {', '.join(PROFILES)}")
    size = PROFILES[profile]
    if not panels or not set(panels) <= set(PANEL_LETTERS):
        raise InvalidValueError(f"panels={panels!r} must be letters of {PANEL_LETTERS}")
    seeds = size.seeds if seeds is None else seeds
    if not seeds or not set(seeds) <= set(size.seeds):
        raise InvalidValueError(f"seeds={seeds} must be some of profile {profile!r}: {', '.join(map(str, size.seeds))}")
    known = (*METHODS, *(CONTROLS if size.controls else ()))
    if not set(methods := known if methods is None else methods) <= set(known) or not methods:
        raise InvalidValueError(f"methods={methods} must be some of profile {profile!r}: {', '.join(known)}")
    if "scale" in overrides:
        raise InvalidValueError(f"scale={overrides['scale']!r} is what the methods of Figure 1 differ in; leave it")

    def run(dataset: DatasetName, architecture: Architecture, method: str, **fields: Any) -> RunConfig:
        own = size.conv | size.conv_methods.get(method, {}) if architecture == "conv" else {}
        settings = size.run | (METHODS | CONTROLS)[method] | own | overrides
        if dataset == "mnist":
            settings = settings | {"colouring": "random"}  # of grey digits: what does not matter is the same for all
        try:
            return RunConfig(dataset=dataset, architecture=architecture, **fields, **settings)
        except InvalidValueError as error:
            raise InvalidValueError(f"method {method!r} of Figure 1: {error}") from None

    return [
        run(dataset, architecture, method, seed=seed, latent_dim=latent_dim)
        for seed in seeds
        for latent_dim in size.latent_dims
        for dataset, architecture in dict.fromkeys((p.dataset, p.architecture) for p in PANELS if p.letter in panels)
        for method in methods
        if method in METHODS or dataset == "mnist"
    ]


class Event(NamedTuple):
    """What an executor tells of a run: steps done since the last event, and its evaluation once that is there."""

    config: RunConfig
    steps: int = 0
    evaluation: Path | None = None


# Trains and evaluates independent runs under a folder, and tells how they get on, until all are done.
Executor = Callable[[Sequence[RunConfig], EvaluationConfig, Path], Generator[Event, None, None]]


def train_and_evaluate(
    config: RunConfig, evaluation: EvaluationConfig, runs: Path, progress: Callable[[int], Any]
) -> Path:
    """One run from nothing, or from where it was left, to its `evaluation-*.json`."""
    # A memory makes a checkpoint as large as its images: it is written twenty times a run, and not a hundred.
    checkpoint_every = max(500, config.iterations // (20 if config.memory else 100))
    judge = judge_on_the_way(config) if evaluation.along_the_way else None
    return evaluate(train(config, runs, checkpoint_every, progress, judge), evaluation, config.device)


def run_all(
    configs: Sequence[RunConfig], evaluation: EvaluationConfig, runs: Path, execute: Executor, title: str = "runs"
) -> list[dict[str, Any]]:
    """Train and evaluate `configs` under `runs`; the evaluations in the order of `configs`.

    What is finished is not done again, so the same call continues. Shows a progress bar in a terminal, rows elsewhere.
    Raises DataError for data that are not there before any run, Interrupted after Ctrl-C, and what `execute` raises.
    """
    for config in {(*c.data, c.source): c for c in configs}.values():
        read(config, "train")
    distinct = longest_first(configs)
    done: dict[RunConfig, Path] = {}
    with (
        closing(execute(distinct, evaluation, runs)) as events,
        tqdm(total=sum(map(_cost, distinct)), desc=title, bar_format=_BAR, disable=not sys.stderr.isatty()) as bar,
    ):
        try:
            for event in events:
                bar.update(min(event.steps * _cost(event.config) / event.config.iterations, bar.total - bar.n))
                if event.evaluation:
                    done[event.config] = event.evaluation
                    tqdm.write(f"[{len(done):2d}/{len(distinct)}] {summary(read_json(event.evaluation))}")
                bar.set_postfix_str(f"{len(done)} of {len(distinct)} done")
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(f"stopped with {len(done)} of {len(distinct)} done; the same command continues") from None
    return [read_json(done[config]) for config in configs]


def longest_first(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """The runs, each once, in the order to begin them: the last one to end shall be short."""
    return sorted(dict.fromkeys(configs), key=_cost, reverse=True)


def _cost(config: RunConfig) -> float:
    """Encoder passes of a run, weighted by the size of the network: for the order of runs and the time remaining."""
    passes = 3 + (1.5 * config.attack_steps + 2 if config.method in ("se", "classifier") and config.radius else 0)
    weight = 2.5 if config.architecture == "conv" else 1.0
    return config.iterations * config.batch_size * passes * weight * (1.7 if config.dataset == "colour-mnist" else 1.0)


def row(records: list[dict[str, Any]]) -> str:
    """One line for the records of one run: which, and for each task accuracies in per cent after their radii."""
    curves = "; ".join(
        f"{task} " + ", ".join(f"{r['radius']:g}: {100 * r['accuracy']:.0f}" for r in records if r["task"] == task)
        for task in dict.fromkeys(r["task"] for r in records)
    )
    run = "{dataset:12s} {architecture:4s} {method:18s} D_z {latent_dim:3d} seed {seed}".format(**records[0])
    return f"{run}   accuracy in % by radius: {curves}"


def summary(evaluation: dict[str, Any]) -> str:
    """One line for an evaluation: its accuracies; of images without labels, its diagnostics."""
    if evaluation["records"]:
        return row(evaluation["records"])
    known = ", ".join(f"{name} {value:.4g}" for name, value in evaluation["diagnostics"].items())
    return f"{evaluation['run']}   no labels, so no probe and no accuracy: {known}"


def reproduce(
    profile: ProfileName,
    out: Path,
    execute: Executor,
    panels: str = PANEL_LETTERS,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """All runs of Figure 1 at the size of `profile`, into `out`; returns and writes `results.json`.

    `results.json` holds `provenance`, `records` (one per run, task and radius), and, one per run, `diagnostics` and
    `along_the_way`. panels, seeds, methods: a slice, as in `figure1_runs`. The records depend on the profile, the slice
    and `overrides` alone, however often the work was interrupted; `wall_s` is of the last call. Errors as in `run_all`.
    """
    configs = figure1_runs(profile, panels, seeds, methods, **overrides)
    evaluation = PROFILES[profile].evaluation
    origin, started = provenance(), time.monotonic()
    with exclusive(out):
        evaluations = run_all(configs, evaluation, out / "runs", execute, f"Figure 1, {profile}")
        trained = [read_json(out / "runs" / config.name / "finished.json") for config in configs]
        results = {
            "provenance": origin
            | machines_of(made["provenance"] for made in (*trained, *evaluations))
            | {
                "profile": profile,
                "seeds": sorted({config.seed for config in configs}),
                "runs": [asdict(config) for config in configs],
                "evaluation": asdict(evaluation),
                "attack": evaluations[0]["attack"],
                "wall_s": round(time.monotonic() - started, 1),
                "training_commits": sorted({run["provenance"]["commit"] for run in trained}),
                "training_wall_s": round(sum(run["wall_s"] for run in trained), 1),
            },
            "records": [record for evaluation in evaluations for record in evaluation["records"]],
            "diagnostics": [evaluation["diagnostics"] for evaluation in evaluations],
            "along_the_way": [evaluation["along_the_way"] for evaluation in evaluations],
        }
        write_json(out / "results.json", results)
    return results


def examples(results: dict[str, Any], out: Path) -> dict[str, tuple[RunConfig, VAE]]:
    """method -> the first run on colour MNIST by an MLP, and its networks: what the pictures of digits show. None of
    results that have no such run."""
    configs = [RunConfig(**run) for run in results["provenance"]["runs"]]
    first = {c.label: c for c in reversed(configs) if (c.dataset, c.architecture) == ("colour-mnist", "mlp")}
    return {method: load_run(out / "runs" / first[method].name) for method in METHODS if method in first}
