"""Chapters as on Colab: an environment without our package, a notebook alone in an empty folder.

    python tests/book/colab.py [PYTHON]    # `make test-colab`

executes every chapter so, with the bundle beside it and with an address that it clones from, and prints a row for each.
PYTHON is an interpreter of another environment, such as one with the packages that Colab has; it needs ipykernel.
"""

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book"))
from bundle import bundle  # noqa: E402
from pairing import filled  # noqa: E402

ADDRESS = "https://github.com/owner/name"


def stranger(folder: Path) -> Path:
    """The interpreter of a new environment with our dependencies and without our package."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    where = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    site = Path(subprocess.check_output(where, text=True).strip())
    # Only the folder of the dependencies is added: the .pth file in it that names this checkout is not read.
    (site / "dependencies.pth").write_text(str(Path(nbformat.__file__).parent.parent))
    return python


def served(folder: Path) -> dict[str, str]:
    """Environment variables with which git finds this checkout, as committed, behind ADDRESS."""
    subprocess.run(["git", "init", "--quiet", "--bare", folder], check=True)
    subprocess.run(["git", "-C", ROOT, "push", "--quiet", folder, "HEAD:refs/heads/main"], check=True)
    rewrite = {"GIT_CONFIG_KEY_0": f"url.file://{folder}.insteadOf", "GIT_CONFIG_VALUE_0": ADDRESS}
    return {"GIT_CONFIG_COUNT": "1"} | rewrite


def run(notebook: nbformat.NotebookNode, folder: Path) -> str:
    """Execute the notebook in `folder` with the kernel "stranger"; what went wrong, or "passes"."""
    try:
        NotebookClient(
            notebook,
            timeout=600,
            startup_timeout=300,
            kernel_name="stranger",
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    except CellExecutionError as error:
        return str(error)
    return "passes"


def main(python: str | None) -> int:
    with TemporaryDirectory() as name:
        scratch = Path(name)
        python = python or str(stranger(scratch / "environment"))
        spec = scratch / "jupyter" / "kernels" / "stranger" / "kernel.json"
        spec.parent.mkdir(parents=True)
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": argv, "display_name": "stranger", "language": "python"}))
        os.environ |= {"JUPYTER_PATH": str(scratch / "jupyter")} | served(scratch / "served")
        os.environ.pop("PYTHONPATH", None)
        zipped, failures = bundle(scratch / "smooth-encoders-colab.zip"), 0
        for source in sorted((ROOT / "book" / "notebooks").glob("*.ipynb")):
            for way, url in (("bundle", ""), ("address", ADDRESS)):
                folder = scratch / way / source.stem
                folder.mkdir(parents=True)
                if way == "bundle":
                    copy(zipped, folder)
                began = time.monotonic()
                outcome = run(nbformat.reads(filled(source, url), as_version=4), folder)
                print(f"{source.stem:22s} {way:8s} {time.monotonic() - began:6.0f} s  {outcome}", flush=True)
                failures += outcome != "passes"
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else None))
