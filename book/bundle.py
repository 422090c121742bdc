"""dist/smooth-encoders-colab.zip: the chapters, and the package as a wheel with what they read. `make colab`."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile

from address import ROOT, address
from pairing import filled

README = """\
# Smooth encoders on Google Colab

1. Unpack this file, and open one of its notebooks at https://colab.research.google.com (File, Upload notebook).
2. Drop smooth-encoders-colab.zip on Files at the left (or keep it in My Drive and mount the Drive).
3. For a GPU: Runtime, Change runtime type. For longer training: PROFILE, in the form of the first cell.
4. Runtime, Run all.

At home the notebooks run where they lie, beside the wheel, in any Jupyter with PyTorch.
"""


def bundle(target: Path) -> Path:
    """Write `target`, a zip of some megabytes."""
    target.parent.mkdir(exist_ok=True)
    with TemporaryDirectory() as scratch, ZipFile(target, "w", ZIP_DEFLATED) as content:
        wheel = build_wheel(Path(scratch))
        content.write(wheel, f"smooth-encoders/{wheel.name}")
        content.writestr("smooth-encoders/README.md", README)
        for notebook in sorted((ROOT / "book" / "notebooks").glob("*.ipynb")):
            content.writestr(f"smooth-encoders/{notebook.name}", filled(notebook, address()))
    return target


def build_wheel(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # a file that is no more would go along
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    print(bundle(ROOT / "dist" / "smooth-encoders-colab.zip"))
