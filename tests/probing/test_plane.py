"""The loss on a plane: exact on a quadratic loss, charged to the last value, and refused where its file is damaged."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.probing import plane as planes
from convexlab.probing.plane import Milestone
from convexlab.probing.vectors import StoredVectors
from convexlab.runs import write_json
from convexlab.runs.plane import PathPlane, read_plane

EXAMPLES = 400
# Eight examples fifty times over, so that any sample that takes the same share of each batch's parts is known.
X = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(8, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@dataclasses.dataclass(frozen=True)
class Stop(Milestone):
    weights: Tensor


def measure_plane(objective: cl.Objective, stops: list[Stop], **options: Any) -> PathPlane | None:
    with StoredVectors() as vectors:
        for stop in stops:
            vectors.append(stop.weights)
        return planes.measure_plane(objective, stops, vectors, **options)


def quadratic_loss(w: Tensor, rows: slice = slice(None)) -> float:
    return float((X[rows] @ w - Y[rows, 0]).square().mean())


@pytest.fixture
def objective() -> cl.Objective:
    torch.manual_seed(3)
    model = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    return cl.Objective(model, [(x.expand(50, 6), y.expand(50, 1)) for x, y in zip(X, Y, strict=True)], nn.MSELoss())


def path(count: int = 5) -> list[Stop]:
    steps = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).cumsum(dim=0)
    return [Stop(f"epoch-{k}", 3 * k, "start" if k == 0 else "adam", w) for k, w in enumerate(steps)]


def values_of(milestones: list[Stop]) -> int:
    """How many points the grid of a path has."""
    size = len(milestones[0].weights)
    objective = cl.Objective(nn.Linear(size, 1, bias=False).double(), [(X, Y)], nn.MSELoss())
    plane = measure_plane(objective, milestones, train_size=8, budget=1e9)
    assert plane is not None
    return len(plane.x) * len(plane.y)


def plane_of(weights: list[Tensor]) -> np.ndarray:
    """Both directions (2, n) of the plane, by a singular value decomposition."""
    matrix = torch.stack(weights).numpy()
    return np.linalg.svd(matrix - matrix.mean(axis=0))[2][:2]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_plane_of_a_quadratic_loss_is_its_formula(share: float, objective: cl.Objective) -> None:
    milestones = path()
    plane = measure_plane(objective, milestones, train_size=EXAMPLES, budget=share * values_of(milestones) / 3)
    assert plane is not None
    assert plane.examples == share * EXAMPLES
    weights = [milestone.weights for milestone in milestones]
    directions = plane_of(weights)
    for k, sign in enumerate(np.sign(directions @ (weights[0] - weights[-1]).numpy()) * [-1, 1]):
        directions[k] *= sign
    top = directions[1] @ torch.stack([w - weights[-1] for w in weights]).numpy().T
    directions[1] *= np.sign(top[np.abs(top).argmax()])
    for y, row in zip(plane.y, plane.losses, strict=True):
        for x, loss in zip(plane.x, row, strict=True):
            there = weights[-1] + torch.from_numpy(x * directions[0] + y * directions[1])
            # Losses of the order of 100 in float64.
            assert loss == pytest.approx(quadratic_loss(there), rel=1e-11)
    for waypoint, milestone in zip(plane.checkpoints, milestones, strict=True):
        expected = directions @ (milestone.weights - weights[-1]).numpy()
        assert (waypoint.x, waypoint.y) == pytest.approx(tuple(expected), abs=1e-12)
        assert (waypoint.checkpoint, waypoint.epoch) == (milestone.checkpoint, milestone.epoch)


def test_cost_is_charged_exactly_and_kept_within_the_budget(objective: cl.Objective) -> None:
    plane = measure_plane(objective, path(), train_size=EXAMPLES, budget=1e9)
    assert plane is not None
    values = len(plane.x) * len(plane.y)
    assert objective.cost.values == values
    assert plane.gradient_equivalents == pytest.approx(values / 3, rel=1e-12)
    assert plane.examples == EXAMPLES
    spent = objective.cost
    less = measure_plane(objective, path(), train_size=EXAMPLES, budget=0.5 * values / 3)
    assert less is not None
    assert less.examples == EXAMPLES // 2
    assert less.gradient_equivalents == pytest.approx(values / 6, rel=1e-12)
    assert (objective.cost - spent).values == pytest.approx(values / 2, rel=1e-12)
    least = measure_plane(objective, path(), train_size=EXAMPLES, budget=0.0)
    assert least is not None
    assert least.examples == 64


def test_the_grid_holds_the_path_and_keeps_angles(objective: cl.Objective) -> None:
    for milestones in (path(), path(3), path(12)):
        plane = measure_plane(objective, milestones, train_size=EXAMPLES, budget=5.0, points=11)
        assert plane is not None
        assert len(plane.x) == 11
        assert 5 <= len(plane.y) <= 11
        assert all(
            plane.x[0] < waypoint.x < plane.x[-1] and plane.y[0] < waypoint.y < plane.y[-1]
            for waypoint in plane.checkpoints
        )
        across, up = np.diff(plane.x), np.diff(plane.y)
        assert np.ptp(across) < 1e-12
        assert np.ptp(up) < 1e-12
        # Squares, but that rows are a whole number, at least five.
        assert 1 - 1 / 9 <= up[0] / across[0] <= 1 + 1 / 9


def test_no_plane_on_a_line_and_nothing_spent(objective: cl.Objective) -> None:
    first, second = path(2)
    between = dataclasses.replace(second, weights=0.5 * (first.weights + second.weights))
    assert measure_plane(objective, [first, between, second], train_size=EXAMPLES, budget=1e9) is None
    assert measure_plane(objective, [first, second], train_size=EXAMPLES, budget=1e9) is None
    assert objective.cost.gradient_equivalents == 0
    with pytest.raises(cl.MisuseError, match="expected a grid of at least 3 points, got 2"):
        measure_plane(objective, path(), train_size=EXAMPLES, budget=1e9, points=2)


def test_nothing_of_the_model_is_changed_also_after_an_interruption() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1)).double().train()
    objective = cl.Objective(model, [(X, Y)], nn.MSELoss())
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(objective.size, dtype=torch.float64, generator=random) for _ in range(4)]
    milestones = [Stop(f"{k}", k, "adam", w) for k, w in enumerate(weights)]
    before = [tensor.clone() for tensor in model.state_dict().values()]
    state = torch.get_rng_state()

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_plane(objective, milestones, train_size=8, budget=1e9, progress=interrupt)
    measure_plane(objective, milestones, train_size=8, budget=1e9)
    assert all(torch.equal(old, new) for old, new in zip(before, model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(module.training for module in model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def plane(objective: cl.Objective) -> PathPlane:
    found = measure_plane(objective, path(), train_size=EXAMPLES, budget=5.0, key="abc")
    assert found is not None
    return found


def test_what_is_written_is_read_again(plane: PathPlane, tmp_path: Path) -> None:
    file = tmp_path / "landscape.json"
    assert read_plane(file) is None
    write_json(file, plane.as_row())
    assert read_plane(file) == plane
    holes = dataclasses.replace(plane, losses=((math.nan, *plane.losses[0][1:]), *plane.losses[1:]))
    write_json(file, holes.as_row())
    again = read_plane(file)
    assert again is not None
    assert math.isnan(again.losses[0][0])
    assert again.losses[1:] == plane.losses[1:]


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda row: row.pop(name)


DAMAGES: list[Callable[[dict[str, Any]], object]] = [
    *map(_without, ("key", "checkpoints", "explained_variance", "x", "y", "losses", "examples", "seconds")),
    lambda row: row["losses"].pop(),
    lambda row: row["losses"][2].pop(),
    lambda row: row["losses"][1].__setitem__(0, "high"),
    lambda row: row["x"].reverse(),
    lambda row: row["x"].__setitem__(0, None),
    lambda row: row["checkpoints"][0].pop("x"),
    lambda row: row["checkpoints"].clear(),
    lambda row: row.update(checkpoints=3),
    lambda row: row.update(explained_variance=[1]),
    lambda row: row.update(train_size=None),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_a_remedy(
    damage: Callable[[dict[str, Any]], object], plane: PathPlane, tmp_path: Path
) -> None:
    file = tmp_path / "landscape.json"
    row = json.loads(json.dumps(plane.as_row()))
    damage(row)
    file.write_text(json.dumps(row))
    with pytest.raises(cl.MisuseError, match=r"landscape.json', expected a loss on a plane.*Delete the file and probe"):
        read_plane(file)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"3"])
def test_what_is_no_object_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "landscape.json"
    file.write_bytes(content)
    with pytest.raises(cl.MisuseError, match=r"Delete the file and probe again with --resume"):
        read_plane(file)
