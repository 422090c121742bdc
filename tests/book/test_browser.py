"""The built book in a browser without a network: each page, on a wide and on a narrow screen."""

import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browsing import CHROMIUM, serve

ROOT = Path(__file__).parents[2]
TOC = tomllib.loads((ROOT / "jupyter_book.toml").read_text())["toc"]
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]), "search", "genindex"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; apt-get install chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which the book, built as `make book` does, is served."""
    html = tmp_path_factory.mktemp("browser") / "html"
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", ROOT / "book", html], check=True)
    with serve(html) as address:
        yield address


LOOK = r"""() => ({
    untypeset: [...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container')).length,
    mistakes: document.querySelectorAll('mjx-container [data-mml-node="merror"], mjx-merror').length,
    dollars: [...document.querySelectorAll('main p, main li, main td')].map(e => e.innerText)
        .filter(t => /\$[^$]*\\[a-z]/.test(t)),
    undescribed: [...document.querySelectorAll('article img')].filter(i => (i.alt || '').length < 15).map(i => i.src),
    twins: [...document.querySelectorAll('[id]')].map(e => e.id).filter((id, k, ids) => ids.indexOf(id) < k),
    excess: Math.max(0, document.documentElement.scrollWidth - innerWidth),
    // Mathematics is seen from its beginning, and a formula in the text to its end.
    cut: [...document.querySelectorAll('article mjx-container > svg')].filter(s => {
        const box = s.getBoundingClientRect();
        return box.left < 0 || (box.right > innerWidth && !s.closest('div.math, table'));
    }).map(s => s.parentElement.textContent),
    broken: [...document.querySelectorAll('article td, article th')].flatMap(cell => {
        const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = document.createRange();
        const found = [];
        while (texts.nextNode()) {
            for (const name of texts.currentNode.data.matchAll(/\w+/g)) {
                range.setStart(texts.currentNode, name.index);
                range.setEnd(texts.currentNode, name.index + name[0].length);
                if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) found.push(name[0]);
            }
        }
        return found;
    }),
})"""
WHOLE = {"untypeset": 0, "mistakes": 0, "excess": 0} | {
    fault: [] for fault in ("dollars", "undescribed", "twins", "cut", "broken")
}
GROUND = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
LOADED = """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .map(entry => [entry.name, entry.encodedBodySize])"""
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def visited(site: str, browser: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """For each page and width: what the console said, what was requested and failed, and what the page looks like, in
    light and in the dark."""
    return {name: {width: visit(browser, site, name, width) for width in WIDTHS} for name in PAGES}


def visit(browser: Any, site: str, name: str, width: int) -> dict[str, Any]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
    notes: dict[str, Any] = {"console": [], "failed": [], "foreign": []}
    page.on("console", lambda m: notes["console"].append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: notes["console"].append(str(e)))
    page.on("requestfailed", lambda r: notes["failed"].append(r.url))
    page.on("response", lambda r: notes["failed"].append(r.url) if r.status >= 400 else None)
    page.on("request", lambda r: None if r.url.startswith((site, "data:")) else notes["foreign"].append(r.url))
    page.goto(f"{site}/{name}.html", wait_until="load")
    if page.query_selector(".math"):
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("() => MathJax.startup.promise")
    page.wait_for_timeout(150)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        notes[scheme] = {"look": page.evaluate(LOOK), "ground": page.evaluate(GROUND)}
    notes["loaded"] = dict(page.evaluate(LOADED))
    notes["links"] = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
    page.close()
    return notes


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, width: int, visited: dict[str, dict[int, dict[str, Any]]]) -> None:
    notes = visited[name][width]
    assert [notes["console"], notes["failed"], notes["foreign"]] == [[], [], []]
    assert [notes[scheme]["look"] for scheme in ("light", "dark")] == [WHOLE, WHOLE]
    assert min(notes["light"]["ground"]) > 230
    assert max(notes["dark"]["ground"]) < 60


def test_no_page_is_heavy(visited: dict[str, dict[int, dict[str, Any]]]) -> None:
    """At most a megabyte beyond what all pages share; the weights of the demonstration come on demand."""
    loaded = {name: notes[1280]["loaded"] for name, notes in visited.items()}
    shared = set.intersection(*(set(sizes) for sizes in loaded.values() if any("mathjax" in a for a in sizes)))
    assert sum("mathjax" in address for address in shared) == 1
    for name, sizes in loaded.items():
        own = {a: size for a, size in sizes.items() if a not in shared and not a.endswith("pretrained-mlp.safetensors")}
        assert 1e4 < sum(own.values()) <= 1e6, f"{name}: {own}"


def test_internal_links_hold(site: str, browser: Any, visited: dict[str, dict[int, dict[str, Any]]]) -> None:
    links = {link for notes in visited.values() for link in notes[1280]["links"] if link.startswith(site)}
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


def test_the_blind_spot_follows_gamma_and_the_radius(site: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(f"{site}/notebooks/01-blind-spot.html", wait_until="load")
    kept = json.loads((ROOT / "book" / "results" / "blind-spot.json").read_text())
    travels = [sum(abs(b - a) for a, b in pairwise(q["mean"])) for q in kept["vae"]]
    assert f"they travel {travels[0]:.1f} and {travels[1]:.1f}" in page.inner_text("#blind-words")
    assert page.locator("#blind-spot path.vae").count() == 4
    page.locator("#blind-gamma").press("End")
    page.locator("#blind-radius").press("Home")
    travels = [
        sum(abs(b - a) for a, b in pairwise(q["mean"]))
        for row in kept["se"]
        if (row["gamma"], row["radius"]) == (kept["gammas"][-1], kept["radii"][0])
        for q in row["encoders"]
    ]
    assert f"they travel {travels[0]:.1f} and {travels[1]:.1f}" in page.inner_text("#blind-words")
    assert page.locator("#blind-spot path.se").count() == 4
    page.close()


def test_figure_1_can_be_looked_into(site: str, browser: Any) -> None:
    """Methods, intervals and seeds come and go; a point says its numbers and, where there are any, shows its digits."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(f"{site}/notebooks/09-figure1.html", wait_until="load")
    count = {what: page.locator(f"#figure1 svg {what}").count for what in (".mean", ".vae.mean", ".band", ".seed")}
    assert [n() for n in count.values()] == [12, 4, 12, 36]
    for name in ("vae", "intervals", "seeds"):
        page.locator(f"#figure1 [name={name}]").uncheck()
    assert [n() for n in count.values()] == [8, 0, 0, 0]

    page.locator("#figure1 [value=small]").check()
    assert [n() for n in count.values()] == [8, 0, 0, 0]
    records = json.loads((ROOT / "book" / "results" / "figure1-small.json").read_text())["records"]
    wanted = {"dataset": "mnist", "architecture": "conv", "method": "pinned", "radius": 0.02}
    values = [r["accuracy"] for r in records if wanted.items() <= r.items()]
    page.locator("#figure1 svg[data-panel=d]").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    said = page.inner_text("#figure1-words")
    assert said.startswith("Panel (d), pinned smooth encoder, radius 0.02: accuracy")
    assert f"{100 * sum(values) / len(values):.0f} ± " in said
    assert page.locator(".figure1-digits canvas").count() == 0

    page.locator("#figure1 [value=full]").check()
    assert [n() for n in count.values()] == [8, 0, 0, 0]
    dot = page.locator("#figure1 svg[data-panel=c] circle.pinned").nth(3)
    dot.hover()
    page.wait_for_selector(".figure1-digits canvas")
    assert "Panel (c), pinned smooth encoder, radius 0.1:" in page.inner_text("#figure1-words")
    assert page.locator(".figure1-digits figcaption").all_inner_texts()[0].startswith("9")
    page.close()


WORDS = "document.getElementById('attack-words').textContent"


def test_a_digit_is_drawn_and_attacked(site: str, browser: Any) -> None:
    """Draw and attack, on a phone and without animation: by touch, by mouse, by keyboard, and said in words."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, reduced_motion="reduce", has_touch=True)
    page = context.new_page()
    page.goto(f"{site}/draw-and-attack.html", wait_until="load")
    page.wait_for_function(f"{WORDS}.startsWith('A 3, radius 0.10, step 40 of 40.')")
    before = page.inner_text("#attack-words")
    assert [page.locator(f".picture-column.{m} canvas").count() for m in ("vae", "se", "pinned")] == [3, 3, 3]
    sizes = "[...document.querySelectorAll('.picture *')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(page.evaluate(sizes)) >= 9

    page.locator("#attack-radius").press("Home")
    page.wait_for_function(f"{WORDS}.startsWith('A 3, radius 0.00')")
    assert [page.inner_text(f".{m} .picture-moved") for m in ("vae", "se", "pinned")] == 3 * ["moved 0 %"]
    assert page.inner_text("#attack-words").count("reads 3 still") == 3  # of the sixteen, all read this one
    page.locator("#attack-radius").press("End")
    page.wait_for_function(f"{WORDS}.startsWith('A 3, radius 0.30')")
    assert page.inner_text("#attack-words").count("read 3 and now reads") == 3
    page.locator("#attack-step").press("Home")
    page.wait_for_function(f"{WORDS}.includes('step 0 of 40')")

    page.locator("[name=attack-digit]:checked").press("ArrowRight")
    page.wait_for_function(f"{WORDS}.startsWith('A 4, radius 0.30, step 40 of 40')")
    votes = page.inner_text("#attack-words")
    page.locator("[name=attack-aim]:checked").press("ArrowRight")
    page.wait_for_function(f"{WORDS} !== {votes!r} && {WORDS} !== {before!r}")

    page.locator("#attack-pad").scroll_into_view_if_needed()
    box = page.locator("#attack-pad").bounding_box()
    x, y, size = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]
    page.mouse.move(x, y - 0.3 * size)
    page.mouse.down()
    for turn in range(1, 25):
        angle = turn * math.pi / 12
        page.mouse.move(x + 0.2 * size * math.sin(angle), y - 0.3 * size * math.cos(angle))
    page.mouse.up()
    page.wait_for_function(f"{WORDS}.startsWith('Your drawing')")
    assert [page.inner_text(f".{m} .picture-reading")[0] for m in ("vae", "se", "pinned")] == 3 * ["0"]

    page.locator("#attack-clear").tap()
    assert page.inner_text("#attack-words") == "Draw a digit, or take one of the sixteen."
    page.locator("#attack-pad").focus()
    for key in ("Space", *8 * ["ArrowDown"], "Space"):
        page.keyboard.press(key)
    page.wait_for_function(f"{WORDS}.startsWith('Your drawing')")
    assert [page.inner_text(f".{m} .picture-reading")[0] for m in ("vae", "se", "pinned")] == 3 * ["1"]
    context.close()


def test_the_attack_plays_step_by_step(site: str, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{site}/draw-and-attack.html", wait_until="load")
    page.wait_for_function(f"{WORDS}.startsWith('A 3')")
    page.evaluate("""() => {
        window.seen = new Set();
        const note = () => { seen.add(document.getElementById("attack-step").value); requestAnimationFrame(note); };
        note();
    }""")
    page.locator("#attack-play").click()
    assert page.inner_text("#attack-play") == "Pause"
    page.wait_for_function("document.getElementById('attack-play').textContent === 'Play'")
    assert page.input_value("#attack-step") == "40"
    assert page.evaluate("seen.size") > 5
    page.close()


def test_the_book_prints_with_its_solutions_open(tmp_path: Path) -> None:
    code = "import runpy, sys, pathlib; runpy.run_path(sys.argv[1])['print_book'](pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(ROOT / "book" / "print.py"), str(tmp_path / "book.pdf")]
    subprocess.run(command, check=True)  # in a process of its own: this one has a browser already
    printed = (tmp_path / "book.pdf").read_bytes()
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") > 60
    assert printed.count(b"/Title") > 50  # the outline: every section
