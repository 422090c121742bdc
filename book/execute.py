"""Execute chapters: `python book/execute.py [chapter ...]` does the named ones, or all.

An edit of a notebook is carried to its source first, and nothing is lost (`pairing.py`). SE_PROFILE chooses the sizes,
and SE_DEVICE the device; without it that is the CPU here, where the committed outputs were made.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
from nbclient import NotebookClient
from pairing import BOOK, convert, notebook_of, pair, source_of

# Seconds that a cell may take, by profile. CI runs `tiny`; `paper` is for a GPU, and takes its time.
CELL_TIMEOUT = {"tiny": 120, "small": 1800, "paper": None}


def execute(name: str) -> str:
    """Execute one chapter and write its notebook; the name of the chapter."""
    pair(name)
    notebook = convert(source_of(name))
    metadata = nbformat.from_dict(notebook.metadata)  # as it is now; executing adds to it
    NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT[os.environ.get("SE_PROFILE", "tiny")],
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(BOOK / "notebooks")}},
    ).execute()
    notebook.metadata = metadata
    nbformat.write(notebook, notebook_of(name))
    return name


if __name__ == "__main__":
    os.environ.setdefault("SE_DEVICE", "cpu")
    names = sys.argv[1:] or sorted(source.stem for source in (BOOK / "src").glob("*.py"))
    with ThreadPoolExecutor(max_workers=2) as pool:  # each chapter is a kernel of its own
        for name in pool.map(execute, names):
            print(name, flush=True)
