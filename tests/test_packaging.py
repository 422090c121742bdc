"""Ranges, lock, distributions, commands and pictures: what the repository says of itself is so."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import BytesParser
from email.policy import default
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import se_core
from se_core.lab.cli import main
from se_core.lab.experiments import METHODS
from se_core.lab.figures import results_digest
from se_core.lab.statistics import claims, robustness
from se_core.lab.tables import accuracy_table, claims_table, floor_table

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
RANGES = [
    Requirement(line)
    for group in (PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"].values())
    for line in group
    if not line.startswith("se-core[")
]


def _pins(text: str) -> dict[str, str]:
    """The lines `name==version`, and no other; comments aside."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return {canonicalize_name(name): version for name, version in pins.items()}


CUDA = "nvidia|cuda|triton"
LOCK = _pins((ROOT / "constraints.txt").read_text())


def test_every_range_is_written_once_has_a_tested_floor_and_a_reason_in_the_readme() -> None:
    names = [requirement.name for requirement in RANGES]
    assert len(names) == len(set(names))
    floors = _pins(subprocess.check_output([sys.executable, ROOT / "tests" / "floors.py"], text=True))
    for requirement in RANGES:
        (floor,) = [s.version for s in requirement.specifier if s.operator == ">="]
        assert floors[canonicalize_name(requirement.name)] == f"{floor}.*"
        assert not [s for s in requirement.specifier if s.operator in ("==", "===", "~=")], requirement
    assert len(floors) == len(RANGES)
    assert not [name for name in names if f"`{name}`" not in README]


def test_the_lock_is_the_same_everywhere_and_within_the_ranges() -> None:
    """No build of one machine, no file, no address; and nothing of CUDA, which the wheel of torch names itself."""
    assert not [pin for pin in LOCK.items() if not re.fullmatch(r"[a-z0-9-]+ \d[\w.]*", " ".join(pin))]
    assert not [name for name in LOCK if re.match(CUDA, name)]
    assert not [r for r in RANGES if not r.specifier.contains(LOCK[canonicalize_name(r.name)])]


@pytest.mark.skipif(
    (sys.platform, sys.version_info[:2]) != ("linux", (3, 11)),
    reason="constraints.txt is a freeze of Python 3.11 on Linux",
)
def test_the_lock_is_whole() -> None:
    """Whatever the packages in it ask for is in it too, in a version that they accept."""
    for name in LOCK:
        try:
            needs = [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        for need in needs:
            if (need.marker is None or need.marker.evaluate({"extra": ""})) and not re.match(CUDA, need.name):
                assert need.specifier.contains(LOCK[canonicalize_name(need.name)]), (name, need)


def test_whoever_installs_installs_by_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[lab]"]
    assert f"python{PYPROJECT['project']['requires-python']}" in environment["dependencies"]
    stamped = re.findall(r"^\$\([A-Z]+\):.*\n(?:\t.*\n)+", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(stamped) == 3
    assert all("--constraint constraints.txt" in recipe for recipe in stamped)


def test_the_version_is_said_alike_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == se_core.__version__
    assert re.search(r"^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == se_core.__version__
    said = subprocess.check_output([sys.executable, "-m", "se_core", "--version"], text=True, cwd=ROOT)
    assert said == f"se-core {se_core.__version__}\n"


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files belong to the repository")
    return set(subprocess.check_output(["git", "ls-files"], text=True, cwd=ROOT).splitlines())


@pytest.fixture(scope="module")
def built(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source distribution of what git tracks."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    code = f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r}); b.build_wheel({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr  # setuptools' way of saying what is missing or deprecated
    return folder


def test_the_source_distribution_is_the_repository(built: Path, tracked: set[str]) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        held = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    assert {name for name in held if ".egg-info/" not in name} == tracked | {"PKG-INFO", "setup.cfg"}


def test_the_wheel_is_the_package_with_its_data_and_their_licences(built: Path, tracked: set[str]) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
        about = next(name for name in held if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser(policy=default).parsebytes(wheel.read(about))
        commands = wheel.read(about.replace("METADATA", "entry_points.txt")).decode()
    read = {n for n in tracked if re.fullmatch(r"book/(results/.*\.json|_static/attacked_digits-small\.png)", n)}
    package = {n for n in tracked if n.startswith("se_core/")} | {f"se_core/{n}" for n in read}
    assert {name for name in held if ".dist-info/" not in name} == package
    assert metadata["License-Expression"] == "MIT AND CC-BY-SA-3.0"
    assert metadata.get_all("License-File") == ["LICENSE", "se_core/data/README.md"]
    assert {about.replace("METADATA", f"licenses/{name}") for name in metadata.get_all("License-File")} <= held
    assert commands.split() == ["[console_scripts]", "se-core", "=", "se_core.__main__:main"]
    assert metadata["Author"] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["authors"][0]["name"]
    unconditional = {Requirement(line).name for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert unconditional == {"torch", "numpy", "safetensors"}


def test_the_readme_s_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))  # in code, not in prose
    assert named
    assert named <= set(targets)


def test_ci_runs_the_readme_s_test_command() -> None:
    assert "make test" in README
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


# As `pip install .` leaves it: what the extra `lab` brings cannot be imported.
WITHOUT_THE_LABORATORY = """
import sys
for name in ("torchvision", "PIL", "scipy", "matplotlib", "jsonargparse", "yaml", "tqdm"):
    sys.modules[name] = None
"""


def test_the_command_without_its_packages_names_the_extra() -> None:
    code = WITHOUT_THE_LABORATORY + "from se_core.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("se-core: the library is installed, ")
    assert done.stderr.endswith(": pip install 'se-core[lab]'\n")


def test_the_ten_lines_of_the_readme_run(tmp_path: Path) -> None:
    section = README.split("## Your own smooth encoder in ten lines")[1].split("\n## ")[0]
    code, pretrained = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10
    short = re.sub(r"range\(\d[\d_]*\)", "range(3)", code) + pretrained
    assert short != code + pretrained
    subprocess.run([sys.executable, "-c", WITHOUT_THE_LABORATORY + short], check=True, cwd=tmp_path)


def test_the_readme_s_lines_for_images_of_your_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut up, trained, attacked and drawn, in fewer steps."""
    section = README.split("## Your own images")[1].split("\n## ")[0]
    (cut,), (commands,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "sh"))
    monkeypatch.chdir(tmp_path)
    exec(compile(cut, "README.md", "exec"), {})
    assert len(list(Path("patches").glob("*/*.png"))) > 3000
    train, pinned, compare = (shlex.split(line, comments=True) for line in commands.splitlines())
    for command in (train, pinned):
        assert command[0] == "se-core"
        assert main([*command[1:], "--iterations=3", "--latent-dim=4"]) == 0
    assert compare[-1] == "runs/images-*"
    short = ["--test-images=20", "--attack-steps=2", "--radii=[0,0.05]"]
    assert main([*compare[1:-1], *sorted(map(str, Path().glob(compare[-1]))), *short]) == 0
    assert {"accuracy.png", "attacked_images.png"} <= {path.name for path in Path("runs/compared").iterdir()}
    results = json.loads(Path("runs/compared/results.json").read_text())
    assert {(r["method"], r["task"]) for r in results["records"]} == {("vae", "label"), ("pinned", "label")}


def test_importing_the_package_changes_nothing_global_and_imports_nothing_heavy_but_torch() -> None:
    """Above all no compiler, which takes as long as torch itself: a decorator of `torch.compiler` would import it."""
    code = """
import sys, torch
before = (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.is_grad_enabled())
known = set(sys.modules)
import se_core
assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.is_grad_enabled())
compilers = {"torch._dynamo", "torch._inductor"}
of_the_laboratory = {"torchvision", "scipy", "matplotlib", "PIL", "jsonargparse", "yaml", "tqdm", "filelock"}
heavy = (compilers | of_the_laboratory) & set(sys.modules) - known
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


PUBLISH = runpy.run_path(str(ROOT / "book" / "publish.py"))


@pytest.fixture(scope="module")
def small() -> dict:
    return PUBLISH["read"]("figure1-small")


@pytest.fixture(scope="module")
def full() -> dict:
    return PUBLISH["read"]("figure1-full")


def test_the_pictures_are_of_the_committed_results(small: dict, full: dict) -> None:
    for name, results in (("small", small), ("full", full)):
        picture = (ROOT / "book" / "_static" / f"figure1-{name}.png").read_bytes()
        assert results_digest(results).encode() in picture
        assert f"book/_static/figure1-{name}.png" in README


def test_the_readme_says_what_the_results_say(full: dict) -> None:
    assert str(accuracy_table(full["records"], METHODS)) in README
    assert str(floor_table(full["records"], PUBLISH["read"]("floor-full")["records"])) in README
    training, on_gpu, transport = map(PUBLISH["read"], ("training_step", "training_step-gpu", "transport"))
    assert str(PUBLISH["speed_table"](training, on_gpu, transport)) in README
    assert PUBLISH["hours_sentence"](on_gpu) in (ROOT / "book" / "index.md").read_text()


def test_the_first_page_says_what_the_results_say(full: dict) -> None:
    page = (ROOT / "book" / "index.md").read_text()
    assert str(claims_table(full["records"])) in page
    assert str(floor_table(full["records"], PUBLISH["read"]("floor-full")["records"])) in page
    errata = (ROOT / "book" / "errata.md").read_text()
    matter = errata.split("## Errors that matter")[1].split("\n## ")[0].count("\n### ")
    assert f"{matter} matter" in page


def test_the_committed_results_keep_the_promises(small: dict, full: dict) -> None:
    """The pinned encoder at least twice the VAE: in (a), (c), (d) of the small profile, where the paper's is above it
    for sure, and everywhere in the full one."""
    for name, results in (("small", small), ("full", full)):
        for claim in claims(results["records"]):
            letter = claim["panel"][1]
            ratio, half = claim["gain"]["se"]
            assert ratio - half > 1 or name == "full" or letter == "b", claim
            assert claim["gain"]["pinned"][0] >= 2 or (name, letter) == ("small", "b"), claim
            assert claim["gain"]["pinned"][0] > ratio, claim
            assert all(last <= claim["chance"] for last in claim["last"].values()), claim
            if letter == "a":
                assert min(claim["nominal"].values()) >= 0.97, claim
        assert results["provenance"]["profile"] == name
        assert not results["provenance"]["commit"].endswith("(modified)")


def test_a_small_selection_radius_needs_a_larger_gamma() -> None:
    """The study of the settings, seed by seed: on MNIST, radius 0.05 helps at gamma = 10 and not at gamma = 1."""
    study = json.loads((ROOT / "book" / "results" / "sensitivity.json").read_text())
    assert not study["provenance"]["commit"].endswith("(modified)")

    def robustnesses(change: dict, method: str) -> list[float]:
        return [
            robustness(dict(zip(study["radii"], row["accuracy"]["digit"], strict=True)))
            for row in study["rows"]
            if (row["base"], row["change"], row["method"]) == ("mnist", change, method)
        ]

    vae = robustnesses({}, "vae")
    weak, strong = (robustnesses({"radius": 0.05} | change, "se") for change in ({}, {"gamma": 10.0}))
    assert len(vae) == len(weak) == len(strong) == len(study["seeds"]) >= 3
    assert all(a < 1.1 * b for a, b in zip(weak, vae, strict=True))
    assert all(a > 1.5 * b for a, b in zip(strong, vae, strict=True))
