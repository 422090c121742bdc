"""book/src/*.py -> book/notebooks/*.ipynb, in this one direction: convert, execute, write.

`python book/execute.py [chapter ...]` does the named chapters, or all. Nothing that differs from run to run is kept
(times, versions, random cell identifiers), so that an unchanged chapter leaves an unchanged file. The chapters in
book/src are what one edits; an edit of a notebook is lost here, and a test fails where the two differ.
"""

import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

BOOK = Path(__file__).parent
CELL_TIMEOUT = 60  # seconds: no cell of the book may take longer
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SETUP = (BOOK / "setup_cell.py").read_text().strip()


def convert(source: Path) -> NotebookNode:
    """The chapter as a notebook without outputs; its first code cell is book/setup_cell.py, with the address in it."""
    chapter = jupytext.read(source, fmt="py:percent")
    address = tomllib.loads((BOOK.parent / "jupyter_book.toml").read_text())["repository"]["url"]
    setup = nbformat.v4.new_code_cell(
        SETUP.replace('REPOSITORY = ""', f'REPOSITORY = "{address}"'),
        metadata={"tags": ["remove-cell"], "cellView": "form"},
    )
    chapter.cells.insert(1, setup)
    for index, cell in enumerate(chapter.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata.pop("cell_marker", None)
    chapter.metadata = METADATA
    return chapter


def execute(source: Path) -> str:
    """Execute one chapter and write its notebook; the name of the chapter."""
    notebook = convert(source)
    folder = BOOK / "notebooks"
    NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    notebook.metadata = METADATA
    nbformat.write(notebook, folder / f"{source.stem}.ipynb")
    return source.stem


if __name__ == "__main__":
    chapters = [BOOK / "src" / f"{name}.py" for name in sys.argv[1:]] or sorted((BOOK / "src").glob("*.py"))
    with ThreadPoolExecutor(max_workers=2) as pool:  # each chapter is a kernel of its own
        for name in pool.map(execute, chapters):
            print(name, flush=True)
