from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from convexlab.errors import MisuseError
from convexlab.reporting import contents as contents_module
from convexlab.reporting import page as page_module
from convexlab.reporting import summary_lines, write_report
from convexlab.reporting.words.claims import CLAIM_TEXTS
from convexlab.runs import Run
from convexlab.runs.rows import ProbedCheckpoint

MakeRun = Callable[..., Run]
# HTML's elements without a closing tag.
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """A page taken apart: elements with attributes in order, and its visible text; refuses unbalanced tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._text: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script", "title", "desc"):
            self._text.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self._text).replace("\N{NO-BREAK SPACE}", " ").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def full_page(full_run: Run) -> Page:
    return Page(full_run.report_path)


def page_of(*runs: Run) -> Page:
    return Page(write_report(list(runs)))


def test_page_is_a_complete_document_on_its_own(full_page: Page) -> None:
    page = full_page
    assert page.source.startswith("<!DOCTYPE html>")
    assert page.all("html")[0]["lang"] == "en"
    assert page.source.count("<title>") == 1
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    # Nothing on it can ask for anything: no address, no file, and no script but its own, which the policy names.
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in str(policy)
    assert not {"img", "iframe", "object", "embed", "audio", "video"} & {tag for tag, _ in page.elements}
    assert "http:" not in page.source.lower()
    assert "https:" not in page.source.lower()
    assert "@import" not in page.source
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    # Addresses lead within the page, or are the data themselves.
    kept = [anchor for anchor in page.all("a") if "download" in anchor]
    assert [anchor["download"] for anchor in kept] == ["run-summary.json", "run-probe.json", "run-metrics.csv"]
    assert all(str(anchor["href"]).startswith("data:") for anchor in kept)
    assert all(str(anchor["href"]).startswith("#") for anchor in page.all("a") if anchor not in kept)
    assert page.all("a")[0] == {"class": "skip", "href": "#content"}
    assert [main["id"] for main in page.all("main")] == ["content"]


@pytest.fixture(scope="module")
def joint_page(tmp_path_factory: pytest.TempPathFactory, full_run: Run) -> Page:
    out = tmp_path_factory.mktemp("joint") / "page.html"
    other = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(full_run.path, other)
    # Training charts of the same data are enough to collide.
    Run(other).probe_path.unlink()
    return Page(write_report([full_run, Run(other)], out))


@pytest.mark.parametrize("name", ["full_page", "joint_page"])
def test_ids_are_unique_and_every_reference_has_its_target(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", page.source))
    for tag, attributes in page.elements:
        if tag in ("a", "use") and "download" not in attributes:
            wanted |= {str(attributes["href"])[1:]}
        wanted |= set(str(attributes.get("aria-labelledby") or "").split())
    assert wanted
    assert wanted <= set(ids)


def test_tables_and_charts_are_accessible(full_page: Page) -> None:
    page = full_page
    tables, charts = page.all("table"), page.all("svg")
    assert len(tables) == page.source.count("<caption>") == 5
    assert {heading["scope"] for heading in page.all("th")} == {"row", "col"}
    assert len(charts) == 7
    for figure in charts:
        assert figure["role"] == "img"
    descriptions = re.findall(r"<desc[^>]*>([^<]*)</desc>", page.source)
    assert len(descriptions) == len(charts)
    assert all(re.search(r"\d", description) for description in descriptions)


@pytest.mark.parametrize("name", ["full_page", "joint_page"])
def test_headings_descend_one_level_at_a_time(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_parts_come_in_order(full_page: Page) -> None:
    text = full_page.text
    parts = [
        "Two-phase training reached a lower training loss than the better Adam baseline",
        "Loss over cost",
        "Both ends of the spectrum",
        "Did switching pay?",
        "It switched from Adam to cg-golden after epoch 40",
        "At the last checkpoint probed (epoch 100): no negative curvature below",
        "The switch, and why",
        "Decided by gradient-norm-peak: The smoothed gradient norm fell to 0.89 of its peak",
        "Gradient norm over loss",
        "Loss over the paper's axis",
        "Loss over time",
        "Spectral density",
        "Negative spectral mass",
        "Peak of the gradient norm",
        "What the paper claims, and this run",
        "Claim 1: supported",
        "Non-convex first, no negative curvature found after that.",
        "Claim 2: contradicted",
        "Results of vit-mlp on digits",
        "Verdicts",
        "Curvature at each checkpoint",
        "Where the cost went",
        "Settings and environment",
        "What the numbers mean, and what they do not",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_the_results_table_has_the_papers_columns_and_the_costs(full_page: Page) -> None:
    text = full_page.text
    head = (
        "Model variant Algorithm Train loss Training accuracy Validation loss Validation accuracy Q "
        "Gradient equivalents Best epoch Seconds"
    )
    assert head.replace(" ", "") in text.replace(" ", "")
    row = "vit-mlp Adam + cg-golden 1.40×10⁻⁴ 0.999 0.00610 0.964 0.0933 120 100 48.0"
    assert row.replace(" ", "") in text.replace(" ", "")


def test_fresh_examples_have_columns_and_a_sentence(make_probe: MakeRun) -> None:
    fresh = {"smallest_fresh": -0.1234, "smallest_fresh_low": -0.15, "smallest_fresh_high": -0.0968}
    fresh |= {"largest_fresh": 7.654, "largest_fresh_low": 7.0, "largest_fresh_high": 8.3}
    page = page_of(make_probe(count=2, density=None, fresh_examples=99, **fresh))
    assert page.text.count("7.65 (7.00 to 8.30)") == 2
    assert "In brackets: an estimate's 95 % interval." in page.text
    assert page.source.count(">Smallest, fresh<") == page.source.count(">Largest, fresh<") == 1
    # Beside each verdict, and on top for the last one.
    assert page.text.count("On 99 validation examples the direction of smallest curvature") == 3
    # And in two rows of the table.
    assert page.text.count("−0.123 (−0.150 to −0.0968") == 3 + 2
    older = page_of(make_probe("older", density=None, fresh_examples=None, **dict.fromkeys(fresh)))
    assert "fresh<" not in older.source


def test_the_largest_eigenvalues_have_a_table(make_probe: MakeRun) -> None:
    top = {"values": [7.0, 6.0, *[0.5] * 10], "residuals": [0.01, 0.02, *[1e-3] * 10]}
    text = page_of(make_probe(count=2, density=None, top=top, top_gradient_share=0.875)).text
    assert "The 12 largest eigenvalues at each checkpoint" in text
    assert "The first 10 are shown; probe.jsonl has all." in text
    assert text.count("7.00 ± 0.010") == 2
    assert text.count("0.875") == 2
    assert "largest eigenvalues at each" not in page_of(make_probe("without", count=2, density=None)).text


def test_the_cost_breakdown_is_shown(make_bare: MakeRun) -> None:
    text = page_of(make_bare(switch=30)).text.replace(" ", "")
    # 30 epochs of Adam, a third of each for the detector, the rest of 120 for phase two.
    assert "Adam+cg-golden301080120" in text


def test_a_return_to_adam_is_shown_with_its_reason(make_bare: MakeRun) -> None:
    resort = {"epoch": 61, "reason": "the line search failed three times"}
    text = page_of(make_bare(summary={"safe_resort": resort})).text
    assert (
        "After epoch 61 phase two gave up, and training went back to Adam: the line search failed three times." in text
    )


def test_an_unfinished_run_says_so_and_how_to_go_on(make_bare: MakeRun) -> None:
    text = page_of(make_bare(finished=False)).text
    assert "No epoch has been recorded yet." in text
    assert "This run is not finished" in text
    assert "--resume" in text
    assert "convexlab probe RUN" in text
    assert "not finished" not in page_of(make_bare("done")).text


@pytest.mark.usefixtures("undrawn")
def test_a_probe_alone_has_a_page(make_probe: MakeRun) -> None:
    page = page_of(make_probe(count=3))
    assert "Verdicts over 3 checkpoints: 2 × non-convex, 1 × no negative curvature found." in page.text
    assert "not finished" not in page.text
    assert len(page.all("svg")) == 3


@pytest.mark.usefixtures("undrawn")
def test_several_runs_are_compared_first(make_bare: MakeRun, make_probe: MakeRun) -> None:
    page = page_of(make_bare("a"), make_bare("b", seed=1, final=9e-4), make_probe("c", density=None))
    text = page.text
    assert text.index("The runs compared") < text.index("a: vit-mlp on digits") < text.index("b: vit-mlp on digits")
    assert text.index("b: vit-mlp on digits") < text.index("c: vit-mlp on digits")
    assert "Switching paid in 1 of 2 runs. Against the better Adam" in text
    assert "two-phase training ended better in 1, worse in 1 of 2" in text
    assert "Settings that differ" in text
    assert [link["href"] for link in page.all("a")][:4] == ["#content", "#run-1", "#run-2", "#run-3"]


def _seeds(make_bare: MakeRun, count: int) -> Run:
    members = [make_bare(f"many/seed-{seed}", seed=seed) for seed in range(count)]
    parent = members[0].path.parent
    (parent / "config.json").write_text(json.dumps({"seeds": list(range(count))}))
    (parent / "summary.json").write_text(json.dumps({"schema": 1, "seeds": list(range(count))}))
    return Run(parent)


def test_a_run_over_several_seeds_stands_for_its_members(make_bare: MakeRun) -> None:
    parent = _seeds(make_bare, 2)
    path = write_report([parent])
    assert path == parent.report_path
    assert "seed-1: vit-mlp on digits" in Page(path).text
    # Its members named one by one are the same page.
    before = path.read_bytes()
    assert write_report(parent.members).resolve() == path.resolve()
    assert path.read_bytes() == before


def test_one_seed_of_several_keeps_the_page_of_all(make_bare: MakeRun) -> None:
    member = _seeds(make_bare, 2).members[1]
    assert write_report([member]) == member.report_path


def test_the_page_goes_where_it_is_stated(make_bare: MakeRun, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert write_report([make_bare()], out) == out
    assert out.is_file()


def test_a_run_given_twice_is_shown_once(make_bare: MakeRun) -> None:
    run = make_bare()
    assert write_report([run]).read_bytes() == write_report([run, Run(run.path / ".." / run.path.name)]).read_bytes()


def test_runs_of_one_name_are_stated_apart(make_bare: MakeRun) -> None:
    text = page_of(make_bare("x/run"), make_bare("y/run")).text
    assert "x/run: vit-mlp" in text
    assert "y/run: vit-mlp" in text


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="expected at least one run directory"):
        write_report([])
    with pytest.raises(MisuseError, match="is not a run directory"):
        write_report([Run(tmp_path)])


def test_the_terminal_shows_what_stands_on_top_of_the_page(make_bare: MakeRun) -> None:
    runs = [make_bare("a"), make_bare("b", final=9e-4)]
    for shown in (runs[:1], runs):
        lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in summary_lines(shown)]
        assert lines
        top, *_ = re.split("The switch, and why|The runs compared", page_of(*shown).text)
        # Tiles stand between the first and the others.
        places = [top.index(line) for line in lines]
        assert places == sorted(places)


def test_a_failed_report_leaves_the_old_one_whole(make_bare: MakeRun) -> None:
    run = make_bare()
    before = write_report([run]).read_bytes()
    run.probe_path.write_text("{")
    listing = sorted(run.path.iterdir())
    with pytest.raises(MisuseError):
        write_report([run])
    assert run.report_path.read_bytes() == before
    assert sorted(run.path.iterdir()) == listing


HOSTILE = "</title><script>alert('x')</script>\"'&$a$ 数据"


def test_everything_is_escaped(make_run: MakeRun) -> None:
    summary = {
        "model": {"name": HOSTILE, "parameters": 10, "overdetermination": 2.0},
        "dataset": {"name": HOSTILE, "train_size": 10, "classes": 10},
        "switch": {"epoch": 40, "detector": HOSTILE, "train_loss": 0.1, "gradient_norm": 0.1, "reason": HOSTILE},
        "phase_two": HOSTILE,
        "environment": {HOSTILE: HOSTILE},
    }
    probe = {
        "verdict": HOSTILE,
        "failure": HOSTILE,
        "smallest": None,
        "checkpoint": HOSTILE,
        "phase": HOSTILE,
        "epoch": None,
    }
    run = make_run("run & <b>", config={HOSTILE: HOSTILE}, summary=summary, probe=probe)
    page = page_of(run)
    assert page.all("script") == [{}]  # The page's own.
    assert page.text.count(HOSTILE) >= 8


def test_what_utf8_cannot_hold_is_replaced(make_bare: MakeRun) -> None:
    assert "broken ?" in page_of(make_bare(config={"note": "broken \udcff"})).text


ROW = list(ProbedCheckpoint().as_row())[1:]  # All but the checkpoint's name.


@pytest.mark.parametrize("missing", [["epoch"], ROW[1:13], ROW[13:], ROW])
def test_any_number_of_a_probe_may_be_null(make_probe: MakeRun, missing: list[str]) -> None:
    text = page_of(make_probe(**dict.fromkeys(missing))).text
    assert "None" not in text
    assert "nan" not in text.split()


def _blank(value: Any) -> Any:
    """The same objects without a single number or word in them."""
    return {key: _blank(item) for key, item in value.items()} if isinstance(value, dict) else None


def test_any_value_of_a_summary_may_be_null(make_run: MakeRun) -> None:
    run = make_run(probed=False)
    assert run.summary is not None
    run.summary_path.write_text(json.dumps(_blank(run.summary)))
    text = page_of(run).text
    assert "None" not in text
    assert "nan" not in text.split()


@pytest.mark.usefixtures("undrawn")
def test_no_sign_is_printed_inside_the_rounding_floor(make_probe: MakeRun) -> None:
    inside = {"smallest": -2.345e-8, "gradient_curvature": -3.456e-8, "smallest_lower_bound": -4.567e-8}
    page = page_of(make_probe(rounding_floor=1e-7, verdict="unresolved", **inside))
    for digits in ("2.34", "2.35", "3.46", "4.57"):
        assert f"{digits}×10⁻⁸" not in page.source
    assert "0 ± 1.0×10⁻⁷" in page.text


def test_convex_is_never_claimed(make_probe: MakeRun) -> None:
    """The word stands only where the paper's claims are reported."""
    text = page_of(make_probe(verdict="no-negative-curvature", density=None)).text
    for reported in ("That the loss is non-convex first and convex around the minimum", *CLAIM_TEXTS.values()):
        assert reported in text
        text = text.replace(reported, "")
    assert not re.findall(r"(?<!non-)\bconvex\b", text, re.IGNORECASE)


def test_pages_stay_small(make_run: MakeRun) -> None:
    """The limit is 2 MB; six runs of a thousand epochs may stand on a page in full, hence a sixth for one.

    Their data take the room that is left, whatever their size.
    """
    page = page_of(make_run(epochs=1000, switch=300))
    data = sum(len(str(anchor["href"])) for anchor in page.all("a") if "download" in anchor)
    assert data > 1e5
    assert len(page.source.encode()) - data < 2e6 / 6


def test_data_take_the_room_that_the_page_leaves(make_bare: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_bare(name) for name in "ab"]
    for run in runs:
        rows = [{"run": "two-phase", "epoch": epoch, "train_loss": 0.1 / (epoch + 1)} for epoch in range(3000)]
        run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = page_of(*runs)
    assert "to keep this page small" not in whole.text
    limit = len(whole.source.encode()) - 100_000
    monkeypatch.setattr(page_module, "LARGEST", limit)
    small = page_of(*runs)
    assert small.text.count("of 3,000 to keep this page small") == 2
    assert limit - 60_000 < len(small.source.encode()) <= limit


@pytest.mark.usefixtures("undrawn")
def test_many_runs_show_their_main_charts(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "MANY", 1)
    runs = [make_run(name, epochs=40, switch=16) for name in "ab"]
    page = page_of(*runs)
    assert "With this many runs each shows its main charts only" in page.text
    assert len(page.all("svg")) == 2 + 3 * len(runs)
    # Thirty runs fit into 2 MB: these two with all that they share, and 28 sections more.
    # What they hold of data is cut to what is left.
    first, second = (page.source.index(f'<section class="run" id="run-{index}">') for index in (1, 2))
    assert len(page.source.encode()) + 28 * len(page.source[first:second].encode()) < 2e6
