# %% [markdown]
r"""
# How the settings were chosen

Whoever chooses the number of steps, the observation variance or the probe's penalty can favour one method. So each
setting was changed by itself, for all methods alike, with several seeds. Held-out training digits were the judge; no
test digit was read for this page. The runs are short ones on the bundled digits, so what they say is how much an
answer hangs on a setting.
"""

# %% tags=["hide-input"]
import json
from pathlib import Path

import matplotlib.pyplot as plt

from se_core.lab.display import book_style
from se_core.lab.figures import METHODS as STYLES
from se_core.lab.statistics import mean_and_interval, robustness

book_style()
study = json.loads((Path(BOOK) / "results" / "sensitivity.json").read_text())
radii = study["radii"]


def name(change: dict) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in change.items()) or "as chosen"


# (data, task, method) -> change -> the curves of accuracy by radius, a seed each
curves: dict[tuple, dict[str, list[dict]]] = {}
for row in study["rows"]:
    for task, accuracy in row["accuracy"].items():
        which = (row["base"], task, row["method"])
        points = dict(zip(radii, accuracy, strict=True))
        curves.setdefault(which, {}).setdefault(name(row["change"]), []).append(points)
PANELS = {("mnist", "digit"): "MNIST", ("colour-mnist", "colour"): "colours", ("colour-mnist", "digit"): "digits of colour images"}  # fmt: skip
shared = [c for c in curves["mnist", "digit", "vae"] if c in curves["colour-mnist", "digit", "vae"]]


def mean(which: tuple, change: str) -> tuple[float, float]:
    """Mean accuracy in per cent over the radii from 0.02 to 0.2, and half of its 95 % interval over seeds."""
    return mean_and_interval([100 * robustness(points) for points in curves[which][change]])


# %% tags=["hide-input"] mystnb={"figure": {"name": "settings", "caption": "Mean accuracy over the radii from 0.02 to 0.2 on held-out digits, one setting changed at a time. Bars are 95 % intervals over seeds."}, "image": {"alt": "For MNIST digits, colours, and digits of colour images, the mean accuracy under attack of VAE, smooth encoder and pinned smooth encoder under each changed setting. The pinned encoder lies to the right of both others under every setting."}}
figure, grid = plt.subplots(3, 1, sharex=True, figsize=(4.8, 6.6), layout="constrained")
for axes, (panel, title) in zip(grid, PANELS.items(), strict=True):
    for offset, (method, style) in zip((-0.2, 0.0, 0.2), STYLES.items(), strict=True):
        found = [mean((*panel, method), change) for change in shared]
        axes.errorbar(
            [m for m, _ in found],
            [row + offset for row in range(len(shared))],
            xerr=[h for _, h in found],
            fmt=style["marker"],
            color=style["color"],
            label=style["label"],
        )
    axes.set(title=title, yticks=range(len(shared)), yticklabels=shared, xlim=(0, None))
    axes.invert_yaxis()
grid[-1].set_xlabel("mean accuracy under attack (%)")
figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
plt.show()
