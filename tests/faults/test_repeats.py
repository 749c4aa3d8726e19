"""The same seed, machine and threads: the same bytes, times aside; the page says what was not determined."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlab as cl
from convexlab.machine.environment import describe_process
from convexlab.reporting import write_report
from convexlab.runs import Run, write_json
from tests.faults.killing import contents, differences

pytestmark = pytest.mark.faults

_TIMED = {"Seconds", "of these vector work"}


def lines_of(run: Run) -> list[str]:
    """Return the page by lines, without the cells of seconds in its tables."""
    lines, columns = [], []
    for line in write_report([run]).read_text(encoding="utf-8").splitlines():
        columns = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', line) or columns
        cells = re.findall(r"<t[dh].*?</t[dh]>", line)
        if line.startswith('<tr><th scope="row">') and len(cells) == len(columns):
            cells = [cell for cell, name in zip(cells, columns, strict=True) if name not in _TIMED]
            line = "".join(cells)
        lines.append(line)
    return lines


def test_the_same_run_again(finished: Run, tmp_path: Path, asked: bool, request: pytest.FixtureRequest) -> None:
    """Of the page, tables differ in their column of seconds, and so do the chart over time and the data."""
    if not asked:
        request.getfixturevalue("undrawn")
    settings = {name: value for name, value in finished.config.items() if value is not None and name != "kind"}
    again = cl.train_two_phase(out=tmp_path / "run", **settings)
    ours, theirs = contents(again.path), contents(finished.path)
    assert {Path(name).suffix for name in ours} == {".json", ".jsonl", ".safetensors"}
    assert list(differences(ours, theirs)) == []
    first, second = lines_of(finished), lines_of(again)
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        if left != right:
            assert 'aria-labelledby="run-1-seconds-' in left or 'download="run-' in left, (left[:300], right[:300])


@pytest.mark.parametrize(
    ("made_by", "said"),
    [
        ({"repeats_exactly": True, "threads_set": True}, ["gives the same numbers again, to the last digit"]),
        (
            {"repeats_exactly": True, "threads_set": False, "threads": 8},
            ["to the last digit", "Not set: the number of threads. It was the machine's own, 8 here;"],
        ),
        ({"repeats_exactly": False, "device": "cuda:1"}, ["Not deterministic: kernels of cuda:1 may add in another"]),
        ({}, []),
    ],
    ids=["all", "threads", "kernels", "an older run"],
)
@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_was_not_determined(made_by: dict[str, Any], said: list[str], tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model": "vit-mlp"} | ({"made_by": made_by} if made_by else {}))
    page = write_report([Run(tmp_path)]).read_text(encoding="utf-8").replace("&#39;", "'")
    assert [text for text in said if text not in page] == []
    marks = ("to the last digit", "Not deterministic:", "Not set:")
    assert sum(mark in page for mark in marks) == len(said)


def test_what_is_noted_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert describe_process(torch.device("cpu"), "float32")["threads_set"] is True
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    noted = describe_process(torch.device("cpu"), "float32")
    assert (noted["threads_set"], noted["deterministic_algorithms"], noted["repeats_exactly"]) == (False, False, True)
    elsewhere = torch.device("meta")
    assert describe_process(elsewhere, "float32")["repeats_exactly"] is False
    torch.use_deterministic_algorithms(True)
    try:
        assert describe_process(elsewhere, "float32")["repeats_exactly"] is True
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_page_of_very_many_rows_is_small(asked: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A line has `MOST_POINTS` at most, and the data that a page holds are thinned to what it has room for."""
    rows = 100_000 if asked else 30_000
    if not asked:
        request.getfixturevalue("undrawn")
    write_json(tmp_path / "config.json", {"model": "vit-mlp"})
    line = '{"run": "two-phase", "phase": "adam", "epoch": %d, "gradient_equivalents": %d, "seconds": %d, '
    line += '"train_loss": %.9f, "gradient_norm": %.9f, "validation_loss": %.9f}\n'
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(
            line % (n, n, n, 1 / (1 + n), (n * 7919 % 1013) / 1013, (n * 104729 % 997) / 997) for n in range(rows)
        )
    path = write_report([Run(tmp_path)])
    assert path.stat().st_size < 2_000_000
    assert re.search(
        rf"rows, one in \d+ of {rows // 1000},000 to keep this page small", path.read_text(encoding="utf-8")
    )
