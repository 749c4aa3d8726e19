"""Published pages are read as they were written: question, answer, commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from paper.published import read_page

from convexlab.errors import MisuseError
from convexlab.reporting import Study, study, write_study


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
