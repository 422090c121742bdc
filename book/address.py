"""Publish the address of the repository everywhere at once, or take it back.

    make address URL=https://github.com/owner/name
    make address URL=

It goes into jupyter_book.toml, and from there into the set-up cell of each chapter, which clones from it on Colab; into
a button above each chapter and the README; into CITATION.cff and the metadata of the package. Nothing is executed, and
what was put in is taken out again without a trace.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from pairing import pair

ROOT = Path(__file__).parent.parent
GITHUB = "https://github.com/"
TITLE_CELL = r'# %% \[markdown\]\nr"""\n(?:(?!"""|\n\[!\[).*\n)*'
REPOSITORY = re.compile(r"(?:https://|(?:ssh://)?git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def on_github(url: str) -> str:
    """https://github.com/owner/name, for https and ssh alike; "" for what Colab cannot open, such as a folder."""
    match = REPOSITORY.fullmatch(url)
    return GITHUB + match[1] if match else ""


def address() -> str:
    """What is published; else where this checkout was cloned from, if that is on GitHub; else ""."""
    published = tomllib.loads((ROOT / "jupyter_book.toml").read_text())["repository"]["url"]
    origin = ["git", f"--git-dir={ROOT / '.git'}", "remote", "get-url", "origin"]
    try:
        return published or on_github(subprocess.run(origin, capture_output=True, text=True).stdout.strip())
    except FileNotFoundError:  # no git
        return ""


def publish(url: str) -> None:
    """Write `url` everywhere, or remove what is there if it is ""."""
    settings, quoted = ROOT / "jupyter_book.toml", f'"{url}"' if url else ""
    settings.write_text(re.sub('^url = ".*"', f'url = "{url}"', settings.read_text(), count=1, flags=re.MULTILINE))
    branch = tomllib.loads(settings.read_text())["repository"]["branch"]
    _put(ROOT / "CITATION.cff", "license: .*\n", "repository-code: ", quoted)
    _put(ROOT / "pyproject.toml", r"\[project\.urls\].*\n", "Repository = ", quoted)
    colab = f"https://colab.research.google.com/github/{url.removeprefix(GITHUB)}/blob/{branch}/book/notebooks"
    chapters = sorted((ROOT / "book" / "src").glob("*.py"))

    def button(page: Path, above: str, pictures: str, chapter: Path) -> None:
        link = f"({pictures}/colab.svg)]({colab}/{chapter.stem}.ipynb)" if url else ""
        _put(page, above, "[![Open it on Google Colab]", link, gap="\n")

    button(ROOT / "README.md", "# .*\n", "book/_static", chapters[0])
    for chapter in chapters:
        button(chapter, TITLE_CELL, "../_static", chapter)
        if not pair(chapter.stem):
            print(f"{chapter}: its code has changed, so its notebook keeps the old address until `make notebooks`")


def _put(path: Path, above: str, start: str, rest: str, gap: str = "") -> None:
    """The line `start` + `rest` below the first `above`, in place of one there that starts so; none if `rest` is ""."""
    old = f"(?:{gap}{re.escape(start)}.*\n)?"
    new = f"{gap}{start}{rest}\n" if rest else ""
    path.write_text(re.sub(f"^({above}){old}", lambda m: m[1] + new, path.read_text(), count=1, flags=re.MULTILINE))


def main(url: str) -> int:
    if url and not on_github(url):
        print(f"{url!r} is no repository that Colab can open; write https://github.com/owner/name")
        return 1
    publish(on_github(url))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1].strip()))
