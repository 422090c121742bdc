"""The chapters: source and notebook agree, everything was executed, and the comparison of outputs can fail.

The comparison itself is `pytest --nbval`, which `make test` runs.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
SOURCES = sorted((BOOK / "src").glob("*.py"))
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=60", "-p", "no:cacheprovider", "-o", "addopts="]

EXECUTE = runpy.run_path(str(BOOK / "execute.py"))

# What the tests of a chapter's face ask, these do not give yet.
UNCONVERTED = ("05-bound", "06-selection", "07-training", "08-figure1", "09-smooth-or-shrink", "10-your-own-encoder")
CONVERTED = [source for source in SOURCES if source.stem not in UNCONVERTED]
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
    expected, found = EXECUTE["convert"](source).cells, notebook(source).cells
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        place = f"{source.stem}, cell {index}: run `make notebooks`"
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
    assert dict(found.metadata) == EXECUTE["METADATA"]
    assert "execution" not in {key for cell in found.cells for key in cell.metadata}
    printed = [o.text for c in found.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"]
    assert not [text for text in printed if re.search(r"/home/|/root/|/tmp/|0x[0-9a-f]{6,}|\d\.\d{9,}", text)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_each_picture_is_described(source: Path) -> None:
    for index, cell in enumerate(notebook(source).cells):
        if cell.cell_type == "code" and pictures(cell):
            description = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(description) > 40, f"{source.stem}, cell {index}: a picture needs mystnb.image.alt"


@pytest.mark.parametrize("source", CONVERTED, ids=lambda s: s.stem)
def test_code_in_sight_is_short_and_no_check_is_silent(source: Path) -> None:
    for index, cell in enumerate(notebook(source).cells):
        if cell.cell_type == "code":
            place = f"{source.stem}, cell {index}"
            assert not re.search(r"\bassert(_close|_allclose|_equal)?\b", cell.source), f"{place}: use lab.display"
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 15 or FOLDED & set(cell.metadata.get("tags", [])), f"{place}: {len(lines)} lines"


@pytest.mark.parametrize("source", CONVERTED, ids=lambda s: s.stem)
def test_each_picture_is_a_figure_that_can_be_read_on_a_phone(source: Path) -> None:
    for index, cell in enumerate(notebook(source).cells):
        if cell.cell_type == "code" and (kinds := pictures(cell)):
            place = f"{source.stem}, cell {index}"
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            assert figure.get("name"), f"{place}: a picture needs mystnb.figure.name"
            assert len(figure.get("caption", "")) > 20, f"{place}: a picture needs mystnb.figure.caption"
            assert kinds == ["image/svg+xml"], f"{place}: {kinds}"
            (svg,) = (o.data["image/svg+xml"] for o in cell.outputs if "image/svg+xml" in o.get("data", {}))
            width = float(re.search(r'<svg [^>]*\bwidth="([\d.]+)pt"', svg).group(1))
            # Text of 9 pt, 12 px, is shown at no less than 9 px where the column is 358 px wide.
            assert width <= 358, f"{place}: {width} points"


def compare(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One notebook executed and compared, as `make test` does all of them."""
    run = [sys.executable, "-m", "pytest", *NBVAL, "--rootdir", str(path.parent), str(path)]
    return subprocess.run(
        run, capture_output=True, text=True, cwd=path.parent, env=os.environ | environment, timeout=300
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


def test_a_chapter_runs_as_on_colab_where_the_package_is_not_installed(tmp_path: Path) -> None:
    """An environment with our dependencies and without our package; the clone is already there."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(
        subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    # Only the folder of the dependencies is added: the .pth file in it that names this checkout is not read.
    (site / "dependencies.pth").write_text(str(Path(nbformat.__file__).parent.parent))
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", tmp_path / "smooth-encoders"], check=True)
    missing = subprocess.run([python, "-c", "import se_core"], capture_output=True, text=True, cwd=tmp_path)
    assert "ModuleNotFoundError" in missing.stderr

    code = [cell.source for cell in notebook(BOOK / "src" / "02-divergences.py").cells if cell.cell_type == "code"]
    (tmp_path / "chapter.py").write_text("\n\n".join([*code, "import se_core; print(se_core.__file__)"]))
    environment = os.environ | {"COLAB_RELEASE_TAG": "test", "MPLBACKEND": "agg", "PIP_NO_CACHE_DIR": "1"}
    result = subprocess.run(
        [python, "chapter.py"], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    said, *_, where = result.stdout.strip().splitlines()
    assert said.startswith(f"installed from {tmp_path / 'smooth-encoders'}; torch ")
    assert "device " in said
    assert Path(where).is_relative_to(tmp_path / "smooth-encoders")
