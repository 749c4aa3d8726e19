"""The built site in a browser; `tox -e docs` builds it and runs this, without torch and without tests/conftest.py."""

from __future__ import annotations

import functools
import http.server
import importlib.resources
import json
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from tests.reporting.chromium import Browser, find

SITE = Path(__file__).parents[1] / "build" / "site"
# Published reports are tested where they are made.
PAGES = sorted(path for path in SITE.rglob("*.html") if "reports" not in path.parts and path.name != "404.html")
VIEWS = ((390, False), (1280, True))

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not PAGES, reason="the site is not built here: tox -e docs does"),
]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and says nothing."""

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # which a browser asks for where a file names none
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(find(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def axe() -> str:
    return (importlib.resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


AXE = "axe.run(document, {resultTypes: ['violations']}).then(result => JSON.stringify(result.violations))"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(SITE).as_posix())
def test_page_fits_says_nothing_wrong_and_is_accessible(path: Path, address: str, browser: Browser, axe: str) -> None:
    for width, dark in VIEWS:
        # The theme remembers the scheme of the page before: it is forgotten where no page of the theme is open.
        browser.visit(address + "site.css", width, dark=dark)
        browser.evaluate("localStorage.clear(), 0")
        browser.visit(address + path.relative_to(SITE).as_posix(), width, dark=dark)
        assert (browser.evaluate("document.body.getAttribute('data-md-color-scheme')") == "slate") is dark
        messages = [event["params"] for event in browser.events if event["method"] == "Log.entryAdded"]
        assert [m["entry"]["text"] for m in messages if m["entry"]["level"] == "error"] == []
        assert [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"] == []
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith((address, "data:"))] == []
        assert browser.evaluate(WIDER) <= 0, f"wider than {width} pixels"
        browser.awaited(f"{axe}; 0")
        violations = json.loads(browser.awaited(AXE))
        serious = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
            for violation in violations
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []


class Links(HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attributes}
        self.targets += [named[name] for name in ("href", "src") if name in named]
        self.anchors |= {named[name] for name in ("id", "name") if name in named}


@functools.cache
def links(path: Path) -> Links:
    return Links(path.read_text(encoding="utf-8"))


def broken(site: Path, page: Path) -> list[str]:
    """Return what a page links to that the site does not have; addresses elsewhere are not asked for."""
    return [
        target
        for target in links(page).targets
        if not urlsplit(target).scheme and not urlsplit(target).netloc and not leads_somewhere(site, page, target)
    ]


def leads_somewhere(site: Path, page: Path, target: str) -> bool:
    parts = urlsplit(urljoin(f"http://site/{page.relative_to(site).as_posix()}", target))
    file = site / unquote(parts.path).lstrip("/")
    file = file / "index.html" if file.is_dir() else file
    anchored = parts.fragment and file.suffix == ".html"
    return file.is_file() and (not anchored or unquote(parts.fragment) in links(file).anchors)


def test_no_link_is_broken() -> None:
    assert {path: targets for path in PAGES if (targets := broken(SITE, path))} == {}


def test_a_broken_link_would_be_caught(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "index.html").write_text('<h1 id="here">', encoding="utf-8")
    targets = ["there/", "there/#here", "#top", "https://elsewhere.org/", "gone.html", "there/#gone", "there/gone.png"]
    page = tmp_path / "index.html"
    page.write_text('<p id="top">' + "".join(f'<a href="{target}">' for target in targets), encoding="utf-8")
    assert broken(tmp_path, page) == targets[-3:]


def test_a_page_with_faults_would_be_caught(tmp_path: Path, browser: Browser, axe: str) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><title>Bad</title>"
        "<h1 style='width: 700px'>Wide</h1>",
        encoding="utf-8",
    )
    browser.visit(page, 390)
    assert browser.evaluate(WIDER) > 0
    browser.awaited(f"{axe}; 0")
    assert "html-has-lang" in {violation["id"] for violation in json.loads(browser.awaited(AXE))}
