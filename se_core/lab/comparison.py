"""Finished runs side by side, on digits or on your own images: a table, and pictures like those of Figure 1."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from string import ascii_lowercase
from typing import Any

import torch
from matplotlib.figure import Figure

from se_core.errors import InvalidValueError
from se_core.lab.config import EvaluationConfig, RunConfig, usable_device
from se_core.lab.evaluation import evaluate
from se_core.lab.experiments import Panel
from se_core.lab.figures import METHODS, Styles, attacked_images, draw_panel, drawing, label_axes, results_digest, save
from se_core.lab.runs import load_run, read
from se_core.lab.statistics import select
from se_core.lab.storage import provenance, read_json, write_json
from se_core.lab.tables import Table

# What `figures.METHODS` leaves of the colours of Okabe and Ito (2008), for runs that Figure 1 does not have.
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DIAGNOSTICS = {"elbo": ("ELBO", ".1f"), "active_latents": ("active latents", ".0f"), "moved_share": ("moved", ".2f")}


@torch.inference_mode(False)
def compare(folders: Sequence[Path], config: EvaluationConfig, out: Path, device: str = "cpu") -> dict[str, Any]:
    """Evaluate finished runs of the same data; {provenance, runs, evaluation, tasks, records, diagnostics}, which
    `out`/results.json holds too.

    Runs that differ in nothing but their seed are one curve. A curve is called as its method is in Figure 1, with what
    else sets it apart from another one of that method. Also writes `accuracy` (of images with labels) and
    `attacked_images`, PNG and SVG, into `out`. Raises what `evaluate` raises, and InvalidValueError for runs of
    different data.
    """
    usable_device(device)
    runs = [load_run(folder) for folder in folders]
    configs = [run for run, _ in runs]
    for folder, run in zip(folders, configs, strict=True):
        if run.data != configs[0].data:
            raise InvalidValueError(f"{folder} is of the data {run.data}, {folders[0]} of {configs[0].data}")
    evaluations = [read_json(evaluate(folder, config, device)) for folder in folders]
    names = _names(configs)
    results = {
        "provenance": provenance(device),
        "runs": [asdict(run) for run in configs],
        "evaluation": asdict(config),
        "tasks": read(configs[0], config.split).tasks,
        "records": [r | {"method": name} for name, e in zip(names, evaluations, strict=True) for r in e["records"]],
        "diagnostics": [{"method": name} | e["diagnostics"] for name, e in zip(names, evaluations, strict=True)],
    }
    write_json(out / "results.json", results)
    digest, styles = results_digest(results), _styles(names)
    if results["records"]:
        save(_accuracy(results, styles), out / "accuracy.png", digest)
    first = dict(reversed([*zip(names, runs, strict=True)]))
    save(attacked_images({name: first[name] for name in styles}, styles), out / "attacked_images.png", digest)
    return results


def _names(configs: Sequence[RunConfig]) -> list[str]:
    """What each run is called: its label, and what it has that others of this label have not, but for the seed."""
    names = []
    for config in configs:
        others = [asdict(other) for other in configs if other.label == config.label]
        apart = {k: v for k, v in asdict(config).items() if k != "seed" and any(other[k] != v for other in others)}
        names.append(", ".join([config.label, *(f"{key} {value}" for key, value in apart.items())]))
    return names


def _styles(names: Sequence[str]) -> Styles:
    distinct = dict.fromkeys(names)
    others = [name for name in distinct if name not in METHODS]
    extra = {
        name: {"label": name, "color": _OTHERS[i % len(_OTHERS)], "marker": "Dvx+"[i % 4], "linestyle": ":"}
        for i, name in enumerate(others)
    }
    return {name: METHODS.get(name) or extra[name] for name in distinct}


def _accuracy(results: dict[str, Any], styles: Styles) -> Figure:
    """A panel an architecture and task: accuracy against attack radius."""
    records, run = results["records"], results["runs"][0]
    kinds = dict.fromkeys((run["dataset"], r["architecture"], r["task"]) for r in records)
    panels = [Panel(letter, *kind) for letter, kind in zip(ascii_lowercase, kinds, strict=False)]
    with drawing():
        figure = Figure(figsize=(3.6 * max(len(panels), 1.5), 3.2), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        for panel, axes in zip(panels, grid.flat, strict=True):
            shown = {name: style for name, style in styles.items() if select(records, panel, name)}
            draw_panel(axes, records, panel, shown, results["tasks"][panel.task], run["radius"])
            axes.legend(loc="upper right")
        label_axes(figure)
    return figure


def comparison_table(results: dict[str, Any]) -> Table:
    """What `compare` found: accuracy in per cent against radius, then diagnostics; means over seeds. Images without
    labels have diagnostics alone."""
    radii = results["evaluation"]["radii"] if results["records"] else []
    rows = []
    for name in dict.fromkeys(d["method"] for d in results["diagnostics"]):
        found = [d for d in results["diagnostics"] if d["method"] == name]
        known = [f"{fmean(d[key] for d in found):{form}}" for key, (_, form) in _DIAGNOSTICS.items()]
        for task in results["tasks"] or ("none",):
            of_task = [r for r in results["records"] if (r["method"], r["task"]) == (name, task)]
            means = [fmean(r["accuracy"] for r in of_task if r["radius"] == radius) for radius in radii]
            rows.append([name, task, *(f"{100 * mean:.0f}" for mean in means), *known])
    titles = (title for title, _ in _DIAGNOSTICS.values())
    return Table(["model", "task", *(f"{radius:g}" for radius in radii), *titles], rows, words=2)
