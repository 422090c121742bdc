"""What the records of an experiment say: curves, intervals, gains, claims and verdicts.

A record is one number of one run: dataset, architecture, task, method, seed, latent_dim, radius, accuracy, n.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    return {run: robustness(accuracies) for run, accuracies in _curves(records, panel, method).items()}


def linear_robustness(floor: Sequence[Mapping[str, Any]], letter: str, representation: str) -> float:
    """Robustness of a linear representation, "pca" or "pixels", in the panel of this letter; floor: the records of
    `benchmarks/floor.py`."""
    chosen = [r for r in floor if (r["panel"], r["representation"]) == (letter, representation)]
    return robustness({r["radius"]: r["accuracy"] for r in chosen})


def _curves(records: Sequence[Record], panel: Panel, method: str) -> dict[tuple[int, int], dict[float, float]]:
    """(seed, latent dimension) -> radius -> accuracy of that run."""
    runs: dict[tuple[int, int], dict[float, float]] = {}
    for r in select(records, panel, method):
        runs.setdefault((r["seed"], r["latent_dim"]), {})[r["radius"]] = r["accuracy"]
    return runs


def gain(records: Sequence[Record], panel: Panel, method: str = "se") -> tuple[float, float]:
    """How many times the VAE's robustness `method` has: the ratio of the means, and the half-width of its interval.

    Runs of one seed begin with the same weights and see the same batches, so they are compared in pairs: the interval
    is Student's for the ratio of the means of paired values (the delta method, as of a ratio estimator). Infinite
    where the VAE has none, NaN where there are no pairs.
    """
    ours, theirs = robustnesses(records, panel, method), robustnesses(records, panel, "vae")
    pairs = [(ours[run], theirs[run]) for run in theirs if run in ours]
    if not any(vae for _, vae in pairs):
        return math.inf if pairs else math.nan, math.nan
    ratio = math.fsum(value for value, _ in pairs) / math.fsum(vae for _, vae in pairs)
    mean = math.fsum(vae for _, vae in pairs) / len(pairs)
    _, half = mean_and_interval([(value - ratio * vae) / mean for value, vae in pairs])
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


class Verdict(NamedTuple):
    """One claim, and what the intervals allow to say of it.

    `estimates` has the mean over seeds and the half-width of its 95 % interval, by the letter of a panel or the name of
    a method; the claim is that each lies above `threshold`, or below it where `below`.
    """

    claim: str
    estimates: dict[str, tuple[float, float]]
    threshold: float
    below: bool = False

    @property
    def held_in(self) -> list[str]:
        """Where the whole interval lies on the claimed side."""
        sign = -1 if self.below else 1
        return [where for where, (mean, half) in self.estimates.items() if sign * (mean - self.threshold) > half]

    @property
    def verdict(self) -> str:
        """Held everywhere, partly, or not; "not tested" where there is nothing, or one seed, which has no interval."""
        if not self.estimates or any(math.isnan(half) for _, half in self.estimates.values()):
            return "not tested"
        return "held" if len(self.held_in) == len(self.estimates) else "partly" if self.held_in else "not"


def verdicts(records: Sequence[Record], method: str = "se") -> list[Verdict]:
    """The paper's claims on Figure 1 (section 7), of `method` in the place of the smooth encoder.

    Its words have no numbers, so these are ours. *Close to perfect*: above 97 %. *Quickly*: at half the selection
    radius (0.1) less than half of the nominal accuracy is left. *Gracefully*: at the selection radius (0.2) more than
    half of it is left. *More robust*: by the mean accuracy over the radii from 0.02 to 0.2, seeds in pairs.
    """
    panels = {p.letter: p for p in PANELS if all(select(records, p, m) for m in ("vae", method))}
    nominal = {m: curve(records, panels["a"], m)[0.0] for m in ("vae", method) if "a" in panels}
    gains = {letter: gain(records, panel, method) for letter, panel in panels.items()}
    mlp, conv = (robustnesses(records, panel, "vae") for panel in PANELS[2:])
    differences = [conv[run] - mlp[run] for run in conv if run in mlp]
    by_itself = {"d": mean_and_interval(differences)} if differences else {}
    left = {
        (of, radius): {letter: kept for letter, p in panels.items() if (kept := _kept(records, p, of, radius))}
        for of, radius in (("vae", 0.1), (method, 0.2))
    }
    return [
        Verdict("nominal accuracy on colours is close to perfect", nominal, 0.97),
        Verdict("the VAE's accuracy drops quickly", left["vae", 0.1], 0.5, below=True),
        Verdict("the smooth encoder is more robust", gains, 1.0),
        Verdict("its accuracy degrades gracefully", left[method, 0.2], 0.5),
        Verdict("the ConvNET is more robust by itself", by_itself, 0.0),
        Verdict("smoothing increases that significantly", {k: g for k, g in gains.items() if k == "d"}, 1.0),
    ]


def _kept(records: Sequence[Record], panel: Panel, method: str, radius: float) -> tuple[float, float] | None:
    """The share of its nominal accuracy that is left at `radius`; None where that was not measured."""
    runs = _curves(records, panel, method).values()
    if not all(radius in run and run[0.0] > 0 for run in runs):
        return None
    return mean_and_interval([run[radius] / run[0.0] for run in runs])
