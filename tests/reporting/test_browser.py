"""The page in a real browser: no horizontal scroll, no message on the console, no request but the file itself."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from convexlab.reporting import write_report
from convexlab.runs import Run
from convexlab.wording.numbers import number
from tests.reporting.chromium import Browser, find

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_a_browser_ci_fails_and_others_skip(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="none of chromium, chromium-browser, google-chrome is on the PATH"):
        find()


MakeRun = Callable[..., Run]
_MESSAGES = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}


def _assert_fits_and_is_silent(browser: Browser, path: Path) -> None:
    for width in (1280, 390):
        browser.visit(path, width)
        # A phone widens its window to what does not fit, so the scroll width alone would prove nothing.
        assert browser.evaluate("innerWidth") == width
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert [event["params"] for event in browser.events if event["method"] in _MESSAGES] == []
        requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in requests if not url.startswith("data:")] == [path.resolve().as_uri()]


def test_page_of_one_run(browser: Browser, full_run: Run) -> None:
    _assert_fits_and_is_silent(browser, full_run.report_path)


def test_page_of_several_runs_with_unruly_names(browser: Browser, make_run: MakeRun, make_probe: MakeRun) -> None:
    config = {"data": "npz:/" + 200 * "y", 60 * "k": 1}
    run = make_run("long-name-without-any-break-" + 60 * "x", epochs=20, switch=8, config=config)
    _assert_fits_and_is_silent(browser, write_report([run, make_probe(count=2)]))


def test_page_of_one_run_with_unruly_settings(browser: Browser, make_bare: MakeRun) -> None:
    config = {"data": "npz:/" + 200 * "y", 60 * "k": 1, "model": 90 * "m"}
    _assert_fits_and_is_silent(browser, write_report([make_bare(finished=False, config=config)]))


def test_a_page_that_asks_and_complains_would_be_caught(browser: Browser, tmp_path: Path) -> None:
    """The check above can fail: it sees a request, a console message and an overflow."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><meta name="viewport" content="width=device-width"><img src="missing.png">'
        '<div style="width:2000px">wide</div><script>console.warn("no")</script>'
    )
    browser.visit(page, 390)
    seen = {event["method"] for event in browser.events}
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert "Runtime.consoleAPICalled" in seen
    assert any(url.endswith("missing.png") for url in requests)
    assert browser.evaluate("document.documentElement.scrollWidth") > 390


def test_a_click_saves_the_data_under_the_pages_own_policy(browser: Browser, full_run: Run, tmp_path: Path) -> None:
    """From a file, with a policy that allows no request: the address is the data."""
    browser.visit(full_run.report_path, 1280)
    assert "default-src 'none'" in browser.evaluate("document.querySelector('meta[http-equiv]').content")
    browser.save_all(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run-metrics.csv", "run-probe.json", "run-summary.json"]
    assert json.loads((tmp_path / "run-summary.json").read_text()) == full_run.summary
    with (tmp_path / "run-metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [row["train_loss"] for row in full_run.metrics]


@pytest.mark.parametrize("dark", [False, True])
def test_charts_are_read_on_a_light_ground_in_both_schemes(browser: Browser, full_run: Run, dark: bool) -> None:
    """Chart text is dark: WCAG asks for a contrast of 4.5 against what it stands on, and so for the page's own text."""
    browser.visit(full_run.report_path, 1280, dark=dark)
    assert browser.evaluate(_CONTRAST % "'.card text', '.card'") >= 4.5
    assert browser.evaluate(_CONTRAST % "'figcaption', 'body'") >= 4.5


# The smallest contrast ratio (WCAG 2.1, relative luminance) between texts and the ground under them.
_CONTRAST = """((texts, ground) => {
  const rgb = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const style = (element, name) => luminance(rgb(getComputedStyle(element)[name]));
  const under = style(document.querySelector(ground), 'backgroundColor');
  return Math.min(...[...document.querySelectorAll(texts)].map(text => {
    const over = style(text, text instanceof SVGElement ? 'fill' : 'color');
    return (Math.max(over, under) + 0.05) / (Math.min(over, under) + 0.05);
  }));
})(%s)"""


def test_every_chart_has_a_name_and_a_description_for_assistive_technology(browser: Browser, full_run: Run) -> None:
    browser.visit(full_run.report_path, 1280)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    images = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") in ("image", "img")]
    assert len(images) == 7
    assert all(any(character.isdigit() for character in name) for name in images)


# What the first chart of a page is driven by: its card, and what stands on it.
_CARD = "document.querySelector('#run-1-cost .card')"
_TIP = f"{_CARD}.querySelector('.tip')"


def test_a_chart_shows_its_numbers_to_the_pointer_and_to_the_keyboard(browser: Browser, full_run: Run) -> None:
    browser.visit(full_run.report_path, 1280)
    assert browser.evaluate(f"{_TIP}.hidden")
    browser.evaluate(f"{_CARD}.focus(), 0")
    browser.press("ArrowRight", 39)
    browser.press("ArrowRight", 39)
    # The second row of the first curve, as the table would print it.
    row = [row for row in full_run.metrics if row["run"] == "adam-constant"][1]
    shown = browser.evaluate(f"[...{_TIP}.children].map(line => line.textContent)")
    assert shown == ["Adam, constant rate", f"training loss {number(row['train_loss'])}", "gradient equivalents 1"]
    browser.press("ArrowDown", 40)
    assert browser.evaluate(f"{_TIP}.firstChild.textContent") == "Adam, cosine rate"
    # The ring lies where the curve does, and the pointer finds the same point there.
    at = browser.evaluate(
        f"(r => [r.left + r.width / 2, r.top + r.height / 2])({_CARD}.querySelector('.ring').getBoundingClientRect())"
    )
    text = browser.evaluate(f"{_TIP}.textContent")
    browser.press("Escape", 27)
    assert browser.evaluate(f"{_TIP}.hidden")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
    assert browser.evaluate(f"{_TIP}.textContent") == text


def test_numbers_under_the_pointer_are_written_as_the_page_writes_them(browser: Browser, full_run: Run) -> None:
    browser.visit(full_run.report_path, 1280)
    values = [0.0, 1.0, 9.996, 12.34, -0.00826, 123.456, -1234.6, 99999.4, 1e6, 1.4e-4, -2.5e-13, 0.001, 6.02e23]
    assert browser.evaluate(f"{values}.map(number)") == [number(value) for value in values]


def test_curves_are_switched_off_and_on(browser: Browser, full_run: Run) -> None:
    browser.visit(full_run.report_path, 1280)
    button = f"{_CARD}.querySelector('button[aria-label=\"Adam, cosine rate\"]')"
    shown = f"[...{_CARD}.querySelectorAll('[data-name=\"Adam, cosine rate\"]')].map(g => g.getBBox().width > 0 && "
    shown += "g.getAttribute('display') !== 'none')"
    for expected in (True, False, True):
        assert browser.evaluate(shown) == [expected]
        assert browser.evaluate(f"{button}.getAttribute('aria-pressed')") == str(expected).lower()
        browser.evaluate(f"{button}.click(), 0")
    # The button lies over its entry of the legend.
    text = f"[...{_CARD}.querySelectorAll('text')].find(t => t.textContent === 'Adam, cosine rate')"
    over, under = (browser.evaluate(f"{what}.getBoundingClientRect().toJSON()") for what in (button, text))
    assert over["left"] < under["left"]
    assert over["right"] >= under["right"]
    assert over["top"] <= under["top"] + 1


def test_a_linear_scale_moves_everything_and_gives_it_back(browser: Browser, full_run: Run) -> None:
    for chart in ("run-1-cost", "run-1-eigenvalues"):
        browser.visit(full_run.report_path, 1280)
        card = f"document.querySelector('#{chart} .card')"
        drawn = f"{card}.querySelector('svg').innerHTML"
        before = browser.evaluate(drawn)
        browser.evaluate(f"{card}.querySelector('.scale').click(), 0")
        assert browser.evaluate(drawn) != before
        # Every point of a curve is where the linear axis has it.
        away = browser.evaluate(_AWAY % card)
        assert len(away) > 2
        assert max(away) < 0.1
        browser.evaluate(f"{card}.querySelector('.scale').click(), 0")
        # But for what says that the first ticks may be seen again.
        assert browser.evaluate(drawn).replace(' display="inline"', "") == before


# By how much, in points of the picture, the ends of each line lie off the places of their numbers.
_AWAY = """(card => {
  const axes = card.querySelector('[data-box]'), [l, top, r, bottom] = axes.dataset.box.split(' ').map(Number);
  const [, low, high] = axes.dataset.y.split(' ').map(Number);
  return [...axes.querySelectorAll('[data-drawn=line][data-points]')].filter(g => g.querySelector(':scope > path'))
    .map(group => {
      const value = Number(group.dataset.points.split(' ').at(-1).split(',')[1]);
      const drawn = Number(group.querySelector(':scope > path').getAttribute('d').trim().split(' ').at(-1));
      return Math.abs(bottom - (value - low) / (high - low) * (bottom - top) - drawn);
    });
})(%s)"""


def test_without_script_the_page_is_whole_and_has_no_switches(browser: Browser, full_run: Run) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.visit(full_run.report_path, 1280)
        assert browser.evaluate("document.querySelectorAll('svg.chart').length") == 7
        assert browser.evaluate("document.querySelectorAll('.card button, .tip').length") == 0
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
