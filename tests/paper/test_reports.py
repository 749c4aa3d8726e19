"""The published pages: each has its study, fits, says what it answers, and is in the index."""

from __future__ import annotations

from pathlib import Path

import pytest
from paper.published import read_page

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "reports").glob("*.html"))
STUDIES = {path.stem.replace("_", "-") for path in (ROOT / "analyses").glob("[!_]*.py")}
LARGEST = 2_000_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_fits_answers_and_has_its_study(page: Path) -> None:
    found = read_page(page)
    assert all(found.answer)
    assert page.stat().st_size < LARGEST
    assert _study_of(page) in STUDIES


def test_the_index_links_every_page() -> None:
    index = (ROOT / "reports" / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        if page.name != "index.html":
            assert f'href="{page.name}"' in index, page.name
            assert read_page(page).answer[0].partition("&")[0][:40] in index.replace("&#39;", "'"), page.name


def test_every_study_has_published_its_page() -> None:
    assert {page.stem for page in PAGES} >= STUDIES


def _study_of(page: Path) -> str:
    """A study's page has its name, or begins with it: a block of Table 1 has a page of its own."""
    return max((study for study in STUDIES if f"{page.stem}-".startswith(f"{study}-")), key=len, default="none")
