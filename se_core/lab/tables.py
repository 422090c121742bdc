"""Results in, tables out: as HTML in a chapter, as Markdown in a terminal and in the README."""

import html
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from se_core.lab.experiments import CONTROLS, METHODS, PANELS
from se_core.lab.figures import METHODS as STYLES
from se_core.lab.statistics import Record, claims, curve, gain, linear_robustness, select, verdicts

LABELS = {method: str(style["label"]) for method, style in STYLES.items()} | {
    "beta-vae": "VAE, β = 2",
    "radius-0": "smooth encoder, radius 0",
    "random-neighbour": "smooth encoder, random neighbour",
    "remembered": "smooth encoder, memory",
    "pinned-paired": "pinned, paired prior",
    "avae": "autoencoding VAE",
    "labels": "trained on labels",
    "adversarial-labels": "trained on labels, adversarially",
}


@dataclass(frozen=True)
class Table:
    """A heading a column; the first `words` columns are text, the others numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def __str__(self) -> str:
        """Markdown."""
        rule = ["---"] * self.words + ["---:"] * (len(self.headings) - self.words)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.headings, *self.rows)]
        return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        kinds = [' class="words"' if column < self.words else "" for column in range(len(self.headings))]
        named = zip(kinds, self.headings, strict=True)
        head = "".join(f'<th scope="col"{kind}>{html.escape(heading)}</th>' for kind, heading in named)
        lines = [f"<tr>{head}</tr>"]
        for first, *others in self.rows:
            cells = [f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds[1:], others, strict=True)]
            lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{"".join(cells)}</tr>')
        return '<table class="numbers">\n' + "\n".join(lines) + "\n</table>"


def plus_minus(value: float, half: float, digits: int) -> str:
    """A mean with half of its interval, or alone where one seed has none."""
    return f"{value:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def accuracy_table(records: Sequence[Record], methods: Collection[str] = (*METHODS, *CONTROLS)) -> Table:
    """Figure 1 in figures: accuracy in per cent against radius and the gain over the VAE, mean over seeds ± half a 95 %
    interval; each of `methods` of which there are records."""
    radii = sorted({record["radius"] for record in records})
    rows = []
    for panel in PANELS:
        for method in methods:
            if points := curve(records, panel, method):
                cells = [plus_minus(100 * mean, 100 * half, 0) for mean, half in points.values()]
                ratio, half = gain(records, panel, method)
                ours = "" if method == "vae" or math.isnan(ratio) else plus_minus(ratio, half, 2)
                seeds = len({record["seed"] for record in select(records, panel, method)})
                rows.append([f"({panel.letter})", LABELS[method], str(seeds), *cells, ours])
    return Table(["panel", "model", "seeds", *(f"{radius:g}" for radius in radii), "gain"], rows, words=2)


def floor_table(records: Sequence[Record], floor: Sequence[Mapping[str, Any]]) -> Table:
    """Mean accuracy in per cent over the radii from 0.02 to 0.2: of the linear representations that there are, and of
    each method."""
    names = list(dict.fromkeys(record["representation"] for record in floor))
    rows = []
    for claim in claims(records):
        linear = [linear_robustness(floor, claim["panel"][1], name) for name in names]
        reached = [*linear, *claim["robustness"].values()]
        rows.append([claim["panel"], *(f"{100 * value:.0f}" for value in reached)])
    titles = {"pca": "PCA", "pixels": "raw pixels"}
    return Table(["panel", *(titles[name] for name in names), *(LABELS[method] for method in METHODS)], rows)


def claims_table(records: Sequence[Record]) -> Table:
    """Each claim of the paper on Figure 1 with its numbers, their intervals and its verdict: of the smooth encoder, and
    of the pinned one in its place."""

    def evidence(estimates: Mapping[str, tuple[float, float]], threshold: float) -> str:
        scale, digits, unit = (1, 2, "") if threshold == 1 else (100, 0, " %")  # a gain, or a share
        found = [(where, plus_minus(scale * mean, scale * half, digits)) for where, (mean, half) in estimates.items()]
        named = ((LABELS.get(where, f"({where})").removesuffix(" encoder"), number) for where, number in found)
        each = (f"{name} {number}{unit}" for name, number in named)
        return "; ".join(text.replace(" ", "\u00a0") for text in each)  # broken between panels alone

    rows = []
    for paper, ours in zip(verdicts(records), verdicts(records, "pinned"), strict=True):
        cells = [evidence(paper.estimates, paper.threshold), paper.verdict]
        of_the_vae = paper.estimates == ours.estimates  # a claim on the VAE alone is not made twice
        cells += ["", ""] if of_the_vae else [evidence(ours.estimates, ours.threshold), ours.verdict]
        rows.append([paper.claim, *cells])
    return Table(["claim", "smooth encoder", "verdict", "pinned smooth encoder", "verdict"], rows, words=5)
