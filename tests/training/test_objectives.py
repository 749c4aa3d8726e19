"""Runs of any objective: by name, by factory and of an object at hand; what is recorded, resumed and refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import convexlab as cl
import convexlab.training.second_phase as rules
from convexlab.problems import Problem
from convexlab.progress import Progress
from convexlab.reporting import write_report
from convexlab.runs import Run
from convexlab.training.config import FROM_PYTHON
from tests.slowly import mostly_slow
from tests.tiny import without_seconds

Options = dict[str, Any]
Rows = list[dict[str, Any]]

QUICK: Options = {"epochs": 12, "switch_epoch": 4, "lr": 1e-2, "probe_every": 0}
INFORMED: Options = QUICK | {"objective": "pinn-convection", "train_size": 20, "epochs": 40, "switch_epoch": 15}
BASELINES = ("adam-constant", "adam-cosine")

FACTORIES = """
import convexlab as cl
from tests.training import test_objectives

def line(seed=0):
    return test_objectives.line(seed)

def odd(seed=0, train_size=24, batch_size=6):
    return test_objectives.odd(seed, train_size, batch_size)

def nothing():
    return None
"""


def data(seed: int = 0, size: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator)
    return x, torch.sin(x.sum(dim=1, keepdim=True))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def line(seed: int = 0) -> cl.Objective:
    """Three mini-batches, the last of another size: the objective's batches are Adam's."""
    x, y = data(seed)
    return cl.Objective(network(seed), [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])], nn.MSELoss())


def odd(seed: int = 0, train_size: int = 24, batch_size: int = 6) -> cl.Problem:
    """Its validation gives a number of a name that nothing else has."""
    x, y = data(seed, train_size)
    model = network(seed)
    objective = cl.Objective(model, [(x, y)], nn.MSELoss())
    batches = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, train_size, batch_size)]

    def validate() -> dict[str, float]:
        assert not model.training
        return {"flux of μ": float(model(x).detach().abs().mean())}

    return Problem(model, objective, minibatches=batches, validate=validate, about="a sine")


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "factories.py"
    path.write_text(FACTORIES, encoding="utf-8")
    return path


def rows_of(run: Run, name: str) -> Rows:
    return [row for row in run.metrics if row["run"] == name]


def losses(rows: Rows) -> list[float]:
    return [row["train_loss"] for row in rows]


def summary_of(run: Run) -> dict[str, Any]:
    assert run.summary is not None
    return run.summary


def contents(run: Run) -> dict[str, Any]:
    """Everything but what a clock decides."""
    return {
        "config": run.config,
        "metrics": without_seconds(run.metrics),
        "summary": without_seconds(run.summary),
        "probe": without_seconds(run.probe),
        "oracle": without_seconds(run.oracle),
        "weights": {
            path.name: {name: tensor.tolist() for name, tensor in load_file(path).items()} for path in run.checkpoints
        },
        "members": [(member.path.name, contents(member)) for member in run.members if member.path != run.path],
    }


def interrupt_after(reports: int) -> Callable[[Progress], None]:
    left = iter(range(reports))

    def listen(step: Progress) -> None:
        if not step.planned and next(left, None) is None:
            raise KeyboardInterrupt

    return listen


# By name


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return cl.train_two_phase(out=tmp_path_factory.mktemp("runs") / "run", **INFORMED | {"probe_every": None})


def test_by_name_config_and_summary(informed: Run) -> None:
    assert informed.config.items() >= {"objective": "pinn-convection", "model": None, "dataset": None}.items()
    assert informed.config["loss"] is None
    summary = summary_of(informed)
    assert summary["model"] == {"name": "pinn-convection", "parameters": 7851}
    assert summary["dataset"]["train_size"] == 20
    assert summary["loss"]
    assert summary["batch_size"] is None
    assert summary["switch"]["epoch"] == 15
    assert summary["measures"] == ["validation_loss", "relative_error"]
    assert set(summary["baselines"]) == set(BASELINES)
    for outcome in (summary["two_phase"], *summary["baselines"].values()):
        assert outcome["validation_loss"] > 0
        assert outcome["relative_error"] > 0
    # A step of Adam sees all points: an epoch.
    assert summary["two_phase"]["cost_breakdown"]["adam"] == 15
    assert 38 < summary["two_phase"]["gradient_equivalents"] <= 40 + 1e-12


def test_by_name_the_rows(informed: Run) -> None:
    for name in ("two-phase", *BASELINES):
        rows = rows_of(informed, name)
        assert [row["epoch"] for row in rows] == list(range(len(rows)))
        assert losses(rows)[-1] < losses(rows)[0]
        validated = [row["epoch"] for row in rows if "relative_error" in row]
        assert {0, rows[-1]["epoch"]} <= set(validated)
        assert len(validated) < len(rows)
        assert validated == [row["epoch"] for row in rows if "validation_loss" in row]
    assert "relative_error" in rows_of(informed, "two-phase")[15]
    assert losses(rows_of(informed, "two-phase")[:16]) == losses(rows_of(informed, "adam-constant")[:16])


def test_by_name_checkpoints_say_what_they_are_of_and_are_probed(informed: Run, tmp_path: Path) -> None:
    assert [row["epoch"] for row in informed.probe] == [0, 15, rows_of(informed, "two-phase")[-1]["epoch"]]
    by_epoch = {row["epoch"]: row["train_loss"] for row in rows_of(informed, "two-phase")}
    for row in informed.probe:
        assert row["train_loss"] == pytest.approx(by_epoch[row["epoch"]], rel=1e-6)
    (again,) = cl.probe(informed.checkpoints[-1], max_steps=2, density_probes=1, out=tmp_path / "p").rows
    assert again["train_loss"] == pytest.approx(informed.probe[-1]["train_loss"], rel=1e-6)


def test_named_numbers_reach_the_page(informed: Run, tmp_path: Path) -> None:
    page = write_report([informed], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Relative error" in page
    assert "Validation loss" in page
    assert "accuracy" not in page.lower()


def test_regression_by_name_takes_batch_size_and_progressive_samples(tmp_path: Path) -> None:
    options = QUICK | {"train_size": 40, "batch_size": 10, "phase_two": "lbfgs-adam-progressive"}
    run = cl.train_two_phase(out=tmp_path / "run", objective="friedman", **options)
    assert summary_of(run)["batch_size"] == 10
    assert summary_of(run)["dataset"] == {"name": "Friedman's first function", "train_size": 40}
    assert {row["phase"] for row in rows_of(run, "two-phase")[5:]} == {"lbfgs-adam-progressive"}


def test_in_float64(tmp_path: Path) -> None:
    options = QUICK | {"train_size": 40, "dtype": "float64"}
    run = cl.train_two_phase(out=tmp_path / "run", objective="friedman", **options)
    assert summary_of(run)["environment"]["dtype"] == "float64"
    assert {tensor.dtype for tensor in load_file(run.checkpoints[-1]).values()} == {torch.float64}


# By factory


def test_a_factory_of_an_objective(factories: Path, tmp_path: Path) -> None:
    run = cl.train_two_phase(out=tmp_path / "run", objective=f"{factories}:line", **QUICK | {"probe_every": None})
    summary = summary_of(run)
    assert (summary["model"]["name"], summary["dataset"]["train_size"]) == ("line", 24)
    assert summary["measures"] == []
    assert len(run.probe) == 3
    # Its batches, in their order, are Adam's.
    subject = line()
    adam = torch.optim.Adam(subject.model.parameters(), lr=1e-2)
    for row in rows_of(run, "two-phase")[1:5]:
        for x, y in subject.data:
            adam.zero_grad()
            nn.functional.mse_loss(subject.model(x), y).backward()
            adam.step()
        assert row["train_loss"] == pytest.approx(subject.value(), rel=1e-6)


def test_a_validation_of_an_odd_name(factories: Path, tmp_path: Path) -> None:
    options = QUICK | {"objective": f"{factories}:odd", "train_size": 18, "batch_size": 5}
    run = cl.train_two_phase(out=tmp_path / "run", **options)
    summary = summary_of(run)
    name = "flux of μ"
    assert summary["measures"] == [name]
    assert summary["two_phase"][name] > 0
    assert all(outcome[name] > 0 for outcome in summary["baselines"].values())
    assert summary["dataset"]["train_size"] == 18
    for which in ("two-phase", *BASELINES):
        rows = rows_of(run, which)
        assert name in rows[0]
        assert name in rows[-1]
    page = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "lux of μ" in page


@pytest.mark.parametrize("factory", [line, odd])
def test_a_factory_function_is_the_same_as_its_name(
    factory: Callable[..., Any], factories: Path, tmp_path: Path
) -> None:
    by_name = cl.train_two_phase(out=tmp_path / "a", objective=f"{factories}:{factory.__name__}", **QUICK)
    by_hand = cl.train_two_phase(out=tmp_path / "b", objective=factory, **QUICK)
    assert without_seconds(by_hand.metrics) == without_seconds(by_name.metrics)
    assert by_hand.config["objective"] == FROM_PYTHON
    assert by_name.config["objective"] == f"{factories}:{factory.__name__}"


def test_seeds(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 8, "probe_every": None}
    parent = cl.train_two_phase(out=tmp_path / "run", objective=odd, seeds=2, **options)
    assert [member.path.name for member in parent.members] == ["seed-0", "seed-1"]
    for seed, member in enumerate(parent.members):
        alone = cl.train_two_phase(out=tmp_path / str(seed), objective=odd, seed=seed, **options | {"probe_every": 0})
        assert losses(member.metrics) == losses(alone.metrics)
        assert len(member.probe) == 3
    assert losses(parent.members[0].metrics) != losses(parent.members[1].metrics)
    assert "lux of μ" in write_report([parent]).read_text(encoding="utf-8")


# At hand


@pytest.mark.parametrize("factory", [line, odd])
def test_an_object_at_hand_is_trained_where_it_is(factory: Callable[..., Any], tmp_path: Path) -> None:
    subject = factory()
    run = cl.train_two_phase(out=tmp_path / "run", objective=subject, **QUICK | {"probe_every": 3})
    assert run.config["objective"] == FROM_PYTHON
    by_factory = cl.train_two_phase(out=tmp_path / "other", objective=factory, **QUICK)
    assert without_seconds(run.metrics) == without_seconds(by_factory.metrics)
    # The model has the weights at the end.
    stored = load_file(run.checkpoints[-1])
    assert all(torch.equal(stored[name], tensor) for name, tensor in subject.model.state_dict().items())
    assert [row["epoch"] for row in run.probe] == sorted({0, 3, 4, 6, 9, 12, rows_of(run, "two-phase")[-1]["epoch"]})[
        : len(run.probe)
    ]
    by_epoch = {row["epoch"]: row["train_loss"] for row in rows_of(run, "two-phase")}
    assert all(row["train_loss"] == pytest.approx(by_epoch[row["epoch"]], rel=1e-6) for row in run.probe)


def test_training_goes_on_from_the_weights_at_hand(tmp_path: Path) -> None:
    subject = line()
    first = cl.train_two_phase(out=tmp_path / "a", objective=subject, **QUICK)
    second = cl.train_two_phase(out=tmp_path / "b", objective=subject, **QUICK)
    assert second.metrics[0]["train_loss"] == pytest.approx(rows_of(first, "two-phase")[-1]["train_loss"], rel=1e-6)


# Resumed


BUILD: dict[str, Callable[[Path], Any]] = {
    "name": lambda _: "friedman",
    "factory": lambda folder: f"{folder / 'factories.py'}:odd",
    "function": lambda _: odd,
    "object": lambda _: odd(),
}
RESUMED = QUICK | {"probe_every": None, "oracle_every": 5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any], int]]:
    """Trains without an interruption: returns the factories' folder, what came out, and the number of reports."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "factories.py").write_text(FACTORIES, encoding="utf-8")

    @functools.cache
    def train(which: str) -> tuple[Path, dict[str, Any], int]:
        steps: list[Progress] = []
        options = RESUMED | ({"train_size": 40} if which == "name" else {})
        run = cl.train_two_phase(out=folder / which, objective=BUILD[which](folder), progress=steps.append, **options)
        return folder, contents(run), sum(not step.planned for step in steps)

    return train


@pytest.mark.parametrize(
    ("which", "saving", "share"),
    mostly_slow(
        [
            *(("object", "saved_every_epoch", share) for share in (0.05, 0.6, 0.9)),
            ("object", "hardly_ever_saved", 0.6),
            ("name", "saved_every_epoch", 0.6),
            *((which, "saved_every_epoch", share) for which in ("factory", "object") for share in (0.0, 0.3)),
            *(("function", "hardly_ever_saved", share) for share in (0.3, 0.9)),
            ("object", "hardly_ever_saved", 0.05),
            *(("factory", "saved_every_epoch", 0.9), ("name", "saved_every_epoch", 0.05)),
        ],
        quick=5,
    ),
)
def test_interrupted_and_resumed(
    which: str,
    saving: str,
    share: float,
    whole: Callable[[str], tuple[Path, dict[str, Any], int]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder, expected, reports = whole(which)
    request.getfixturevalue(saving)
    options = RESUMED | ({"train_size": 40} if which == "name" else {})
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(
            out=tmp_path / "run",
            objective=BUILD[which](folder),
            progress=interrupt_after(int(share * reports)),
            **options,
        )
    # An object is built anew by whoever goes on.
    again = {"objective": BUILD[which](folder)} if which in ("function", "object") else {}
    resumed = contents(cl.train_two_phase(out=tmp_path / "run", resume=True, **again))
    for part, content in expected.items():
        assert resumed[part] == content


def test_the_object_that_was_interrupted_goes_on_from_its_start(tmp_path: Path) -> None:
    whole = cl.train_two_phase(out=tmp_path / "whole", objective=odd(), **QUICK)
    subject = odd()
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", objective=subject, progress=interrupt_after(9), **QUICK)
    assert contents(cl.train_two_phase(out=tmp_path / "run", resume=True, objective=subject)) == contents(whole)


def test_without_its_object_a_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", objective=odd(), progress=interrupt_after(3), **QUICK)
    for options in ({}, {"objective": "friedman"}):
        with pytest.raises(cl.MisuseError, match=r"was begun with an objective from Python. Go on with it there"):
            cl.train_two_phase(out=tmp_path / "run", resume=True, **options)


def test_resuming_a_finished_run_leaves_files_and_gives_the_model_its_weights(tmp_path: Path) -> None:
    options = QUICK | {"probe_every": None, "no_baseline": True}
    run = cl.train_two_phase(out=tmp_path / "run", objective=odd(), **options)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    subject = odd()
    cl.train_two_phase(out=run.path, resume=True, objective=subject)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    stored = load_file(run.checkpoints[-1])
    assert all(torch.equal(stored[name], tensor) for name, tensor in subject.model.state_dict().items())


# What decides and what gives up


@pytest.mark.parametrize("detector", ["gradient-norm-peak", "algorithm-1", "curvature"])
def test_detectors_see_a_whole_batch(detector: str, tmp_path: Path) -> None:
    options = INFORMED | {"switch_epoch": None, "detector": detector, "epochs": 60, "no_baseline": True}
    run = cl.train_two_phase(out=tmp_path / "run", **options)
    adam = [row for row in rows_of(run, "two-phase") if "told" in row]
    norms = [row["gradient_norm"] for row in rows_of(run, "two-phase")]
    # What a step on the whole batch shows is the gradient where it began: where the epoch before ended.
    told = [row["told"]["gradient_norm"] for row in adam]
    assert told == pytest.approx(norms[: len(adam)], rel=1e-4)
    assert summary_of(run)["switch"]["detector"] == detector


@pytest.mark.slow
def test_every_switch_of_the_oracle_is_a_run(tmp_path: Path) -> None:
    run = cl.train_two_phase(out=tmp_path / "run", **INFORMED | {"oracle_every": 15})
    assert [row["switch_epoch"] for row in run.oracle] == [15, 30]
    same = dict(run.oracle[0]) | {"seconds": 0.0, "vector_seconds": 0.0}
    two_phase = summary_of(run)["two_phase"]
    assert {name: same[name] for name in two_phase} == two_phase | {"seconds": 0.0, "vector_seconds": 0.0}


def test_a_second_phase_that_fails_goes_back_to_adam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_failure", lambda optimizer: "made to fail")
    run = cl.train_two_phase(out=tmp_path / "run", **INFORMED)
    resort = summary_of(run)["safe_resort"]
    assert resort == {"epoch": 15 + 2, "reason": "made to fail"}
    phases = [row["phase"] for row in rows_of(run, "two-phase")]
    assert set(phases[16:18]) == {summary_of(run)["phase_two"]} == {"lbfgs-adam-scaled"}
    assert set(phases[18:]) == {"adam"}
    assert 39 < summary_of(run)["two_phase"]["gradient_equivalents"] <= 40 + 1e-12


# Thousands of steps, each an epoch


class Valley(nn.Module):
    """Two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))


SCALES = torch.tensor([1.0, 0.01], dtype=torch.float64)


def valley() -> cl.Objective:
    return cl.Objective.from_batch_loss(
        Valley(), [SCALES], lambda model, scales: (scales * model.place.cosh()).sum(), weight=lambda batch: 1
    )


def test_a_thousand_steps_are_recorded_in_at_most_four_hundred_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = valley()
    evaluations, training = [0], [0]
    value_and_gradient, training_loss = cl.Objective.value_and_gradient, cl.Objective.training_loss

    def recorded(self: cl.Objective, *arguments: Any) -> Any:
        evaluations[0] += 1
        return value_and_gradient(self, *arguments)

    def trained(self: cl.Objective, *arguments: Any) -> Any:
        training[0] += 1
        return training_loss(self, *arguments)

    monkeypatch.setattr("convexlab.training.two_phase._RECORDS", 80)
    monkeypatch.setattr(cl.Objective, "value_and_gradient", recorded)
    monkeypatch.setattr(cl.Objective, "training_loss", trained)
    options: Options = {"epochs": 1000, "switch_epoch": 900, "lr": 5e-3, "probe_every": 0}
    run = cl.train_two_phase(out=tmp_path / "run", objective=subject, **options)
    assert len(run.metrics) <= 400
    for name in ("two-phase", *BASELINES):
        epochs = [row["epoch"] for row in rows_of(run, name)]
        assert epochs == sorted(set(epochs))
        assert 0 in epochs
        assert len(epochs) <= 100
    assert 900 in [row["epoch"] for row in rows_of(run, "two-phase")]
    assert (
        rows_of(run, "adam-cosine")[-1]["epoch"]
        == summary_of(run)["baselines"]["adam-cosine"]["cost_breakdown"]["adam"]
    )
    assert 10 * evaluations[0] < 1.2 * training[0]


@pytest.mark.slow
def test_many_steps_go_on_the_same_after_an_interruption_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three steps one is recorded and told; checkpoints and the oracle's switches fall in between."""
    monkeypatch.setattr("convexlab.training.two_phase._RECORDS", 20)
    options: Options = {"epochs": 50, "lr": 2e-1, "probe_every": 0, "checkpoint_every": 7, "oracle_every": 10}
    options |= {"detector": "gradient-norm-peak"}
    steps: list[Progress] = []
    whole = cl.train_two_phase(out=tmp_path / "whole", objective=valley, progress=steps.append, **options)
    told = [row["epoch"] for row in whole.metrics if "told" in row]
    assert all(epoch % 3 == 0 for epoch in told)
    assert {7, 10, 14} <= {row["epoch"] for row in rows_of(whole, "adam-constant")}
    reports = sum(not step.planned for step in steps)
    for cut in range(2, reports, reports // 6):
        out = tmp_path / str(cut)
        with pytest.raises(KeyboardInterrupt):
            cl.train_two_phase(out=out, objective=valley, progress=interrupt_after(cut), **options)
        assert contents(cl.train_two_phase(out=out, resume=True, objective=valley)) == contents(whole)


def test_after_a_safe_resort_the_last_of_many_steps_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convexlab.training.two_phase._RECORDS", 7)
    monkeypatch.setattr(rules, "_failure", lambda optimizer: "made to fail")
    subject = valley()
    run = cl.train_two_phase(out=tmp_path / "run", objective=subject, **QUICK | {"epochs": 60, "no_baseline": True})
    assert summary_of(run)["safe_resort"] is not None
    last = rows_of(run, "two-phase")[-1]
    assert last["phase"] == "adam"
    assert last["epoch"] % 9 != 0
    # The model at hand has the weights at the end.
    assert last["train_loss"] == pytest.approx(subject.value(), rel=1e-12)


# Misuse: before any work, with nothing left behind


def validated(validate: Callable[[], Any]) -> cl.Problem:
    subject = line()
    return Problem(subject.model, subject, validate=validate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objective": "friedman", "model": "vit-mlp"},
            "expected no model beside it, got 'vit-mlp'. Leave one of them",
        ),
        ({"objective": line, "dataset": "digits"}, "expected no dataset beside it, got 'digits'"),
        ({"objective": "pinn-convektion"}, "unknown objective 'pinn-convektion'. Did you mean 'pinn-convection'?"),
        ({"objective": line(), "batch_size": 4}, "expected no batch_size, got 4. Pass a factory that takes it"),
        ({"objective": odd(), "train_size": 4}, "expected no train_size, got 4. Pass a factory that takes it"),
        ({"objective": line(), "seeds": 2}, "has one start: expected seeds=1, got 2. Pass a factory that takes seed"),
        ({"objective": "pinn-convection", "batch_size": 4}, "'pinn-convection' takes no batch_size, got 4"),
        ({"objective": line, "train_size": 4}, "'line' takes no train_size, got 4: it decides that itself. Leave"),
        ({"objective": "FILE:nothing"}, "nothing' returned NoneType: expected a convexlab.Objective or a convexlab.Pr"),
        ({"objective": lambda: None}, "returned NoneType: expected a convexlab.Objective or a convexlab.Problem"),
        ({"objective": 3}, "expected an objective by name, a factory of one, a convexlab.Objective or a"),
        (
            {"objective": validated(lambda: {"seconds": 1.0})},
            "the validation returned 'seconds', which a run records itself. Choose another name.",
        ),
        ({"objective": validated(lambda: 0.5)}, "expected the validation to return a mapping of names to numbers, got"),
        ({"objective": validated(lambda: {1: 0.5})}, "expected the validation to return a mapping of names to numbers"),
        (
            {"objective": validated(lambda: {"error": None})},
            "expected the validation to return a mapping of names to n",
        ),
        (
            {"objective": line, "phase_two": "lbfgs-adam-progressive"},
            "draws samples of the training examples: expected mini-batches that are rows in memory. Choose another",
        ),
        (
            {"objective": "pinn-burgers", "phase_two": "lbfgs-adam-progressive"},
            "expected mini-batches that are rows in memory",
        ),
    ],
)
@pytest.mark.parametrize("seeds", [1, 2])
def test_misuse_leaves_nothing(options: Options, message: str, seeds: int, factories: Path, tmp_path: Path) -> None:
    if isinstance(options["objective"], str):
        options = options | {"objective": options["objective"].replace("FILE", str(factories))}
    if seeds > 1 and isinstance(options["objective"], Problem | cl.Objective):
        pytest.skip("has one start")
    out = tmp_path / "run"
    with pytest.raises(cl.MisuseError) as raised:
        cl.train_two_phase(out=out, **QUICK | {"seeds": seeds} | options)
    assert message in str(raised.value)
    assert not out.exists()


def test_a_factory_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> cl.Problem:
        raise ValueError("no luck today")

    with pytest.raises(cl.FailureError, match="broken' raised ValueError: no luck today"):
        cl.train_two_phase(out=tmp_path / "run", objective=broken, **QUICK)
    assert not (tmp_path / "run").exists()
