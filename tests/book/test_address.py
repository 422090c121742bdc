"""An address is published everywhere at once, and taken back without a trace."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDRESS = "https://github.com/owner/name"


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the address is written into, in a repository of its own, without an address."""
    tmp_path = tmp_path_factory.mktemp("copied")
    files = ["book", "README.md", "CITATION.cff", "pyproject.toml", "jupyter_book.toml"]
    listed = subprocess.check_output(["git", "-C", ROOT, "ls-files", *files], text=True).splitlines()
    for name in listed:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    assert publish(tmp_path, "").returncode == 0
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", ".")
    return tmp_path


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", "-C", folder, *arguments], text=True)


def publish(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "book/address.py", url]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)


def test_an_address_goes_everywhere_and_is_taken_back_without_a_trace(copied: Path) -> None:
    assert publish(copied, f"{ADDRESS}.git").returncode == 0
    changed = set(_git(copied, "diff", "--name-only").split())
    chapters = {path.stem for path in (ROOT / "book" / "src").glob("*.py")}
    everywhere = {f"book/src/{c}.py" for c in chapters} | {f"book/notebooks/{c}.ipynb" for c in chapters}
    assert changed == everywhere | {"README.md", "CITATION.cff", "pyproject.toml", "jupyter_book.toml"}
    added = [line[1:] for line in _git(copied, "diff", "-U0").splitlines() if line.startswith("+")]
    assert 'Repository = "https://github.com/owner/name"' in added
    assert 'repository-code: "https://github.com/owner/name"' in added
    assert added.count(f'REPOSITORY = "{ADDRESS}"') == len(chapters)
    for chapter in chapters:
        link = f"https://colab.research.google.com/github/owner/name/blob/main/book/notebooks/{chapter}.ipynb"
        assert f"[![Open it on Google Colab](../_static/colab.svg)]({link})" in added
        assert (copied / "book" / "_static" / "colab.svg").exists()
    # Outputs and code are as they were: nothing was executed, and nothing has to be.
    assert not [line for line in added if "execution_count" in line or "image/png" in line]

    assert publish(copied, "https://github.com/another/one").returncode == 0
    added = [line for line in _git(copied, "diff", "-U0").splitlines() if line.startswith("+")]
    assert not [line for line in added if "owner/name" in line]
    assert publish(copied, "").returncode == 0
    assert _git(copied, "diff", "--name-only") == ""


def test_what_colab_cannot_open_is_refused_before_anything_is_written(copied: Path) -> None:
    result = publish(copied, "/srv/git/name")
    assert result.returncode == 1
    assert "'/srv/git/name' is no repository that Colab can open; write https://github.com/owner/name" in result.stdout
    assert _git(copied, "diff", "--name-only") == ""


@pytest.mark.parametrize(
    ("origin", "known"), [("git@github.com:owner/name.git", ADDRESS), ("/srv/git/name", ""), ("", "")]
)
def test_without_a_published_address_the_build_knows_where_it_was_cloned_from(
    origin: str, known: str, copied: Path
) -> None:
    if origin:
        _git(copied, "remote", "add", "origin", origin)
    ask = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, 'book'); from address import address; print(address())",
    ]
    found = subprocess.check_output(ask, cwd=copied, text=True).strip()
    if origin:
        _git(copied, "remote", "remove", "origin")
    assert found == known
