"""The built book in a browser without a network: each page, on a wide and on a narrow screen."""

import functools
import http.server
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOC = tomllib.loads((ROOT / "jupyter_book.toml").read_text())["toc"]
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]), "search", "genindex"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; apt-get install chromium")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, kind: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which the book, built as `make book` does, is served."""
    html = tmp_path_factory.mktemp("browser") / "html"
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", ROOT / "book", html], check=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def visited(site: str, browser: Any) -> dict[str, dict[str, Any]]:
    """For each page: what the console said, what was requested and failed, and what the page looks like inside."""
    found = {}
    for name in PAGES:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        notes: dict[str, Any] = {"console": [], "failed": [], "foreign": []}
        page.on("console", lambda m, n=notes: n["console"].append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e, n=notes: n["console"].append(str(e)))
        page.on("requestfailed", lambda r, n=notes: n["failed"].append(r.url))
        page.on("response", lambda r, n=notes: n["failed"].append(r.url) if r.status >= 400 else None)
        page.on("request", lambda r, n=notes: None if r.url.startswith((site, "data:")) else n["foreign"].append(r.url))
        page.goto(f"{site}/{name}.html", wait_until="load")
        if page.query_selector(".math"):
            page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            page.evaluate("() => MathJax.startup.promise")
        notes["inside"] = page.evaluate(
            """() => ({
                untypeset: [...document.querySelectorAll('.math')]
                    .filter(m => !m.querySelector('mjx-container')).length,
                mistakes: document.querySelectorAll('mjx-container [data-mml-node="merror"], mjx-merror').length,
                dollars: [...document.querySelectorAll('main p, main li, main td')].map(e => e.innerText)
                    .filter(t => /\\$[^$]*\\\\[a-z]/.test(t)),
                undescribed: [...document.querySelectorAll('article img')].filter(i => (i.alt || '').length < 15)
                    .map(i => i.src),
                links: [...document.querySelectorAll('a[href]')].map(a => a.href),
                width: document.documentElement.scrollWidth,
            })"""
        )
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_timeout(150)
        notes["narrow"] = page.evaluate("document.documentElement.scrollWidth")
        # Mathematics is seen from its beginning, and a formula in the text to its end.
        notes["cut"] = page.evaluate(
            """() => [...document.querySelectorAll('article mjx-container > svg')].filter(s => {
                const box = s.getBoundingClientRect();
                return box.left < 0 || (box.right > 390 && !s.closest('div.math, table'));
            }).map(s => s.parentElement.textContent)"""
        )
        page.close()
        found[name] = notes
    return found


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, visited: dict[str, dict[str, Any]]) -> None:
    notes = visited[name]
    assert notes["console"] == []
    assert notes["failed"] == []
    assert notes["foreign"] == []
    assert notes["inside"]["untypeset"] == 0
    assert notes["inside"]["mistakes"] == 0
    assert notes["inside"]["dollars"] == []
    assert notes["inside"]["undescribed"] == []
    assert notes["inside"]["width"] <= 1280
    assert notes["narrow"] <= 390
    assert notes["cut"] == []


def test_internal_links_hold(site: str, browser: Any, visited: dict[str, dict[str, Any]]) -> None:
    links = {link for notes in visited.values() for link in notes["inside"]["links"] if link.startswith(site)}
    page = browser.new_page()
    anchors: dict[str, set[str]] = {}
    for address in sorted({link.split("#")[0] for link in links}):
        response = page.request.get(address)
        assert response.status == 200, address
        if address.endswith(".html"):
            page.goto(address, wait_until="domcontentloaded")
            anchors[address] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
    for link in links:
        address, _, anchor = link.partition("#")
        assert not anchor or address not in anchors or anchor in anchors[address], link
    page.close()


def test_the_plan_follows_gamma(site: str, browser: Any) -> None:
    """The interactive picture needs no kernel, and its numbers are those of the closed form."""
    page = browser.new_page()
    page.goto(f"{site}/notebooks/04-entropic-transport.html", wait_until="load")
    for exponent, sigma in ((-2, 1.0), (0, 1.0), (4, 0.5)):
        page.evaluate(
            """([exponent, sigma]) => {
                for (const [id, value] of [["plan-gamma", exponent], ["plan-width", sigma]]) {
                    const input = document.getElementById(id);
                    input.value = value;
                    input.dispatchEvent(new Event("input"));
                }
            }""",
            [exponent, sigma],
        )
        gamma = 10.0**exponent
        # eq. 24: psi, and with it rho = psi / (sigma_a sigma_b)
        rho = ((1 + 4 * gamma**2 * sigma**2) ** 0.5 - 1) / (2 * gamma) / sigma
        assert f"ρ = {rho:.3f};" in page.inner_text("#plan-numbers")
    dots = page.evaluate(
        "[...document.querySelectorAll('#plan circle')].map(c => [+c.getAttribute('cx'), -c.getAttribute('cy')])"
    )
    assert len(dots) == 350
    assert all(abs(y - 0.5 * x) < 0.1 for x, y in dots)  # nearly the Monge map
    page.close()


def test_the_book_prints_with_its_solutions_open(tmp_path: Path) -> None:
    printed = runpy.run_path(str(ROOT / "book" / "print.py"))["print_book"](tmp_path / "book.pdf").read_bytes()
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") > 60
    assert printed.count(b"/Title") > 50  # the outline: every section
