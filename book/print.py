"""The whole book as one PDF, its solutions open: `make pdf` writes book/_build/smooth-encoders.pdf.

Sphinx makes one page of it, and a headless Chromium prints that.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BOOK = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What a screen needs and paper does not, and what should stay together on paper.
STYLE = """
.bd-sidebar-primary, .bd-sidebar-secondary, .bd-header, .bd-header-article, .prev-next-footer, #pst-skip-link,
.skip-link, details.hide { display: none !important; }
.bd-container, .bd-container__inner, .bd-main, .bd-content, .bd-article-container { display: block !important; }
.bd-main .bd-content .bd-article-container { max-width: none; }
.bd-article div.highlight pre { white-space: pre-wrap; }
figure, pre, table, div.math { break-inside: avoid; }
h2:has(> .section-number) { break-before: page; }
h2, h3, h4 { break-after: avoid; }
"""


def print_book(out: Path) -> Path:
    """Write `out`, from the committed outputs. Raises FileNotFoundError where no Chromium is installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is installed; `make pdf` prints with one of them")
    page = out.parent / "singlehtml" / "index.html"
    build = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "singlehtml", str(BOOK), str(page.parent)]
    subprocess.run(build, check=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = chromium.new_page(color_scheme="light")
        tab.goto(page.as_uri())
        tab.add_style_tag(content=STYLE)
        tab.evaluate("document.querySelectorAll('details:not(.hide)').forEach(details => { details.open = true; })")
        tab.evaluate("() => MathJax.startup.promise")
        margin = dict.fromkeys(("top", "bottom", "left", "right"), "16mm")
        tab.pdf(path=out, format="A4", scale=0.72, margin=margin, outline=True, tagged=True)
        chromium.close()
    return out


if __name__ == "__main__":
    print(print_book(BOOK / "_build" / "smooth-encoders.pdf"))
