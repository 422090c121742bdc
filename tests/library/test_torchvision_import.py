"""torchvision must import with either build of torch, and only when it is asked for.

Each case runs in a process of its own. A stand-in package plays the build that is not installed here: it describes the
operator `nms` the way torchvision does, with or without having declared it first.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DECLARES = """
import torch
library = torch.library.Library("torchvision", "DEF")  # refuses a schema that somebody declared before
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
DESCRIBES = """
import torch, torchvision.extension
torchvision.extension
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
"""


def stand_in(folder: Path, extension: str) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import extension\nfrom torchvision import _meta\nname = 'stand-in'\n")
    (package / "extension.py").write_text(extension)
    (package / "_meta.py").write_text(DESCRIBES)
    return folder


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    search = f"import sys; sys.path[:0] = {[str(entry) for entry in (*path, ROOT)]}\n"
    return subprocess.run([sys.executable, "-c", search + code], capture_output=True, text=True, timeout=300)


def succeeds(code: str, *path: Path) -> str:
    done = run(code, *path)
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORT = """
from se_core._torchvision import import_torchvision
torchvision = import_torchvision()
assert torchvision is import_torchvision() is sys.modules["torchvision"]
assert torchvision.extension is sys.modules["torchvision.extension"]
"""


def test_the_package_imports_without_torchvision():
    assert succeeds("import se_core.datasets; print('torchvision' in sys.modules)").strip() == "False"


def test_a_build_that_matches_is_left_alone(tmp_path):
    folder = stand_in(tmp_path, DECLARES)
    assert succeeds(IMPORT + "print(torchvision.name)", folder).strip() == "stand-in"


def test_a_build_that_does_not_match_gets_the_missing_operators(tmp_path):
    folder = stand_in(tmp_path, "")
    plain = run("import torchvision", folder)
    assert "RuntimeError: operator torchvision::nms does not exist" in plain.stderr, "the stand-in fails like the wheel"
    assert succeeds(IMPORT + "print(torchvision.name)", folder).strip() == "stand-in"


def test_an_import_that_failed_before_does_no_harm(tmp_path):
    failed = "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
    assert succeeds(failed + IMPORT + "print(torchvision.name)", stand_in(tmp_path, "")).strip() == "stand-in"
    assert succeeds(failed + IMPORT + "print(torchvision.datasets.MNIST.__name__)").strip() == "MNIST"


@pytest.mark.parametrize("fault", ["RuntimeError", "ImportError"])
def test_another_fault_is_not_hidden(tmp_path, fault):
    done = run(IMPORT, stand_in(tmp_path, f"print('tried')\nraise {fault}('another fault')"))
    assert done.returncode != 0
    assert done.stderr.strip().endswith(f"{fault}: another fault")
    assert done.stdout.split() == ["tried"]  # once


def test_the_installed_torchvision_reads_mnist_and_makes_grids():
    code = """
import torch
import torchvision as again
assert again is torchvision
grid = torchvision.utils.make_grid(torch.arange(2.0)[:, None, None, None].expand(2, 3, 2, 2), nrow=2, padding=1)
assert torchvision.datasets.MNIST.resources
print(grid[0].tolist())
"""
    # Two images of 2 x 2 pixels, all 0 and all 1, each framed by one pixel of 0.
    expected = [[0] * 7, [0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 0], [0] * 7]
    assert succeeds(IMPORT + code).strip() == str([[float(pixel) for pixel in row] for row in expected])
