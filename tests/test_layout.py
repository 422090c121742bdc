"""The house: the laboratory imports the library and never the reverse, each file only those above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = (
    "errors", "gaussians", "_full_transport", "_sinkhorn", "transport", "_batch_last", "networks", "paired_prior",
    "objectives", "memory", "_borrowing", "_compilation", "_attack", "attacks", "losses", "_torchvision", "_idx",
    "_mnist", "_indexing", "_image_files", "folders", "datasets", "pretrained",
)  # fmt: skip
LAB = (
    "config", "storage", "runs", "captured", "steps", "training", "probe", "evaluation", "milestones", "autoattack",
    "masking", "judges", "experiments", "executors", "slurm_array", "slurm", "statistics", "figures", "tables",
    "comparison", "display", "cli",
)  # fmt: skip
ORDER = [f"se_core.{name}" for name in LIBRARY] + [f"se_core.lab.{name}" for name in LAB] + ["se_core.__main__"]
UNIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
FILES = [path for path in (ROOT / "se_core").rglob("*.py") if path.name != "__init__.py"]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_file_has_its_place() -> None:
    assert {_module(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_each_file_imports_only_those_above_it(path: Path) -> None:
    assert _imports(path) & set(ORDER) <= set(ORDER[: ORDER.index(_module(path))])


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_every_file_can_be_imported_on_windows(path: Path) -> None:
    """At least as far as the modules go that Python has on Unix alone."""
    assert not _imports(path) & UNIX_ONLY


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_no_file_is_longer_than_three_hundred_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_every_function_fits_a_screen(path: Path) -> None:
    """Forty lines, its docstring aside."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            said = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            length = node.end_lineno - node.lineno + 1
            assert length - said <= 40, f"{node.name} has {length - said} lines"
