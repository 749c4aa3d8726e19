"""The oracle: each switch is followed as the run itself is, everything is charged, and nothing is trained twice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import convexlab as cl
from convexlab.detection.curvature import NoNegativeCurvature
from convexlab.progress import Progress
from convexlab.runs import Run
from convexlab.runs.oracle import neighbour_factor
from convexlab.training import TwoPhaseConfig
from convexlab.training.journal import Journal
from convexlab.training.oracle import hindsight
from convexlab.training.phases import SMALL
from convexlab.training.second_phase import Step
from convexlab.training.trajectory import Trajectory
from tests.slowly import mostly_slow
from tests.tiny import without_seconds

Options = dict[str, Any]
Rows = list[dict[str, Any]]

ROW = {"switch_epoch", "train_loss", "gradient_equivalents", "safe_resort", "epoch", "validation_loss"}
# Costs are sums of up to a hundred thirds below 100, each addition rounded by at most half of 1.4e-14.
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def run(tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Switched at epoch 4, a multiple of the oracle's 2."""
    return cl.train_two_phase(out=tmp_path_factory.mktemp("runs") / "run", oracle_every=2, **tiny)


def summary_of(made: Run) -> dict[str, Any]:
    assert made.summary is not None
    return made.summary


def at(made: Run, epoch: int) -> dict[str, Any]:
    return next(row for row in made.oracle if row["switch_epoch"] == epoch)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"phase_two": "cg-golden"},
        {"phase_two": "lbfgs-adam-progressive"},
        {"switch_epoch": None, "detector": "algorithm-1", "oracle_every": 1},
        {"dtype": "float64", "batch_size": 50},
    ],
)
def test_at_the_switch_of_the_run_it_is_the_run(change: Options, tiny: Options, tmp_path: Path) -> None:
    made = cl.train_two_phase(out=tmp_path / "run", **tiny | {"oracle_every": 2} | change)
    summary = summary_of(made)
    same = at(made, summary["switch"]["epoch"])
    expected = {"switch_epoch": summary["switch"]["epoch"], "safe_resort": summary["safe_resort"]}
    expected |= summary["two_phase"]
    assert expected["cost_breakdown"].pop("detector", 0.0) == 0.0
    assert without_seconds(same) == without_seconds(expected)
    assert len({row["train_loss"] for row in made.oracle}) > 1


def test_a_switch_is_the_run_that_was_set_to_it(run: Run, tiny: Options, tmp_path: Path) -> None:
    for epoch in (2, 8):
        alone = summary_of(cl.train_two_phase(out=tmp_path / str(epoch), **tiny | {"switch_epoch": epoch}))
        assert at(run, epoch)["train_loss"] == alone["two_phase"]["train_loss"]
        assert at(run, epoch)["gradient_equivalents"] == alone["two_phase"]["gradient_equivalents"]


def test_rows_are_complete_and_costs_add_up(run: Run) -> None:
    assert [row["switch_epoch"] for row in run.oracle] == [2, 4, 6, 8, 10]
    assert all(row.keys() >= ROW for row in run.oracle)
    for row in run.oracle:
        spent = row["cost_breakdown"]
        assert spent.keys() == {"adam", SMALL}
        assert spent["adam"] == row["switch_epoch"]
        assert 12 - 2 < row["gradient_equivalents"] <= 12 + ROUNDING
        assert row["gradient_equivalents"] == pytest.approx(math.fsum(spent.values()), abs=ROUNDING)
    added = math.fsum(row["cost_breakdown"][SMALL] for row in run.oracle)
    oracle = summary_of(run)["oracle"]
    assert oracle["gradient_equivalents"] == pytest.approx(added, abs=ROUNDING)
    assert oracle["switches"] == 5


def test_the_best_of_them_and_the_regret(run: Run) -> None:
    summary = summary_of(run)
    lowest = min(run.oracle, key=lambda row: row["train_loss"])
    oracle = summary["oracle"]
    assert (oracle["epoch"], oracle["train_loss"]) == (lowest["switch_epoch"], lowest["train_loss"])
    # Its own epoch is among them: it cannot be below the best.
    assert oracle["regret"] == summary["two_phase"]["train_loss"] / lowest["train_loss"] - 1 >= 0


def row(epoch: int, loss: float, cost: float = 10.0) -> dict[str, Any]:
    return {"switch_epoch": epoch, "train_loss": loss, "gradient_equivalents": cost}


def test_hindsight_by_hand() -> None:
    rows = [row(2, 0.4), row(4, 0.2), row(6, 0.2, 9.5)]
    expected = {"epoch": 4, "train_loss": 0.2, "switches": 3, "gradient_equivalents": 8 + 6 + 3.5}
    assert hindsight(rows, 0.3) == {**expected, "regret": pytest.approx(0.5)}
    # Between the switches tried lay a better one.
    assert hindsight(rows, 0.1)["regret"] == pytest.approx(-0.5)
    assert hindsight([row(2, 0.0)], 0.1)["regret"] is None
    assert hindsight([], 0.1) == dict.fromkeys(("epoch", "train_loss", "regret")) | {
        "switches": 0,
        "gradient_equivalents": 0,
    }


def test_neighbours_by_hand() -> None:
    assert neighbour_factor([1.0, 2.0, 1.0, 8.0]) == pytest.approx(2.0)  # 2, 2 and 8
    assert neighbour_factor([0.3]) == neighbour_factor([]) == 1.0


def test_it_changes_nothing_of_the_run(run: Run, tiny: Options, tmp_path: Path) -> None:
    without = cl.train_two_phase(out=tmp_path / "run", **tiny)
    assert without_seconds(run.metrics) == without_seconds(without.metrics)
    ours, theirs = (without_seconds(summary_of(made)) for made in (run, without))
    assert ours.pop("oracle") is not None
    assert theirs.pop("oracle") is None
    assert ours == theirs
    assert without.oracle == []
    assert not without.oracle_path.exists()
    for path in without.checkpoints:
        ours, theirs = load_file(run.path / "checkpoints" / path.name), load_file(path)
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_adam_is_not_trained_again(tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[str] = []
    original = Trajectory.adam_epoch

    def counted(self: Trajectory, *arguments: Any, **named: Any) -> float:
        epochs.append(self.name)
        return original(self, *arguments, **named)

    monkeypatch.setattr(Trajectory, "adam_epoch", counted)
    made = cl.train_two_phase(out=tmp_path / "run", oracle_every=3, **tiny)
    assert len(made.oracle) == 3
    assert set(epochs) == {"two-phase", "adam-constant", "adam-cosine"}
    constant = summary_of(made)["baselines"]["adam-constant"]["gradient_equivalents"]
    assert epochs.count("two-phase") + epochs.count("adam-constant") == constant


@pytest.mark.usefixtures("saved_every_epoch")
def test_states_are_on_disk_while_they_are_needed(tiny: Options, tmp_path: Path) -> None:
    kept: list[set[str]] = []
    folder = tmp_path / "run" / "state"

    def listen(step: Progress) -> None:
        if step.task == "oracle" and not step.planned:
            kept.append({path.stem for path in folder.glob("oracle-*.pt")})

    made = cl.train_two_phase(out=tmp_path / "run", oracle_every=4, progress=listen, **tiny)
    assert kept[0] == {"oracle-00004", "oracle-00008"}
    assert kept[-1] == {"oracle-00008"}
    assert not folder.exists()
    assert made.oracle_path.is_file()


def test_a_detector_that_never_fired(tiny: Options, tmp_path: Path) -> None:
    options = tiny | {
        "switch_epoch": None,
        "detector": "gradient-norm-peak",
        "epochs": 9,
        "lr": 1e-4,
        "oracle_every": 3,
    }
    made = cl.train_two_phase(out=tmp_path / "run", **options)
    summary = summary_of(made)
    assert summary["switch"]["epoch"] is None
    assert [row["switch_epoch"] for row in made.oracle] == [3, 6]
    assert summary["oracle"]["epoch"] in (3, 6)
    # The run itself is Adam alone, which is far from done at this rate: the second phase from anywhere is ahead.
    assert summary["two_phase"]["train_loss"] == summary["baselines"]["adam-constant"]["train_loss"]
    assert summary["oracle"]["regret"] > 0
    alone = cl.train_two_phase(out=tmp_path / "alone", **options | {"switch_epoch": 6, "oracle_every": None})
    assert at(made, 6)["train_loss"] == summary_of(alone)["two_phase"]["train_loss"]


def test_a_detector_that_costs_leaves_the_oracle_more(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NoNegativeCurvature, "cost", 0.9)  # so much that a short run measures something
    options = tiny | {"switch_epoch": None, "detector": "curvature", "epochs": 24, "oracle_every": 6}
    made = cl.train_two_phase(out=tmp_path / "run", **options)
    assert summary_of(made)["two_phase"]["cost_breakdown"]["detector"] > 0
    assert all("detector" not in row["cost_breakdown"] for row in made.oracle)
    assert [row["cost_breakdown"]["adam"] for row in made.oracle] == [6, 12, 18]


def test_it_ends_where_phase_two_has_a_step_left() -> None:
    assert list(TwoPhaseConfig(epochs=12, oracle_every=2).oracle_epochs) == [2, 4, 6, 8, 10]
    assert list(TwoPhaseConfig(epochs=12, oracle_every=5, phase_two="cg-golden").oracle_epochs) == [5, 10]
    assert list(TwoPhaseConfig(epochs=12).oracle_epochs) == []


def test_a_second_phase_that_is_given_up_says_so(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convexlab.training.second_phase._failure", lambda optimizer: "made to fail")
    monkeypatch.setattr("convexlab.training.second_phase._FAILED_STEPS", 3)
    made = cl.train_two_phase(out=tmp_path / "run", oracle_every=4, **tiny | {"epochs": 11})
    assert summary_of(made)["safe_resort"]["epoch"] == 4 + 3
    # From epoch 8 on the budget ends before the third step does.
    resorts = [row["safe_resort"] for row in made.oracle]
    assert resorts == [summary_of(made)["safe_resort"], None]
    assert at(made, 4)["train_loss"] == summary_of(made)["two_phase"]["train_loss"]
    assert at(made, 4)["cost_breakdown"]["adam"] > 4


def test_a_switch_that_diverges_counts_at_its_best_epoch(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Trajectory.take

    def explode(self: Trajectory, phase: str, step: Step) -> None:
        take(self, phase, step)
        if self.name == "oracle-00008" and self.epoch == 10:
            self.stand(0.1, math.inf)

    monkeypatch.setattr(Trajectory, "take", explode)
    made = cl.train_two_phase(out=tmp_path / "run", oracle_every=4, **tiny)
    assert [row["switch_epoch"] for row in made.oracle] == [4, 8]
    assert at(made, 8)["epoch"] <= at(made, 8)["diverged"] == 10


def test_adam_that_diverges_leaves_the_switches_before(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Trajectory.measure

    def explode(self: Trajectory) -> tuple[float, float]:
        if self.name == "adam-constant" and self.epoch == 7:
            self.stand(math.nan, math.nan)
        return measure(self)

    monkeypatch.setattr(Trajectory, "measure", explode)
    made = cl.train_two_phase(out=tmp_path / "run", oracle_every=2, **tiny)
    assert [row["switch_epoch"] for row in made.oracle] == [2, 4, 6]
    assert summary_of(made)["oracle"]["switches"] == 3


def test_several_seeds(tiny: Options, tmp_path: Path) -> None:
    parent = cl.train_two_phase(out=tmp_path / "run", **tiny | {"seeds": 2, "epochs": 8, "oracle_every": 3})
    summaries = [summary_of(member) for member in parent.members]
    assert [len(member.oracle) for member in parent.members] == [2, 2]
    assert summary_of(parent)["oracle"] == [summary["oracle"] for summary in summaries]
    assert summaries[0]["oracle"]["train_loss"] != summaries[1]["oracle"]["train_loss"]


def test_progress_names_the_switch_and_ends_within_its_total(tiny: Options, tmp_path: Path) -> None:
    steps: list[Progress] = []
    cl.train_two_phase(out=tmp_path / "run", oracle_every=4, progress=steps.append, **tiny)
    assert list(dict.fromkeys(step.task for step in steps)) == ["two-phase", "adam-constant", "adam-cosine", "oracle"]
    told = [step for step in steps if step.task == "oracle" and not step.planned]
    assert {step.total for step in told} == {(12 - 4) + (12 - 8)}
    assert [step.done for step in told] == sorted(step.done for step in told)
    assert 12 - 2 < told[-1].done <= 12 + ROUNDING
    assert told[0].note.startswith("switch at epoch 4 (1 of 2), loss ")
    assert told[-1].note.startswith("switch at epoch 8 (2 of 2), loss ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oracle_every": 0}, "expected oracle_every to be a whole number from 1, got 0."),
        ({"oracle_every": 2.5}, "expected oracle_every to be a whole number from 1, got 2.5."),
        ({"oracle_every": 12}, "oracle_every 12 leaves phase two no step within the budget of 12 epochs. Choose a"),
        ({"oracle_every": 11}, "oracle_every 11 leaves phase two no step within the budget of 12 epochs."),
        ({"oracle_every": 2, "no_baseline": True}, "constant rate, which no_baseline leaves out. Leave out one of the"),
    ],
)
def test_misuse_writes_nothing(options: Options, message: str, tiny: Options, tmp_path: Path) -> None:
    with pytest.raises(cl.MisuseError, match=message):
        cl.train_two_phase(out=tmp_path / "run", **tiny | options)
    assert not (tmp_path / "run").exists()


# Interrupted


@pytest.mark.usefixtures("saved_every_epoch")
@pytest.mark.parametrize("where", mostly_slow(["oracle", "two-phase", "adam-constant", "adam-cosine"], quick=1))
def test_interrupted_at_every_report_of_a_part(where: str, run: Run, tiny: Options, tmp_path: Path) -> None:
    def interrupt(step: Progress) -> None:
        if step.task == where and not step.planned:
            raise KeyboardInterrupt

    cuts = 0
    options: Options = {"oracle_every": 2, **tiny}
    while True:
        try:
            made = cl.train_two_phase(out=tmp_path / "run", resume=cuts > 0, progress=interrupt, **options)
            break
        except KeyboardInterrupt:
            cuts += 1
    assert cuts > 4
    assert without_seconds(made.oracle) == without_seconds(run.oracle)
    assert without_seconds(summary_of(made)) == without_seconds(summary_of(run))


@pytest.mark.usefixtures("saved_every_epoch")
@pytest.mark.parametrize("saves", mostly_slow([2, 14, 26, 5, 9, 19, 30, 36], quick=3))
def test_killed_between_two_files(
    saves: int, run: Run, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut before a state is written, wherever: the state of Adam that a switch needs is never missing."""
    left, original = iter(range(saves)), Journal.save

    def save(self: Journal, name: str, state: dict[str, Any]) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        original(self, name, state)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", save)
        with pytest.raises(KeyboardInterrupt):
            cl.train_two_phase(out=tmp_path / "run", oracle_every=2, **tiny)
    made = cl.train_two_phase(out=tmp_path / "run", resume=True)
    assert without_seconds(made.oracle) == without_seconds(run.oracle)


def test_killed_after_a_row_was_written(
    run: Run, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is there is not made again, and its state goes all the same."""

    def drop(self: Journal, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "drop", drop)
        with pytest.raises(KeyboardInterrupt):
            cl.train_two_phase(out=tmp_path / "run", oracle_every=2, **tiny)
    before = Run(tmp_path / "run").oracle
    assert len(before) == 1
    made = cl.train_two_phase(out=tmp_path / "run", resume=True)
    assert made.oracle[0] == before[0]  # the seconds too
    assert without_seconds(made.oracle) == without_seconds(run.oracle)
    assert not (made.path / "state").exists()


def test_a_finished_run_is_not_asked_again(run: Run) -> None:
    before = run.oracle_path.read_bytes()
    cl.train_two_phase(out=run.path, resume=True, oracle_every=2)
    assert run.oracle_path.read_bytes() == before
    with pytest.raises(cl.MisuseError, match="was begun with oracle_every=2, not 3"):
        cl.train_two_phase(out=run.path, resume=True, oracle_every=3)
