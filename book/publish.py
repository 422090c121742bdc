"""Copy finished results into the repository: for the book, and as pictures and tables into README and first page.

    .venv/bin/python book/publish.py runs/figure1-small
    .venv/bin/python book/publish.py runs/figure1-full-*    # slices, each into what is there
    .venv/bin/python book/publish.py                        # the tables alone, from what is committed

The benchmarks write theirs by themselves: `benchmarks/training_step.py --out book/results/training_step.json`, and so
for `transport.py` and `floor.py`.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from se_core.lab.config import RunConfig
from se_core.lab.experiments import METHODS
from se_core.lab.figures import figure1, results_digest, save
from se_core.lab.storage import machines_of, write_json
from se_core.lab.tables import Table, accuracy_table, claims_table, floor_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "book" / "results"


def speed_table(
    training: dict[str, Any], on_gpu: dict[str, Any], transport: dict[str, Any], dimension: int = 64
) -> Table:
    """The benchmarks: how many times as fast ours is, and the digits that both keep."""
    rows = [
        [f"SE training step, {name[6:]}", "as usually written", f"{row['ratio']:.1f}", "", ""]
        for name, row in training["rows"].items()
        if name.startswith("ours")
    ]
    for what, key in (("compiled", "ours_against_jax"), ("compiled, bfloat16 attack", "bfloat16_against_jax")):
        if key in training:  # JAX is optional
            rows.append([f"SE training step, {what}", "JAX, jit", f"{1 / training[key]:.1f}", "", ""])
    for name, row in on_gpu["rows"].items():
        if name.startswith("ours") and name.endswith("captured"):
            rows.append(
                [f"on a GPU: SE training step, {name[6:]}", "as usually written", f"{row['ratio']:.0f}", "", ""]
            )
    titles = {
        f"W^2_2,gamma, D = {dimension}": f"$W^2_{{2,\\gamma}}$, full covariance, D = {dimension}",
        f"WD_2,gamma, D = {dimension}": f"$\\mathcal{{WD}}_{{2,\\gamma}}$, full covariance, D = {dimension}",
        f"W^2_2, D = {dimension}": f"$W_2^2$, full covariance, D = {dimension}",
        f"WD_2,gamma, diagonal, D = {dimension}": f"$\\mathcal{{WD}}_{{2,\\gamma}}$, diagonal, D = {dimension}",
    }
    for title, what in titles.items():
        ours, *others = transport["rows"][title].items()
        for name, row in others:
            rows.append([what, name, f"{row['ratio']:.1f}", f"{ours[1]['error']:.1e}", f"{row['error']:.1e}"])
    psi = transport["psi"]
    errors = [f"{psi[name]:.1e}" for name in ("ours", "as printed")]
    rows.append(["$\\psi$ at log-variance −8", "eq. 24 as printed", "", *errors])
    return Table(["what", "against", "times as fast", "error of ours", "of theirs"], rows, words=2)


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One set of results of those of several slices of a profile; of a run that is in two of them, the later."""
    judged = [[part["provenance"][key] for key in ("evaluation", "attack")] for part in parts]
    if any(by != judged[-1] for by in judged):
        raise ValueError("the parts were not evaluated alike; evaluate and publish all of them again")
    kept: dict[tuple, list[Any]] = {}
    for part in parts:
        for run, *rest in zip(part["provenance"]["runs"], part["diagnostics"], part["along_the_way"], strict=True):
            config = RunConfig(**run)
            key = (config.dataset, config.architecture, config.label, config.seed, config.latent_dim)
            kept[key] = [run, *rest, [r for r in part["records"] if tuple(r[name] for name in _RUN) == key]]
    runs, diagnostics, along_the_way, records = map(list, zip(*kept.values(), strict=True))
    origins = [part["provenance"] for part in parts]
    return {
        "provenance": origins[-1]
        | machines_of(origins)
        | {
            "runs": runs,
            "seeds": sorted({run["seed"] for run in runs}),
            "wall_s": round(sum(origin["wall_s"] for origin in origins), 1),
            "training_wall_s": round(sum(origin["training_wall_s"] for origin in origins), 1),
            "training_commits": sorted({commit for origin in origins for commit in origin["training_commits"]}),
        },
        "records": [record for of_run in records for record in of_run],
        "diagnostics": diagnostics,
        "along_the_way": along_the_way,
    }


_RUN = ("dataset", "architecture", "method", "seed", "latent_dim")


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def main() -> None:
    for run in map(Path, sys.argv[1:]):
        results = json.loads((run / "results.json").read_text())
        name = "-".join(run.name.split("-")[:2])  # figure1-full, of which figure1-full-d-2 is a slice
        if run.name != name and (RESULTS / f"{name}.json").exists():  # a slice
            results = merged([read(name), results])
        write_json(RESULTS / f"{name}.json", results)
        if name == "figure1-small":
            for picture in ("figure1", "attacked_digits"):
                shutil.copy(run / f"{picture}.png", ROOT / "book" / "_static" / f"{picture}-small.png")
    full = read("figure1-full")
    draw_full(full)
    records, floor = full["records"], floor_table(full["records"], read("floor-full")["records"])
    on_gpu = read("training_step-gpu")
    speed = speed_table(read("training_step"), on_gpu, read("transport"))
    _fill(ROOT / "README.md", results=accuracy_table(records, METHODS), floor=floor, speed=speed)
    _fill(
        ROOT / "book" / "index.md",
        errata=errata_sentence((ROOT / "book" / "errata.md").read_text()),
        claims=claims_table(records),
        robust=floor,
        hours=hours_sentence(on_gpu),
    )


def hours_sentence(on_gpu: dict[str, Any]) -> str:
    """How long the paper's 300,000 steps take on the GPU of the benchmark."""
    minutes = {name: 300_000 * row["ms"] / 60_000 for name, row in on_gpu["rows"].items()}
    smooth, plain = (minutes[f"{name}, captured"] for name in ("ours, eager", "VAE, no attack"))
    return (
        f" On an {on_gpu['provenance']['device']} the paper's 300,000 steps take {smooth:.0f} minutes for the smooth "
        f"encoder with L = 20, and {plain:.0f} for the VAE (batch 128)."
    )


def draw_full(results: dict[str, Any]) -> None:
    """The picture of all slices that there are."""
    with TemporaryDirectory() as folder:
        save(figure1(results), Path(folder) / "figure1.png", results_digest(results))
        shutil.copy(Path(folder) / "figure1.png", ROOT / "book" / "_static" / "figure1-full.png")


def errata_sentence(page: str) -> str:
    """How many errors the errata list, by the headings of their sections."""
    sections = {part.splitlines()[0]: part for part in page.split("\n## ")[1:]}
    matter = sections["Errors that matter"].count("\n### ")
    slips = sections["Slips"].count("\n|") - 2  # less the heading and its rule
    return f" Of the errors that [we found](errata.md), {matter} matter and {slips} are slips."


def _fill(path: Path, **texts: Table | str) -> None:
    """Put each text between its two marks on the page; a table on lines of its own."""
    page = path.read_text()
    for mark, text in texts.items():
        marked = re.compile(rf"(<!-- {mark} -->).*?(<!-- /{mark} -->)", re.DOTALL)
        inside = text if isinstance(text, str) else f"\n{text}\n"
        page = marked.sub(lambda match, inside=inside: f"{match[1]}{inside}{match[2]}", page)
    path.write_text(page)


if __name__ == "__main__":
    main()
