"""Pictures and tables show the records, and say which."""

from pathlib import Path

import pytest
from tiny_runs import results_of

from se_core.lab.experiments import PANELS, examples
from se_core.lab.figures import METHODS, draw, figure1, results_digest
from se_core.lab.statistics import select
from se_core.lab.tables import accuracy_table


def test_pictures_and_table_are_left(whole: Path) -> None:
    for name in ("figure1", "attacked_digits"):
        assert (whole / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (whole / f"{name}.svg").read_text()
    printed = (whole / "printed").read_text()
    assert str(accuracy_table(results_of(whole)["records"])) in printed
    assert f"{whole}/figure1.png" in printed
    assert printed.count("accuracy in %") == len(results_of(whole)["provenance"]["runs"])  # fixed rows, not a bar


def test_pictures_say_which_results_they_show_and_repeat_byte_for_byte(whole: Path, tmp_path: Path) -> None:
    results = results_of(whole)
    assert results_digest(results).encode() in (whole / "figure1.png").read_bytes()
    assert results_digest(results) in (whole / "figure1.svg").read_text()
    draw(results, examples(results, whole), tmp_path)
    for path in (*tmp_path.glob("*.png"), *tmp_path.glob("*.svg")):
        assert path.read_bytes() == (whole / path.name).read_bytes(), path.name


def test_the_picture_shows_the_records(whole: Path) -> None:
    """The lines drawn, read back from the axes, are the means of the records."""
    results = results_of(whole)
    axes = figure1(results).axes
    assert [a.get_title(loc="left") for a in axes] == [panel.title for panel in PANELS]
    for panel, panel_axes in zip(PANELS, axes, strict=True):
        lines = {line.get_label(): line for line in panel_axes.lines}
        for method, style in METHODS.items():
            chosen = select(results["records"], panel, method)
            line = lines[style["label"]]
            for radius, drawn in zip(line.get_xdata(), line.get_ydata(), strict=True):
                accuracies = [r["accuracy"] for r in chosen if r["radius"] == radius]
                assert drawn == pytest.approx(100 * sum(accuracies) / len(accuracies))
