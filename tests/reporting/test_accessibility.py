"""Every kind of page under axe-core in Chromium, light and dark, wide and narrow; and with the keyboard alone."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convexlab.reporting import Part, Study, write_report, write_study
from convexlab.reporting.charts.style import draw
from convexlab.reporting.charts.svg import chart
from convexlab.reporting.tables import Column, make_table
from convexlab.runs import Run
from tests.reporting.chromium import Browser

pytestmark = pytest.mark.browser

MakeRun = Callable[..., Run]
PUBLISHED = sorted((Path(__file__).parents[2] / "reports").glob("*.html"))
# WCAG 2 to level AA and axe-core's best practices. What is inside a chart is left out: assistive technology sees an
# image with a name, and of the contrast on an SVG's ground axe-core knows nothing: `test_browser` measures it.
AXE = (
    "axe.run({exclude: [['.chart > *']]}, {resultTypes: ['violations']})"
    ".then(result => JSON.stringify(result.violations))"
)


@pytest.fixture(scope="module")
def axe() -> str:
    return (importlib.resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


def _violations(browser: Browser, axe: str) -> list[dict[str, Any]]:
    browser.awaited(f"{axe}; 0")
    return list(json.loads(browser.awaited(AXE)))


# Colours do not depend on the width, nor the order of things on the scheme.
VIEWS = ((1280, False), (390, True))


def _assert_accessible(
    browser: Browser, axe: str, path: Path, *impacts: str, views: tuple[tuple[int, bool], ...] = VIEWS
) -> None:
    for width, dark in views:
        browser.visit(path, width, dark=dark)
        assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
        violations = [violation for violation in _violations(browser, axe) if violation["impact"] in impacts]
        reported = [(v["id"], v["impact"], [node["html"][:200] for node in v["nodes"][:3]]) for v in violations]
        assert reported == [], f"{path.name}, {width} pixels, {'dark' if dark else 'light'}"


EVERY = ("minor", "moderate", "serious", "critical")


def test_page_of_one_run(browser: Browser, axe: str, full_run: Run) -> None:
    _assert_accessible(browser, axe, full_run.report_path, *EVERY)


@pytest.mark.slow
def test_page_of_several_runs(browser: Browser, axe: str, make_run: MakeRun, make_probe: MakeRun) -> None:
    runs = [make_run(name, epochs=20, switch=switch) for name, switch in (("a", 8), ("b", None))]
    _assert_accessible(browser, axe, write_report([*runs, make_probe(count=2)]), *EVERY)


def test_page_of_a_probe(browser: Browser, axe: str, make_probe: MakeRun) -> None:
    _assert_accessible(browser, axe, write_report([make_probe()]), *EVERY)


def test_page_of_an_unfinished_run(browser: Browser, axe: str, make_run: MakeRun) -> None:
    run = make_run(finished=False, probed=False, epochs=20, switch=8)
    _assert_accessible(browser, axe, write_report([run]), *EVERY)


def test_page_of_a_study(browser: Browser, axe: str, tmp_path: Path) -> None:
    with draw() as (figure, (axes,)):
        axes.plot([1.0, 2.0], [3.0, 4.0])
        line = chart(figure, key="line", title="A line", caption="It rises.", description="From 3 to 4.")
    table = make_table("Counts", [Column("Run", False), "Swaps"], [("first", "1"), ("second", "2")])
    part = Part("Measured", ["A paragraph."], [line], [table])
    study = Study("A question?", "It is so.", ["Yes.", "In 3 of 4."], "python x.py", [part], {"seeds": [1, 2]})
    _assert_accessible(browser, axe, write_study(study, tmp_path / "page.html"), *EVERY)


@pytest.mark.skipif(not PUBLISHED, reason="the published pages are not here: only a checkout has them")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_page(browser: Browser, axe: str, path: Path) -> None:
    # Their one style sheet is that of the pages above: what is their own is in either view.
    _assert_accessible(browser, axe, path, "serious", "critical", views=VIEWS[:1])


def test_a_page_with_faults_would_be_caught(browser: Browser, axe: str, tmp_path: Path) -> None:
    """The checks above can fail, in each scheme by itself."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>Bad</title><style>:root { color-scheme: light dark; }"
        "body { color: #222; background: #fff; }"
        "@media (prefers-color-scheme: dark) { body { background: #333; } }</style><main><h1>Text</h1></main>"
    )
    ids = []
    for dark in (False, True):
        browser.visit(page, 1280, dark=dark)
        ids.append({violation["id"] for violation in _violations(browser, axe)})
    assert ids[0] == {"html-has-lang"}
    assert ids[1] == {"html-has-lang", "color-contrast"}


_FOCUSED = "((e) => [e.tagName, e.className, getComputedStyle(e).outlineStyle, e.textContent])(document.activeElement)"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Browser, full_run: Run) -> None:
    browser.visit(full_run.report_path, 1280)
    browser.press("Tab", 9)
    tag, kind, outline, text = browser.evaluate(_FOCUSED)
    assert (tag, kind, outline, text) == ("A", "skip", "solid", "Skip to the content")
    # It comes into view with the focus, and leads over the top of the page.
    assert browser.evaluate("document.querySelector('.skip').getBoundingClientRect().left >= 0")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("location.hash") == "#content"
    reachable = "main a[href], main button, main [tabindex='0']"
    expected = browser.evaluate(f'document.querySelectorAll("{reachable}").length')
    reached = []
    for _ in range(expected):
        browser.press("Tab", 9)
        tag, kind, outline, _ = browser.evaluate(_FOCUSED)
        assert outline == "solid"
        reached.append((tag, kind))
    # Tables, which scroll sideways, charts with their switches, and links that save a file.
    assert reached.count(("DIV", "scroll")) == browser.evaluate("document.querySelectorAll('.scroll').length") == 5
    links = sum(tag == "A" for tag, _ in reached)
    assert links == browser.evaluate("document.querySelectorAll('a[download]').length") == 3
    assert reached.count(("DIV", "card live")) == 4
    assert reached.count(("BUTTON", "scale")) == 3
    assert reached.count(("BUTTON", "entry")) >= 12


def test_whatever_scrolls_can_be_focused(browser: Browser, full_run: Run) -> None:
    browser.visit(full_run.report_path, 390)
    scrolling = "[...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth + 1 && "
    scrolling += "['auto', 'scroll'].includes(getComputedStyle(e).overflowX))"
    assert browser.evaluate(f"{scrolling}.length") > 0
    assert browser.evaluate(f"{scrolling}.every(e => e.tabIndex === 0 && e.getAttribute('aria-label'))")
