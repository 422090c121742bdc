"""Sphinx's view of the book: everything is in jupyter_book.toml, and this adapter hands it to Jupyter Book."""

import html
import re
import sys
import tomllib
from pathlib import Path

import yaml
from docutils import nodes
from jupyter_book.config import PATH_YAML_DEFAULT, get_final_config

BOOK = Path(__file__).parent
sys.path.insert(0, str(BOOK))
from address import address  # noqa: E402
from pairing import filled  # noqa: E402

BUNDLE = BOOK.parent / "dist" / "smooth-encoders-colab.zip"  # of `make colab`
# Keys that Jupyter Book documents but leaves out of its list of defaults.
MORE = {"bibtex_bibfiles", "html.home_page_in_navbar", "execute.eval_regex", "execute.raise_on_error"}
# Each puts the address of another host on every page.
UNWANTED = {"sphinx_thebe", "sphinx_comments", "sphinx.ext.intersphinx"}


def unknown_keys(settings: dict, known: dict, path: str = "") -> list[str]:
    """The keys of `settings` that Jupyter Book does not list; its own schema lets misspelt ones pass."""
    unknown = []
    for key, value in settings.items():
        if key not in known and path + key not in MORE:
            unknown.append(path + key)
        elif isinstance(value, dict) and isinstance(known.get(key), dict):
            unknown += unknown_keys(value, known[key], f"{path}{key}.")
    return unknown


settings = tomllib.loads((BOOK.parent / "jupyter_book.toml").read_text())
toc = settings.pop("toc")
if misspelt := unknown_keys(settings, yaml.safe_load(PATH_YAML_DEFAULT.read_text())):
    raise ValueError(f"jupyter_book.toml: unknown keys {misspelt}; Jupyter Book lists its own in {PATH_YAML_DEFAULT}")
settings["repository"]["url"] = address()
if not address():
    del settings["launch_buttons"]

configuration, _ = get_final_config(
    user_yaml=settings, cli_config={"latex_individualpages": False}, raise_on_invalid=True
)
configuration["extensions"] = [name for name in configuration["extensions"] if name not in UNWANTED]
configuration["extensions"] += ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "docstrings", "bibliography"]
(BOOK / "_build").mkdir(exist_ok=True)
(BOOK / "_build" / "toc.yml").write_text(yaml.safe_dump(toc))
configuration |= {"external_toc_path": "_build/toc.yml", "html_extra_path": [str(BUNDLE)] * BUNDLE.exists()}
globals().update(configuration)


def setup(app) -> None:
    """Refuse a key of [sphinx.config] that no extension knows; describe each page, and offer it to take away."""
    app.connect("builder-inited", _write_weights)
    app.connect("html-page-context", _describe)
    app.connect("doctree-resolved", _keep_together)
    overrides = settings["sphinx"]["config"]
    app.connect(
        "config-inited",
        lambda _, config: [_refuse(name) for name in overrides if name not in config.values],
    )
    if BUNDLE.exists():
        app.connect("html-page-context", _offer_bundle, priority=502)  # after the theme's own buttons
    app.connect("build-finished", _fill_downloads)


def _write_weights(app) -> None:
    """Those of the page "Draw and attack"."""
    from demo import write_weights  # brings torch, at which an extension that looks at every object would warn

    write_weights()


def _describe(app, pagename: str, templatename: str, context: dict, doctree) -> None:
    """What a search engine or a chat shows of a page: its title, and its first paragraph."""
    if not doctree:
        return
    paragraph, title = (
        html.escape(" ".join(next(doctree.findall(kind)).astext().split())) for kind in (nodes.paragraph, nodes.title)
    )
    tags = {
        'name="description"': paragraph,
        'property="og:title"': title if pagename == "index" else f"{title}, Smooth encoders",
        'property="og:description"': paragraph,
        'property="og:type"': "article",
        'property="og:site_name"': "Smooth encoders",
    }
    context["metatags"] += "".join(f'\n<meta {name} content="{content}">' for name, content in tags.items())


def _refuse(name: str) -> None:
    raise ValueError(f"jupyter_book.toml: unknown key sphinx.config.{name}; no Sphinx extension of the book reads it")


def _keep_together(app, doctree, docname) -> None:
    """Let no line of text begin with the comma that follows a formula: a browser would break it there."""
    for formula in list(doctree.findall(nodes.math)):
        place = formula.parent.index(formula) + 1
        following = formula.parent[place] if place < len(formula.parent) else None
        if isinstance(following, nodes.Text) and (mark := re.match(r"\S+", following)):
            formula.parent[place] = nodes.Text(following[mark.end() :])
            formula.replace_self(nodes.inline("", "", formula.deepcopy(), nodes.Text(mark[0]), classes=["unbroken"]))


def _offer_bundle(app, pagename, templatename, context, doctree) -> None:
    """All chapters with the package, among the downloads of each page."""
    url = context["pathto"](BUNDLE.name, resource=True)
    entry = {"type": "link", "url": url, "text": "all chapters (.zip)", "icon": "fas fa-file-zipper"}
    for group in context["header_buttons"]:
        if group["label"] == "download-buttons":
            group["buttons"].append(entry | {"tooltip": "Chapters and package, for Colab", "label": "download-bundle"})


def _fill_downloads(app, exception) -> None:
    """The .ipynb behind the button of a page knows where it comes from."""
    for notebook in (Path(app.outdir) / "_sources" / "notebooks").glob("*.ipynb"):
        notebook.write_text(filled(notebook, address()))
