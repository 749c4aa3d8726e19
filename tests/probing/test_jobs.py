"""Several checkpoints at once: the same bytes, whatever goes wrong is one error, and what was measured is kept."""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path

import psutil
import pytest
import torch

import convexlab as cl
from convexlab.errors import ShortageWarning
from convexlab.machine import memory
from convexlab.probing import jobs
from convexlab.probing.loss import build_probed_loss
from convexlab.probing.point import ProbeOptions
from convexlab.problems import Setting
from convexlab.progress import Progress
from convexlab.runs import Run, read_json
from tests.probing.numbered import QUICK, write_numbered
from tests.tiny import without_seconds

FACTORY = """
import os, signal, time, warnings
import torch
from torch import nn
import convexlab as cl

def loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    x = torch.randn(24, 3)
    return cl.Objective(model, [(x, x.prod(dim=1, keepdim=True))], nn.MSELoss())

def place(model):
    return float(model[2].bias.detach())

def warned():
    warnings.warn("a shard is missing", cl.errors.DamageWarning)
    x = torch.arange(12.0).reshape(4, 3)
    data = torch.utils.data.TensorDataset(x, x[:, :1])
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1, persistent_workers=True)
    return cl.Objective(loss().model, loader, nn.MSELoss())

def failing():
    def fn(model, batch):
        if place(model) == 2:
            raise ValueError("no luck today")
        return model(batch).square().mean()
    return cl.Objective.from_batch_loss(loss().model, [torch.ones(4, 3)], fn)

def dying():
    def fn(model, batch):
        if place(model) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return model(batch).square().mean()
    return cl.Objective.from_batch_loss(loss().model, [torch.ones(4, 3)], fn)

def slow():
    def fn(model, batch):
        time.sleep(0.002)
        return model(batch).square().mean()
    return cl.Objective.from_batch_loss(loss().model, [torch.ones(4, 3)], fn)
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_numbered(tmp_path, FACTORY)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that import nothing anew, which takes seconds each."""
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


def factory(files: list[Path], name: str = "loss") -> str:
    return f"{files[0].parent / 'factory.py'}:{name}"


def test_rows_are_those_of_one_process(files: list[Path], tmp_path: Path) -> None:
    alone = cl.probe(files, objective=factory(files), out=tmp_path / "alone", **QUICK)
    steps: list[Progress] = []
    together = cl.probe(files, objective=factory(files), out=tmp_path / "two", jobs=2, progress=steps.append, **QUICK)
    assert without_seconds(together.rows) == without_seconds(alone.rows)
    witnesses = [str(row["witness"]) for row in alone.rows if row["witness"]]
    assert witnesses
    for name in witnesses:
        assert (together.run.path / name).read_bytes() == (alone.run.path / name).read_bytes()
    planes = [without_seconds(read_json(result.run.landscape_path)) for result in (alone, together)]
    assert {**planes[0], "checksum": None} == {**planes[1], "checksum": None}
    told = [step for step in steps if step.task == "probe"]
    assert (told[0].total, told[-1].done) == (5, 5)
    assert any(files[1].name in step.note for step in told)
    assert together.run.made_by["jobs"] == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("failing", r"a job failed at .*epoch-00002.* no luck today .*factory\.py"),
        ("dying", r"a job ended at .*epoch-00002.* without a message \(signal 9, SIGKILL\).*--resume"),
    ],
)
@pytest.mark.usefixtures("forked")
def test_what_goes_wrong_in_a_job_is_one_error(name: str, message: str, files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(cl.FailureError, match=message):
        cl.probe(files, objective=factory(files, name), out=tmp_path / "out", jobs=2, **QUICK)
    names = {Path(str(row["checkpoint"])).name for row in Run(tmp_path / "out").probe}
    assert names & {files[0].name, files[1].name}
    assert files[2].name not in names


@pytest.mark.slow
def test_what_a_job_puts_up_with_is_said_and_its_loader_has_processes(files: list[Path], tmp_path: Path) -> None:
    with pytest.warns(cl.errors.DamageWarning, match="a shard is missing"):
        result = cl.probe(files[:2], objective=factory(files, "warned"), out=tmp_path / "out", jobs=2, **QUICK)
    assert all(row["smallest"] is not None for row in result.rows)


@pytest.mark.usefixtures("forked")
def test_where_somebody_asks_to_stop_what_is_at_work_is_kept(files: list[Path], tmp_path: Path) -> None:
    asked = []

    def listener(step: Progress) -> None:
        if asked or step.done > 0:
            asked.append(step)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cl.probe(files, objective=factory(files, "slow"), out=tmp_path / "out", jobs=2, progress=listener, **QUICK)
    assert len(asked) == 1
    assert not {process for process in psutil.Process().children() if "convexlab-job" in process.name()}
    assert len(Run(tmp_path / "out").probe) in {2, 3}  # One may have been finished before.
    before = list(Run(tmp_path / "out").probe)
    result = cl.probe(files, objective=factory(files, "slow"), out=tmp_path / "out", resume=True, **QUICK)
    assert [row for row in before if row in result.rows] == before
    assert len(result.rows) == 5


def test_a_script_has_to_name_what_it_probes(files: list[Path], tmp_path: Path) -> None:
    objective = cl.Objective(torch.nn.Linear(2, 1), [(torch.ones(3, 2), torch.ones(3, 1))], torch.nn.MSELoss())
    with pytest.raises(cl.MisuseError, match=r"expected an objective by name or file\.py:factory, got Objective"):
        cl.probe(files, objective=objective, out=tmp_path / "out", jobs=2)
    with pytest.raises(cl.MisuseError, match="expected jobs to be a whole number from 1, got 0"):
        cl.probe(files, objective=factory(files), out=tmp_path / "out", jobs=0)
    assert not (tmp_path / "out").exists()


def test_as_many_jobs_as_memory_holds(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(factory(files), "", "", "", None, None, 0, None)
    losses = [build_probed_loss(setting, "cpu")]
    resident = psutil.Process().memory_info().rss
    for free, fitting in ((2.5 * resident, 2), (0.5 * resident, 1), (1000 * resident, 4)):
        monkeypatch.setattr(jobs, "available_memory", lambda device, free=free: int(free))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert jobs.jobs_that_fit(4, losses, ProbeOptions()) == fitting
        assert len(caught) == (fitting < 4)
        for warning in caught:
            assert issubclass(warning.category, ShortageWarning)
            assert f"memory holds {fitting} of 4 jobs at a time: one may take" in str(warning.message)


def test_a_process_takes_its_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free_memory", lambda device: 900)
    monkeypatch.setattr(memory, "_sharers", 1)
    memory.take_share(3)
    assert memory.available_memory(torch.device("cpu")) == 300
    assert memory.room_for_graphs(torch.device("cpu"), None) == 150
