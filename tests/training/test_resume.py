"""Interrupted anywhere and resumed, a run ends with the numbers of one that was not interrupted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import convexlab as cl
from convexlab.progress import Progress
from convexlab.runs import Run, read_json
from convexlab.training import phase_two_names
from convexlab.training.journal import Journal
from tests.slowly import mostly_slow
from tests.tiny import without_seconds

Options = dict[str, Any]

pytestmark = pytest.mark.usefixtures("saved_every_epoch")


@functools.cache
def _uninterrupted(folder: Path, options: tuple[tuple[str, Any], ...]) -> tuple[Run, list[Progress]]:
    steps: list[Progress] = []

    def listen(step: Progress) -> None:
        if not step.planned:
            steps.append(step)

    return cl.train_two_phase(out=folder, progress=listen, **dict(options)), steps


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Options], tuple[Run, list[Progress]]]:
    base = tmp_path_factory.mktemp("whole")

    def train(options: Options) -> tuple[Run, list[Progress]]:
        key = tuple(sorted(options.items(), key=lambda item: item[0]))
        return _uninterrupted(base / f"{hash(key):x}", key)

    return train


def interrupt_after(reports: int) -> Callable[[Progress], None]:
    left = iter(range(reports))

    def listen(step: Progress) -> None:
        if not step.planned and next(left, None) is None:
            raise KeyboardInterrupt

    return listen


def contents(run: Run) -> dict[str, Any]:
    """Everything in the directory but what a clock decides."""
    tensors = {path.relative_to(run.path): load_file(path) for path in sorted(run.path.rglob("*.safetensors"))}
    return {
        "config": run.config,
        "metrics": without_seconds(run.metrics),
        "summary": without_seconds(run.summary),
        "probe": without_seconds(run.probe),
        "landscape": without_seconds(read_json(run.landscape_path)) if run.landscape_path.exists() else None,
        "members": [(member.path.name, contents(member)) for member in run.members if member.path != run.path],
        "tensors": {
            str(path): {name: value.tolist() for name, value in read.items()} for path, read in tensors.items()
        },
    }


# The reports of a whole run, in order: 0 the start, 1-4 Adam, from 5 the second phase, then the baselines, the probe,
# the plane.
@pytest.mark.parametrize(
    ("detector", "where"),
    mostly_slow(
        [
            *((None, place) for place in ("adam", "phase-two", "adam-cosine", "probe")),
            ("algorithm-1", "switch"),
            *((None, place) for place in ("start", "switch", "adam-constant", "plane")),
            ("algorithm-1", "adam"),
        ],
        quick=5,
    ),
)
def test_interrupted_and_resumed(
    detector: str | None,
    where: str,
    tiny: Options,
    tmp_path: Path,
    uninterrupted: Callable[[Options], tuple[Run, list[Progress]]],
) -> None:
    options = tiny | {"probe_every": None if where in ("probe", "plane") else 0}
    if detector is not None:
        options |= {"switch_epoch": None, "detector": detector}
    whole, steps = uninterrupted(options)
    assert whole.summary is not None
    switch = whole.summary["switch"]["epoch"]
    tasks = [step.task for step in steps]
    reports = {"start": 0, "adam": 1, "switch": switch, "phase-two": switch + 2}.get(where)
    if reports is None:
        reports = tasks.index(where) + 1
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=interrupt_after(reports), **options)
    cut = Run.open(tmp_path / "run")
    assert (cut.summary is None) == (where not in ("probe", "plane"))
    resumed = cl.train_two_phase(out=cut.path, resume=True)
    assert contents(resumed) == contents(whole)


# Steps on residuals cost more than this budget: see test_residuals.py.
@pytest.mark.parametrize("phase_two", mostly_slow(sorted(set(phase_two_names()) - {"levenberg-marquardt"}), quick=2))
def test_interrupted_at_every_report_of_one_run(
    phase_two: str, tiny: Options, tmp_path: Path, uninterrupted: Callable[[Options], tuple[Run, list[Progress]]]
) -> None:
    options = tiny | {"epochs": 6, "switch_epoch": 3, "phase_two": phase_two}
    whole, steps = uninterrupted(options)
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=interrupt_after(0), **options)
    for _ in steps[1:]:  # one epoch at a time
        try:
            cl.train_two_phase(out=tmp_path / "run", resume=True, progress=interrupt_after(0))
        except KeyboardInterrupt:
            continue
        break
    assert contents(cl.train_two_phase(out=tmp_path / "run", resume=True)) == contents(whole)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_interrupted_long_after_its_state_was_stored(
    share: float,
    tiny: Options,
    tmp_path: Path,
    hardly_ever_saved: None,
    uninterrupted: Callable[[Options], tuple[Run, list[Progress]]],
) -> None:
    """Its rows are there, for people to look at; they are forgotten, and made again."""
    whole, steps = uninterrupted(tiny)
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=interrupt_after(int(share * len(steps))), **tiny)
    assert len(Run(tmp_path / "run").metrics) >= int(share * len(steps))
    assert contents(cl.train_two_phase(out=tmp_path / "run", resume=True)) == contents(whole)


@pytest.mark.parametrize("saves", [0, 5])
def test_killed_between_rows_and_state(
    saves: int,
    tiny: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[Options], tuple[Run, list[Progress]]],
) -> None:
    """The rows of an epoch are written before its state: that epoch is done again, and recorded once."""
    whole, _ = uninterrupted(tiny)
    left = iter(range(saves))

    def save(self: Journal, name: str, state: dict[str, Any]) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        original(self, name, state)

    original = Journal.save
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", save)
        with pytest.raises(KeyboardInterrupt):
            cl.train_two_phase(out=tmp_path / "run", **tiny)
    assert contents(cl.train_two_phase(out=tmp_path / "run", resume=True)) == contents(whole)


@pytest.mark.parametrize("reports", [2, 6])
def test_dropout_buffers_and_frozen_parameters_resume_too(
    reports: int,
    tiny: Options,
    models: Path,
    tmp_path: Path,
    uninterrupted: Callable[[Options], tuple[Run, list[Progress]]],
) -> None:
    options = tiny | {"model": f"{models}:moody"}
    whole, _ = uninterrupted(options)
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=interrupt_after(reports), **options)
    torch.manual_seed(reports)
    assert contents(cl.train_two_phase(out=tmp_path / "run", resume=True)) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.4])
def test_several_seeds_resume(
    share: float, tiny: Options, tmp_path: Path, uninterrupted: Callable[[Options], tuple[Run, list[Progress]]]
) -> None:
    options = tiny | {"epochs": 6, "seeds": 2, "probe_every": None}
    whole, steps = uninterrupted(options)
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=interrupt_after(int(share * len(steps))), **options)
    resumed = cl.train_two_phase(out=tmp_path / "run", resume=True)
    assert contents(resumed) == contents(whole)


def test_a_seed_interrupted_in_its_probe_is_probed(tiny: Options, tmp_path: Path) -> None:
    options = tiny | {"epochs": 6, "seeds": 2, "probe_every": None, "no_baseline": True}

    def listen(step: Progress) -> None:
        if step.task == "seed 0: probe":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=listen, **options)
    resumed = cl.train_two_phase(out=tmp_path / "run", resume=True)
    assert [len(member.probe) for member in resumed.members] == [3, 3]


@pytest.mark.parametrize("seeds", [1, 2])
def test_resuming_a_finished_run_changes_nothing(seeds: int, tiny: Options, tmp_path: Path) -> None:
    options = tiny | {"epochs": 6, "probe_every": None, "no_baseline": True, "seeds": seeds}
    run = cl.train_two_phase(out=tmp_path / "run", **options)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    cl.train_two_phase(out=run.path, resume=True)
    cl.train_two_phase(out=run.path, resume=True, **options)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_the_switch_is_not_decided_twice(tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the detector fired but before the switch was stored: it fires again at the same epoch."""
    options = tiny | {"switch_epoch": None, "detector": "algorithm-1"}
    fired: list[int] = []

    def save(self: Journal, name: str, state: dict[str, Any]) -> None:
        if name == "switch":
            fired.append(state["epoch"])
            raise KeyboardInterrupt
        original(self, name, state)

    original = Journal.save
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", save)
        with pytest.raises(KeyboardInterrupt):
            cl.train_two_phase(out=tmp_path / "run", **options)
    summary = cl.train_two_phase(out=tmp_path / "run", resume=True).summary
    assert summary is not None
    assert summary["switch"]["epoch"] == fired[0]


@pytest.fixture
def begun(tiny: Options, tmp_path: Path) -> Run:
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=interrupt_after(2), **tiny)
    return Run.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 99}, "was begun with epochs=12, not 99. Leave the option out to resume it, or begin another run."),
        ({"lr": 0.5}, "was begun with lr=0.01, not 0.5"),
        ({"seeds": 2}, "was begun with seeds=1, not 2"),
        ({"batch_size": 3}, "was begun with batch_size=None, not 3"),
        ({"epoch": 12}, "unknown option 'epoch'. Did you mean 'epochs'?"),
    ],
)
def test_other_options_are_refused(options: Options, message: str, begun: Run) -> None:
    with pytest.raises(cl.MisuseError, match=message.replace("?", "\\?")):
        cl.train_two_phase(out=begun.path, resume=True, **options)
    assert begun.summary is None


def test_without_resume_a_begun_run_is_refused(begun: Run, tiny: Options) -> None:
    before = begun.metrics
    with pytest.raises(cl.MisuseError, match="exists already"):
        cl.train_two_phase(out=begun.path, **tiny)
    assert begun.metrics == before


def test_a_damaged_state_is_named(begun: Run) -> None:
    state = begun.path / "state" / "two-phase.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(cl.FailureError, match=r"cannot resume from '.*two-phase.pt': the file is damaged. Delete the"):
        cl.train_two_phase(out=begun.path, resume=True)


def test_no_states_remain(begun: Run) -> None:
    assert (begun.path / "state").is_dir()
    cl.train_two_phase(out=begun.path, resume=True)
    assert not (begun.path / "state").exists()


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(cl.MisuseError, match=r"--resume needs the run directory to go on with. Name it by --out."):
        cl.train_two_phase(resume=True)
    with pytest.raises(cl.MisuseError, match="is not a run directory"):
        cl.train_two_phase(out=tmp_path / "none", resume=True)
    (tmp_path / "config.json").write_text('{"kind": "probe", "model": "vit-mlp", "dataset": "digits", "loss": "mse"}')
    with pytest.raises(cl.MisuseError, match="holds a probe of checkpoints, not a training run"):
        cl.train_two_phase(out=tmp_path, resume=True)
