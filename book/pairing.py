"""book/src/*.py and book/notebooks/*.ipynb: the same chapters, to edit and to run.

    python book/pairing.py [chapter ...]    # all, without a name

carries an edit of one to the other, executes nothing, and keeps the outputs. Where code has changed it leaves the
notebook and says what to execute; where both were edited it refuses. A notebook holds a digest of the chapter as it was
when the two last agreed, which tells the one that was edited since. Nothing that differs from run to run is kept
(times, versions, random cell identifiers), so that an unchanged chapter leaves unchanged files.

The second cell of each chapter is the set-up cell: book/setup_cell.py, with the address of the repository.
"""

import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

BOOK = Path(__file__).parent
SETUP = "cellView"  # what marks the set-up cell; Colab shows such a cell as a form
KEPT = ("tags", "mystnb")  # of the metadata of a cell; editors add their own
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def source_of(name: str) -> Path:
    return BOOK / "src" / f"{name}.py"


def notebook_of(name: str) -> Path:
    return BOOK / "notebooks" / f"{name}.ipynb"


def with_address(code: str, url: str, branch: str) -> str:
    """The set-up cell in `code` with another address; with "" it clones nothing."""
    lines = f'REPOSITORY = "{url}"\nBRANCH = "{branch}"'
    return re.sub('^REPOSITORY = ".*"\nBRANCH = ".*"$', lambda _: lines, code, count=1, flags=re.MULTILINE)


def filled(notebook: Path, url: str) -> str:
    """A committed notebook as it is handed out: its set-up cell with the address that this build knows."""
    chapter = nbformat.read(notebook, as_version=4)
    chapter.cells[1].source = with_address(chapter.cells[1].source, url, _repository()["branch"])
    return nbformat.writes(chapter) + "\n"


def convert(source: Path) -> NotebookNode:
    """The chapter as a notebook without outputs."""
    return _tidy(jupytext.read(source, fmt="py:percent"))


def pair(name: str) -> bool:
    """Make source and notebook agree; False where code has changed, so that the notebook has to be executed.

    Raises ValueError where both were edited.
    """
    chapter, path = convert(source_of(name)), notebook_of(name)
    found = nbformat.read(path, as_version=4) if path.exists() else chapter
    agreed = found.metadata.get("paired")
    if digest(found) not in (digest(chapter), agreed):
        if digest(chapter) != agreed:
            raise ValueError(
                f"{source_of(name)} and {path} were both edited: move the notebook away, make it anew with "
                "book/execute.py, and carry over by hand what only the old one has"
            )
        chapter = _tidy(nbformat.from_dict(found))
    _write_source(chapter, source_of(name))
    code, executed = _code(chapter), _code(found)
    if [c.source for c in code] != [c.source for c in executed] or not all(c.execution_count for c in executed):
        return False
    for cell, old in zip(code, executed, strict=True):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    chapter.cells[1].execution_count = 1
    nbformat.write(chapter, path)
    return True


def digest(chapter: NotebookNode) -> str:
    """Of all that one edits: every cell but the set-up cell, without what execution adds."""
    cells = [(c.cell_type, c.source, _kept(c)) for c in chapter.cells if SETUP not in c.metadata]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:16]


def _code(chapter: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in chapter.cells if cell.cell_type == "code" and SETUP not in cell.metadata]


def _kept(cell: NotebookNode) -> dict:
    """In one order, for a notebook sorts all keys and a script none."""
    kept = {key: cell.metadata[key] for key in KEPT if key in cell.metadata}
    return {key: json.loads(json.dumps(value, sort_keys=True)) for key, value in kept.items()}


def _tidy(chapter: NotebookNode) -> NotebookNode:
    """The chapter with today's set-up cell, and without what editors add."""
    cells = [cell for cell in chapter.cells if SETUP not in cell.metadata]
    for cell in cells:
        cell.metadata = nbformat.from_dict(_kept(cell))
    code = with_address((BOOK / "setup_cell.py").read_text().strip(), _repository()["url"], _repository()["branch"])
    setup = nbformat.v4.new_code_cell(code, metadata={SETUP: "form", "tags": ["remove-cell"]})
    chapter.cells = [cells[0], setup, *cells[1:]]
    for index, cell in enumerate(chapter.cells):
        cell.id = f"cell-{index:02d}"
    chapter.metadata = nbformat.from_dict(METADATA | {"paired": digest(chapter)})
    return chapter


def _repository() -> dict[str, str]:
    return tomllib.loads((BOOK.parent / "jupyter_book.toml").read_text())["repository"]


def _write_source(chapter: NotebookNode, path: Path) -> None:
    text = nbformat.from_dict(chapter)
    text.metadata = nbformat.from_dict({"jupytext": tomllib.loads((BOOK / "jupytext.toml").read_text())})
    del text.metadata.jupytext["formats"]
    content = jupytext.writes(text, fmt="py:percent")
    if content != path.read_text():
        path.write_text(content)


def main(names: list[str]) -> int:
    changed = [name for name in names or sorted(s.stem for s in (BOOK / "src").glob("*.py")) if not pair(name)]
    if changed:
        print(f"code has changed; execute it: python book/execute.py {' '.join(changed)}")
    return len(changed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
