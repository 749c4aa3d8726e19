"""What an optimiser's steps tell, against definitions by hand and the noise of mini-batches that is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from convexlab.detection.gradients import GradientStatistics, _root
from convexlab.optim import LBFGS
from tests.slowly import mostly_slow

ROWS = 60


def _problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)
    return model, torch.randn(ROWS, 4, dtype=dtype), torch.randn(ROWS, 1, dtype=dtype)


def _backward(model: nn.Module, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
    loss = nn.functional.mse_loss(model(x), y) * factor
    loss.backward()
    return loss.detach()


def _flat(model: nn.Module, *, of_gradient: bool = False) -> Tensor:
    tensors = [parameter.grad if of_gradient else parameter.detach() for parameter in model.parameters()]
    return torch.cat([torch.empty(0) if tensor is None else tensor.flatten() for tensor in tensors]).double()


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parts = torch.autograd.grad(nn.functional.mse_loss(model(x), y), list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def _step_in_parts(
    statistics: GradientStatistics, optimizer: torch.optim.Optimizer, model: nn.Module, parts: list[tuple[Tensor, ...]]
) -> None:
    optimizer.zero_grad()
    for number, (x, y) in enumerate(parts, start=1):
        _backward(model, x, y, 1 / len(parts))
        if number < len(parts):
            statistics.accumulated()
    optimizer.step()


# The norm without the noise.


@pytest.mark.parametrize("replacement", mostly_slow([False, True], quick=1), ids=["without replacement", "with"])
def test_parts_take_the_noise_out_of_the_norm(replacement: bool) -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    statistics = GradientStatistics(optimizer)
    each = torch.stack([_gradient(model, x[row : row + 1], y[row : row + 1]) for row in range(ROWS)])
    full = each.mean(dim=0)
    variance = float((each - full).square().sum(dim=1).mean())  # The trace of the covariance of one example's.
    # In two halves of 5 rows each, 1,500 times; of rows without replacement, covariance is -variance / (N - 1).
    generator, steps, half = torch.Generator().manual_seed(1), 1500, 5
    estimates, squares = [], []
    for _ in range(steps):
        drawn = torch.randint(0, ROWS, (2 * half,), generator=generator)
        rows = drawn if replacement else torch.randperm(ROWS, generator=generator)[: 2 * half]
        _step_in_parts(statistics, optimizer, model, [(x[part], y[part]) for part in rows.split(half)])
        first, second = each[rows].split(half)
        estimates.append(float(first.mean(dim=0) @ second.mean(dim=0)))
        squares.append(float(each[rows].mean(dim=0).square().sum()))
    measured = statistics.epoch()
    square = float(full.square().sum())
    error = np.std(estimates, ddof=1) / math.sqrt(steps)
    assert measured.steps == steps
    # The same as from the examples' own gradients; and within four standard errors of the truth, of 1 in 16,000.
    assert measured.gradient_norm**2 == pytest.approx(np.mean(estimates), rel=1e-9)
    assert 2 * measured.gradient_norm * measured.gradient_noise == pytest.approx(error, rel=0.05)
    left = 0.0 if replacement else variance / (ROWS - 1)
    assert measured.gradient_norm**2 == pytest.approx(square - left, abs=4 * error)
    # The batch's own exceeds it by the noise of ten examples, in finite populations (N - b) / (N - 1) of that.
    noise = variance / (2 * half) * (1 if replacement else (ROWS - 2 * half) / (ROWS - 1))
    batch_error = np.std(squares, ddof=1) / math.sqrt(steps)
    assert measured.batch_gradient_norm**2 == pytest.approx(square + noise, abs=4 * batch_error)
    assert noise > 10 * batch_error  # Else it would show nothing.


@pytest.mark.parametrize("count", [2, 3, 5])
def test_parts_are_multiplied_pair_by_pair(count: int) -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = GradientStatistics(optimizer)
    expected = []
    for shift in range(3):
        parts = list(zip(x.roll(shift, 0).tensor_split(count), y.roll(shift, 0).tensor_split(count), strict=True))
        gradients = [_gradient(model, *part) for part in parts]
        pairs = [
            float(first @ second) for i, first in enumerate(gradients) for j, second in enumerate(gradients) if i != j
        ]
        expected.append(sum(pairs) / len(pairs))
        _step_in_parts(statistics, optimizer, model, parts)
    measured = statistics.epoch()
    # Squares of some 1, summed and subtracted in float64.
    assert measured.gradient_norm == pytest.approx(math.sqrt(np.mean(expected)), rel=1e-12)
    assert measured.gradient_noise == pytest.approx(
        np.std(expected, ddof=1) / math.sqrt(3) / (2 * measured.gradient_norm), rel=0.1
    )


def test_a_step_in_one_part_does_not_tell_and_spoils_nothing() -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    statistics = GradientStatistics(optimizer)
    halves = list(zip(x.split(30), y.split(30), strict=True))
    for parts in (halves, [(x, y)], halves):
        _step_in_parts(statistics, optimizer, model, parts)
    measured = statistics.epoch()
    first, second = (_gradient(model, *half) for half in halves)
    assert measured.steps == 3
    assert measured.gradient_norm == pytest.approx(math.sqrt(float(first @ second)), rel=1e-12)
    assert measured.batch_gradient_norm == pytest.approx(float(_gradient(model, x, y).norm()), rel=1e-12)


@pytest.mark.parametrize("relative_noise", [0.0, 0.01, 0.1, 0.5])
def test_the_standard_error_of_a_root(relative_noise: float) -> None:
    # Of means of m draws around s² the root's spread is the error told, to first order in the spread.
    random, m = np.random.default_rng(0), 50
    draws = 4.0 * (1 + relative_noise * random.normal(size=(2000, m)))
    roots, errors = np.array([_root(list(row)) for row in draws]).T
    assert np.mean(roots) == pytest.approx(2.0, rel=0.01)
    # The spread of 2,000 is known to 1 / √4,000 = 1.6 %, 4 times that; and ½ (σ / m^½)² = 0.25 % of curvature.
    assert np.mean(errors) == pytest.approx(np.std(roots), rel=0.07)


def test_a_mean_square_below_zero_is_a_root_of_zero_and_its_error_finite() -> None:
    root, error = _root([-3.0, 1.0, -1.0])
    # Mean -1, variance 4, of three: the square may well be its standard error, and its root that one's.
    assert root == 0.0
    assert error == pytest.approx((4 / 3) ** 0.25)
    assert all(map(math.isnan, _root([2.0])))


# The rate.


def test_plain_gradient_descent_has_its_learning_rate() -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.037)
    statistics = GradientStatistics(optimizer)
    for rows in torch.arange(ROWS).split(10):
        optimizer.zero_grad()
        _backward(model, x[rows], y[rows])
        optimizer.step()
    # A step is the difference of weights of size 1 where it is of size 1e-2: off by 100 ε.
    assert statistics.epoch().projected_rate == pytest.approx(0.037, rel=1e-12)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda params: torch.optim.Adam(params, lr=0.01),
    "fused Adam": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("with_closure", [False, True], ids=["gradient before", "closure"])
def test_the_rate_and_the_norm_by_hand(name: str, with_closure: bool) -> None:
    model, x, y = _problem()
    parameters = list(model.parameters())
    optimizer = OPTIMIZERS[name]([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.02}])
    statistics = GradientStatistics(optimizer)
    lengths = projections = squares = 0.0
    for rows in torch.arange(ROWS).split(10):
        before, gradient = _flat(model), _gradient(model, x[rows], y[rows])

        def closure(rows: Tensor = rows) -> Tensor:
            optimizer.zero_grad()
            return _backward(model, x[rows], y[rows])

        if with_closure:
            # What an earlier gradient leaves behind must not be read.
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 1e3)
            loss = optimizer.step(closure) if len(rows) else None
            assert loss is not None
        else:
            closure()
            optimizer.step()
        step = _flat(model) - before
        lengths += float(step @ step)
        projections += float(step @ gradient)
        squares += float(gradient @ gradient)
    measured = statistics.epoch()
    assert measured.steps == 6
    assert measured.projected_rate == pytest.approx(-lengths / projections, rel=1e-12)
    assert measured.batch_gradient_norm == pytest.approx(math.sqrt(squares / 6), rel=1e-12)
    assert math.isnan(measured.gradient_norm)
    assert math.isnan(measured.gradient_noise)


def test_steps_uphill_have_no_rate() -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    statistics = GradientStatistics(optimizer)
    _step_in_parts(statistics, optimizer, model, [(x, y)])
    assert math.isnan(statistics.epoch().projected_rate)


# Closures.


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_may_accumulate_parts_and_be_evaluated_again(keyword: bool) -> None:
    model, x, y = _problem()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    statistics = GradientStatistics(optimizer)
    expected, calls = [], []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in (0, 1):
            total = total + _backward(model, x[part::2], y[part::2], 0.5)
            if part == 0:
                statistics.accumulated()
        return total

    for _ in range(2):
        expected.append(float(_gradient(model, x[0::2], y[0::2]) @ _gradient(model, x[1::2], y[1::2])))
        optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert len(calls) > 4
    measured = statistics.epoch()
    assert measured.steps == 2
    assert measured.gradient_norm == pytest.approx(math.sqrt(sum(expected) / 2), rel=1e-12)


def test_a_closure_keeps_its_signature() -> None:
    model, x, y = _problem()
    optimizer = LBFGS(model.parameters(), line_search="golden-section")
    statistics = GradientStatistics(optimizer)
    asked = []

    def closure(*, backward: bool = True) -> Tensor:
        asked.append(backward)
        model.zero_grad()
        if backward:
            return _backward(model, x, y)
        with torch.no_grad():
            return nn.functional.mse_loss(model(x), y)

    gradient = _gradient(model, x, y)
    optimizer.step(closure)
    assert False in asked  # A search by values asks for these alone.
    assert statistics.epoch().batch_gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)


# Bookkeeping.


def test_an_epoch_without_steps_tells_nothing_and_one_begins_anew() -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = GradientStatistics(optimizer)
    for scale in (1.0, 100.0):
        empty = statistics.epoch()
        assert empty.steps == 0
        assert all(math.isnan(value) for name, value in vars(empty).items() if name != "steps")
        gradient = scale * _gradient(model, x, y)
        optimizer.zero_grad()
        _backward(model, x, y, scale)
        optimizer.step()
        assert statistics.epoch().batch_gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)


def test_closed_it_looks_on_no_longer() -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = GradientStatistics(optimizer)
    statistics.close()
    _step_in_parts(statistics, optimizer, model, list(zip(x.split(30), y.split(30), strict=True)))
    assert statistics.epoch().steps == 0
    assert not statistics._parts  # A loop that goes on does not fill the memory.


def test_a_step_that_fails_is_none() -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = GradientStatistics(optimizer)

    def closure() -> Tensor:
        _backward(model, x, y)
        raise ValueError("no luck today")

    with pytest.raises(ValueError, match="no luck"):
        optimizer.step(closure)
    assert statistics.epoch().steps == 0
    optimizer.zero_grad()
    gradient = _gradient(model, x, y)
    _step_in_parts(statistics, optimizer, model, [(x, y)])
    assert statistics.epoch().batch_gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)


def test_parameters_without_a_gradient_count_as_zero() -> None:
    model, x, y = _problem()
    idle = nn.Parameter(torch.ones(7).double())
    optimizer = torch.optim.Adam([idle, *model.parameters()], lr=0.01)
    statistics = GradientStatistics(optimizer)
    gradient = _gradient(model, x, y)
    _step_in_parts(statistics, optimizer, model, [(x, y)])
    assert statistics.epoch().batch_gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)


def test_sparse_gradients_and_a_single_parameter() -> None:
    table = nn.Embedding(10, 3, sparse=True, dtype=torch.float64)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.01)
    statistics = GradientStatistics(optimizer)
    before = table.weight.detach().clone()
    table(torch.tensor([1, 1, 4])).sum().backward()
    optimizer.step()
    measured = statistics.epoch()
    # Row 1 was looked up twice: three entries of 2 and three of 1.
    assert measured.batch_gradient_norm == pytest.approx(math.sqrt(3 * 4 + 3), rel=1e-15)
    step = table.weight.detach() - before
    slope = float((step[1] * 2).sum() + step[4].sum())
    assert measured.projected_rate == pytest.approx(-float(step.square().sum()) / slope, rel=1e-12)


class _Synchronisations(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a number, or a tensor's content."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item"}
        self.count += func.overloadpacket.__name__ in names
        return func(*args, **(kwargs or {}))


@contextmanager
def _counted() -> Iterator[_Synchronisations]:
    with _Synchronisations() as mode:
        yield mode


def test_the_host_waits_for_nothing_before_the_epochs_end() -> None:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = GradientStatistics(optimizer)
    with _counted() as mode:
        _step_in_parts(statistics, optimizer, model, list(zip(x.split(20), y.split(20), strict=True)))
    assert mode.count == 0
    with _counted() as mode:
        torch.ones(1).item()
    assert mode.count == 1  # Else it counts nothing.


def test_a_clipped_loop_is_read_before_it_clips() -> None:
    read = {}
    for clipped in (False, True):
        model, x, y = _problem()
        optimizer = torch.optim.Adam(model.parameters())
        statistics = GradientStatistics(optimizer, clipped=clipped)
        squares = []
        for rows in (slice(0, 20), slice(20, 50)):
            optimizer.zero_grad()
            _backward(model, x[rows], y[rows], 0.5)
            _backward(model, x[rows], y[rows], 0.5)
            squares.append(float(_flat(model, of_gradient=True).square().sum()))
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
        read[clipped] = statistics.epoch().batch_gradient_norm
        statistics.close()
    assert read[True] == pytest.approx(math.sqrt(sum(squares) / 2), rel=1e-12)
    assert read[False] == pytest.approx(1e-3, rel=1e-3)
    _backward(model, x, y)
    assert not statistics._unclipped  # closed: nothing is kept any more
