"""What every flat optimiser promises: weights never lost, closures counted, states that continue bit for bit."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import NonlinearCG, StepReport, line_search_names
from tests.optim.running import Fetches

every_search = pytest.mark.parametrize("search", line_search_names())


class Task:
    """A small regression network with a closure that counts its calls and can fail on one of them."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.x = torch.randn(20, 3, generator=generator, dtype=torch.float64).to(dtype)
        self.y = torch.randn(20, 2, generator=generator, dtype=torch.float64).to(dtype)
        self.calls: list[bool] = []
        self.raise_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        self.bend: Callable[[Tensor], Tensor] = lambda loss: loss

    def closure(self, backward: bool = True) -> Tensor:
        self.calls.append(backward)
        if len(self.calls) == self.raise_at:
            raise self.error
        self.model.zero_grad()
        with torch.set_grad_enabled(backward):
            loss = self.bend((self.model(self.x) - self.y).square().mean())
        if backward:
            loss.backward()
        return loss

    def plain_closure(self) -> Tensor:
        return self.closure()

    def optimiser(self, search: str = "hager-zhang", **options: object) -> NonlinearCG:
        return NonlinearCG(self.model.parameters(), line_search=search, **options)

    def bits(self) -> list[bytes]:
        return [parameter.detach().numpy().tobytes() for parameter in self.model.parameters()]


@every_search
def test_loss_is_that_of_the_start(search: str) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    assert optimiser.report is None
    before = task.closure()
    returned = optimiser.step(task.closure)
    assert returned.shape == ()
    assert not returned.requires_grad
    assert returned.item() == before.item() == optimiser.report.loss
    assert task.closure() < before


def test_report_is_frozen() -> None:
    task = Task()
    optimiser = task.optimiser()
    optimiser.step(task.closure)
    with pytest.raises(FrozenInstanceError):
        optimiser.report.loss = 0.0


@every_search
@pytest.mark.parametrize("plain", [False, True])
def test_report_counts_the_calls(search: str, plain: bool) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    for _ in range(10):
        task.calls.clear()
        optimiser.step(task.plain_closure if plain else task.closure)
        report = optimiser.report
        assert (report.values, report.gradients) == (task.calls.count(False), task.calls.count(True))
        assert report.failed is None
        assert not (plain and report.values)


@every_search
def test_report_agrees_with_autograd(search: str) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    for _ in range(5):
        loss = task.closure()
        norm = torch.cat([parameter.grad.reshape(-1) for parameter in task.model.parameters()]).norm()
        before = torch.cat([parameter.detach().reshape(-1) for parameter in task.model.parameters()])
        gradient = torch.cat([parameter.grad.reshape(-1) for parameter in task.model.parameters()])
        optimiser.step(task.closure)
        after = torch.cat([parameter.detach().reshape(-1) for parameter in task.model.parameters()])
        report = optimiser.report
        assert report.loss == loss.item()
        assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-13)
        # The move is αd, so gᵀ(move)/α is the slope; it is a difference of weights of order 1.
        assert (gradient @ (after - before)).item() / report.step_size == pytest.approx(report.slope, rel=1e-9)


@every_search
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_exception_restores_the_weights(search: str, error: type[BaseException]) -> None:
    for at in range(1, 12):
        task = Task()
        optimiser = task.optimiser(search)
        optimiser.step(task.closure)
        task.error, task.raise_at = error("stop"), len(task.calls) + at
        raised = False
        while not raised:
            before = task.bits()
            try:
                optimiser.step(task.closure)
            except error:
                raised = True
        assert task.bits() == before, f"after evaluation {at} was interrupted"


@every_search
def test_after_an_exception_the_run_goes_on_as_if_there_had_been_none(search: str) -> None:
    plain, hit = Task(), Task()
    for task in (plain, hit):
        optimiser = task.optimiser(search)
        for _ in range(3):
            optimiser.step(task.closure)
        if task is hit:
            task.raise_at = len(task.calls) + 1
            with pytest.raises(KeyboardInterrupt):
                optimiser.step(task.closure)
        for _ in range(3):
            optimiser.step(task.closure)
    assert plain.bits() == hit.bits()


@every_search
@pytest.mark.parametrize("after", [0, 3])
def test_failed_search_restores_the_weights(search: str, after: int) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    for _ in range(after):
        optimiser.step(task.closure)
    # The gradient points uphill: wherever the search goes, the loss rises.
    task.bend = lambda loss: loss.detach() * 2.0 - loss
    optimiser.reuse = False
    before = task.bits()
    optimiser.step(task.closure)
    report = optimiser.report
    assert task.bits() == before
    assert report.failed is not None
    assert report.step_size == 0.0
    # Along the conjugate direction, then along steepest descent; the first step knows only the latter.
    assert report.failed.count("no lower value") == (2 if after else 1)
    task.bend = lambda loss: loss
    optimiser.step(task.closure)
    assert optimiser.report.failed is None
    assert optimiser.report.slope == pytest.approx(-(optimiser.report.gradient_norm**2), rel=1e-13)


@every_search
def test_failure_along_the_conjugate_direction_is_mended_by_steepest_descent(search: str) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    for _ in range(3):
        optimiser.step(task.closure)
    memory = optimiser._memory
    # Spoil what it remembers: along this direction the loss cannot fall as the remembered slopes predict.
    generator = torch.Generator().manual_seed(1)
    memory.direction = 1e3 * torch.randn(memory.direction.shape, generator=generator, dtype=torch.float64)
    memory.slope *= 1e3
    before = task.closure().item()
    optimiser.step(task.closure)
    assert optimiser.report.failed is None
    assert task.closure().item() < before


@every_search
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_loss_that_is_not_finite_is_a_step_too_long(search: str, bad: float) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    start = [parameter.detach().clone() for parameter in task.model.parameters()]

    def bend(loss: Tensor) -> Tensor:
        moved = max((p.detach() - s).abs().max() for p, s in zip(task.model.parameters(), start, strict=True))
        return loss * bad if moved > 1e-3 else loss

    task.bend = bend
    for _ in range(3):
        optimiser.step(task.closure)
        assert optimiser.report.failed is None
        assert torch.isfinite(task.closure())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_start_that_is_not_finite_is_reported(bad: float) -> None:
    task = Task()
    task.bend = lambda loss: loss * bad
    before = task.bits()
    optimiser = task.optimiser()
    optimiser.step(task.closure)
    assert "not finite" in optimiser.report.failed
    assert task.bits() == before
    task.bend = lambda loss: loss
    optimiser.step(task.closure)
    assert optimiser.report.failed is None


@every_search
@pytest.mark.parametrize("plain", [False, True])
def test_limit_is_kept(search: str, plain: bool) -> None:
    for limit in (1, 2, 3, 5):
        task = Task()
        optimiser = task.optimiser(search, max_evaluations=limit)
        losses = []
        for _ in range(15):
            task.calls.clear()
            optimiser.step(task.plain_closure if plain else task.closure)
            losses.append(optimiser.report.loss)
            # One more, where a step has to open with an evaluation at its start.
            assert len(task.calls) <= limit + 1
        assert losses == sorted(losses, reverse=True), f"with a limit of {limit}"
        assert losses[-1] < losses[0], f"with a limit of {limit}"


@every_search
def test_limit_holds_for_both_attempts_together(search: str) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    for _ in range(3):
        optimiser.step(task.closure)
    optimiser.reuse = False
    task.bend = lambda loss: loss.detach() * 2.0 - loss  # The gradient points uphill: both attempts fail.
    task.calls.clear()
    optimiser.step(task.closure)
    both = len(task.calls) - 1
    optimiser.restart()
    task.bend = lambda loss: loss
    for _ in range(3):
        optimiser.step(task.closure)
    task.bend = lambda loss: loss.detach() * 2.0 - loss
    optimiser.param_groups[0]["max_evaluations"] = both * 3 // 4
    task.calls.clear()
    optimiser.step(task.closure)
    assert optimiser.report.failed is not None
    assert len(task.calls) == 1 + both * 3 // 4


def test_limit_may_change_between_steps() -> None:
    task = Task()
    optimiser = task.optimiser("golden-section")
    optimiser.step(task.closure)
    optimiser.param_groups[0]["max_evaluations"] = 2
    task.calls.clear()
    optimiser.step(task.closure)
    assert task.calls == [True, False, False]


@every_search
def test_a_limit_too_small_for_one_search_is_made_up_for_over_the_steps(search: str) -> None:
    # The first trial moves by 0.01, ten times the distance to the minimum, and each step has only one trial.
    x = nn.Parameter(torch.tensor([1.001], dtype=torch.float64))
    optimiser = NonlinearCG([x], line_search=search, max_evaluations=1)

    def closure(backward: bool = True) -> Tensor:
        x.grad = None
        loss = ((x - 1.0) * 1e4).square().sum()
        if backward:
            loss.backward()
        return loss

    failures = []
    for _ in range(5):
        optimiser.step(closure)
        failures.append(optimiser.report.failed)
    assert "limit of 1 evaluations" in failures[0]
    assert None in failures


@pytest.mark.parametrize("limit", [0, -1, 2.5])
def test_limit_must_be_positive(limit: object) -> None:
    with pytest.raises(MisuseError, match="max_evaluations"):
        Task().optimiser(max_evaluations=limit)
    task = Task()
    optimiser = task.optimiser()
    optimiser.param_groups[0]["max_evaluations"] = limit
    with pytest.raises(MisuseError, match="max_evaluations"):
        optimiser.step(task.closure)
    assert task.calls == []


@pytest.mark.parametrize("search", ["strong-wolfe", "hager-zhang"])
def test_gradient_at_the_accepted_step_opens_the_next(search: str) -> None:
    task = Task()
    optimiser = task.optimiser(search)
    for step in range(8):
        task.calls.clear()
        optimiser.step(task.closure)
        searched = optimiser.report.gradients - (step == 0)
        assert searched >= 1
        if step:
            # Nothing was evaluated at the start: the first call is already a trial.
            assert optimiser.report.gradients == searched


def test_gradient_is_evaluated_anew_unless_reuse_is_allowed() -> None:
    kept, anew = Task(), Task()
    for task, reuse in ((kept, True), (anew, False)):
        optimiser = task.optimiser(reuse=reuse)
        for _ in range(5):
            optimiser.step(task.closure)
    assert kept.bits() == anew.bits()
    assert len(anew.calls) == len(kept.calls) + 4


@pytest.mark.parametrize("change", ["in place", "through data", "new storage"])
def test_changed_weights_cost_an_evaluation_and_no_memory(change: str) -> None:
    task = Task()
    optimiser = task.optimiser(beta="fletcher-reeves", powell=None)
    for _ in range(3):
        optimiser.step(task.closure)
    weight = task.model[0].weight
    if change == "in place":
        with torch.no_grad():
            weight.add_(0.01)
    elif change == "through data":
        weight.data.add_(0.01)
    else:
        weight.data = weight.data + 0.01
    loss = task.closure().item()
    optimiser.step(task.closure)
    assert optimiser.report.loss == loss
    assert optimiser.report.changed == "the weights were changed between steps"
    assert optimiser.report.restarted is None
    assert optimiser.report.slope != pytest.approx(-(optimiser.report.gradient_norm**2), rel=1e-3)


def test_restart_forgets() -> None:
    task = Task()
    optimiser = task.optimiser()
    for _ in range(3):
        optimiser.step(task.closure)
    optimiser.restart()
    optimiser.step(task.closure)
    assert optimiser.report.slope == pytest.approx(-(optimiser.report.gradient_norm**2), rel=1e-13)


@every_search
@pytest.mark.parametrize("beta", ["polak-ribiere+", "hager-zhang"])
@pytest.mark.parametrize("split", [0, 1, 4])
def test_state_continues_bit_for_bit(search: str, beta: str, split: int) -> None:
    straight, first = Task(), Task()
    optimiser = straight.optimiser(search, beta=beta)
    reports = []
    for _ in range(8):
        optimiser.step(straight.closure)
        reports.append(optimiser.report)
    optimiser = first.optimiser(search, beta=beta, max_evaluations=100)
    for _ in range(split):
        optimiser.step(first.closure)
    file = io.BytesIO()
    torch.save({"model": first.model.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    second = Task(seed=1)
    second.x, second.y = first.x, first.y
    second.model.load_state_dict(stored["model"])
    optimiser = second.optimiser(search, beta=beta)
    optimiser.load_state_dict(stored["optimiser"])
    assert optimiser.param_groups[0]["max_evaluations"] == 100
    resumed = []
    for _ in range(8 - split):
        optimiser.step(second.closure)
        resumed.append(optimiser.report)
    assert second.bits() == straight.bits()
    # Not one evaluation more either, so that a budget runs out at the same step.
    assert resumed == reports[split:]


@every_search
def test_a_deep_copy_continues_bit_for_bit(search: str) -> None:
    task = Task()
    optimiser = task.optimiser(search, beta="hager-zhang", preconditioner=lambda g: 2.0 * g)
    for _ in range(3):
        optimiser.step(task.closure)
    other_task, other = copy.deepcopy((task, optimiser))
    for _ in range(3):
        optimiser.step(task.closure)
        other.step(other_task.closure)
        assert other.report == optimiser.report
    assert task.bits() == other_task.bits()


def test_a_stored_state_is_not_changed_by_later_steps() -> None:
    task = Task()
    optimiser = task.optimiser()
    for _ in range(3):
        optimiser.step(task.closure)
    state = optimiser.state_dict()
    before = copy.deepcopy(state)
    optimiser.step(task.closure)
    kept = state["state"][0]
    # Floats are replaced in the live state; tensors are never written to, so this holds for them without a copy.
    for key, value in before["state"][0].items():
        if isinstance(value, Tensor):
            assert value is not kept[key]
    tensors = {key: value for key, value in before["state"][0].items() if isinstance(value, Tensor)}
    other = task.optimiser()
    other.load_state_dict(before)
    other.step(task.closure)
    for key, value in tensors.items():
        assert torch.equal(before["state"][0][key], value)


def test_closure_is_asked_for_values_only_if_it_knows_the_keyword() -> None:
    task = Task()
    wrapped = functools.wraps(task.closure)(lambda *args, **keywords: task.closure(*args, **keywords))
    bound = functools.partial(task.closure, backward=True)

    def anything(**keywords: object) -> Tensor:
        assert not keywords
        return task.closure()

    for closure, values in ((task.closure, True), (wrapped, True), (bound, True), (anything, False)):
        optimiser = task.optimiser("golden-section")
        optimiser.step(closure)
        assert (optimiser.report.values > 0) == values


def test_closure_may_return_a_float() -> None:
    number, tensor = Task(), Task()
    for task, closure in ((number, lambda: number.closure().item()), (tensor, tensor.plain_closure)):
        optimiser = task.optimiser()
        for _ in range(3):
            optimiser.step(closure)
    assert number.bits() == tensor.bits()


@pytest.mark.parametrize("loss", [None, "0.5", torch.zeros(2), torch.zeros(1, dtype=torch.complex64)])
def test_closure_must_return_one_real_number(loss: object) -> None:
    if loss == "0.5":
        loss = object()
    with pytest.raises(MisuseError, match="closure must return"):
        Task().optimiser().step(lambda: loss)  # type: ignore[arg-type,return-value]


def test_closure_is_needed() -> None:
    with pytest.raises(MisuseError, match="needs a closure"):
        Task().optimiser().step(None)  # type: ignore[arg-type]


def test_closure_may_need_gradients_for_its_value() -> None:
    # A physics-informed loss differentiates the network by its input even where no weight gradient is wanted.
    weight = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    points = torch.linspace(0.0, 1.0, 5, dtype=torch.float64, requires_grad=True)

    def closure(backward: bool = True) -> Tensor:
        weight.grad = None
        (derivative,) = torch.autograd.grad(torch.sin(weight * points).sum(), points, create_graph=True)
        loss = (derivative - 0.3).square().mean()
        if backward:
            loss.backward()
        return loss

    optimiser = NonlinearCG([weight], line_search="golden-section")
    optimiser.step(closure)
    assert optimiser.report.failed is None
    assert optimiser.report.values > 0


def test_parameters_without_a_gradient_stay() -> None:
    task = Task()
    idle = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimiser = NonlinearCG([*task.model.parameters(), idle])
    for _ in range(3):
        optimiser.step(task.closure)
    assert optimiser.report.failed is None
    assert torch.equal(idle.detach(), torch.ones(4, dtype=torch.float64))


def test_zero_gradient_is_reported() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimiser = NonlinearCG([weight])

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    reason = "the gradient is zero: no direction descends"
    assert optimiser.report == StepReport(0.0, 0.0, 0.0, 0.0, 0, 1, None, reason, "converged")


def test_transposed_parameters_and_sparse_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64).T)
    table = nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64))
    index = torch.tensor([0, 2, 5])

    def closure() -> Tensor:
        weight.grad = table.grad = None
        rows = nn.functional.embedding(index, table, sparse=True)
        loss = (rows @ weight.T - 1.0).square().sum()
        loss.backward()
        return loss

    before = table.detach().clone()
    optimiser = NonlinearCG([weight, table])
    first = optimiser.step(closure)
    optimiser.step(closure)
    assert optimiser.report.loss < first
    assert torch.equal(table.detach()[[1, 3, 4]], before[[1, 3, 4]])
    assert not weight.is_contiguous()


def test_several_groups_are_one_vector() -> None:
    whole, parted = Task(), Task()
    first, second = parted.model[0].parameters(), parted.model[2].parameters()
    optimisers = whole.optimiser(), NonlinearCG([{"params": first}, {"params": second}])
    for _ in range(6):
        for task, optimiser in zip((whole, parted), optimisers, strict=True):
            optimiser.step(task.closure)
    assert whole.bits() == parted.bits()
    with pytest.raises(MisuseError, match="knows its parameters from the start"):
        optimisers[1].add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "got no parameters"),
        ([{"params": []}], "empty parameter group"),
        ([{"params": [torch.zeros(2)]}, {"params": []}], "empty parameter group"),
        ([{"params": [torch.zeros(2)], "weight_decay": 0.1}], "knows no 'weight_decay' .* convexlab.second_phase"),
        (
            [{"params": [torch.zeros(2)], "lr": 0.5}, {"params": [torch.zeros(1)]}],
            r"one lr for all groups, got 0.5, 1.0",
        ),
        ([{"params": [torch.zeros(2)], "max_evaluations": 7}, {"params": [torch.zeros(1)]}], "one max_evaluations"),
        ([{"params": [torch.zeros(2)], "lr": 0.0}], "lr must be positive, got 0.0"),
    ],
)
def test_groups_that_make_no_step(groups: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        NonlinearCG(groups)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([torch.zeros(2), torch.zeros(2, dtype=torch.float64)], "one dtype, got torch.float32, torch.float64"),
        ([torch.zeros(2), torch.zeros(2, device="meta")], "one device, got cpu, meta"),
        ([torch.zeros(2, dtype=torch.complex64)], "real, floating-point"),
        ([torch.zeros(2, dtype=torch.int64)], "real, floating-point"),
        ([torch.zeros(2, 2).to_sparse()], "dense"),
    ],
)
def test_parameters_that_make_no_vector(parameters: list[Tensor], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        NonlinearCG(parameters)


def test_host_synchronisations_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    # Allowed: one an evaluation, and two a step.
    task = Task()
    optimiser = task.optimiser()
    optimiser.step(task.closure)
    fetches = Fetches(monkeypatch)
    for _ in range(5):
        fetches.count = 0
        optimiser.step(task.closure)
        # torch.equal, the second of the two, returns a bool by itself.
        assert fetches.count <= optimiser.report.values + optimiser.report.gradients + 1
