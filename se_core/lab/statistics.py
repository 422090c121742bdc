"""What the records of an experiment say: curves, intervals, gains, claims.

A record is one number of one run: dataset, architecture, task, method, seed, latent_dim, radius, accuracy, n.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from se_core.lab.evaluation import CLASSES
from se_core.lab.experiments import METHODS, PANELS, Panel

Record = dict[str, Any]


def select(records: Sequence[Record], panel: Panel, method: str) -> list[Record]:
    """The records of one curve of one panel."""
    wanted = (panel.dataset, panel.architecture, panel.task, method)
    return [r for r in records if (r["dataset"], r["architecture"], r["task"], r["method"]) == wanted]


def panels_of(records: Sequence[Record]) -> list[Panel]:
    """The panels of which there are records of each of `METHODS`: all, but for a slice of a profile."""
    return [panel for panel in PANELS if all(select(records, panel, method) for method in METHODS)]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over independent seeds and the half-width of its 95 % Student interval (NaN for a single seed)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
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


def robustnesses(records: Sequence[Record], panel: Panel, method: str) -> dict[tuple[int, int], float]:
    """(seed, latent dimension) -> robustness of that run."""
    runs: dict[tuple[int, int], dict[float, float]] = {}
    for r in select(records, panel, method):
        runs.setdefault((r["seed"], r["latent_dim"]), {})[r["radius"]] = r["accuracy"]
    return {run: robustness(accuracies) for run, accuracies in runs.items()}


def gain(records: Sequence[Record], panel: Panel, method: str = "se") -> tuple[float, float]:
    """How many times the VAE's robustness `method` has: the ratio of the means, and the half-width of its interval.

    Runs of one seed begin with the same weights and see the same batches, so they are compared in pairs: the interval
    is Student's for the ratio of the means of paired values (the delta method, as of a ratio estimator). Infinite
    where the VAE has none.
    """
    ours, theirs = robustnesses(records, panel, method), robustnesses(records, panel, "vae")
    if not math.fsum(theirs.values()):
        return math.inf, math.nan
    ratio = math.fsum(ours.values()) / math.fsum(theirs.values())
    mean = math.fsum(theirs.values()) / len(theirs)
    _, half = mean_and_interval([(ours[run] - ratio * theirs[run]) / mean for run in theirs])
    return ratio, half


def claims(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The claims of Figure 1, panel by panel, as numbers that a test can compare with what we promise.

    For each method: `robustness` of its mean curve; `gain`, that over the VAE's, with half of its 95 % interval;
    `apart`, whether its interval at radius 0.05 lies above the VAE's; `nominal`, accuracy without attack; `last`,
    accuracy at the largest radius, against `chance`. Of panels without records nothing is said.
    """
    answers = []
    for panel in panels_of(records):
        curves = {method: curve(records, panel, method) for method in METHODS}
        others = [method for method in METHODS if method != "vae"]
        vae, vae_half = curves["vae"][0.05]
        answers.append(
            {
                "panel": panel.title,
                "robustness": {m: robustness({r: mean for r, (mean, _) in c.items()}) for m, c in curves.items()},
                "gain": {m: gain(records, panel, m) for m in others},
                "apart": {m: curves[m][0.05][0] - curves[m][0.05][1] > vae + vae_half for m in others},
                "nominal": {m: points[0.0][0] for m, points in curves.items()},
                "last": {m: points[max(points)][0] for m, points in curves.items()},
                "chance": 1 / CLASSES[panel.task],
            }
        )
    return answers
