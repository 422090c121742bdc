"""The book: its configuration, its equations, and what the built pages ask for."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

import se_core

ROOT = Path(__file__).parents[2]
RESTRUCTURED = runpy.run_path(str(ROOT / "book" / "docstrings.py"))["restructured"]

SETTINGS = tomllib.loads((ROOT / "jupyter_book.toml").read_text())
CHAPTERS = sorted((ROOT / "book" / "src").glob("*.py"))
ADDRESS = "https://github.com/owner/name"
BUNDLE = "smooth-encoders-colab.zip"


def build(folder: Path, builder: str = "html", **replacements: str) -> subprocess.CompletedProcess[str]:
    """A copy of the book, its configuration edited, built into folder/html as `make book` does."""
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("_build"))
    text = (ROOT / "jupyter_book.toml").read_text()
    for old, new in replacements.values():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "jupyter_book.toml").write_text(text)
    (folder / "dist").mkdir()
    (folder / "dist" / BUNDLE).write_text("what `make colab` leaves there")
    run = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", builder, "book", "html"]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages of the book as it is: name -> HTML."""
    folder = tmp_path_factory.mktemp("book")
    result = build(folder)
    assert result.returncode == 0, result.stderr
    html = folder / "html"
    return {str(p.relative_to(html).with_suffix("")): p.read_text() for p in html.rglob("*.html")}


class Requests(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        fetched = values.get("href") if tag == "link" else values.get("src")
        if tag in ("link", "script", "img", "iframe", "source", "video") and fetched:
            self.addresses.append(fetched)


def test_no_page_asks_another_host_for_anything(pages: dict[str, str]) -> None:
    for name, html in pages.items():
        requests = Requests()
        requests.feed(html)
        assert requests.addresses
        assert not [a for a in requests.addresses if re.match(r"(https?:)?//", a)], name


def test_every_page_of_the_contents_is_built(pages: dict[str, str]) -> None:
    toc = SETTINGS["toc"]
    listed = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert {f"notebooks/{source.stem}" for source in CHAPTERS} <= set(listed)
    assert {toc["root"], *listed} <= set(pages)


def test_every_page_of_the_contents_describes_itself(pages: dict[str, str]) -> None:
    for name in (SETTINGS["toc"]["root"], *(f"notebooks/{source.stem}" for source in CHAPTERS), "errata", "references"):
        (description,) = re.findall(r'<meta name="description" content="([^"]*)"', pages[name])
        (title,) = re.findall(r'<meta property="og:title" content="([^"]*)"', pages[name])
        assert "Smooth encoders" in title
        assert len(description) > 40 or name == "references", name


@pytest.mark.parametrize("number", range(1, 25))
def test_each_equation_of_the_paper_stands_under_its_number_with_a_cell_that_checks_it(
    number: int, pages: dict[str, str]
) -> None:
    homes = [name for name, html in pages.items() if f'id="eq-{number}"' in html]
    assert len(homes) == 1
    assert rf"\tag{{{number}}}" in pages[homes[0]]
    source = (ROOT / "book" / "src" / f"{Path(homes[0]).name}.py").read_text()
    cells = re.split(r"^# %%", source.split(rf"\tag{{{number}}}")[1], flags=re.MULTILINE)[1:]
    begin = next(i for i, cell in enumerate(cells) if not cell.startswith(" [markdown]"))
    end = next(i for i, cell in enumerate(cells) if i > begin and cell.startswith(" [markdown]"))
    following = "".join(cells[begin:end])
    assert re.search(r"^\s*(assert|agree|less|holds)\b", following, flags=re.MULTILINE)
    # Its chapter says at the end that it was checked, by name or as the inside of a range.
    summary = source.split("## What we checked")[1]
    named = [int(n) for n in re.findall(r"#eq-(\d+)", summary)]
    assert min(named) <= number <= max(named)


def test_colab_opens_a_chapter_only_when_the_address_is_known(pages: dict[str, str], tmp_path: Path) -> None:
    published = SETTINGS["repository"]["url"]
    assert published or not [name for name, html in pages.items() if 'href="https://colab.research.google.com' in html]

    result = build(tmp_path, address=(f'url = "{published}"', f'url = "{ADDRESS}"'))
    assert result.returncode == 0, result.stderr
    for source in CHAPTERS:
        html = (tmp_path / "html" / "notebooks" / f"{source.stem}.html").read_text()
        path = f"github/owner/name/blob/main/book/notebooks/{source.stem}.ipynb"
        assert f'href="https://colab.research.google.com/{path}"' in html
        download = (tmp_path / "html" / "_sources" / "notebooks" / f"{source.stem}.ipynb").read_text()
        assert f'REPOSITORY = \\"{ADDRESS}\\"' in download
    assert (tmp_path / "html" / BUNDLE).exists()


def test_each_page_offers_its_chapter_and_the_bundle(pages: dict[str, str]) -> None:
    for source in CHAPTERS:
        html = pages[f"notebooks/{source.stem}"]
        assert f'href="../_sources/notebooks/{source.stem}.ipynb"' in html
        assert f'href="../{BUNDLE}"' in html


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("only_build_toc_files", "only_build_tok_files", "only_build_tok_files"),
        ("colab_url", "colab_ur", "launch_buttons.colab_ur"),
        ("execute_notebooks =", "execute_notebook =", "execute.execute_notebook"),
        ("mathjax_path", "mathjaxpath", "sphinx.config.mathjaxpath"),
    ],
)
def test_a_misspelt_key_is_refused_by_name(old: str, new: str, name: str, tmp_path: Path) -> None:
    result = build(tmp_path, "dummy", key=(old, new))
    assert result.returncode != 0
    assert "unknown key" in result.stderr
    assert name in result.stderr


def test_the_reference_has_every_public_name_and_leads_to_the_equations(pages: dict[str, str]) -> None:
    reference = pages["api"]
    for name in se_core.__all__:
        module = getattr(se_core, name).__module__
        assert f'id="{module}.{name}"' in reference, name
    cost = reference.split('id="se_core.transport.entropic_cost"')[1].split("</dl>")[0]
    assert re.search(r'href="notebooks/[a-z0-9-]+\.html#eq-20"', cost)
    assert re.search(r'href="notebooks/[a-z0-9-]+\.html#eq-21"', cost)


def test_a_docstring_is_escaped_and_linked() -> None:
    prose = ["W_ and a * b, eqs. 20-21 or `x_ * y`.", ""]
    formula = ["    rho = s * t", ""]
    arguments = ["Args:", "    a: shape (..., D), eq. 8."]
    assert RESTRUCTURED(prose) == [r"W\_ and a \* b, :ref:`eqs. 20 <eq-20>`-:ref:`21 <eq-21>` or ``x_ * y``.", ""]
    assert RESTRUCTURED(formula) == ["", "::", "", *formula]
    assert RESTRUCTURED(arguments) == ["", "**Args**", "", "- ``a``: shape (..., D), :ref:`eq. 8 <eq-8>`."]


def test_references_are_labelled_as_they_are_cited(pages: dict[str, str]) -> None:
    entry = r'role="doc-biblioentry">.*?</span>([^<]*)<span.*?<p>(.*?)</p>'
    entries = dict(re.findall(entry, pages["references"], flags=re.DOTALL))
    assert entries["Carlini and Wagner, 2016"].startswith("Nicholas Carlini and David Wagner.")
    assert entries["Cuturi, 2013"].count("https://arxiv.org/abs/1306.0895") == 1
    bibliography = (ROOT / "book" / "references.bib").read_text()
    assert len(entries) == bibliography.count("\n@") + 1  # each one is cited
    assert all("href=" in text for text in entries.values())


def test_mathjax_comes_with_its_licence() -> None:
    folder = ROOT / "book" / "_static" / "mathjax"
    assert (folder / "tex-svg.js").stat().st_size > 2_000_000
    assert "Apache License" in (folder / "LICENSE").read_text()
