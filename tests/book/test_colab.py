"""The set-up cell finds the package, and what the chapters read, wherever a reader may have put them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from colab import ADDRESS, ROOT, served, stranger  # finds book/ as well

from address import on_github  # isort: skip
from bundle import bundle  # isort: skip
from pairing import filled, with_address  # isort: skip

CELL = (ROOT / "book" / "setup_cell.py").read_text()
IMPORTS = "import se_core\nfrom se_core.lab.config import usable_device\n"
# The same without torch, whose import takes seconds: where se_core would be imported from, and any device.
LOOK = """
class se_core: __file__ = importlib.util.find_spec("se_core").origin
usable_device = str
"""
SOURCES = sorted((ROOT / "book" / "src").glob("*.py"))
PLACES = (
    "the bundle", "the unpacked bundle", "above the unpacked bundle", "a wheel", "the wheel in Drive",
    "a zip of the repository", "the repository", "its sources", "its address", "installed",
)  # fmt: skip


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stranger(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("bundle") / "smooth-encoders-colab.zip")


def run(python: Path, folder: Path, cell: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SE_PROFILE")}
    command = [python, "-W", "error::ResourceWarning", "-c", cell]
    return subprocess.run(
        command, cwd=folder, env=clean | {"SE_DEVICE": "cpu"} | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("place", PLACES)
def test_the_set_up_cell_finds_the_package_and_what_the_chapters_read(
    place: str, python: Path, zipped: Path, tmp_path: Path
) -> None:
    assert CELL.count(IMPORTS) == 1
    here, cell, environment = tmp_path / "here", CELL if place == "a wheel" else CELL.replace(IMPORTS, LOOK), {}
    here.mkdir()
    wheels = tmp_path / "smooth-encoders"
    with ZipFile(zipped) as content:
        content.extractall(tmp_path)
    match place:
        case "the bundle":
            shutil.copy(zipped, here)
        case "the unpacked bundle":
            here = wheels
        case "above the unpacked bundle":
            here = tmp_path
        case "a wheel":
            shutil.copy(next(wheels.glob("*.whl")), here)
        case "the wheel in Drive":
            cell = cell.replace("/content/drive/MyDrive", str(wheels))
        case "a zip of the repository":
            archive = ["git", "archive", "--prefix=name-main/", f"--output={here}/name.zip", "HEAD", "se_core", "book"]
            subprocess.run(archive, cwd=ROOT, check=True)
        case "the repository" | "its sources":
            here = ROOT / "book" / ("src" if place == "its sources" else "notebooks")
        case "its address":
            cell, environment = with_address(cell, ADDRESS, "main"), served(tmp_path / "served")
        case "installed":
            with ZipFile(next(wheels.glob("*.whl"))) as content:
                content.extractall(tmp_path / "installed")
            environment = {"PYTHONPATH": str(tmp_path / "installed")}
    code = "".join(source.read_text() for source in SOURCES)
    read = set(re.findall(r'Path\(BOOK\) / "(\w+)" / "([\w.-]+)"', code))
    read |= {("results", f"{name}.json") for name in re.findall(r'committed\("([\w-]+)"\)', code)}
    assert len(read) > 4
    check = f"for folder, name in {read}: (BOOK / folder / name).read_bytes()\nprint(PROFILE, DEVICE)"
    result = run(python, here, f"{cell}\n{check}", environment)
    assert result.returncode == 0, result.stderr
    *said, last = result.stdout.splitlines()
    assert last == "tiny cpu"
    assert [line.startswith("se_core from ") for line in said] == ([] if place == "installed" else [True])


@pytest.mark.parametrize("beside", ["nothing", "half an upload", "another zip"])
def test_where_there_is_nothing_the_set_up_cell_says_what_to_upload(
    beside: str, python: Path, zipped: Path, tmp_path: Path
) -> None:
    if beside == "half an upload":
        (tmp_path / zipped.name).write_bytes(zipped.read_bytes()[:100_000])
    if beside == "another zip":
        with ZipFile(tmp_path / "photographs.zip", "w") as content:
            content.writestr("holiday.txt", "sun")
    result = run(python, tmp_path, CELL, {})
    assert result.returncode == 1
    *_, said = result.stderr.strip().splitlines()
    assert said.startswith("RuntimeError: se_core is not here: put smooth-encoders-colab.zip, or its wheel, beside")


def test_a_repository_that_cannot_be_cloned_is_explained_in_the_words_of_git(python: Path, tmp_path: Path) -> None:
    cell = with_address(CELL, str(tmp_path / "nowhere"), "main")
    result = run(python, tmp_path, cell, {})
    assert "nowhere" in result.stdout
    assert "RuntimeError: se_core is not here" in result.stderr


def test_profile_and_device_are_taken_from_the_form_and_the_environment_first(python: Path) -> None:
    cell = CELL.replace('PROFILE = "tiny"', 'PROFILE = "small"') + "\nprint(PROFILE, DEVICE)"
    by_form = run(python, ROOT, cell, {})
    assert by_form.stdout.splitlines()[-2:] == ["profile small, device cpu", "small cpu"]
    by_environment = run(python, ROOT, cell, {"SE_PROFILE": "paper", "SE_DEVICE": "gpu"})
    assert "device='gpu' is unknown" in by_environment.stderr


def test_the_bundle_holds_the_chapters_as_committed_and_one_wheel(zipped: Path) -> None:
    with ZipFile(zipped) as content:
        names = [Path(name).name for name in content.namelist()]
        chapter = nbformat.reads(content.read("smooth-encoders/07-selection.ipynb"), as_version=4)
    (wheel,) = (name for name in names if name.endswith(".whl"))
    assert set(names) == {wheel, "README.md", *(f"{source.stem}.ipynb" for source in SOURCES)}
    assert zipped.stat().st_size < 16e6  # twelve of them are weights
    committed = nbformat.read(ROOT / "book" / "notebooks" / "07-selection.ipynb", as_version=4)
    assert chapter.cells[2:] == committed.cells[2:]


def test_what_is_handed_out_knows_the_address_of_the_build() -> None:
    notebook = ROOT / "book" / "notebooks" / "07-selection.ipynb"
    setup = nbformat.reads(filled(notebook, ADDRESS), as_version=4).cells[1].source
    assert f'REPOSITORY = "{ADDRESS}"' in setup.splitlines()


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        ("https://github.com/owner/name", ADDRESS),
        ("https://github.com/owner/name.git", ADDRESS),
        ("git@github.com:owner/name.git", ADDRESS),
        ("ssh://git@github.com/owner/name", ADDRESS),
        ("/srv/git/name", ""),
        ("file:///srv/git/name", ""),
        ("https://token@github.com/owner/name", ""),
        ("https://example.org/owner/name", ""),
        ("", ""),
    ],
)
def test_only_github_s_own_addresses_are_published(origin: str, url: str) -> None:
    assert on_github(origin) == url
