"""Figure 1 as data: which runs, at which size, and what they measured.

A profile chooses sizes and nothing else; the settings that VAE and SE share (noise variance, initialisation, optimiser,
probe) are the same in all of them. Runs are independent, so each goes to a process of one thread.
"""

import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from tqdm import tqdm

from se_core.lab.evaluation import EvaluationConfig, evaluate
from se_core.lab.storage import exclusive, provenance, read_json, write_atomically
from se_core.lab.training import Interrupted, RunConfig, train

Record = dict[str, Any]

_BAR = "{desc} {percentage:5.1f} %|{bar}| {elapsed} elapsed, {remaining} to go, {postfix}"


class WorkerKilled(Exception):
    """A worker process ended without an answer, as when the system runs out of memory."""


@dataclass(frozen=True)
class Panel:
    """One panel of Figure 1."""

    letter: str
    dataset: str
    architecture: str
    task: str

    @property
    def title(self) -> str:
        data = "colour MNIST" if self.dataset == "colour-mnist" else "MNIST"
        network = "MLP" if self.architecture == "mlp" else "ConvNET"
        return f"({self.letter}) {data}, {network}, {self.task}"


PANELS = (
    Panel("a", "colour-mnist", "mlp", "colour"),
    Panel("b", "colour-mnist", "mlp", "digit"),
    Panel("c", "mnist", "mlp", "digit"),
    Panel("d", "mnist", "conv", "digit"),
)
CLASSES = {"digit": 10, "colour": 7}

# v is 0.1 a channel: three channels triple the weight of the likelihood against the coupling, at the same v.
NOISE_VARIANCE = {"mnist": 0.1, "colour-mnist": 0.3}


@dataclass(frozen=True)
class Profile:
    """The size of a reproduction: seeds, latent dimensions, and what each run and evaluation is given."""

    seeds: tuple[int, ...]
    latent_dims: tuple[int, ...]
    run: dict[str, Any]
    conv: dict[str, Any] = field(default_factory=dict)  # what the convolutional runs change
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


PROFILES = {
    "tiny": Profile(
        seeds=(0, 1),
        latent_dims=(8,),
        run={"iterations": 30, "attack_steps": 2},
        evaluation=EvaluationConfig(radii=(0.0, 0.05, 0.4), attack_steps=3, test_images=60),
    ),
    "small": Profile(
        seeds=(0, 1, 2),
        latent_dims=(64,),
        run={"iterations": 1500, "attack_steps": 5},
        conv={"iterations": 600},
        evaluation=EvaluationConfig(test_images=500),
    ),
    "paper": Profile(
        seeds=(0, 1, 2, 3, 4),
        latent_dims=(32, 64, 128),
        run={"iterations": 300_000, "attack_steps": 20, "source": "data", "colouring": "all"},
        evaluation=EvaluationConfig(attack_steps=100, restarts=5, test_images=0),
    ),
}


def figure1_runs(profile: str, **overrides: Any) -> list[RunConfig]:
    """The runs behind Figure 1 at the size of `profile`; `overrides` replace fields of every `RunConfig`.

    Raises ValueError for an unknown profile, TypeError for an unknown field and for one that the figure varies itself.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r} is unknown; choose one of {', '.join(PROFILES)}")
    size = PROFILES[profile]

    def run(dataset: str, architecture: str, **fields: Any) -> RunConfig:
        settings = {"noise_variance": NOISE_VARIANCE[dataset]} | size.run
        settings |= (size.conv if architecture == "conv" else {}) | overrides
        return RunConfig(dataset=dataset, architecture=architecture, **fields, **settings)

    return [
        run(dataset, architecture, method=method, seed=seed, latent_dim=latent_dim)
        for seed in size.seeds
        for latent_dim in size.latent_dims
        for dataset, architecture in dict.fromkeys((panel.dataset, panel.architecture) for panel in PANELS)
        for method in ("vae", "se")
    ]


# --- independent runs, in processes of one thread ---------------------------------------------------------------------


def _cost(config: RunConfig) -> float:
    """Encoder passes of a run, weighted by the size of the network: for the order of runs and the time remaining."""
    passes = 3 + (1.5 * config.attack_steps + 2 if config.method == "se" else 0)
    weight = 4.0 if config.architecture == "conv" else 1.0
    return config.iterations * config.batch_size * passes * weight * (1.7 if config.dataset == "colour-mnist" else 1.0)


_done: Any = None  # shared by the parent with each worker: cost done so far, and the wish to stop
_stop: Any = None


def configure_process() -> None:
    """Settings for a process of our own, never for an importer's: one thread, and GPU kernels that repeat bit for bit.

    Several runs are several processes; on few cores, more threads in one process are slower than one.
    """
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True


def _start_worker(done: Any, stop: Any) -> None:
    global _done, _stop
    _done, _stop = done, stop
    configure_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # `train` takes Ctrl-C while it runs; an evaluation is seen through
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)  # a parent killed at any moment leaves nobody behind to write in its folder

    threading.Thread(target=end_with_parent, daemon=True).start()


def _train_and_evaluate(config: RunConfig, evaluation: EvaluationConfig, runs: Path) -> Path:
    def progress(steps: int) -> None:
        with _done.get_lock():
            _done.value += steps * _cost(config) / config.iterations
        if _stop.is_set():
            signal.raise_signal(signal.SIGINT)

    folder = train(config, runs, progress=progress)
    return evaluate(folder, evaluation, config.device)


def run_all(
    configs: Sequence[RunConfig], evaluation: EvaluationConfig, runs: Path, workers: int, title: str = "runs"
) -> list[dict[str, Any]]:
    """Train and evaluate `configs` under `runs`, `workers` at a time; the evaluations in the order of `configs`.

    What is finished is not done again, so the same call continues after an interruption. Shows a progress bar in a
    terminal and prints a row a run elsewhere. Raises Interrupted after Ctrl-C, and what `train` and `evaluate` raise.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("d", 0.0), context.Event()
    distinct = sorted(dict.fromkeys(configs), key=_cost, reverse=True)  # the last one to end is short
    total = sum(map(_cost, distinct))
    finished: dict[RunConfig, Path] = {}
    # Workers inherit the environment: one thread each, whatever library counts them.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    owns_signal = threading.current_thread() is threading.main_thread()
    with (
        ProcessPoolExecutor(min(workers, len(distinct)), context, _start_worker, (done, stop)) as pool,
        tqdm(total=total, desc=title, bar_format=_BAR, disable=not sys.stderr.isatty()) as bar,
    ):
        try:
            # Workers inherit deafness to Ctrl-C, too: it is for the parent, which tells them.
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if owns_signal else None
            try:
                pending = {pool.submit(_train_and_evaluate, config, evaluation, runs): config for config in distinct}
            finally:
                if owns_signal:
                    signal.signal(signal.SIGINT, previous)
            while pending:
                for future in wait(pending, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    config = pending.pop(future)
                    finished[config] = future.result()
                    tqdm.write(f"[{len(finished):2d}/{len(distinct)}] {row(finished[config])}")
                bar.n = min(done.value, total)
                bar.set_postfix_str(f"{len(finished)} of {len(distinct)} done")
        except BrokenProcessPool:
            raise WorkerKilled("a worker process was killed (too little memory?); the same command continues") from None
        except BaseException as error:
            stop.set()
            tqdm.write("stopping: training is saved, evaluations under way are finished; Ctrl-C again stops at once")
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:
                os._exit(130)  # the workers end with their parent
            if isinstance(error, KeyboardInterrupt | Interrupted):
                message = f"stopped with {len(finished)} of {len(distinct)} runs done; the same command continues"
                raise Interrupted(message) from None
            raise
    return [read_json(finished[config]) for config in configs]


def row(path: Path) -> str:
    """One line for an `evaluation-*.json`: the run, and for each task its accuracies in per cent, radius by radius."""
    records = read_json(path)["records"]
    curves = "; ".join(
        f"{task} " + " ".join(f"{100 * r['accuracy']:.0f}" for r in records if r["task"] == task)
        for task in dict.fromkeys(r["task"] for r in records)
    )
    about = "{dataset:12s} {architecture:4s} {method:3s} D_z {latent_dim:3d} seed {seed}".format(**records[0])
    return f"{about}   accuracy in %: {curves}"


# --- Figure 1 ---------------------------------------------------------------------------------------------------------


def reproduce(profile: str, out: Path, workers: int, **overrides: Any) -> dict[str, Any]:
    """All runs of Figure 1 at the size of `profile`, into `out`; returns and writes `results.json`.

    `results.json` holds `provenance`, `records` (one per run, task and radius) and `companions` (one per run). The
    records depend on the profile and `overrides` alone, however often the work was interrupted; `wall_s` is of the last
    call. Errors as in `run_all`.
    """
    configs = figure1_runs(profile, **overrides)
    evaluation = PROFILES[profile].evaluation
    started = time.monotonic()
    with exclusive(out):
        evaluations = run_all(configs, evaluation, out / "runs", workers, f"Figure 1, {profile}")
        trained = [read_json(out / "runs" / config.name / "finished.json") for config in configs]
        results = {
            "provenance": provenance(configs[0].device)
            | {
                "profile": profile,
                "seeds": sorted({config.seed for config in configs}),
                "runs": [asdict(config) for config in configs],
                "evaluation": asdict(evaluation),
                "workers": workers,
                "wall_s": round(time.monotonic() - started, 1),
                "training_commits": sorted({run["provenance"]["commit"] for run in trained}),
                "training_wall_s": round(sum(run["wall_s"] for run in trained), 1),
            },
            "records": [record for evaluation in evaluations for record in evaluation["records"]],
            "companions": [evaluation["companions"] for evaluation in evaluations],
        }
        write_atomically(out / "results.json", json.dumps(results, indent=1).encode())
    return results


def select(records: Sequence[Record], panel: Panel, method: str) -> list[Record]:
    """The records of one curve of one panel."""
    return [
        r
        for r in records
        if (r["dataset"], r["architecture"], r["task"], r["method"])
        == (panel.dataset, panel.architecture, panel.task, method)
    ]


def mean_and_interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """Mean over independent seeds and the half-width of its 95 % Student interval (NaN for a single seed)."""
    n = len(accuracies)
    mean = math.fsum(accuracies) / n
    if n == 1:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((a - mean) ** 2 for a in accuracies) / (n - 1))
    return mean, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def curve(records: Sequence[Record], panel: Panel, method: str) -> dict[float, tuple[float, float]]:
    """radius -> (mean accuracy, half-width of its 95 % interval) over seeds and latent dimensions."""
    chosen = select(records, panel, method)
    return {
        radius: mean_and_interval([r["accuracy"] for r in chosen if r["radius"] == radius])
        for radius in sorted({r["radius"] for r in chosen})
    }


def robustness(accuracies: Mapping[float, float]) -> float:
    """Mean of the accuracies, by radius, over the radii from 0.02 to 0.2: what a curve of Figure 1 comes to."""
    return statistics.fmean(accuracy for radius, accuracy in accuracies.items() if 0.02 <= radius <= 0.2)


def claims(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The claims of Figure 1, panel by panel, as numbers that a test can compare with what we promise.

    `robustness` of each method's mean curve; `gain`: the smooth encoder's over the VAE's; `apart`: the two 95 %
    intervals at radius 0.05 do not touch; `nominal`: accuracy without attack; `last`: accuracy at the largest radius,
    against `chance`.
    """
    answers = []
    for panel in PANELS:
        curves = {method: curve(records, panel, method) for method in ("vae", "se")}
        means = {method: robustness({r: mean for r, (mean, _) in points.items()}) for method, points in curves.items()}
        (vae, vae_half), (se, se_half) = curves["vae"][0.05], curves["se"][0.05]
        answers.append(
            {
                "panel": panel.title,
                "robustness": means,
                "gain": means["se"] / means["vae"] if means["vae"] else math.inf,
                "apart": se - se_half > vae + vae_half,
                "nominal": {method: points[0.0][0] for method, points in curves.items()},
                "last": {method: points[max(points)][0] for method, points in curves.items()},
                "chance": 1 / CLASSES[panel.task],
            }
        )
    return answers
