"""A report in its other forms: the same sentences, tables and facts, and the first picture."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convexlab.errors import MisuseError
from convexlab.reporting import summary_lines, write_report
from convexlab.reporting.contents import contents_of
from convexlab.reporting.facts.runs import read_runs
from convexlab.reporting.formats.facts import facts_text
from convexlab.reporting.formats.image import picture
from convexlab.reporting.formats.markdown import markdown_text
from convexlab.runs import Run

MakeRun = Callable[..., Run]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def test_markdown_has_the_pages_sentences_and_tables(full_run: Run, make_bare: MakeRun) -> None:
    for runs in (read_runs([full_run]), read_runs([full_run, make_bare("other")])):
        text, contents = _unescaped(markdown_text(runs)), contents_of(runs, drawn=False)
        assert text.startswith(f"# {contents.title}\n\n{contents.headline[0]}\n")
        for sentence in (*contents.headline, *contents.claims.sentences, *contents.repeats):
            assert sentence in text
        tables = [
            table for section in contents.sections for table in (section.results, section.curvature, section.cost)
        ]
        for table in filter(None, [*tables, contents.comparison, contents.claims.runs, *contents.settings]):
            assert table.caption in text
            for row in table.rows:
                assert row[-1].text in text
        # Every row of a table has the cells of its head.
        for block in re.findall(r"(?:^\|.*\|$\n?)+", markdown_text(runs), re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block


def test_what_came_from_a_run_is_no_markup(make_bare: MakeRun) -> None:
    run = make_bare(config={"note": "<b>*a*|[b](c)\n# d</b>"}, summary={"phase_two": "`x`_y_"})
    text = markdown_text(read_runs([run]))
    assert "\\<b\\>\\*a\\*\\|\\[b\\](c) \\# d\\</b\\>" in text
    assert "\\`x\\`\\_y\\_" in text


def test_json_has_the_facts_with_all_their_digits(full_run: Run) -> None:
    facts = json.loads(facts_text(read_runs([full_run])))
    (run,) = facts["runs"]
    summary = full_run.summary
    assert summary is not None
    assert facts["headline"] == run["headline"] == summary_lines([full_run])
    assert run["switch"] == summary["switch"]
    assert run["outcomes"]["two-phase"]["train_loss"] == summary["two_phase"]["train_loss"]
    assert run["comparison"]["ratio"] == summary["two_phase"]["train_loss"] / 2.3e-4
    assert (run["comparison"]["result"], run["comparison"]["conclusive"]) == ("better", True)
    assert [row["smallest"] for row in run["checkpoints"]] == [row["smallest"] for row in full_run.probe]
    assert all("density" not in row or row["density"] is None for row in run["checkpoints"])
    assert {claim: said["outcome"] for claim, said in run["claims"].items()} == {"1": "supported", "2": "contradicted"}
    assert run["norm_peak"]["gradient_norm"] in [row["gradient_norm"] for row in full_run.metrics]
    assert facts["claims"]["outcomes"]["1"]["supported"] == {"count": 1, "low": pytest.approx(0.025), "high": 1.0}
    assert (facts["claims"]["points"], facts["claims"]["proven_non_convex"]) == (11, 6)


def test_json_of_what_is_not_known_is_null(make_bare: MakeRun) -> None:
    facts = json.loads(facts_text(read_runs([make_bare(finished=False)])))
    (run,) = facts["runs"]
    assert run["comparison"] is run["norm_peak"] is run["switch"] is None
    assert run["claims"] == run["outcomes"] == {}
    assert facts["claims"] == {"runs": 0, "points": 0, "proven_non_convex": 0, "outcomes": {"1": {}, "2": {}}}


def test_the_picture_is_wide_and_has_the_curves_colours(full_run: Run) -> None:
    with Image.open(io.BytesIO(picture(read_runs([full_run])))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    # Two charts of 4.7 inches side by side at 200 dots an inch.
    assert 1880 < width < 2100
    assert 800 < height < 1200
    # The second phase on the left, the largest eigenvalue on the right, words on top.
    for half, colour in ((pixels[:, : width // 2], (0xD5, 0x5E, 0x00)), (pixels[:, width // 2 :], (0x02, 0x9E, 0x73))):
        assert (np.abs(half - colour).sum(axis=2) < 12).sum() > 200
    assert (pixels[:150].sum(axis=2) < 300).sum() > 200


def test_nothing_to_draw_is_misuse(make_bare: MakeRun) -> None:
    with pytest.raises(MisuseError, match="expected runs with something to draw"):
        picture(read_runs([make_bare()]))


@pytest.mark.usefixtures("undrawn")
def test_the_form_is_asked_for_or_as_the_file_ends(make_bare: MakeRun, tmp_path: Path) -> None:
    run = make_bare()
    assert write_report([run], format="md") == run.report_path.with_suffix(".md")
    assert write_report([run], format="json") == run.report_path.with_suffix(".json")
    assert write_report([run]) == run.report_path
    html, markdown = "<!DOCTYPE html>", "# vit-mlp"
    beginnings = {"a.md": markdown, "a.json": "{", "a.html": html, "a.HTM": html, "a": html}
    for name, begin in beginnings.items():
        assert write_report([run], tmp_path / name).read_text(encoding="utf-8").startswith(begin)
    for name in ("notes.txt", "a.MD", "notes"):
        assert write_report([run], tmp_path / name, format="md").read_text(encoding="utf-8").startswith(markdown)


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("a.html", "pdf", r"unknown format 'pdf'\. .*html, json, md, png"),
        ("a.docx", None, r"no report is written as '\.docx': expected .* in one of \.html, \.md, \.json, \.png, got"),
        ("a.html", "json", r"expected a file that ends in \.json for the format 'json', got '.*a\.html'"),
    ],
)
def test_a_file_that_ends_like_no_format_or_another_is_refused(
    make_bare: MakeRun, tmp_path: Path, name: str, form: str | None, message: str
) -> None:
    with pytest.raises(MisuseError, match=message):
        write_report([make_bare()], tmp_path / name, format=form)
    assert not (tmp_path / name).exists()
