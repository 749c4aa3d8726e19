"""The page in a real browser: no horizontal scroll, no message on the console, no request but the file itself."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from convexlab.reporting import write_report
from convexlab.runs import Run

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0


class Browser:
    """Chromium over the DevTools protocol, spoken through a pair of pipes: no port to race for, no package needed."""

    def __init__(self, binary: str, profile: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # The protocol reads descriptor 3 and writes 4; bash moves ours there, so ours must be neither.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        command = [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", *command],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._out, self._in = ours_out, ours_in
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser: it leaves when its pipe closes, and is made to where it does not."""
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive meanwhile are kept."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        """Wait until an event has arrived."""
        while all(seen["method"] != event for seen in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def visit(self, path: Path, width: int, *, dark: bool = False) -> None:
        """Load a file in a window of this width."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        # A message or request of the page's own making comes before the answer to a round trip through its queue.
        self.evaluate("document.body.getBoundingClientRect().height")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE:.0f} s"
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser ended"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))


def _find() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        reason = f"no browser: none of {', '.join(BROWSERS)} is on the PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and in CI this may not be skipped")
        pytest.skip(reason)
    return found


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_a_browser_ci_fails_and_others_skip(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="none of chromium, chromium-browser, google-chrome is on the PATH"):
        _find()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with contextlib.closing(Browser(_find(), tmp_path_factory.mktemp("profile"))) as running:
        yield running


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
