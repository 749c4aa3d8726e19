"""The published pages: each has its study, fits, says what it answers, and is in the index."""

from __future__ import annotations

from pathlib import Path

import pytest
from paper.published import read_page

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "reports").glob("*.html"))
LARGEST = 2_000_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_fits_answers_and_has_its_study(page: Path) -> None:
    found = read_page(page)
    assert all(found.answer)
    assert page.stat().st_size < LARGEST
    assert (ROOT / "analyses" / f"{page.stem.replace('-', '_')}.py").is_file()


def test_the_index_links_every_page() -> None:
    index = (ROOT / "reports" / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        if page.name != "index.html":
            assert f'href="{page.name}"' in index, page.name
            assert read_page(page).answer[0].partition("&")[0][:40] in index.replace("&#39;", "'"), page.name


def test_every_study_has_published_its_page() -> None:
    studies = {path.stem.replace("_", "-") for path in (ROOT / "analyses").glob("[!_]*.py")}
    assert studies == {page.stem for page in PAGES}
