"""What the optimisers remember: stored as plain values under the names of its fields, and read again."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import (
    LBFGS,
    GaussNewtonCG,
    LevenbergMarquardt,
    NewtonCG,
    NonlinearCG,
    ProgressiveLBFGS,
    SelfScaledBroyden,
)
from convexlab.optim.flat import FlatOptimizer
from convexlab.optim.memory import Memory
from tests.dense import Dense
from tests.optim.networks import Regression
from tests.optim.running import closure_of, residuals_of

TASK = Regression()
N = 33

METHODS: dict[str, Any] = {
    "NonlinearCG": lambda x: NonlinearCG([x]),
    "LBFGS": lambda x: LBFGS([x], history=5),
    "LBFGS, self-scaled": lambda x: LBFGS([x], history=5, self_scaled=True),
    "ProgressiveLBFGS": lambda x: ProgressiveLBFGS([x], examples=20, sample_size=20),
    "SelfScaledBroyden": lambda x: SelfScaledBroyden([x]),
    "NewtonCG": lambda x: NewtonCG([x]),
    "GaussNewtonCG": lambda x: GaussNewtonCG([x], lambda: Dense(TASK.gauss_newton(x.detach()))),
    "LevenbergMarquardt": lambda x: LevenbergMarquardt([x]),
}
every_method = pytest.mark.parametrize("method", METHODS)


def begin(method: str, start: Tensor = TASK.start) -> tuple[nn.Parameter, FlatOptimizer]:
    x = nn.Parameter(start.clone())
    return x, METHODS[method](x)


def walk(x: nn.Parameter, optimiser: FlatOptimizer, steps: int) -> None:
    closure = closure_of(TASK, x)
    if isinstance(optimiser, LevenbergMarquardt):
        closure = residuals_of(TASK.residuals, x)
    for _ in range(steps):
        optimiser.step((lambda rows: closure()) if isinstance(optimiser, ProgressiveLBFGS) else closure)


def stored(optimiser: FlatOptimizer) -> dict[str, Any]:
    """Return its state from disk."""
    file = io.BytesIO()
    torch.save(optimiser.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def kinds(kind: type[Memory] = Memory) -> list[type[Memory]]:
    return [kind, *(each for child in kind.__subclasses__() for each in kinds(child))]


@every_method
def test_a_state_holds_plain_values_and_comes_back_whole(method: str) -> None:
    x, optimiser = begin(method)
    walk(x, optimiser, 8)
    state = stored(optimiser)
    values = dict(state["state"][0])
    for value in [*values.pop("method").values(), *values.values()]:
        assert value is None or isinstance(value, Tensor | int | float | str | list), value
    other = METHODS[method](nn.Parameter(x.detach().clone()))
    other.load_state_dict(state)
    for field in dataclasses.fields(optimiser._memory):
        assert same(getattr(other._memory, field.name), getattr(optimiser._memory, field.name)), field.name


@every_method
def test_a_state_without_the_fields_that_were_not_yet_set_goes_on(method: str) -> None:
    # So older versions stored it.
    x, optimiser = begin(method)
    walk(x, optimiser, 1)
    state = stored(optimiser)
    fresh = begin(method)[1].state_dict()["state"][0]
    set_by_now = {name: value for name, value in state["state"][0].items() if not same(value, fresh.get(name))}
    other_x, other = begin(method, x.detach())
    other.load_state_dict({**state, "state": {0: set_by_now}})
    walk(x, optimiser, 4)
    walk(other_x, other, 4)
    assert torch.equal(other_x, x)
    assert other.report == optimiser.report


@pytest.mark.parametrize("other", [torch.optim.Adam, SelfScaledBroyden])
def test_the_state_of_another_kind_is_refused_before_anything_is_changed(other: type[torch.optim.Optimizer]) -> None:
    x, optimiser = begin("NonlinearCG")
    walk(x, optimiser, 3)
    before = optimiser._memory
    stranger = other([nn.Parameter(TASK.start.clone())])
    stranger.step(closure_of(TASK, stranger.param_groups[0]["params"][0]))
    with pytest.raises(MisuseError, match=r"a state that NonlinearCG stored, got one (with '|of SelfScaled)"):
        optimiser.load_state_dict(stranger.state_dict())
    assert optimiser._memory is before
    assert optimiser.param_groups[0]["max_evaluations"] is None


def test_a_dense_matrix_keeps_its_dtype_and_the_rest_takes_the_parameters() -> None:
    x, optimiser = begin("SelfScaledBroyden", TASK.start.float())
    walk(x, optimiser, 3)
    _, other = begin("SelfScaledBroyden")
    other.load_state_dict(stored(optimiser))
    assert (optimiser._memory.gradient.dtype, other._memory.gradient.dtype) == (torch.float32, torch.float64)
    assert torch.equal(other._memory.matrix, optimiser._memory.matrix)
    assert other._memory.matrix.shape == (N, N)


def test_the_reason_of_a_restart_that_was_interrupted_is_stored() -> None:
    x, optimiser = begin("LBFGS")
    walk(x, optimiser, 3)
    optimiser._memory.restarted = "a test dropped it"

    def interrupt() -> Tensor:
        raise KeyboardInterrupt

    optimiser.reuse = False  # Otherwise the first thing that is evaluated is a trial.
    with pytest.raises(KeyboardInterrupt):
        optimiser.step(interrupt)
    _, other = begin("LBFGS", x.detach())
    state = stored(optimiser)
    state["state"][0]["pairs"] = 0
    state["state"][0].pop("direction")
    other.load_state_dict(state)
    walk(other.param_groups[0]["params"][0], other, 1)
    assert other.report.restarted == "a test dropped it"


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_field_is_documented(kind: type[Memory]) -> None:
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    for line, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign):
            assert isinstance(after, ast.Expr), ast.unparse(line)
            assert isinstance(after.value, ast.Constant), ast.unparse(line)
