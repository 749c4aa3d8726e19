"""Whole runs of a tiny problem: what is recorded, what is charged, and that the numbers are those of plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import math
import runpy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import convexlab as cl
from convexlab.optim import NonlinearCG, ProgressiveLBFGS, SampleClosure
from convexlab.problems import build_problem
from convexlab.progress import Progress
from convexlab.reporting import summary_lines
from convexlab.runs import Run
from convexlab.training import default_directory, phase_two_names
from convexlab.training.phases import _PHASES, SMALL, PhaseTwo
from convexlab.training.trajectory import Trajectory
from tests.tiny import CLASSES, PARAMETERS, TRAIN_SIZE, VALIDATION_SIZE

Options = dict[str, Any]
Rows = list[dict[str, Any]]

OUTCOME = {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "gradient_equivalents", "seconds"}
METRIC = {"run", "phase", "epoch", "gradient_equivalents", "seconds", "train_loss", "gradient_norm"}
MEASURES = {"train_accuracy", "validation_loss", "validation_accuracy"}
BASELINES = ("adam-constant", "adam-cosine")
# Costs are sums of up to a hundred thirds below 100, each addition rounded by at most half of 1.4e-14.
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def run(tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return cl.train_two_phase(out=tmp_path_factory.mktemp("runs") / "run", dtype="float64", **tiny)


@pytest.fixture(scope="module")
def detected(tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Left to Algorithm 1."""
    options = tiny | {"switch_epoch": None, "detector": "algorithm-1"}
    return cl.train_two_phase(out=tmp_path_factory.mktemp("runs") / "run", **options)


def rows_of(run: Run, name: str) -> Rows:
    return [row for row in run.metrics if row["run"] == name]


def losses(rows: Rows) -> list[float]:
    return [row["train_loss"] for row in rows]


# What is recorded


def test_summary_has_every_field(run: Run, tiny: Options) -> None:
    summary = run.summary
    assert summary is not None
    q = TRAIN_SIZE * CLASSES / PARAMETERS
    assert summary["schema"] == 1
    assert summary["model"] == {"name": tiny["model"], "parameters": PARAMETERS, "overdetermination": q}
    assert (
        summary["dataset"].items()
        >= {
            "name": tiny["dataset"],
            "train_size": TRAIN_SIZE,
            "validation_size": VALIDATION_SIZE,
            "classes": CLASSES,
        }.items()
    )
    assert summary["switch"].keys() >= {"epoch", "detector", "train_loss", "gradient_norm", "reason"}
    assert summary["two_phase"].keys() >= OUTCOME
    assert set(summary["baselines"]) == set(BASELINES)
    assert all(baseline.keys() >= OUTCOME for baseline in summary["baselines"].values())
    assert summary["seed"] == 0
    assert summary["environment"].items() >= {"dtype": "float64", "torch": torch.__version__}.items()
    assert summary["phase_two"] == SMALL
    assert summary["phase_two_reason"].startswith(f"{summary['model']['parameters']:,} parameters, at most the 3,000")
    assert summary["safe_resort"] is None


def test_the_switch_is_where_it_was_set(run: Run) -> None:
    at = rows_of(run, "two-phase")[4]
    assert run.summary is not None
    assert run.summary["switch"] == {
        "epoch": 4,
        "detector": "switch-epoch",
        "train_loss": at["train_loss"],
        "gradient_norm": at["gradient_norm"],
        "reason": "the switch was set to epoch 4",
    }


# Steps on residuals cost more than this budget: see test_residuals.py.
@pytest.mark.parametrize("phase_two", sorted(set(phase_two_names()) - {"levenberg-marquardt"}))
def test_costs_are_equal_and_within_the_budget(phase_two: str, tiny: Options, tmp_path: Path) -> None:
    made = cl.train_two_phase(out=tmp_path / "run", **tiny | {"phase_two": phase_two, "epochs": 9})
    assert made.summary is not None
    cost = made.summary["two_phase"]["gradient_equivalents"]
    assert 5 < cost <= 9 + ROUNDING
    for baseline in made.summary["baselines"].values():
        # Adam is paid in whole epochs, and the rest of one is given to it.
        assert 0 <= baseline["gradient_equivalents"] - cost + ROUNDING < 1 + ROUNDING


@pytest.mark.parametrize("which", ["run", "detected"])
def test_metrics_are_complete(which: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(which)
    for name in ("two-phase", *BASELINES):
        rows = rows_of(made, name)
        # Until the switch a row also says what the detector was told; some have the validation's numbers.
        assert all(row.keys() - {"told"} - MEASURES == METRIC for row in rows)
        assert all(rows[place].keys() >= MEASURES for place in (0, -1))
        assert sum("told" in row for row in rows) == (made.summary["switch"]["epoch"] if name == "two-phase" else 0)
        assert [row["epoch"] for row in rows] == list(range(len(rows)))
        costs, seconds = ([row[key] for row in rows] for key in ("gradient_equivalents", "seconds"))
        assert costs[0] == seconds[0] == 0
        for column in (costs, seconds):
            assert all(before < after for before, after in itertools.pairwise(column))
        outcome = made.summary["two_phase" if name == "two-phase" else "baselines"]
        outcome = outcome if name == "two-phase" else outcome[name]
        assert outcome["gradient_equivalents"] == pytest.approx(costs[-1], abs=ROUNDING)
        assert outcome["seconds"] == pytest.approx(seconds[-1])
        assert ("vector_seconds" in outcome) == (name == "two-phase")
        assert 0 < outcome.get("vector_seconds", 0.01) < outcome["seconds"]
        assert math.fsum(outcome["cost_breakdown"].values()) == pytest.approx(costs[-1], abs=ROUNDING)
        # Each is counted at its best epoch.
        assert outcome["epoch"] == min(rows, key=lambda row: row["train_loss"])["epoch"]
        assert outcome["train_loss"] == min(losses(rows))


def test_phases_follow_each_other(run: Run) -> None:
    phases = [row["phase"] for row in rows_of(run, "two-phase")]
    assert phases[:5] == ["start", *["adam"] * 4]
    assert len(phases) > 6
    assert set(phases[5:]) == {SMALL}
    for name in BASELINES:
        assert {row["phase"] for row in rows_of(run, name)[1:]} == {"adam"}


def test_a_detector_of_the_norm_costs_nothing(run: Run, detected: Run) -> None:
    for made in (run, detected):
        assert made.summary is not None
        epoch = made.summary["switch"]["epoch"]
        rows = rows_of(made, "two-phase")
        assert [row["gradient_equivalents"] for row in rows[: epoch + 1]] == [float(k) for k in range(epoch + 1)]
        assert made.summary["two_phase"]["cost_breakdown"].get("detector", 0.0) == 0.0


def test_measured_curvature_is_charged_within_its_share(tiny: Options, tmp_path: Path) -> None:
    options = tiny | {"switch_epoch": None, "detector": "curvature", "epochs": 150, "no_baseline": True}
    made = cl.train_two_phase(out=tmp_path / "run", **options)
    assert made.summary is not None
    spent = made.summary["two_phase"]["cost_breakdown"]
    assert 0 < spent["detector"] <= 0.05 * spent["adam"]
    told = [row["told"] for row in rows_of(made, "two-phase") if "told" in row]
    assert any(one["gradient_curvature"] is not None for one in told)
    assert made.summary["two_phase"]["gradient_equivalents"] <= 150


def test_algorithm_1_switches_where_the_recorded_norms_say(detected: Run) -> None:
    largest, expected = 0.0, None
    for row in rows_of(detected, "two-phase")[1:]:
        told = row["told"]["gradient_norm"]
        largest = max(largest, told)
        if told <= 0.9 * largest:
            expected = row["epoch"]
            break
    assert expected is not None
    assert detected.summary is not None
    switch = detected.summary["switch"]
    assert (switch["epoch"], switch["detector"]) == (expected, "algorithm-1")
    assert "fell to 0.9 of its largest value" in switch["reason"]
    assert rows_of(detected, "two-phase")[expected + 1]["phase"] != "adam"


def test_without_a_peak_it_never_switches(tiny: Options, tmp_path: Path) -> None:
    asked = {"switch_epoch": None, "detector": "gradient-norm-peak", "epochs": 9, "lr": 1e-5}
    made = cl.train_two_phase(out=tmp_path / "run", **tiny | asked)
    assert made.summary is not None
    switch = made.summary["switch"]
    assert switch["epoch"] is None
    assert switch["reason"].startswith("no switch within the budget of 9 epoch equivalents: the gradient norm has not")
    assert {row["phase"] for row in rows_of(made, "two-phase")} == {"start", "adam"}
    assert made.summary["two_phase"]["gradient_equivalents"] == 9


def test_no_baseline(tiny: Options, tmp_path: Path) -> None:
    made = cl.train_two_phase(out=tmp_path / "run", **tiny | {"no_baseline": True, "epochs": 6})
    assert made.summary is not None
    assert made.summary["baselines"] == {}
    assert {row["run"] for row in made.metrics} == {"two-phase"}


def test_nothing_but_results_is_left(run: Run) -> None:
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "summary.json",
    ]


# The numbers are those of plain loops


@dataclass
class Plain:
    """Adam in a dozen lines that share nothing with the package but the data."""

    options: Options
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        data = cl.load_dataset(self.options["dataset"])
        self.x, self.y = data.x_train.double(), data.y_train
        self.targets = torch.eye(CLASSES, dtype=torch.float64)[self.y]
        path, _, name = self.options["model"].rpartition(":")
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.model: nn.Module = runpy.run_path(path)[name](channels=1, classes=CLASSES, image_size=32).double()

    def loss(self) -> float:
        with torch.no_grad():
            return float((self.model(self.x) - self.targets).square().mean())

    def train(self, epochs: int, rate: Callable[[float], float]) -> list[float]:
        adam = torch.optim.Adam(self.model.parameters())
        order, trace, steps = torch.Generator().manual_seed(self.seed), [self.loss()], len(self.y) / self.batch_size
        for epoch in range(epochs):
            rows = torch.randperm(len(self.y), generator=order)
            for step, chosen in enumerate(rows.split(self.batch_size)):
                adam.param_groups[0]["lr"] = rate(epoch + step / steps)
                adam.zero_grad()
                (self.model(self.x[chosen]) - self.targets[chosen]).square().mean().backward()
                adam.step()
            trace.append(self.loss())
        return trace


# In float64 the two losses, of the same weights, are sums of 360 squares of one sign in another order: 360 · 1.1e-16.
SAME = 1e-13


def test_adam_until_the_switch_is_a_plain_loop(run: Run, tiny: Options) -> None:
    plain = Plain(tiny)
    trace = plain.train(4, lambda _: tiny["lr"])
    assert losses(rows_of(run, "two-phase")[:5]) == pytest.approx(trace, rel=SAME)
    stored = load_file(run.checkpoint_path(4))
    assert stored.keys() == plain.model.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in plain.model.state_dict().items())


def test_constant_baseline_is_a_plain_loop(run: Run, tiny: Options) -> None:
    rows = rows_of(run, "adam-constant")
    assert losses(rows) == pytest.approx(Plain(tiny).train(len(rows) - 1, lambda _: tiny["lr"]), rel=SAME)


def test_cosine_baseline_is_a_plain_loop(run: Run, tiny: Options) -> None:
    rows = rows_of(run, "adam-cosine")
    epochs = len(rows) - 1
    trace = Plain(tiny).train(epochs, lambda done: tiny["lr"] * (1 + math.cos(math.pi * done / epochs)) / 2)
    # The rate is the same formula in another order; the last digit of it changes the weights' by as much.
    assert losses(rows) == pytest.approx(trace, rel=1e-10)


@pytest.mark.parametrize("which", ["run", "detected"])
def test_constant_baseline_shares_the_way_to_the_switch(which: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(which)
    shared = made.summary["switch"]["epoch"] + 1
    ours, theirs = rows_of(made, "two-phase"), rows_of(made, "adam-constant")
    assert losses(ours[:shared]) == losses(theirs[:shared])
    assert losses(ours[shared:])[0] != losses(theirs[shared:])[0]


def test_order_and_batch_size_follow_the_options(tiny: Options, tmp_path: Path) -> None:
    options = tiny | {"seed": 5, "batch_size": 50, "epochs": 5, "no_baseline": True}
    made = cl.train_two_phase(out=tmp_path / "run", dtype="float64", **options)
    trace = Plain(tiny, seed=5, batch_size=50).train(4, lambda _: tiny["lr"])
    assert losses(made.metrics[:5]) == pytest.approx(trace, rel=SAME)


@pytest.mark.parametrize("search", ["golden-section", "hager-zhang", "strong-wolfe"])
def test_second_phase_is_a_plain_loop(
    search: str, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(params: Iterable[nn.Parameter], *_: object) -> NonlinearCG:
        return NonlinearCG(params, line_search=search)

    monkeypatch.setitem(dict_of_phases(monkeypatch), "plain", PhaseTwo("under test", build, 1 / 3))
    options = tiny | {"phase_two": "plain", "no_baseline": True, "epochs": 25}
    made = cl.train_two_phase(out=tmp_path / "run", dtype="float64", **options)
    rows = rows_of(made, "two-phase")[4:-1]  # the last step may have been cut short by the budget
    assert len(rows) > 3

    problem = build_problem(tiny["model"], tiny["dataset"], "mse", dtype="float64")
    problem.model.load_state_dict(load_file(made.checkpoint_path(4)))
    optimiser = build(problem.model.parameters())
    assert problem.objective.value() == pytest.approx(rows[0]["train_loss"], rel=SAME)
    spent = rows[0]["gradient_equivalents"]
    for row in rows[1:]:
        optimiser.step(problem.objective.closure)
        report = optimiser.report
        assert report is not None
        spent += report.gradients + report.values / 3
        assert problem.objective.value() == pytest.approx(row["train_loss"], rel=SAME)
        assert row["gradient_equivalents"] == pytest.approx(spent, abs=ROUNDING)


def dict_of_phases(monkeypatch: pytest.MonkeyPatch) -> dict[str, PhaseTwo]:
    """Replace the registry by a copy that can be added to."""
    phases = dict(_PHASES)
    monkeypatch.setattr("convexlab.training.phases._PHASES", phases)
    return phases


# Failure


class Stuck:
    """An optimiser whose steps fail where ``fails`` says so, and otherwise move nothing."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self.param_groups: list[dict[str, Any]] = [{}]
        self.report: Any = None
        self.known = None
        self._fails = fails
        self._steps = 0

    def step(self, closure: Callable[[], Tensor]) -> None:
        closure()
        failed = "the search failed" if self._fails(self._steps) else None
        state = "stuck" if failed else "moved"
        self.report = type("Report", (), {"failed": failed, "state": state, "evaluation_seconds": 0.0})
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]


def train_stuck(fails: Callable[[int], bool], options: Options, out: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    phase = PhaseTwo("under test", lambda *_: Stuck(fails), 1.0)  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(dict_of_phases(monkeypatch), "stuck", phase)
    return cl.train_two_phase(out=out, **options | {"phase_two": "stuck"})


def test_two_failed_steps_resort_to_adam(tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = train_stuck(lambda _: True, tiny, tmp_path / "run", monkeypatch)
    assert made.summary is not None
    assert made.summary["safe_resort"] == {"epoch": 6, "reason": "the search failed"}
    ours, theirs = rows_of(made, "two-phase"), rows_of(made, "adam-constant")
    assert [row["phase"] for row in ours] == ["start", *["adam"] * 4, "stuck", "stuck", *["adam"] * 6]
    assert losses(ours[4:7]) == [ours[4]["train_loss"]] * 3
    # The failed steps cost one evaluation each and moved nothing: from there on it is Adam as if never left.
    assert losses(ours[7:]) == losses(theirs[5:11])
    assert made.summary["two_phase"]["cost_breakdown"] == {"adam": 10.0, "stuck": 2.0}


def test_a_single_failure_is_no_reason(tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = train_stuck(lambda step: step % 2 == 0, tiny, tmp_path / "run", monkeypatch)
    assert made.summary is not None
    assert made.summary["safe_resort"] is None
    assert {row["phase"] for row in rows_of(made, "two-phase")[5:]} == {"stuck"}


class Scripted(Stuck):
    """Moves the weights at every step by so much."""

    def __init__(self, params: Iterable[nn.Parameter], move: float) -> None:
        super().__init__(lambda _: False)
        self._params = list(params)
        self._move = move

    def step(self, closure: Callable[[], Tensor]) -> None:
        super().step(closure)
        with torch.no_grad():
            for parameter in self._params:
                parameter.mul_(1.0 + self._move)


def train_scripted(move: float, tiny: Options, out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Run:
    phase = PhaseTwo("under test", lambda params, *_: Scripted(params, move))  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(dict_of_phases(monkeypatch), "scripted", phase)
    return cl.train_two_phase(out=out, **tiny | {"phase_two": "scripted", "no_baseline": True} | more)


def test_a_plateau_is_no_reason_to_resort_to_adam(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train_scripted(0.0, tiny, tmp_path / "run", monkeypatch, epochs=60)
    assert made.summary is not None
    assert made.summary["safe_resort"] is None
    later = [row["phase"] for row in rows_of(made, "two-phase")[5:]]
    assert set(later) == {"scripted"}
    assert len(later) > 50


def test_a_gradient_norm_above_adams_resorts_to_adam(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train_scripted(0.2, tiny, tmp_path / "run", monkeypatch, epochs=40)
    rows = rows_of(made, "two-phase")
    largest = max(row["gradient_norm"] for row in rows if row["phase"] == "adam" and row["epoch"] <= 4)
    above = [row["epoch"] for row in rows if row["phase"] == "scripted" and row["gradient_norm"] > largest]
    assert made.summary is not None
    resort = made.summary["safe_resort"]
    assert resort["epoch"] == above[-1]
    assert above[-10:] == list(range(above[-1] - 9, above[-1] + 1))
    assert resort["reason"].startswith(f"the gradient norm has been above Adam's largest, {largest:.3g}, for 10 steps")
    assert {row["phase"] for row in rows if row["epoch"] > resort["epoch"]} == {"adam"}


def test_a_growing_sample_is_charged_by_its_share(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Watched(ProgressiveLBFGS):
        def step(self, closure: SampleClosure) -> Tensor:  # type: ignore[override]
            def watched(rows: Tensor) -> Tensor:
                sizes.append(len(rows))
                return closure(rows)

            return super().step(watched)

    def build(params: Iterable[nn.Parameter], adam: torch.optim.Adam, examples: int) -> ProgressiveLBFGS:
        return Watched(params, examples=examples, sample_size=20, theta=0.5)

    monkeypatch.setitem(dict_of_phases(monkeypatch), "sampled", PhaseTwo("under test", build, sampled=True))
    made = cl.train_two_phase(out=tmp_path / "run", **tiny | {"phase_two": "sampled", "no_baseline": True})
    assert made.summary is not None
    breakdown = made.summary["two_phase"]["cost_breakdown"]
    assert breakdown["sampled"] == pytest.approx(sum(sizes) / TRAIN_SIZE, rel=1e-12)
    assert 6.0 < breakdown["sampled"] <= 8.0
    assert len(sizes) > 30  # Of 7 examples or fewer at first.
    # What is written down is the loss over all examples, not over the sample.
    last = made.checkpoints[-1]
    problem = build_problem(str(tiny["model"]), str(tiny["dataset"]), "mse", device="cpu")
    problem.model.load_state_dict(load_file(last))
    assert rows_of(made, "two-phase")[-1]["train_loss"] == pytest.approx(problem.objective.value(), rel=1e-6)


def test_a_network_too_large_for_a_dense_matrix_is_refused_before_any_work(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = dataclasses.replace(_PHASES["ssbroyden-adam"], max_parameters=PARAMETERS - 1)
    monkeypatch.setitem(dict_of_phases(monkeypatch), "ssbroyden-adam", phase)
    message = f"takes at most {PARAMETERS - 1} parameters, but the model has {PARAMETERS}. Choose another --phase-two"
    with pytest.raises(cl.MisuseError, match=message):
        cl.train_two_phase(out=tmp_path / "run", **tiny | {"phase_two": "ssbroyden-adam"})
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_fails_and_keeps_what_was_done(tiny: Options, tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.raises(cl.FailureError, match=r"became infinite or NaN in epoch 1 of .*run'\. Try a smaller --lr"):
            cl.train_two_phase(out=tmp_path / "run", resume=resume, **tiny | {"lr": 1e30})
    run = Run.open(tmp_path / "run")
    assert run.summary is not None
    assert (run.summary["two_phase"]["diverged"], run.summary["two_phase"]["epoch"]) == (1, 0)
    assert (run.summary["switch"], run.summary["baselines"]) == (None, {})
    assert [(row["run"], row["epoch"]) for row in run.metrics] == [("two-phase", 0), ("adam-constant", 0)]
    assert run.checkpoints == [run.checkpoint_path(0)]


def test_a_baseline_that_diverges_counts_at_its_best_epoch(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Trajectory.measure

    def explode(self: Trajectory) -> tuple[float, float]:
        if self.name == "adam-cosine" and self.epoch == 3:
            self.stand(math.nan, math.nan)
        return measure(self)

    monkeypatch.setattr(Trajectory, "measure", explode)
    made = cl.train_two_phase(out=tmp_path / "run", **tiny)
    rows = rows_of(made, "adam-cosine")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert made.summary is not None
    cosine = made.summary["baselines"]["adam-cosine"]
    assert cosine["epoch"] < cosine["diverged"] == 3
    assert "diverged" not in made.summary["two_phase"]
    sentence = (
        "Adam, cosine rate diverged: in epoch 3 its loss or gradient became infinite or NaN. Its best weights, of"
    )
    assert summary_lines([made])[0].startswith(sentence)
    assert len(rows_of(made, "adam-constant")) > 3


# Around the run


def test_the_callers_random_state_is_left_alone(tiny: Options, models: Path, tmp_path: Path) -> None:
    options = tiny | {"model": f"{models}:moody", "epochs": 6, "switch_epoch": 3}
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        runs.append(cl.train_two_phase(out=tmp_path / str(seed), **options))
        assert torch.equal(torch.get_rng_state(), before)
    # And the other way round: dropout follows the run's seed, not the caller's.
    assert losses(runs[0].metrics) == losses(runs[1].metrics)


def test_frozen_parameters_and_buffers(tiny: Options, models: Path, tmp_path: Path) -> None:
    options = tiny | {"model": f"{models}:moody"}
    made = cl.train_two_phase(out=tmp_path / "run", **options)
    first, last = load_file(made.checkpoints[0]), load_file(made.checkpoints[-1])
    assert torch.equal(first["2.weight"], last["2.weight"])
    assert not torch.equal(first["3.running_mean"], last["3.running_mean"])
    assert made.summary is not None
    # The best epoch comes back with its own buffers: otherwise its loss would be another.
    for name in BASELINES:
        best = min(losses(rows_of(made, name)))
        assert made.summary["baselines"][name]["train_loss"] == pytest.approx(best, rel=3e-5)


def test_probe_every(tiny: Options, tmp_path: Path) -> None:
    options = tiny | {"probe_every": 3, "epochs": 9, "no_baseline": True}
    made = cl.train_two_phase(out=tmp_path / "run", **options)
    last = rows_of(made, "two-phase")[-1]["epoch"]
    expected = sorted({*range(0, last + 1, 3), 4, last})
    assert [row["epoch"] for row in made.probe] == expected
    assert [row["checkpoint"] for row in made.probe] == [f"epoch-{epoch:05d}.safetensors" for epoch in expected]
    by_epoch = {row["epoch"]: row["train_loss"] for row in made.metrics}
    for row in made.probe:
        assert row["train_loss"] == by_epoch[row["epoch"]]


def test_start_switch_and_end_are_probed_by_default(tiny: Options, tmp_path: Path) -> None:
    made = cl.train_two_phase(out=tmp_path / "run", **tiny | {"probe_every": None, "no_baseline": True})
    assert [row["epoch"] for row in made.probe] == [0, 4, made.metrics[-1]["epoch"]]
    assert len(made.checkpoints) > 3


def test_several_seeds(tiny: Options, tmp_path: Path) -> None:
    steps: list[Progress] = []
    options = tiny | {"epochs": 6, "seed": 3, "seeds": 2}
    parent = cl.train_two_phase(out=tmp_path / "run", progress=steps.append, **options)
    assert Run.open(parent.path).config == cl.TwoPhaseConfig.of(options).as_dict()
    assert [member.path.name for member in parent.members] == ["seed-3", "seed-4"]
    assert {step.task.partition(":")[0] for step in steps} == {"seed 3", "seed 4"}
    for seed, member in zip((3, 4), parent.members, strict=True):
        alone = cl.train_two_phase(out=tmp_path / str(seed), **options | {"seed": seed, "seeds": 1})
        assert member.config == alone.config
        assert losses(member.metrics) == losses(alone.metrics)
    summary = parent.summary
    assert summary is not None
    assert summary["schema"] == 1
    assert summary["seeds"] == [3, 4]
    assert summary["runs"] == ["seed-3", "seed-4"]
    for index, member in enumerate(parent.members):
        assert member.summary is not None
        assert summary["two_phase"][index] == member.summary["two_phase"]
        assert summary["baselines"][index] == member.summary["baselines"]


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vit-mpl"}, "unknown model 'vit-mpl'. Did you mean 'vit-mlp'"),
        ({"dataset": "npz:/nowhere.npz"}, "no file at"),
        ({"loss": "mes"}, "unknown loss 'mes'. Did you mean 'mse'"),
        ({"train_size": 10**6}, "1000000"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"epochs": 0}, "expected epochs"),
    ],
)
def test_misuse_writes_nothing(change: Options, message: str, seeds: int, tiny: Options, tmp_path: Path) -> None:
    with pytest.raises(cl.MisuseError, match=message):
        cl.train_two_phase(out=tmp_path / "run", **tiny | change | {"seeds": seeds})
    assert not (tmp_path / "run").exists()


def test_a_taken_directory_is_refused(tiny: Options, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    in_use, is_file = (
        "exists already. Choose another --out, or go on with the run in it by",
        "is a file: .* another --out",
    )
    for taken, message in ((tmp_path, in_use), (tmp_path / "note.txt", is_file)):
        with pytest.raises(cl.MisuseError, match=message):
            cl.train_two_phase(out=taken, **tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_an_empty_directory_is_taken(tiny: Options, tmp_path: Path) -> None:
    assert cl.train_two_phase(out=tmp_path, **tiny | {"epochs": 5, "no_baseline": True}).summary is not None


@pytest.mark.parametrize(
    ("model", "dataset", "beginning"),
    [
        ("vit-mlp", "digits", "digits-vit-mlp-"),
        ("/somewhere/models.py:small", "npz:/somewhere/data.npz", "npz-small-"),
        ("package.module:net", "/somewhere/data.py:load", "data-net-"),
        ("package.module:net", "package.module:load", "package.module-net-"),
    ],
)
def test_default_directory_is_one_folder_under_runs(
    model: str, dataset: str, beginning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = default_directory(cl.TwoPhaseConfig(model=model, dataset=dataset))
    assert path.parent == Path("runs")
    assert path.name.startswith(beginning)


def test_progress_tells_the_task_and_ends_at_its_total(tiny: Options, tmp_path: Path) -> None:
    steps: list[Progress] = []
    cl.train_two_phase(out=tmp_path / "run", progress=steps.append, **tiny | {"probe_every": None})
    tasks = list(dict.fromkeys(step.task for step in steps))
    assert tasks == ["two-phase", "adam-constant", "adam-cosine", "probe", "plane"]
    for task in tasks:
        done = [step.done for step in steps if step.task == task]
        assert done == sorted(done)
        assert done[-1] <= next(step.total for step in steps if step.task == task) + ROUNDING
