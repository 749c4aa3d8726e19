"""Published pages are read as they were written: question, answer, commit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paper.published import read_page

from convexlab.errors import MisuseError
from convexlab.reporting import Part, Study, study, write_study
from convexlab.reporting.charts.style import draw
from convexlab.reporting.charts.svg import chart


def page(answer: list[str]) -> Study:
    return Study("Is a < b?", "It is.", answer, "python analyses/x.py", [], {"runs": 3})


def test_a_study_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "describe_environment", lambda *_: {"convexlab": "1", "commit": "abc with changes"})
    out = write_study(page(["In 3 of 4 runs & more.", "The fourth is open."]), tmp_path / "a-b.html")
    found = read_page(out)
    assert (found.file, found.title) == ("a-b.html", "Is a < b?")
    assert found.answer == ("In 3 of 4 runs & more.", "The fourth is open.")
    assert found.commit == "abc with changes"


def test_a_page_from_outside_a_checkout_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "describe_environment", lambda *_: {"convexlab": "1"})
    assert read_page(write_study(page(["Yes."]), tmp_path / "a.html")).commit is None


@pytest.mark.parametrize("content", [b"<p>no page</p>", b"\xff\xfe\x00", None])
def test_what_is_no_page_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.html"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MisuseError, match=r"x\.html"):
        read_page(path)


def test_a_chart_goes_to_another_page_with_ids_of_its_own(tmp_path: Path) -> None:
    with draw() as (figure, (axes,)):
        axes.plot([1.0, 2.0], [3.0, 4.0], "o-")
        line = chart(figure, key="line", title="A line & more", caption="", description="From 3 to 4.")
    part = Part("Measured", charts=[line])
    out = write_study(Study("Is it?", "It is.", ["Yes."], "python x.py", [part], {}), tmp_path / "a.html")
    copy = read_page(out).chart(0, "other")
    assert copy is not None
    assert (copy.title, copy.description) == ("A line & more", "From 3 to 4.")
    ids = set(re.findall(r' id="([^"]+)"', copy.svg))
    wanted = set(re.findall(r'(?:url\(|href=")#([\w-]+)', copy.svg))
    wanted |= set(" ".join(re.findall(r'aria-labelledby="([^"]+)"', copy.svg)).split())
    assert wanted
    assert wanted <= ids
    assert all(name.startswith("other-") for name in ids)
    assert read_page(out).chart(1, "other") is None
