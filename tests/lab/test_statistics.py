"""Curves, intervals, gains and claims against scipy and against made-up experiments."""

import math

import numpy as np
import pytest
from scipy import stats

from se_core.lab.evaluation import CLASSES
from se_core.lab.experiments import METHODS, PANELS, Panel
from se_core.lab.statistics import Verdict, claims, curve, gain, mean_and_interval, verdicts


def test_the_interval_is_students() -> None:
    accuracies = [0.41, 0.44, 0.39, 0.46]
    mean, half = mean_and_interval(accuracies)
    low, high = stats.t.interval(0.95, 3, loc=sum(accuracies) / 4, scale=stats.sem(accuracies))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)
    assert math.isnan(mean_and_interval([0.5])[1])
    assert mean_and_interval([0.5, 0.5]) == (0.5, 0.0)


def test_claims_are_computed_from_the_records() -> None:
    """A made-up experiment whose answers can be read off: each method is once more as accurate under attack."""
    times = {method: 1 + i for i, method in enumerate(METHODS)}
    records = [
        {"dataset": p.dataset, "architecture": p.architecture, "task": p.task, "method": method, "seed": seed,
         "latent_dim": 64, "radius": radius, "accuracy": accuracy * times[method] + 0.001 * seed}
        for p in PANELS
        for method in METHODS
        for seed in (-1, 0, 1)
        for radius, accuracy in {0.0: 0.3, 0.02: 0.3, 0.05: 0.2, 0.2: 0.1, 0.4: 0.01}.items()
    ]  # fmt: skip
    for claim, panel in zip(claims(records), PANELS, strict=True):
        assert claim["robustness"] == pytest.approx({"vae": 0.2, "se": 0.4, "pinned": 0.6})
        assert {method: g[0] for method, g in claim["gain"].items()} == pytest.approx({"se": 2.0, "pinned": 3.0})
        assert claim["apart"] == {"se": True, "pinned": True}
        assert claim["nominal"] == pytest.approx({"vae": 0.3, "se": 0.6, "pinned": 0.9})
        assert claim["last"] == pytest.approx({"vae": 0.01, "se": 0.02, "pinned": 0.03})
        assert claim["chance"] == 1 / CLASSES[panel.task]
    noisy = [r | {"accuracy": r["accuracy"] + 0.2 * r["seed"]} for r in records]
    assert not any(claim["apart"]["se"] for claim in claims(noisy))
    assert curve(records, PANELS[0], "vae")[0.05][0] == pytest.approx(0.2)


def _records(robust: dict[str, list[float]], panel: Panel = PANELS[2]) -> list[dict]:
    """One latent dimension, one radius, a seed a value."""
    identity = {"dataset": panel.dataset, "architecture": panel.architecture, "task": panel.task, "latent_dim": 64}
    return [
        identity | {"method": method, "seed": seed, "radius": 0.1, "accuracy": value}
        for method, values in robust.items()
        for seed, value in enumerate(values)
    ]


def test_a_gain_is_the_ratio_of_the_means_and_its_interval_covers() -> None:
    """By simulation: seeds of correlated normal pairs, whose ratio of means is 1.5 by construction."""
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        common, own = draw.normal(0, 0.02, 5), draw.normal(0, 0.02, (2, 5))
        ratio, half = gain(_records({"vae": list(0.2 + common + own[0]), "se": list(0.3 + common + own[1])}), PANELS[2])
        covered += abs(ratio - 1.5) <= half
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_seeds_are_compared_in_pairs() -> None:
    """Twice as good in each seed is twice as good for sure, however much the seeds differ."""
    assert gain(_records({"vae": [0.1, 0.2, 0.4], "se": [0.2, 0.4, 0.8]}), PANELS[2]) == pytest.approx((2.0, 0.0))
    ratio, half = gain(_records({"vae": [0.1, 0.2, 0.4], "se": [0.8, 0.4, 0.2]}), PANELS[2])
    assert ratio == pytest.approx(2.0)
    assert half > 2


def test_a_gain_over_nothing_has_no_bounds() -> None:
    assert gain(_records({"vae": [0.0, 0.0], "se": [0.1, 0.2]}), PANELS[2])[0] == math.inf
    assert math.isnan(gain(_records({"vae": [0.1], "se": [0.2]}), PANELS[2])[1])


def _experiment(accuracies: dict[str, dict[float, float]], noise: float, panels: str = "abcd") -> list[dict]:
    """Three seeds whose mean is `accuracies` (method -> radius -> accuracy) and which differ by `noise`."""
    return [
        {"dataset": p.dataset, "architecture": p.architecture, "task": p.task, "latent_dim": 64, "method": method,
         "seed": seed, "radius": radius, "accuracy": accuracy + noise * (seed - 1)}
        for p in PANELS if p.letter in panels
        for method, points in accuracies.items()
        for seed in range(3)
        for radius, accuracy in points.items()
    ]  # fmt: skip


def test_verdicts_say_what_the_intervals_allow() -> None:
    vae, se = {0.0: 0.98, 0.1: 0.1, 0.2: 0.01}, {0.0: 0.98, 0.1: 0.6, 0.2: 0.3}
    perfect, quickly, more, gracefully, itself, significantly = verdicts(_experiment({"vae": vae, "se": se}, 0.001))
    assert [v.verdict for v in (perfect, quickly, more, significantly)] == ["held"] * 4
    assert perfect.held_in == ["vae", "se"]
    assert more.estimates["b"][0] == pytest.approx((0.6 + 0.3) / (0.1 + 0.01))
    assert gracefully.estimates["c"][0] == pytest.approx(0.3 / 0.98, abs=1e-4)
    assert (gracefully.verdict, itself.verdict) == ("not", "not")  # 0.3 / 0.98 < 1/2; (c) and (d) are alike
    # Seeds that differ by more than the threshold is away allow nothing to be said.
    noisy = verdicts(_experiment({"vae": vae, "se": se}, 0.02))
    assert noisy[0].verdict == "not"


def test_a_claim_that_holds_in_some_panels_holds_partly() -> None:
    same = {0.0: 0.9, 0.1: 0.1, 0.2: 0.05}
    better = {0.0: 0.9, 0.1: 0.3, 0.2: 0.1}
    records = _experiment({"vae": same, "se": better}, 0.001, "ac") + _experiment({"vae": same, "se": same}, 0.0, "bd")
    more = verdicts(records)[2]
    assert (more.verdict, more.held_in) == ("partly", ["a", "c"])
    assert Verdict("", {"a": (0.1, 0.05), "b": (0.3, 0.05)}, 0.2, below=True).held_in == ["a"]


def test_one_seed_or_none_tests_nothing() -> None:
    points = {"vae": {0.0: 0.9, 0.1: 0.1, 0.2: 0.01}, "se": {0.0: 0.9, 0.1: 0.5, 0.2: 0.3}}
    one = [r for r in _experiment(points, 0.01, "d") if r["seed"] == 0]
    assert {v.verdict for v in verdicts(one)} == {v.verdict for v in verdicts([])} == {"not tested"}
    elsewhere = _experiment({method: {0.0: 0.9, 0.15: 0.1} for method in points}, 0.01, "d")
    assert verdicts(elsewhere)[1].verdict == "not tested"  # not measured at 0.1
