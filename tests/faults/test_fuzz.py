"""Mutated files and options: refused with one of our errors, or read; never anything else.

A few cases a door where all tests are run, 10,000 with ``--long``. Each has its limits of time and memory.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

import convexlab as cl
from convexlab import cli
from convexlab.checkpoints import load_weights, read_checkpoint, read_header
from convexlab.datasets import load_dataset
from convexlab.probing.point import ProbeOptions
from convexlab.problems import Problem
from convexlab.problems.objectives import build_objective
from convexlab.reporting import summary_lines, write_report
from convexlab.runs import Run
from convexlab.runs.plane import read_plane
from convexlab.training import TwoPhaseConfig
from convexlab.training.hand_over import HandOver
from convexlab.training.phases import phase_two
from convexlab.training.state import check_tensors, naming_state, read_state
from convexlab.training.trajectory import Trajectory
from convexlab.training.two_phase import _TwoPhaseTraining

pytestmark = pytest.mark.faults

if sys.platform != "win32":
    import resource

SEED = 20261130
MOST_SECONDS, MOST_BYTES = 20, 2 * 10**9

numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, True]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e308, -1e308, 5e-324, 0.5]),
)
values = st.recursive(
    st.none() | numbers | st.text(max_size=8) | st.sampled_from(["", "\x1b[31m", "../..", "os:abort", "NaN", "inf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def cases(long: bool) -> int:
    return 10_000 if long else 40


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Fail where a case takes more than 20 processor seconds; let the system refuse it 2 GB."""
    if sys.platform == "linux":
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MOST_BYTES, before[1]))
    begin = time.process_time()
    try:
        yield
    finally:
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - begin < MOST_SECONDS


def fuzzed(long: bool, check: Callable[[DataObject], None], share: float = 1.0) -> None:
    """Give ``check`` many examples to draw from; whatever but an error of ours leaves it fails.

    With ``--long`` their seed is `SEED`, and the test prints how many there were.
    """
    count = 0
    quiet = settings(
        max_examples=max(2, round(cases(long) * share)),
        deadline=None,
        database=None,
        derandomize=not long,  # `SEED` decides where it is long.
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(SEED)
    @quiet
    @given(st.data())
    def run(data: DataObject) -> None:
        nonlocal count
        count += 1
        with limited(), contextlib.suppress(cl.ConvexLabError), warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.errors.DamageWarning)
            check(data)

    begin = time.process_time()
    run()
    if long:
        print(f"{count} cases from seed {SEED}, {time.process_time() - begin:.0f} processor seconds")


def mutated(data: DataObject, value: Any) -> Any:
    """Return a JSON value with one part of it replaced, removed or added."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 7)):
        name = data.draw(st.sampled_from(sorted(value)))
        if not data.draw(st.integers(0, 9)):
            return {key: item for key, item in value.items() if key != name}
        return value | {name: mutated(data, value[name])}
    if isinstance(value, list) and value and data.draw(st.integers(0, 5)):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutated(data, value[place]), *value[place + 1 :]]
    return data.draw(values)


def damaged(data: DataObject, content: bytes) -> bytes:
    """Return a file with some bytes changed, or its end cut off."""
    changed = bytearray(content)
    # Headers are at the beginning, and in archives at the end too.
    near = st.one_of(st.integers(0, min(400, len(content) - 1)), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(near, min_size=1, max_size=4)):
        changed[-place if data.draw(st.booleans()) else place] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(changed)))] if not data.draw(st.integers(0, 5)) else changed)


def without_checksum(text: str) -> dict[str, Any]:
    value = json.loads(text)
    value.pop("checksum", None)
    return value


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(finished.path, tmp_path / "run"))


@pytest.mark.parametrize("file", ["config.json", "summary.json", "landscape.json"])
def test_an_object(file: str, run: Run, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def understood(training: _TwoPhaseTraining) -> None:
        raise cl.FailureError("understood")

    monkeypatch.setattr(_TwoPhaseTraining, "train", understood)  # More seeds may be asked for than 20 seconds train.
    path = run.path / file
    original = without_checksum(path.read_text())

    def check(data: DataObject) -> None:
        path.write_text(json.dumps(mutated(data, copy.deepcopy(original))))
        if file == "landscape.json":
            read_plane(path)
        summary_lines([run])
        if file == "config.json":
            cl.train_two_phase(out=run.path, resume=True)

    fuzzed(long, check)


@pytest.mark.parametrize("file", ["metrics.jsonl", "probe.jsonl", "oracle.jsonl"])
def test_rows(file: str, run: Run, long: bool) -> None:
    path = run.path / file
    rows = [without_checksum(line) for line in path.read_text().splitlines()]

    def check(data: DataObject) -> None:
        changed = mutated(data, copy.deepcopy(rows))
        lines = changed if isinstance(changed, list) else [changed]
        text = "\n".join(map(json.dumps, lines))
        path.write_text(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text)
        summary_lines([run])

    fuzzed(long, check)


@pytest.mark.usefixtures("undrawn")
def test_the_page(run: Run, long: bool) -> None:
    """Of files that can be read, one of them changed: a case takes a hundred times as long as others."""
    names = ("config.json", "summary.json", "metrics.jsonl", "probe.jsonl", "landscape.json", "oracle.jsonl")
    texts = {run.path / name: (run.path / name).read_text() for name in names}

    def check(data: DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(texts)))
        rows = [without_checksum(line) for line in texts[path].splitlines()] if path.suffix == ".jsonl" else None
        value = mutated(data, without_checksum(texts[path]) if rows is None else rows)
        lines = value if rows is not None and isinstance(value, list) else [value]
        path.write_text("\n".join(map(json.dumps, lines)))
        try:
            for form in ("html", "md", "json"):
                write_report([run], format=form)
        finally:
            path.write_text(texts[path])

    fuzzed(long, check, share=0.05)


@pytest.mark.parametrize("file", ["config.json", "summary.json", "metrics.jsonl", "probe.jsonl", "landscape.json"])
def test_bytes_of_text(file: str, run: Run, long: bool) -> None:
    path = run.path / file
    original = path.read_bytes()

    def check(data: DataObject) -> None:
        path.write_bytes(damaged(data, original))
        summary_lines([run])

    fuzzed(long, check)


def test_the_bytes_of_a_checkpoint(run: Run, tmp_path: Path, long: bool) -> None:
    original, model = run.checkpoints[0].read_bytes(), build_objective("friedman").model
    path = tmp_path / "damaged.safetensors"

    def check(data: DataObject) -> None:
        path.write_bytes(damaged(data, original))
        read_header(path)
        load_weights(model, read_checkpoint(path))

    fuzzed(long, check)


def test_the_bytes_of_torchs_own_files(run: Run, tmp_path: Path, long: bool) -> None:
    model, stored, path = build_objective("friedman").model, io.BytesIO(), tmp_path / "damaged.pt"
    torch.save(model.state_dict(), stored)

    def check(data: DataObject) -> None:
        path.write_bytes(damaged(data, stored.getvalue()))
        load_weights(model, read_checkpoint(path))

    fuzzed(long, check)


def restore(path: Path, problem: Problem) -> None:
    hand_over = HandOver("lbfgs-adam-scaled", phase_two("lbfgs-adam-scaled"), problem, 8.0)
    problem.reset()
    trajectory = Trajectory("two-phase", problem, lr=1e-3, seed=0)
    state = read_state(path)
    with naming_state(path):
        check_tensors(state, problem.model)
        trajectory.restore(state, hand_over.build)
    hand_over.follow(trajectory, None, lambda trajectory: None)


def test_the_bytes_of_a_state(begun: Path, tmp_path: Path, long: bool) -> None:
    original, problem = (begun / "state" / "two-phase.pt").read_bytes(), build_objective("friedman", train_size=20)
    path = tmp_path / "state.pt"

    def check(data: DataObject) -> None:
        path.write_bytes(damaged(data, original))
        restore(path, problem)

    fuzzed(long, check)


def test_the_fields_of_a_state(begun: Path, tmp_path: Path, long: bool) -> None:
    original = torch.load(begun / "state" / "two-phase.pt", weights_only=True)
    problem, path = build_objective("friedman", train_size=20), tmp_path / "state.pt"
    tensors = st.sampled_from([torch.zeros(3), torch.tensor(torch.nan), torch.ones(2, 2, dtype=torch.int8)])

    def changed(data: DataObject, value: Any) -> Any:
        if isinstance(value, dict) and value and data.draw(st.integers(0, 7)):
            name = data.draw(st.sampled_from(list(value)))
            return value | {name: changed(data, value[name])}
        if isinstance(value, list) and value and data.draw(st.integers(0, 7)):
            place = data.draw(st.integers(0, len(value) - 1))
            return [*value[:place], changed(data, value[place]), *value[place + 1 :]]
        return data.draw(values.filter(storable) | tensors)

    def storable(value: Any) -> bool:
        try:
            torch.load(io.BytesIO(_saved(value)), weights_only=True)
        except Exception:  # noqa: BLE001 - torch cannot store every number
            return False
        return True

    def check(data: DataObject) -> None:
        path.write_bytes(_saved(changed(data, original)))
        restore(path, problem)

    fuzzed(long, check)


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_the_bytes_of_an_npz(tmp_path: Path, long: bool) -> None:
    images, labels, file = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 3, io.BytesIO()
    np.savez(file, x_train=images, y_train=labels, x_test=images, y_test=labels)
    path = tmp_path / "damaged.npz"

    def check(data: DataObject) -> None:
        path.write_bytes(damaged(data, file.getvalue()))
        load_dataset(f"npz:{path}", image_size=4)

    fuzzed(long, check)


def test_options_of_a_call(long: bool) -> None:
    fields = [name for name in TwoPhaseConfig.__dataclass_fields__ if name not in ("objective",)]
    probing = list(ProbeOptions.__dataclass_fields__)

    def check(data: DataObject) -> None:
        TwoPhaseConfig.of({data.draw(st.sampled_from(fields)): data.draw(values) for _ in range(2)})
        ProbeOptions(**{data.draw(st.sampled_from(probing)): data.draw(values) for _ in range(2)})

    fuzzed(long, check)


def test_options_of_the_command_line(tmp_path: Path, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every list of options is refused or understood; nothing is trained here."""
    names = [parameter.opts[0] for parameter in cli.two_phase.params if parameter.opts[0] not in ("--json", "--help")]
    monkeypatch.setattr(cli, "train_two_phase", lambda out, resume, trust, progress, **options: _understood(options))
    monkeypatch.chdir(tmp_path)  # Where --tensorboard makes its folder.
    words = st.sampled_from(["0", "-1", "1e300", "nan", str(2**63), "10" * 30, "digits", "vit-mlp", "cg", "", "../x"])

    def check(data: DataObject) -> None:
        text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)  # As exec has it.
        line = [data.draw(st.sampled_from(names) | words | text) for _ in range(4)]
        result = CliRunner().invoke(cli.main, ["train", "two-phase", "--out", str(tmp_path / "out"), *line])
        assert isinstance(result.exception, SystemExit | None), (line, result.exception)
        assert result.exit_code in (0, 1, 2)

    fuzzed(long, check)


def _understood(options: dict[str, Any]) -> Run:
    TwoPhaseConfig.of(options)
    raise cl.FailureError("understood")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """What says that it is larger than it is, and what is packed too tightly."""
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(
        bomb,
        **dict.fromkeys(("x_train", "x_test"), np.zeros((9000, 100, 100), np.uint8)),
        **dict.fromkeys(("y_train", "y_test"), np.zeros(9000, np.uint8)),
    )
    with pytest.raises(cl.MisuseError, match="are packed into"):
        load_dataset(f"npz:{bomb}")
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            file = io.BytesIO()
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**12,)})
            archive.writestr(f"{key}.npy", file.getvalue())
    with pytest.raises(cl.MisuseError, match="says shape"):
        load_dataset(f"npz:{tmp_path / 'lies.npz'}")
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    with pytest.raises(cl.MisuseError, match="cannot read checkpoint"):
        read_checkpoint(tmp_path / "packed.pt")
