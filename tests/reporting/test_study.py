"""The page of a study: everything is there, escaped, and the page stands alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.charts.style import draw
from convexlab.reporting.charts.svg import chart
from convexlab.reporting.tables import Column, make_table


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("convexlab.machine.environment.describe_source", lambda folder: "0123456789ab with changes")
    with draw() as (figure, (axes,)):
        axes.plot([1.0, 2.0], [3.0, 4.0])
        line = chart(figure, key="line", title="A line", caption="It rises.", description="From 3 to 4.")
    table = make_table("Counts", [Column("Run", False), "Swaps"], [("<first>", "1"), ("second", "2")])
    study = Study(
        title="Is it < or >?",
        claim="It is & was.",
        answer=["Neither, in 3 of 4 runs.", "The fourth is open."],
        command="python analyses/x.py --scale desk",
        parts=[Part("Measured", ["A paragraph."], [line], [table])],
        settings={"train_size": 500, "rates": [0.001, 0.002]},
    )
    out = write_study(study, tmp_path / "folder" / "page.html")
    assert list(out.parent.iterdir()) == [out]
    return out.read_text(encoding="utf-8")


def test_everything_is_on_the_page_and_escaped(page: str) -> None:
    for text in (
        "<h1>Is it &lt; or &gt;?</h1>",
        "It is &amp; was.",
        '<p class="lead">Neither, in 3 of 4 runs.</p>',
        '<p class="follow">The fourth is open.</p>',
        "<code>python analyses/x.py --scale desk</code> at commit <code>0123456789ab with changes</code>, ConvexLab 0.",
        '<a download="counts.csv" href="data:text/csv;charset=utf-8,Run,Swaps%0A%3Cfirst%3E,1%0Asecond,2%0A">counts',
        "<h2>Measured</h2>",
        '<desc id="line-description">From 3 to 4.</desc>',
        "&lt;first&gt;",
        "train size",
        "0.001, 0.002",
        "logical processors",
    ):
        assert text in page, text


def test_it_needs_nothing_else(page: str) -> None:
    assert page.count("<script") == 1  # The page's own.
    assert "default-src 'none'" in page
    assert "src=" not in page.replace("default-src", "").replace("style-src", "").replace("img-src", "")


def test_every_table_is_saved(page: str) -> None:
    assert page.count("<table") == page.count("<a download=") == 3


def test_a_page_that_would_be_too_large_leaves_the_data_out_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convexlab.machine.environment.describe_source", lambda folder: None)
    monkeypatch.setattr("convexlab.reporting.study.LARGEST", 1000)
    study = Study("A question?", "It is so.", ["Yes."], "python x.py", [], {"seeds": [1, 2]})
    page = write_study(study, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<a download=" not in page
    assert "This page is too large to hold its tables as CSV." in page
    # Installed, it has no commit to name.
    assert "<code>python x.py</code>, ConvexLab 0." in page
