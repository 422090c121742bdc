"""Tables show the records, in Markdown and in HTML alike."""

from xml.etree import ElementTree

import pytest

from se_core.lab.experiments import PANELS
from se_core.lab.tables import Table, accuracy_table, claims_table, floor_table


def records(panels: str, accuracies: dict[str, dict[float, list[float]]]) -> list[dict]:
    """method -> radius -> accuracy, seed by seed."""
    return [
        {"dataset": p.dataset, "architecture": p.architecture, "task": p.task, "latent_dim": 64, "method": method,
         "seed": seed, "radius": radius, "accuracy": accuracy}
        for p in PANELS if p.letter in panels
        for method, points in accuracies.items()
        for radius, values in points.items()
        for seed, accuracy in enumerate(values)
    ]  # fmt: skip


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in table.rows]


def test_a_table_is_the_same_in_markdown_and_in_html() -> None:
    table = Table(["panel", "model", "0.1"], [["(a) A & B", "VAE", "12"]], words=2)
    assert str(table).splitlines() == ["| panel | model | 0.1 |", "|---|---|---:|", "| (a) A & B | VAE | 12 |"]
    root = ElementTree.fromstring(table._repr_html_())
    found = [(cell.tag, cell.get("scope"), cell.get("class"), cell.text) for row in root for cell in row]
    assert found == [
        ("th", "col", "words", "panel"),
        ("th", "col", "words", "model"),
        ("th", "col", None, "0.1"),
        ("th", "row", None, "(a) A & B"),
        ("td", None, "words", "VAE"),
        ("td", None, None, "12"),
    ]


def test_accuracies_stand_with_seeds_intervals_and_gains() -> None:
    """Two seeds, 40 and 42 %: the half-width is t(0.975, 1) = 12.706 times 1 / sqrt 2 times sqrt 2, 12.7 points."""
    measured = {"vae": {0.0: [0.9, 0.9], 0.1: [0.2, 0.2]}, "avae": {0.0: [0.9, 0.9], 0.1: [0.4, 0.42]}}
    assert cells(accuracy_table(records("d", measured))) == [
        ["(d)", "VAE", "2", "90 ± 0", "20 ± 0", ""],
        ["(d)", "autoencoding VAE", "2", "90 ± 0", "41 ± 13", "2.05 ± 0.64"],
    ]
    assert [row[1] for row in cells(accuracy_table(records("d", measured), ["avae", "labels"]))] == ["autoencoding VAE"]


def test_one_seed_has_no_interval_and_a_method_alone_no_gain() -> None:
    one = {"vae": {0.1: [0.2]}, "se": {0.1: [0.4]}}
    assert [row[3:] for row in cells(accuracy_table(records("c", one)))] == [["20", ""], ["40", "2.00"]]
    assert cells(accuracy_table(records("c", {"labels": {0.1: [0.5]}})))[0][3:] == ["50", ""]


def test_the_floor_stands_beside_the_methods() -> None:
    one = {method: {0.0: [1.0], 0.05: [0.2], 0.2: [0.1]} for method in ("vae", "se", "pinned")}
    floor = [
        {"panel": panel, "representation": "pca", "radius": radius, "accuracy": accuracy}
        for panel in "cd"
        for radius, accuracy in ((0.0, 0.99), (0.05, 0.5), (0.2, 0.3))
    ]
    table = floor_table(records("d", one), floor)
    assert table.headings[1] == "PCA"
    assert cells(table) == [["(d) MNIST, ConvNET, digit", "40", "15", "15", "15"]]


def test_claims_stand_with_evidence_and_verdict() -> None:
    measured = {
        "vae": {0.0: [0.99, 0.98, 0.99], 0.1: [0.1, 0.11, 0.1], 0.2: [0.0, 0.0, 0.0]},
        "se": {0.0: [0.99, 0.98, 0.99], 0.1: [0.2, 0.22, 0.2], 0.2: [0.1, 0.1, 0.1]},
        "pinned": {0.0: [0.99, 0.98, 0.99], 0.1: [0.8, 0.81, 0.8], 0.2: [0.7, 0.7, 0.7]},
    }
    table = cells(claims_table(records("ab", measured)))
    by_claim = {row[0]: [cell.replace("\u00a0", " ") for cell in row[1:]] for row in table}
    assert by_claim["its accuracy degrades gracefully"] == [
        "(a) 10 ± 0 %; (b) 10 ± 0 %", "not", "(a) 71 ± 1 %; (b) 71 ± 1 %", "held",
    ]  # fmt: skip
    assert by_claim["nominal accuracy on colours is close to perfect"][0].startswith("VAE 99 ± 1 %; smooth 99")
    assert by_claim["the smooth encoder is more robust"][1] == "held"
    assert by_claim["the ConvNET is more robust by itself"] == ["", "not tested", "", ""]  # of the VAE alone


@pytest.mark.parametrize("table", [accuracy_table([]), claims_table([]), floor_table([], [])])
def test_nothing_measured_is_an_empty_table(table: Table) -> None:
    assert all("not tested" in row for row in table.rows)
