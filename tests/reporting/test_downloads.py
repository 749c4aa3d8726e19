"""The data in the page: as they were recorded, whole or said to be not, and harmless to a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest

from convexlab.reporting import downloads
from convexlab.reporting.downloads import Download, table_download
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.reporting.parts.downloads import run_downloads
from convexlab.reporting.tables import make_table
from convexlab.runs import Run
from convexlab.runs.columns import csv_text

MakeRun = Callable[..., Run]
ROOM = 10**6


@pytest.fixture(scope="module")
def facts(full_run: Run) -> RunFacts:
    return read_facts(full_run, "some/Run 1")


def _content(file: Download) -> str:
    """What a browser saves: everything behind the first comma, decoded (RFC 2397)."""
    return unquote(file.href.split(",", 1)[1], errors="strict")


def _rows(file: Download) -> list[dict[str, str]]:
    assert file.href.startswith("data:text/csv;charset=utf-8,")
    return list(csv.DictReader(io.StringIO(_content(file))))


def test_a_run_gives_its_files_as_they_are(facts: RunFacts, full_run: Run) -> None:
    summary, probe, metrics = run_downloads(facts, ROOM)
    assert [file.file for file in (summary, probe, metrics)] == [
        "some-run-1-summary.json",
        "some-run-1-probe.json",
        "some-run-1-metrics.csv",
    ]
    assert json.loads(_content(summary)) == full_run.summary
    assert json.loads(_content(probe)) == [
        {key: value for key, value in row.items() if key != "density"} for row in full_run.probe
    ]
    assert probe.note == "11 checkpoints, without the spectral densities"
    recorded = full_run.metrics
    # Numbers come back to the last digit.
    assert [{key: float(row[key]) for key in row if key not in ("run", "phase")} for row in _rows(metrics)] == [
        {key: value for key, value in row.items() if key not in ("run", "phase")} for row in recorded
    ]
    assert [(row["run"], row["phase"]) for row in _rows(metrics)] == [(row["run"], row["phase"]) for row in recorded]
    assert metrics.note == f"{len(recorded)} rows"


def test_an_address_holds_no_character_that_html_or_a_url_forbids(facts: RunFacts) -> None:
    for file in run_downloads(facts, ROOM):
        assert not set(file.href) & set("\"'<>& \n\r\t#{}[]|\\^`")
        assert file.href.isascii()


def test_what_does_not_fit_is_thinned_and_says_so(make_run: MakeRun) -> None:
    facts = read_facts(make_run(epochs=100, probed=False), "run")
    whole = run_downloads(facts, ROOM)
    room = len(whole[0].href) + len(whole[1].href) // 3
    thin = run_downloads(facts, room)
    assert sum(len(file.href) for file in thin) <= room
    assert thin[0] == whole[0]
    rows, all_rows = _rows(thin[1]), _rows(whole[1])
    step = int(thin[1].note.split("one in ")[1].split()[0])
    assert thin[1].note == f"{len(rows)} rows, one in {step} of {len(all_rows)} to keep this page small"
    expected = []
    for run in ("two-phase", "adam-constant", "adam-cosine"):
        expected += [row for row in all_rows if row["run"] == run][::step]
    assert rows == expected


@pytest.mark.parametrize("room", [0, -500, 10])
def test_without_room_the_files_are_named_and_left_out(facts: RunFacts, room: int) -> None:
    files = run_downloads(facts, room)
    assert [file.href for file in files] == ["", "", ""]
    assert all(file.note.endswith("; too large for this page, see the run's directory") for file in files)


def test_what_is_not_there_is_not_offered(make_run: MakeRun, make_probe: MakeRun) -> None:
    unfinished = read_facts(make_run(finished=False, probed=False), "run")
    assert [file.file for file in run_downloads(unfinished, ROOM)] == ["run-metrics.csv"]
    probe = read_facts(make_probe(count=1, density=None), "probe")
    (file,) = run_downloads(probe, ROOM)
    assert (file.file, file.note) == ("probe-probe.json", "1 checkpoint")


def test_nested_values_get_columns_of_their_own(make_run: MakeRun) -> None:
    run = make_run(trained=False, finished=False, probed=False)
    rows = [
        {"run": "two-phase", "epoch": 1, "told": {"loss": 0.5, "gradient_norm": None}},
        {"run": "two-phase", "epoch": 2, "extra": 3},
    ]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (file,) = run_downloads(read_facts(run, "run"), ROOM)
    assert _content(file) == ("run,epoch,told.loss,told.gradient_norm,extra\ntwo-phase,1,0.5,,\ntwo-phase,2,,,3\n")


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "  =HYPERLINK(1)", "＝1", "－1", "\n=1", "-1e5+A1"],
)
def test_a_text_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    (head, cell), (_, other) = csv.reader(io.StringIO(csv_text([text, text], [["kept", text]]), newline=""))
    assert head == cell == other == "'" + text.replace("\r", "\n")


@pytest.mark.parametrize("value", [-1.5, -3, "-1.40e-4", "-7", "epoch-00001", "a=b", "−1", "", None])
def test_numbers_and_harmless_texts_stay(value: Any) -> None:
    assert csv_text(["a"], [[value]]).splitlines()[1].strip('"') == ("" if value is None else str(value))


def test_quotes_commas_and_lines_survive() -> None:
    cells = ['say "a", b', "two\nlines", "数据 <b>&amp;", "\udcff"]
    made = downloads.data_address("text/csv", csv_text(["x"], [[cell] for cell in cells]))
    rows = list(csv.reader(io.StringIO(unquote(made.split(",", 1)[1]), newline="")))
    assert [row[0] for row in rows] == ["x", *cells[:3], "?"]


def test_a_table_is_saved_with_numbers_that_programs_read() -> None:
    table = make_table("Loss, by run", ["Run", "Loss", "Gap"], [("=a", "−1.40×10⁻⁴", "1,234"), ("b", "–", "1 ± 0.2")])
    file = table_download(table)
    assert file.file == "loss-by-run.csv"
    assert _content(file) == "Run,Loss,Gap\n'=a,-1.40e-4,1234\nb,,1 ± 0.2\n"


@pytest.mark.parametrize(
    ("text", "name"), [("数据", "data"), ("../../etc/passwd", "etc-passwd"), (80 * "x", 60 * "x"), ("CON: a?", "con-a")]
)
def test_file_names_are_safe(text: str, name: str) -> None:
    assert table_download(make_table(text, ["a", "b"], [("1", "2")])).file == f"{name}.csv"
