"""Results in, pictures out: Figure 1 and the attacked digits.

Colours are those of Okabe and Ito (2008), told apart by every common kind of colour vision; line styles and markers
repeat what colour says.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from se_core.attacks import fictive_sample
from se_core.lab.config import RunConfig
from se_core.lab.evaluation import CLASSES
from se_core.lab.experiments import PANELS, Panel
from se_core.lab.runs import read
from se_core.lab.statistics import curve, panels_of
from se_core.lab.steps import derived_generator
from se_core.lab.storage import write_atomically
from se_core.networks import VAE

METHODS: dict[str, dict[str, Any]] = {
    "vae": {"label": "VAE", "color": "#D55E00", "marker": "o", "linestyle": "--"},
    "se": {"label": "smooth encoder", "color": "#0072B2", "marker": "s", "linestyle": "-"},
    "pinned": {"label": "pinned smooth encoder", "color": "#009E73", "marker": "^", "linestyle": "-."},
}
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 9,
    "figure.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.hashsalt": "se-core",  # the same results give the same bytes
}
WIDTH = 4.8  # inches; on a phone's column of 358 pixels, text of 9 points is 9 pixels high


def drawing() -> AbstractContextManager[None]:
    """Our style on matplotlib's own defaults: a user's matplotlibrc may ask for LaTeX, or for another backend."""
    return mpl.style.context(["default", STYLE])


Styles = Mapping[str, Mapping[str, Any]]  # of each method: label, colour, marker and line


def draw_panel(
    axes: Axes, records: list[dict[str, Any]], panel: Panel, styles: Styles, classes: int, selection_radius: float
) -> None:
    """Accuracy against attack radius, a curve a method: the mean over seeds with its 95 % interval."""
    for method, style in styles.items():
        points = curve(records, panel, method)
        radii = list(points)
        mean = [100 * m for m, _ in points.values()]
        half = [0.0 if math.isnan(h) else 100 * h for _, h in points.values()]
        lower = [max(m - h, 0) for m, h in zip(mean, half, strict=True)]
        upper = [min(m + h, 100) for m, h in zip(mean, half, strict=True)]
        axes.plot(radii, mean, **style)
        axes.fill_between(radii, lower, upper, color=style["color"], alpha=0.2, linewidth=0)
    chance = 100 / classes
    axes.axhline(chance, color="0.5", linewidth=0.8, linestyle=":")
    axes.text(0.995, chance + 1.5, "chance", transform=axes.get_yaxis_transform(), color="0.4", ha="right")
    axes.axvline(selection_radius, color="0.8", linewidth=0.8, zorder=0)
    axes.set_title(panel.title, loc="left")
    axes.set_ylim(0, 102)


def figure1(results: dict[str, Any]) -> Figure:
    """The four panels: accuracy against attack radius, mean over seeds with its 95 % interval."""
    (selection_radius,) = {run["radius"] for run in results["provenance"]["runs"] if run["radius"]}
    with drawing():
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True, sharey=True)
        for panel, axes in zip(PANELS, grid.flat, strict=True):
            if panel in panels_of(results["records"]):
                draw_panel(axes, results["records"], panel, METHODS, CLASSES[panel.task], selection_radius)
            else:
                axes.set_axis_off()
        drawn = next(axes for axes in grid.flat if axes.lines)
        figure.legend(*drawn.get_legend_handles_labels(), loc="outside upper center", ncols=len(drawn.lines))
        label_axes(figure)
    return figure


def label_axes(figure: Figure) -> None:
    figure.supylabel("adversarial test accuracy (%)")
    figure.supxlabel("attack radius (largest change of a pixel, pixels in [0, 1])\nvertical line: selection radius")


def _pictures(vae: VAE, x: Tensor, radius: float) -> list[Tensor]:
    x_prime = fictive_sample(vae.encoder, x, radius, steps=40, generator=derived_generator("cpu", "attacked digits"))
    with torch.no_grad():
        return [x_prime, vae.reconstruct(x), vae.reconstruct(x_prime)]


def attacked_images(runs: dict[str, tuple[RunConfig, VAE]], styles: Styles = METHODS, columns: int = 8) -> Figure:
    """Test images, what the selection mechanism makes of them, and what each model reconstructs from either.

    runs: method -> (configuration, networks), trained on the same data; the first says which, and the radius.
    """
    config = next(iter(runs.values()))[0]
    x = read(config, "test").images(slice(0, columns))
    rows = [("image $x$" if config.dataset == "images" else "digit $x$", x)]
    for method, (_, vae) in runs.items():
        attacked, clean, fooled = _pictures(vae, x, config.radius)
        name = styles[method]["label"]
        rows += [(f"{name}:\nattacked $x'$", attacked), ("$x$ reconstructed", clean), ("$x'$ reconstructed", fooled)]
    with drawing():
        figure = Figure(figsize=(WIDTH, 0.46 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(x))
        for (label, images), axes_row in zip(rows, grid, strict=True):
            for image, axes in zip(images, axes_row, strict=True):
                axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_visible(False)
            axes_row[0].set_ylabel(label, rotation=0, ha="right", va="center")
        figure.suptitle(f"selection attack on $W_2^2$, radius {config.radius:g}, {config.dataset}")
    return figure


def results_digest(results: dict[str, Any]) -> str:
    """SHA-256 of the records: what a picture of them carries, so that it can be told from a picture of others."""
    return hashlib.sha256(json.dumps(results["records"], sort_keys=True).encode()).hexdigest()


def save(figure: Figure, path: Path, digest: str) -> None:
    """Write `path`.png and `path`.svg, whole or not at all, with `digest` in their metadata. Raises StorageError."""
    for suffix, key in ((".png", "Description"), (".svg", "Source")):
        content = BytesIO()
        metadata = {key: digest} | ({"Date": None} if suffix == ".svg" else {"Software": None})
        with drawing():
            figure.savefig(content, format=suffix[1:], dpi=240, metadata=metadata)
        write_atomically(path.with_suffix(suffix), content.getvalue())


def draw(results: dict[str, Any], networks: dict[str, tuple[RunConfig, VAE]], out: Path) -> None:
    """Write `figure1` and, of networks as in `attacked_images`, that picture (PNG and SVG) into `out`; of a slice, what
    there is to draw."""
    digest = results_digest(results)
    if panels_of(results["records"]):
        save(figure1(results), out / "figure1.png", digest)
    if set(networks) == set(METHODS):
        save(attacked_images(networks), out / "attacked_digits.png", digest)
