"""Probing checkpoints: against a dense Hessian, by run and by file, and whatever may be wrong with a file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA

import convexlab as cl
from convexlab.probing import ProbeOptions, measuring, probe_objective
from convexlab.probing.point import probe_point
from convexlab.problems import build_problem
from convexlab.progress import Progress
from convexlab.reporting.words.run import judgement
from convexlab.reporting.words.sampling import sampling_sentence
from convexlab.runs import Run, read_json, write_json_lines
from convexlab.runs.rows import ProbedCheckpoint
from tests.tiny import CLASSES, PARAMETERS, TRAIN_SIZE, VALIDATION_SIZE, without_seconds, write_problem

Options = dict[str, Any]
Row = dict[str, Any]

NAMES = ("2.weight", "2.bias", "4.weight", "4.bias")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Options:
    return write_problem(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two seeds in float64, with nothing probed."""
    options = tiny | {"epochs": 6, "switch_epoch": 3, "lr": 1e-2, "no_baseline": True, "probe_every": 0}
    return cl.train_two_phase(out=tmp_path_factory.mktemp("trained") / "run", seeds=2, dtype="float64", **options)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """The first seed, to be written into: its start, switch and end."""
    run = Run(shutil.copytree(trained.path / "seed-0", tmp_path / "run"))
    for path in run.checkpoints[1:-1]:
        if path != run.checkpoint_path(3):
            path.unlink()
    return run


@pytest.fixture(scope="module")
def given(tiny: Options) -> Options:
    return tiny | {"loss": "mse", "dtype": "float64"}


def save_without_metadata(source: Path, target: Path) -> Path:
    save_file(load_file(source), target)
    return target


def numbers_of(row: Row) -> Row:
    return {key: value for key, value in without_seconds(row).items() if key not in {"checkpoint", "phase", "witness"}}


# Against a dense Hessian


def dense(
    dataset: str, weights: dict[str, torch.Tensor], examples: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """Return loss, gradient (n,) and Hessian (n, n) from the formula of the network; None is the training split."""
    data = cl.load_dataset(dataset)
    images, labels = examples or (data.x_train, data.y_train)
    inputs = images.double().unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(1)
    targets = torch.eye(CLASSES, dtype=torch.float64)[labels]
    sizes = [weights[name].numel() for name in NAMES]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2 = (p.view(weights[name].shape) for p, name in zip(theta.split(sizes), NAMES, strict=True))
        return (torch.tanh(inputs @ w1.T + b1) @ w2.T + b2 - targets).square().mean()

    theta = torch.cat([weights[name].double().flatten() for name in NAMES])
    gradient = torch.autograd.functional.jacobian(loss, theta)
    return float(loss(theta)), gradient.numpy(), torch.autograd.functional.hessian(loss, theta).numpy()


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_number_against_a_dense_hessian(epoch: int, run: Run, tiny: Options) -> None:
    path = run.checkpoint_path(epoch)
    (row,) = cl.probe(path, density_probes=16, density_steps=PARAMETERS, out=run.path / "probe").rows
    weights = load_file(path)
    loss, gradient, hessian = dense(tiny["dataset"], weights)
    eigenvalues = np.linalg.eigvalsh(hessian)
    scale = np.abs(eigenvalues).max()
    # Sums over 360 terms and products of length 83 in float64: a relative error far below 1e-10.
    assert row["train_loss"] == pytest.approx(loss, rel=1e-10)
    assert row["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
    rayleigh = gradient @ hessian @ gradient / (gradient @ gradient)
    assert row["gradient_curvature"] == pytest.approx(rayleigh, rel=1e-9, abs=1e-10 * scale)
    # A Ritz value errs by no more than its residual's square over the gap, and in no case by more than the residual.
    assert (
        eigenvalues[0] - 1e-10 * scale <= row["smallest"] <= eigenvalues[0] + row["smallest_residual"] + 1e-10 * scale
    )
    assert abs(row["largest"] - eigenvalues[-1]) <= row["largest_residual"] + 1e-10 * scale
    assert row["smallest_lower_bound"] is None or row["smallest_lower_bound"] <= eigenvalues[0]
    # An interval of 95 % may miss; one twice as wide by Student's t of 7 degrees, in 2 of 1,000 cases.
    assert row["interval_level"] == 0.95
    middle, reach = (row["trace_low"] + row["trace_high"]) / 2, row["trace_high"] - row["trace_low"]
    assert middle == pytest.approx(row["trace"], rel=1e-12)
    assert abs(row["trace"] - np.trace(hessian)) <= reach + 1e-10 * scale
    share = np.mean(eigenvalues < -row["floor"] * scale)
    assert row["negative_mass_low"] <= row["negative_mass"] <= row["negative_mass_high"]
    assert abs(row["negative_mass"] - share) <= 2 * (row["negative_mass_high"] - row["negative_mass_low"])
    assert eigenvalues[0] < -1e-3 * scale, "the network is non-convex here, so the verdict has to say so"
    assert row["verdict"] == "non-convex"
    # One gradient, seven values along the witness, 24 along both slices, the check of the products on 32 examples, and
    # products at 2 each; of the last two a part over the validation examples.
    others = 1 + 7 / 3 + 24 / 3 + 5 * 32 / TRAIN_SIZE
    products = (row["gradient_equivalents"] - others) / 2 - 2 * VALIDATION_SIZE / TRAIN_SIZE
    assert products == pytest.approx(int(products), abs=1e-9)
    assert products > row["steps"]
    assert (row["examples"], row["train_size"]) == (TRAIN_SIZE, TRAIN_SIZE)
    assert math.isclose(sum(row["density"]["weights"]), 1.0, abs_tol=1e-9)


def test_a_verdict_and_its_row_are_the_same_sentence(run: Run, given: Options, tmp_path: Path) -> None:
    problem = build_problem(**given)
    for steps in (2, 83):
        options = ProbeOptions(max_steps=steps, density_probes=1)
        row, verdict = probe_objective(problem.objective, options)
        assert verdict is not None
        # As it is read from a file.
        stored = ProbedCheckpoint.from_row(json.loads(json.dumps(row.as_row())))
        assert judgement(stored) == verdict.summary()


def test_witness_can_be_checked_again(run: Run, tiny: Options) -> None:
    for row in cl.probe(run).rows:
        assert row["verdict"] == "non-convex"
        with safe_open(run.path / row["witness"], framework="np") as file:
            witness, described = file.get_tensor("witness"), file.metadata()
        assert described["parameters"] == ",".join(NAMES)
        assert np.linalg.norm(witness) == pytest.approx(1.0, abs=1e-12)
        weights = load_file(run.path / "checkpoints" / row["checkpoint"])
        curvature = witness @ dense(tiny["dataset"], weights)[2] @ witness
        assert abs(curvature - float(described["curvature"])) <= float(described["rounding_floor"])
        assert curvature < 0


@pytest.mark.parametrize("size", [40, 60, None])
def test_the_same_direction_on_fresh_examples_against_dense_hessians(
    size: int | None, run: Run, tiny: Options, tmp_path: Path
) -> None:
    path = run.checkpoint_path(3)
    result = cl.probe(path, train_size=size, out=tmp_path / "out")
    (row,) = result.rows
    weights, data = load_file(path), cl.load_dataset(tiny["dataset"], train_size=size)
    witness = load_file(result.run.path / row["witness"])["witness"].numpy()

    def along(examples: tuple[torch.Tensor, torch.Tensor]) -> float:
        return float(witness @ dense(tiny["dataset"], weights, examples)[2] @ witness)

    # Products of length 83 in float64, on numbers of the order of 1.
    assert row["smallest"] == pytest.approx(along((data.x_train, data.y_train)), abs=1e-10)
    fresh = data.fresh or (data.x_test, data.y_test)
    assert row["smallest_fresh"] == pytest.approx(along(fresh), abs=1e-10)
    others = TRAIN_SIZE - (size or TRAIN_SIZE)
    assert (row["population"], row["fresh_examples"]) == (TRAIN_SIZE, len(fresh[1]))
    everything = cl.load_dataset(tiny["dataset"])
    full = along((everything.x_train, everything.y_train))
    if others == len(fresh[1]) or not others:
        # Sample and fresh examples together are all there are.
        assert row["smallest_full"] == pytest.approx(full, abs=1e-10)
        assert row["smallest_full_standard_error"] == 0
    else:
        # About 20 batches: five standard errors are exceeded with a chance of 1e-4.
        assert abs(row["smallest_full"] - full) <= 5 * row["smallest_full_standard_error"]
    names = ("standard_error", "fresh_standard_error")
    assert all(0 < row[f"{end}_{name}"] < 1 for end in ("smallest", "largest") for name in names)
    extent = f"{size} of {TRAIN_SIZE}" if size else f"all {TRAIN_SIZE}"
    (checkpoint,) = result.checkpoints
    told = sampling_sentence(checkpoint)
    assert told.startswith(f"The loss is that of {extent} training examples. On {len(fresh[1])} ")
    assert ("hence on all 120" in told) == bool(others)


def at(dataset: str, weights: dict[str, torch.Tensor], change: NDArray[Any]) -> float:
    """Return the loss from the formula of the network at weights plus a flat change (n,)."""
    parts = torch.from_numpy(change).split([weights[name].numel() for name in NAMES])
    moved = {name: weights[name].double() + p.view_as(weights[name]) for name, p in zip(NAMES, parts, strict=True)}
    return dense(dataset, moved)[0]


def test_slices_are_the_loss_along_the_eigenvectors_and_are_charged(run: Run, tiny: Options, tmp_path: Path) -> None:
    file = run.checkpoint_path(3)
    short = {"density_probes": 1, "max_steps": 12, "slice_points": 5}
    (row,) = cl.probe(file, out=tmp_path / "with", **short).rows
    (without,) = cl.probe(file, out=tmp_path / "without", **short | {"slice_points": 0}).rows
    assert without["slices"] is None
    assert row["gradient_equivalents"] - without["gradient_equivalents"] == pytest.approx(2 * 4 / 3, abs=1e-9)
    weights = load_file(file)
    witness = load_file(tmp_path / "with" / row["witness"])["witness"].numpy()
    found = row["slices"]["smallest"]
    assert found["steps"] == pytest.approx([found["steps"][-1] * k / 2 for k in range(-2, 3)])
    # Where curvature alone makes up a quarter of the loss.
    assert 0.5 * row["smallest"] * found["steps"][-1] ** 2 == pytest.approx(-row["train_loss"] / 4, rel=1e-9)
    for step, loss in zip(found["steps"], found["losses"], strict=True):
        # Sums over 360 terms of the order of 1 in float64.
        assert loss == pytest.approx(at(tiny["dataset"], weights, step * witness), abs=1e-12)
    gradient, hessian = dense(tiny["dataset"], weights)[1:]
    assert row["smallest_slope"] == pytest.approx(gradient @ witness, abs=1e-12)
    # The largest eigenvector by itself, up to its sign, after twelve of 83 steps.
    values, vectors = np.linalg.eigh(hessian)
    found = row["slices"]["largest"]
    assert abs(row["largest_slope"]) == pytest.approx(abs(gradient @ vectors[:, -1]), abs=row["largest_residual"])
    losses = [at(tiny["dataset"], weights, step * vectors[:, -1]) for step in found["steps"]]
    nearest = min(np.abs(np.array(found["losses"]) - losses).max(), np.abs(found["losses"] - np.flip(losses)).max())
    gap = values[-1] - values[-2]
    assert nearest < 10 * found["steps"][-1] * row["largest_residual"] / gap * np.linalg.norm(gradient) + 1e-6


# The plane of the path


def test_the_largest_eigenvalues_and_the_gradients_share_in_their_space(run: Run, tiny: Options) -> None:
    path = run.checkpoint_path(3)
    (plain,) = cl.probe(path, slice_points=0, out=run.path / "plain").rows
    (row,) = cl.probe(path, top=6, slice_points=0, out=run.path / "top").rows
    _, gradient, hessian = dense(tiny["dataset"], load_file(path))
    values, vectors = np.linalg.eigh(hessian)
    scale = np.abs(values).max()
    top, residuals = (np.array(row["top"][name]) for name in ("values", "residuals"))
    assert len(top) == len(residuals) == 6
    # A residual is at most a hundredth of its value; an eigenvalue errs by its square over a gap that is not known.
    assert (residuals <= 1e-2 * np.abs(top) + 1e-10 * scale).all()
    assert (np.abs(top - values[::-1][:6]) <= residuals + 1e-10 * scale).all()
    share = np.sum((vectors[:, ::-1][:, :6].T @ gradient) ** 2) / (gradient @ gradient)
    assert row["top_gradient_share"] == pytest.approx(share, abs=2e-2)
    assert row["verdict"] == plain["verdict"]
    assert plain["top"] is None
    assert plain["top_gradient_share"] is None
    point = ProbedCheckpoint.from_row(row)
    assert point.top_values.tolist() == row["top"]["values"]
    assert point.as_row()["top"] == row["top"]


def test_curvature_in_adams_metric_where_its_moments_are_stored(run: Run, tiny: Options) -> None:
    path = run.checkpoint_path(3)
    (row,) = cl.probe(path, slice_points=0, max_steps=4, out=run.path / "metric").rows
    _, _, hessian = dense(tiny["dataset"], load_file(path))
    moments = load_file(path.parent / "adam" / path.name)
    with safe_open(path.parent / "adam" / path.name, framework="pt") as file:
        stored = {name: float(value) for name, value in file.metadata().items() if name != "checksum"}
    v = np.concatenate([moments[name].numpy().ravel() for name in NAMES]) / (1 - stored["beta2"] ** stored["step"])
    p = (1 - stored["beta1"] ** stored["step"]) * (np.sqrt(v) + stored["eps"])
    largest = np.linalg.eigvalsh(hessian / np.sqrt(np.outer(p, p)))[-1]
    assert row["adam_sharpness_residual"] <= 1e-2 * row["adam_sharpness"]
    assert abs(row["adam_sharpness"] - largest) <= row["adam_sharpness_residual"] + 1e-9 * largest
    assert row["adam_threshold"] == pytest.approx(2 * 1.9 / (0.1 * stored["lr"]))
    (start,) = cl.probe(run.checkpoint_path(0), slice_points=0, max_steps=4, out=run.path / "start").rows
    assert (start["adam_sharpness"], start["adam_threshold"]) == (None, None)


def test_every_epoch_has_random_vectors_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seeds = []

    def watched(loss: Any, options: ProbeOptions, *others: Any) -> Any:
        seeds.append(options.seed)
        return probe_point(loss, options, *others)

    monkeypatch.setattr(measuring, "probe_point", watched)
    for out in ("first", "again"):
        cl.probe(run, plane_points=0, out=tmp_path / out, max_steps=2, slice_points=0)
    assert len(set(seeds)) == len(run.checkpoints) > 1
    assert seeds[: len(run.checkpoints)] == seeds[len(run.checkpoints) :]


QUICK: Options = {"density_probes": 1, "max_steps": 4, "slice_points": 3}


def plane_in(run: Run) -> Row:
    return read_json(run.landscape_path)


def test_the_plane_goes_through_all_checkpoints_and_is_the_loss(run: Run, tiny: Options) -> None:
    rows = cl.probe(run, checkpoints=[run.checkpoints[0], run.checkpoints[-1]], **QUICK).rows
    assert len(rows) == 2
    plane = plane_in(run)
    last = int(run.checkpoints[-1].stem.removeprefix("epoch-"))
    assert [point["epoch"] for point in plane["checkpoints"]] == [0, 3, last]
    assert [point["phase"] for point in plane["checkpoints"]] == ["start", "adam", rows[-1]["phase"]]
    weights = [load_file(path) for path in run.checkpoints]
    matrix = np.stack([torch.cat([w[name].flatten() for name in NAMES]).numpy() for w in weights])
    pca = PCA(n_components=2, svd_solver="full").fit(matrix)
    assert plane["explained_variance"] == pytest.approx(pca.explained_variance_ratio_, rel=1e-9)
    places = np.array([[point["x"], point["y"]] for point in plane["checkpoints"]])
    directions = pca.components_ * np.sign(np.sum((matrix - matrix[-1]) @ pca.components_.T * places, axis=0))[:, None]
    np.testing.assert_allclose((matrix - matrix[-1]) @ directions.T, places, atol=1e-9)
    # Two rows pay for a sample only: that has every value.
    assert TRAIN_SIZE > plane["examples"] >= 64
    values = len(plane["x"]) * len(plane["y"])
    assert plane["gradient_equivalents"] == pytest.approx(values / 3 * plane["examples"] / TRAIN_SIZE)
    full = cl.probe(run, plane_points=5, **QUICK | {"density_steps": 83, "density_probes": 8, "slice_points": 0})
    plane = plane_in(run)
    assert (len(plane["x"]), plane["examples"]) == (5, TRAIN_SIZE)
    assert plane["gradient_equivalents"] <= 0.05 * sum(row["gradient_equivalents"] for row in full.rows)
    for y, losses in zip(plane["y"], plane["losses"], strict=True):
        for x, loss in zip(plane["x"], losses, strict=True):
            there = x * directions[0] + y * directions[1]
            assert loss == pytest.approx(at(tiny["dataset"], weights[-1], there), rel=1e-9)


def test_the_plane_is_kept_made_again_and_taken_up(run: Run, trained: Run) -> None:
    cl.probe(run, **QUICK)
    before = run.landscape_path.read_bytes()
    cl.probe(run, resume=True, **QUICK)
    assert run.landscape_path.read_bytes() == before
    # A checkpoint more: a path more.
    source = trained.path / "seed-0" / "checkpoints"
    shutil.copy(source / "epoch-00002.safetensors", run.path / "checkpoints")
    cl.probe(run, resume=True, **QUICK)
    again = plane_in(run)
    last = int(run.checkpoints[-1].stem.removeprefix("epoch-"))
    assert [point["epoch"] for point in again["checkpoints"]] == [0, 2, 3, last]
    # Interrupted in the plane: the rows are kept, the old plane too, and the same is made in the end.
    run.landscape_path.write_bytes(before)

    def interrupt(step: Progress) -> None:
        if step.task == "plane" and step.done == 2:
            raise KeyboardInterrupt

    rows = run.probe_path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        cl.probe(run, resume=True, progress=interrupt, **QUICK)
    assert run.landscape_path.read_bytes() == before
    assert run.probe_path.read_bytes() == rows
    cl.probe(run, resume=True, **QUICK)
    assert without_seconds(plane_in(run)) == without_seconds(again)


def test_a_damaged_plane_is_refused_before_any_work(run: Run) -> None:
    run.landscape_path.write_text("{")
    with pytest.raises(cl.MisuseError, match=r"landscape.json'.*Delete the file and probe again with --resume"):
        cl.probe(run, resume=True, **QUICK)
    assert not run.probe_path.exists()
    cl.probe(run, **QUICK)  # All is measured again.
    assert len(plane_in(run)["checkpoints"]) == 3


def test_no_plane_of_what_is_no_path(run: Run, trained: Run, tmp_path: Path) -> None:
    other = Run(trained.path / "seed-1")
    several = [*run.checkpoints[:2], other.checkpoints[-1]]
    for name, paths in (("few", run.checkpoints[:2]), ("several", several)):
        cl.probe(paths, out=tmp_path / name, **QUICK)
        assert not Run(tmp_path / name).landscape_path.exists()
    cl.probe(run, plane_points=0, **QUICK)
    assert not run.landscape_path.exists()
    with pytest.raises(cl.MisuseError, match="expected plane_points of at least 3, or 0 for no plane, got 2"):
        cl.probe(run, plane_points=2, **QUICK)


def test_weights_that_are_not_finite_are_left_out_of_the_path(run: Run, trained: Run) -> None:
    shutil.copy(trained.path / "seed-0" / "checkpoints" / "epoch-00002.safetensors", run.path / "checkpoints")
    last = run.checkpoints[-1]
    broken = load_file(last)
    broken["2.weight"][0, 0] = math.nan
    with safe_open(last, framework="pt") as file:
        described = file.metadata()
    save_file(broken, last, metadata=described)
    cl.probe(run, checkpoints=[run.checkpoints[0]], **QUICK)
    assert [point["epoch"] for point in plane_in(run)["checkpoints"]] == [0, 2, 3]


def test_a_training_run_has_both_on_a_small_budget(tiny: Options, tmp_path: Path) -> None:
    options = tiny | {"epochs": 6, "switch_epoch": 3, "lr": 1e-2, "no_baseline": True}
    run = cl.train_two_phase(out=tmp_path / "run", **options)
    assert [len(row["slices"][end]["steps"]) for row in run.probe for end in ("smallest", "largest")] == [7] * 6
    plane = plane_in(run)
    # Three rows are probed, but the path goes through all checkpoints.
    assert len(plane["checkpoints"]) == len(run.checkpoints) > len(run.probe)
    # A twentieth of so few short rows does not pay for all examples, hence the least sample there is.
    assert plane["examples"] == 64


def test_rows_are_those_of_the_file_and_have_every_field(run: Run) -> None:
    result = cl.probe(run.path)
    assert result.run.path == run.path
    assert result.rows == run.probe
    assert [row["epoch"] for row in result.rows] == [int(path.stem[-5:]) for path in run.checkpoints]
    fields = (
        "checkpoint epoch train_loss gradient_norm gradient_curvature smallest smallest_lower_bound largest "
        "negative_mass trace verdict steps gradient_equivalents seconds peak_memory"
    )
    assert all(row.keys() >= set(fields.split()) for row in result.rows)
    assert all(row["peak_memory"] is None or row["peak_memory"] >= 0 for row in result.rows)
    # Numbers and names alone: sentences are made of them when they are wanted.
    texts = [value for row in result.rows for value in row.values() if isinstance(value, str)]
    assert not [text for text in texts if " " in text]
    by_epoch = {row["epoch"]: row for row in run.metrics}
    for row in result.rows:
        recorded = by_epoch[row["epoch"]]
        assert (row["train_loss"], row["gradient_norm"]) == (recorded["train_loss"], recorded["gradient_norm"])
        assert row["phase"] == recorded["phase"]


# By run and by file


def test_run_and_files_agree(run: Run, given: Options, tmp_path: Path) -> None:
    by_run = cl.probe(run.path).rows
    by_file = cl.probe([str(path) for path in run.checkpoints], **given, out=tmp_path / "files").rows
    assert [row["checkpoint"] for row in by_file] == [str(path) for path in run.checkpoints]
    assert len(by_run) == len(by_file) > 2
    for ours, theirs in zip(by_run, by_file, strict=True):
        assert numbers_of(ours) == numbers_of(theirs)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
def test_files_that_say_nothing_of_themselves_agree_too(ending: str, run: Run, given: Options, tmp_path: Path) -> None:
    source = run.checkpoints[-1]
    bare = tmp_path / f"weights-{int(source.stem[-5:])}.{ending}"
    weights = load_file(source)
    if ending == "safetensors":
        save_file(weights, bare)
    else:
        torch.save(weights if ending == "pt" else {"state_dict": weights, "step": 3}, bare)
    (theirs,) = cl.probe(bare, **given, out=tmp_path / "files").rows
    assert numbers_of(cl.probe(run).rows[-1]) == numbers_of(theirs)


def test_equal_file_names_of_several_runs_are_kept_apart(trained: Run, tmp_path: Path) -> None:
    members = [shutil.copytree(member.path, tmp_path / member.path.name) for member in trained.members]
    for path in Run(members[1]).checkpoints[2:]:
        path.unlink()
    file = members[0] / "checkpoints" / "epoch-00000.safetensors"
    both = cl.probe([file, members[1]], out=tmp_path / "both")
    expected = [file, *Run(members[1]).checkpoints]
    assert [row["checkpoint"] for row in both.rows] == [str(path) for path in expected]
    first, second = both.rows[:2]
    assert (first["epoch"], second["epoch"]) == (0, 0)
    assert first["train_loss"] != second["train_loss"]
    witnesses = {row["witness"] for row in both.rows}
    assert len(witnesses) == len(both.rows)
    assert all((both.run.path / witness).is_file() for witness in witnesses)
    (alone,) = cl.probe(file, out=tmp_path / "alone").rows
    assert numbers_of(alone) == numbers_of(first)
    assert [numbers_of(row) for row in cl.probe(members[1]).rows] == [numbers_of(row) for row in both.rows[1:]]


def test_a_file_named_twice_is_probed_once(run: Run, tmp_path: Path) -> None:
    file = run.checkpoints[0]
    rows = cl.probe([file, str(file), run], out=tmp_path / "out").rows
    assert len(rows) == len(run.checkpoints)


def test_what_the_checkpoint_says_can_be_overruled(run: Run, tiny: Options, tmp_path: Path) -> None:
    file = run.checkpoints[0]
    (own,) = cl.probe(file, out=tmp_path / "own").rows
    (subset,) = cl.probe(file, train_size=60, out=tmp_path / "subset").rows
    (other,) = cl.probe(file, loss="cross-entropy", out=tmp_path / "other").rows
    assert subset["train_size"] == 60
    assert len({row["train_loss"] for row in (own, subset, other)}) == 3


def test_global_state_is_left_alone(run: Run) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    cl.probe(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


# Resume


def test_resume_keeps_rows_and_adds_the_others(run: Run) -> None:
    full = cl.probe(run.path).rows
    kept = full[0] | {"marked": "kept"}
    write_json_lines(run.probe_path, [kept])
    told: list[Progress] = []
    rows = cl.probe(run.path, resume=True, progress=told.append).rows
    steps = [step for step in told if step.task == "probe"]
    assert rows[0] == kept
    assert without_seconds(rows[1:]) == without_seconds(full[1:])
    assert steps[-1].done == steps[-1].total == len(full) - 1
    # Nothing left to do, and nothing done.
    before = run.probe_path.read_bytes()
    cl.probe(run.path, resume=True)
    assert run.probe_path.read_bytes() == before
    # Without it, all is measured again.
    assert "marked" not in cl.probe(run.path).rows[0]


def test_interrupted_probe_goes_on(run: Run, given: Options, tmp_path: Path) -> None:
    whole = cl.probe(run.checkpoints, out=tmp_path / "whole", **given).rows

    def listen(step: Progress) -> None:
        if step.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cl.probe(run.checkpoints, out=tmp_path / "cut", progress=listen, **given)
    assert len(Run.open(tmp_path / "cut").probe) == 2
    rows = cl.probe(run.checkpoints, out=tmp_path / "cut", resume=True, **given).rows
    assert without_seconds(rows) == without_seconds(whole)


def test_files_of_the_run_that_takes_the_rows_go_by_their_names(run: Run) -> None:
    last = run.checkpoints[-1]
    (row,) = cl.probe(last, out=run.path).rows
    assert row["checkpoint"] == last.name
    assert len(cl.probe(run, resume=True).rows) == len(run.checkpoints) == len(run.probe)


# Numbers that are not finite


def test_nan_weights_are_a_row_not_a_crash(run: Run, given: Options, tmp_path: Path) -> None:
    broken = load_file(run.checkpoints[0])
    broken["2.weight"][0, 0] = math.nan
    save_file(broken, tmp_path / "epoch-9.safetensors")
    out = tmp_path / "out"
    result = cl.probe([tmp_path / "epoch-9.safetensors", run.checkpoints[0]], out=out, **given)
    second, first = result.rows  # Along their epochs.
    assert first["verdict"] == "unresolved"
    assert judgement(result.checkpoints[1]) == (
        "The loss is not finite here: curvature has no meaning. "
        f"The loss is that of all {TRAIN_SIZE} training examples."
    )
    assert first["epoch"] == 9
    assert (first["train_loss"], first["smallest"], first["witness"], first["steps"]) == (None, None, None, 0)
    assert first["gradient_equivalents"] == 1
    assert first["slices"] is None
    assert first.keys() == second.keys()
    assert (first["smallest_fresh"], first["smallest_standard_error"], first["fresh_examples"]) == (None, None, None)
    assert first["failure"] is None
    assert second["verdict"] == "non-convex"


def test_a_hessian_that_is_not_finite_is_a_row_too(tiny: Options, tmp_path: Path) -> None:
    # (b - 1)² + |b|^1.5 at b = 0: loss and gradient are finite, the second derivative is not.
    (tmp_path / "cusp.py").write_text(
        "import torch\n"
        "class Cusp(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.b = torch.nn.Parameter(torch.zeros(3))\n"
        "    def forward(self, x):\n"
        "        return (self.b + self.b.abs() ** 1.5).expand(len(x), 3)\n"
    )
    torch.save({"b": torch.zeros(3)}, tmp_path / "zero.pt")
    options = tiny | {"model": f"{tmp_path / 'cusp.py'}:Cusp", "loss": "mse"}
    result = cl.probe(tmp_path / "zero.pt", out=tmp_path / "out", **options)
    (row,), (checkpoint,) = result.rows, result.checkpoints
    assert row["verdict"] == "unresolved"
    assert "not finite" in row["failure"]
    assert judgement(checkpoint).startswith(f"Nothing can be said about curvature here: {row['failure']}")
    assert row["train_loss"] == pytest.approx(1 / 3)
    assert row["smallest"] is None


def test_a_bound_after_few_steps_is_wide(run: Run) -> None:
    row = cl.probe(run.path, max_steps=2, density_steps=2, density_probes=1).rows[0]
    assert row["steps"] == 2
    # The start's part along the eigenvector may be one in 10,000; after two steps the bound is its inverse's root out.
    assert row["smallest_lower_bound"] < -10 * row["largest"]


# Misuse: nothing is written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp, _: tmp / "none.safetensors", "no checkpoint '.*none.safetensors'"),
        (lambda tmp, run: cut_off(run.checkpoints[0], tmp / "cut.safetensors"), "cut.safetensors': it is damaged"),
        (lambda tmp, run: written(tmp / "text.pt", b"hello"), "cannot read checkpoint '.*text.pt'"),
        (lambda tmp, run: written(tmp / "empty.safetensors", b""), "empty.safetensors': it is empty"),
        (lambda tmp, run: without_one(run.checkpoints[0], tmp / "less.safetensors"), "architecture: missing 2.bias"),
        (lambda tmp, run: with_one_more(run.checkpoints[0], tmp / "more.safetensors"), "not in the model 9.bias"),
        (lambda tmp, _: pickled(tmp / "list.pt"), "does not hold a state dict"),
        (lambda tmp, _: tmp, "is not a run directory"),
    ],
)
def test_bad_files(make: Callable[[Path, Run], Path], message: str, run: Run, given: Options, tmp_path: Path) -> None:
    path = make(tmp_path, run)
    with pytest.raises(cl.MisuseError, match=message):
        cl.probe([run.checkpoints[0], path], out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut_off(source: Path, target: Path) -> Path:
    return written(target, source.read_bytes()[:-20])


def without_one(source: Path, target: Path) -> Path:
    save_file({name: value for name, value in load_file(source).items() if name != "2.bias"}, target)
    return target


def with_one_more(source: Path, target: Path) -> Path:
    save_file(load_file(source) | {"9.bias": torch.zeros(2)}, target)
    return target


def pickled(path: Path) -> Path:
    torch.save([torch.zeros(2)], path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vit-mlp"}, "is of another architecture"),
        ({"model": "WIDER"}, r"2.weight is \(4, 16\), expected \(5, 16\).*Name the model that it was made from"),
        ({"model": "vit-mpl"}, "unknown model 'vit-mpl'. Did you mean 'vit-mlp'"),
        ({"dataset": "npz:none.npz"}, "no file at"),
        ({"loss": "mes"}, "unknown loss 'mes'"),
        ({"train_size": 0}, "train_size"),
        ({"confidence": 1.0}, "expected a confidence between 0 and 1"),
        ({"max_steps": 0}, "expected max_steps of at least 1, got 0"),
        ({"max_steps": -3}, "expected max_steps of at least 1, got -3"),
        ({"density_probes": 0}, "expected at least one density probe and step, got 0 and 32"),
        ({"density_steps": 0}, "expected at least one density probe and step, got 1 and 0"),
        ({"top": -1}, "expected top to be a whole number of eigenpairs from 0, got -1"),
        ({"slice_points": 4}, "expected an odd number of points from 3, so that one is the middle, got 4"),
        ({"plane_points": 1}, "expected plane_points of at least 3, or 0 for no plane, got 1"),
        ({"device": "abacus"}, "device 'abacus'"),
    ],
)
def test_bad_options(options: Options, message: str, run: Run, given: Options, tmp_path: Path) -> None:
    if options.get("model") == "WIDER":
        options = {"model": given["model"].replace(":small", ":wider")}
    with pytest.raises(cl.MisuseError, match=message):
        cl.probe(run.checkpoints[0], out=tmp_path / "out", **given | options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model", "dataset", "loss"])
def test_a_bare_file_needs_all_three(name: str, run: Run, given: Options, tmp_path: Path) -> None:
    bare = save_without_metadata(run.checkpoints[0], tmp_path / "bare.safetensors")
    options = {key: value for key, value in given.items() if key != name}
    with pytest.raises(cl.MisuseError, match=f"does not say which {name} it belongs to. Name it by --{name}."):
        cl.probe(bare, out=tmp_path / "out", **options)


def test_metadata_may_be_damaged(run: Run, tmp_path: Path) -> None:
    with safe_open(run.checkpoints[0], framework="pt") as file:
        described = file.metadata()
    path = tmp_path / "odd.safetensors"
    for change, message in (({"seed": "x"}, "has damaged metadata"), ({"dtype": "float8"}, "unknown dtype 'float8'")):
        save_file(load_file(run.checkpoints[0]), path, metadata=described | change)
        with pytest.raises(cl.MisuseError, match=message):
            cl.probe(path, out=tmp_path / "out")


def test_several_seeds_are_probed_one_by_one(trained: Run) -> None:
    with pytest.raises(cl.MisuseError, match=r"holds the runs of several seeds. Probe one of them: .*seed-0, .*seed-1"):
        cl.probe(trained.path)


def test_nothing_to_probe(run: Run, tmp_path: Path) -> None:
    with pytest.raises(cl.MisuseError, match="nothing to probe: name a run directory or checkpoint files"):
        cl.probe([])
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(cl.MisuseError, match="has no checkpoints yet"):
        cl.probe(run)


# Where the rows go


def test_results_are_not_overwritten(run: Run, given: Options, tmp_path: Path) -> None:
    file, out = run.checkpoints[0], tmp_path / "out"
    cl.probe(file, out=out, **given)
    before = (out / "probe.jsonl").read_bytes()
    with pytest.raises(cl.MisuseError, match=r"exists already. Choose another --out, or add to it by --resume"):
        cl.probe(run.checkpoints[1], out=out, **given)
    assert (out / "probe.jsonl").read_bytes() == before
    assert len(cl.probe([file, run.checkpoints[1]], out=out, resume=True, **given).rows) == 2


def test_default_folders(run: Run, given: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = cl.probe(run.checkpoints[0], **given).run
    assert files.path == Path("runs") / "probe-small"
    assert files.config == {"kind": "probe"} | {key: given[key] for key in ("model", "dataset", "loss")}
    assert cl.probe(run).run.path == run.path
    assert run.config["epochs"] == 6  # still the training run's


def test_a_run_can_be_probed_into_another_folder(run: Run, tmp_path: Path) -> None:
    result = cl.probe(run, out=tmp_path / "elsewhere")
    assert result.run.path == tmp_path / "elsewhere"
    assert [row["checkpoint"] for row in result.rows] == [path.name for path in run.checkpoints]
    assert not run.probe_path.exists()
