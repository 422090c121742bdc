"""The chapters: source and notebook agree, everything was executed, and the comparison of outputs can fail.

The comparison itself is `pytest --nbval`, which `make test` runs.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient.exceptions import CellTimeoutError

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
SOURCES = sorted((BOOK / "src").glob("*.py"))
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=60", "-p", "no:cacheprovider", "-o", "addopts="]

sys.path.insert(0, str(BOOK))
import execute  # noqa: E402
import pairing  # noqa: E402

FOLDED = {"hide-input", "hide-cell", "remove-cell"}


def pictures(cell: nbformat.NotebookNode) -> list[str]:
    """The kinds of picture among the outputs of a code cell."""
    kinds = ("image/svg+xml", "image/png")
    return [kind for output in cell.outputs for kind in kinds if kind in output.get("data", {})]


def notebook(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(BOOK / "notebooks" / f"{source.stem}.ipynb", as_version=4)


def test_each_chapter_has_its_notebook_and_no_notebook_is_left_over() -> None:
    assert SOURCES
    assert {s.stem for s in SOURCES} == {n.stem for n in (BOOK / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_source_and_notebook_agree_cell_by_cell(source: Path) -> None:
    expected, found = pairing.convert(source).cells, notebook(source).cells
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        place = f"{source.stem}, cell {index}: `make pair` carries an edit of either to the other"
        assert (a.cell_type, a.source, a.id) == (b.cell_type, b.source, b.id), place
        assert a.metadata == b.metadata, place


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_each_cell_was_executed_in_order_and_without_a_complaint(source: Path) -> None:
    code = [cell for cell in notebook(source).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any(pictures(cell) for cell in code)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_nothing_that_differs_between_machines_is_kept(source: Path) -> None:
    found = notebook(source)
    assert dict(found.metadata) == pairing.METADATA | {"paired": pairing.digest(found)}
    assert "execution" not in {key for cell in found.cells for key in cell.metadata}
    printed = [o.text for c in found.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"]
    assert not [text for text in printed if re.search(r"/home/|/root/|/tmp/|0x[0-9a-f]{6,}|\d\.\d{9,}", text)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_each_picture_is_described(source: Path) -> None:
    for index, cell in enumerate(notebook(source).cells):
        if cell.cell_type == "code" and pictures(cell):
            description = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(description) > 40, f"{source.stem}, cell {index}: a picture needs mystnb.image.alt"


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_code_in_sight_is_short_and_no_check_is_silent(source: Path) -> None:
    for index, cell in enumerate(notebook(source).cells):
        if cell.cell_type == "code":
            place = f"{source.stem}, cell {index}"
            assert not re.search(r"\bassert(_close|_allclose|_equal)?\b", cell.source), f"{place}: use lab.display"
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 15 or FOLDED & set(cell.metadata.get("tags", [])), f"{place}: {len(lines)} lines"


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_each_picture_is_a_figure_that_can_be_read_on_a_phone(source: Path) -> None:
    for index, cell in enumerate(notebook(source).cells):
        if cell.cell_type == "code" and (kinds := pictures(cell)):
            place = f"{source.stem}, cell {index}"
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            assert figure.get("name"), f"{place}: a picture needs mystnb.figure.name"
            assert len(figure.get("caption", "")) > 20, f"{place}: a picture needs mystnb.figure.caption"
            if kinds == ["image/png"] and re.search(r"^(Image|Picture)\(", cell.source, re.MULTILINE):
                continue  # digits or photographs, which a dark page must not invert
            assert kinds == ["image/svg+xml"], f"{place}: {kinds}"
            (svg,) = (o.data["image/svg+xml"] for o in cell.outputs if "image/svg+xml" in o.get("data", {}))
            width = float(re.search(r'<svg [^>]*\bwidth="([\d.]+)pt"', svg).group(1))
            # Text of 9 pt, 12 px, is shown at no less than 9 px where the column is 358 px wide.
            assert width <= 358, f"{place}: {width} points"


def compare(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One notebook executed and compared, as `make test` does all of them."""
    run = [sys.executable, "-m", "pytest", *NBVAL, "--rootdir", str(path.parent), str(path)]
    return subprocess.run(
        run,
        capture_output=True,
        text=True,
        cwd=path.parent,
        env=os.environ | {"SE_DEVICE": "cpu"} | environment,
        timeout=300,
    )


def test_a_changed_digit_fails_the_comparison_and_is_located(tmp_path: Path) -> None:
    changed = notebook(BOOK / "src" / "02-divergences.py")
    cells = [cell for cell in changed.cells if cell.cell_type == "code"]
    (index, output) = next((i, o) for i, c in enumerate(cells) for o in c.outputs if o.output_type == "stream")
    output.text = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), output.text)
    nbformat.write(changed, tmp_path / "changed.ipynb")
    result = compare(tmp_path / "changed.ipynb")
    assert result.returncode == 1, result.stdout[-3000:]
    assert f"changed.ipynb::Cell {index}" in result.stdout
    assert result.stdout.count("FAILED") == 1 or "1 failed" in result.stdout


def test_a_changed_sign_in_transport_fails_the_comparison_and_is_located(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "se_core", tmp_path / "se_core")
    transport = tmp_path / "se_core" / "transport.py"
    right = "_diagonal_w2_squared(a, b) + excess.sum(-1)"  # eq. 19
    assert transport.read_text().count(right) == 1
    transport.write_text(transport.read_text().replace(right, right.replace("+", "-")))
    chapter = shutil.copy(BOOK / "notebooks" / "04-entropic-transport.ipynb", tmp_path)
    result = compare(Path(chapter), PYTHONPATH=str(tmp_path))
    assert result.returncode == 1, result.stdout[-3000:]
    assert re.search(r"FAILED 04-entropic-transport\.ipynb::Cell \d+", result.stdout), result.stdout[-3000:]


@pytest.fixture
def one_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book with one chapter, that edits may spoil."""
    for name in ("src/02-divergences.py", "notebooks/02-divergences.ipynb", "setup_cell.py", "jupytext.toml"):
        (tmp_path / "book" / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(BOOK / name, tmp_path / "book" / name)
    shutil.copy(ROOT / "jupyter_book.toml", tmp_path)
    monkeypatch.setattr(pairing, "BOOK", tmp_path / "book")
    monkeypatch.setattr(execute, "BOOK", tmp_path / "book")
    return tmp_path / "book"


def edit(path: Path, old: str = "Kullback", new: str = "Kulback") -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_edit_of_either_is_carried_to_the_other_and_outputs_are_kept(one_chapter: Path) -> None:
    source, path = (one_chapter / name for name in ("src/02-divergences.py", "notebooks/02-divergences.ipynb"))
    before = source.read_text(), path.read_text()
    assert pairing.pair("02-divergences")
    assert (source.read_text(), path.read_text()) == before

    edit(path)
    assert pairing.pair("02-divergences")
    assert source.read_text() == before[0].replace("Kullback", "Kulback", 1)
    edit(source, "Kulback", "Kullback")
    assert pairing.pair("02-divergences")
    assert (source.read_text(), path.read_text()) == before


def test_where_both_were_edited_nothing_is_written(one_chapter: Path) -> None:
    source, path = (one_chapter / name for name in ("src/02-divergences.py", "notebooks/02-divergences.ipynb"))
    edit(path)
    edit(source, "Kullback", "Kullbach")
    edited = source.read_text(), path.read_text()
    for write in (pairing.pair, execute.execute):
        with pytest.raises(ValueError, match="were both edited: move the notebook away"):
            write("02-divergences")
    assert (source.read_text(), path.read_text()) == edited


def test_changed_code_has_to_be_executed(one_chapter: Path, capsys: pytest.CaptureFixture) -> None:
    path = one_chapter / "notebooks" / "02-divergences.ipynb"
    before = path.read_text()
    edit(one_chapter / "src" / "02-divergences.py", "torch.set_num_threads(1)", "torch.set_num_threads(2)")
    assert pairing.main([]) == 1
    assert "python book/execute.py 02-divergences" in capsys.readouterr().out
    assert path.read_text() == before


def test_what_jupyterlab_saves_is_paired(one_chapter: Path) -> None:
    """The source opened as a notebook shows the outputs; saved, it writes both, and nothing more has to be done."""
    from jupyter_server.services.contents.filemanager import FileContentsManager
    from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class

    path = one_chapter / "notebooks" / "02-divergences.ipynb"
    manager = build_sync_jupytext_contents_manager_class(FileContentsManager)(root_dir=str(one_chapter.parent))
    model = manager.get("book/src/02-divergences.py", type="notebook")
    cells = model["content"].cells
    assert [c.get("outputs") for c in cells] == [c.get("outputs") for c in nbformat.read(path, as_version=4).cells]
    cells[0].source = cells[0].source.replace("Divergences", "Distances")
    manager.save(model, "book/src/02-divergences.py")
    assert "Distances" in path.read_text()
    before = (one_chapter / "src" / "02-divergences.py").read_text()
    assert pairing.pair("02-divergences")
    assert (one_chapter / "src" / "02-divergences.py").read_text() == before
    assert before.startswith("# %% [markdown]")  # no header of somebody's kernel


def test_a_cell_may_take_longer_at_a_larger_profile(one_chapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = re.search(r'PROFILE = "tiny"  # @param \[(.*)\]', (BOOK / "setup_cell.py").read_text())
    assert options
    assert [f'"{profile}"' for profile in execute.CELL_TIMEOUT] == options[1].split(", ")
    # The chapter: a title, the set-up cell, and one that takes two seconds.
    chapter = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Slow"), nbformat.v4.new_code_cell("import time; time.sleep(2)")]
    )
    jupytext.write(chapter, one_chapter / "src" / "slow.py", fmt="py:percent")
    monkeypatch.setattr(execute, "CELL_TIMEOUT", {"tiny": 1, "small": 60})
    (one_chapter / "setup_cell.py").write_text('REPOSITORY = ""\nBRANCH = "main"')
    monkeypatch.setenv("SE_PROFILE", "tiny")
    with pytest.raises(CellTimeoutError):
        execute.execute("slow")
    assert not (one_chapter / "notebooks" / "slow.ipynb").exists()
    monkeypatch.setenv("SE_PROFILE", "small")
    execute.execute("slow")
    assert (one_chapter / "notebooks" / "slow.ipynb").exists()
