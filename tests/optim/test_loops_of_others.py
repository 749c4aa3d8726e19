"""Flat optimisers as people use them: schedulers, other dtypes, closures that change, mistakes that have a name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import LBFGS, NewtonCG, NonlinearCG, SelfScaledBroyden, adam_preconditioner
from convexlab.optim.flat import FlatOptimizer

METHODS: dict[str, Callable[..., FlatOptimizer]] = {
    "NonlinearCG": NonlinearCG,
    "LBFGS": LBFGS,
    "LBFGS, self-scaled": lambda params, **options: LBFGS(params, self_scaled=True, **options),
    "SelfScaledBroyden": SelfScaledBroyden,
    "NewtonCG": NewtonCG,
}
every_method = pytest.mark.parametrize("method", METHODS)


class Fit:
    """A small network on rows of a table, which may be chosen anew."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(48, 3, generator=generator, dtype=torch.float64)
        self.y = torch.sin(2 * self.x[:, :1])
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        self.rows: Callable[[], Any] = lambda: slice(None)
        self.calls = 0

    def loss(self, rows: Any = slice(None)) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        return (self.model(self.x[rows].to(dtype)) - self.y[rows].to(dtype)).square().mean()

    def closure(self) -> Tensor:
        self.calls += 1
        self.model.zero_grad()
        loss = self.loss(self.rows())
        loss.backward()
        return loss


@every_method
def test_the_rate_in_the_group_is_a_factor_on_the_first_trial(method: str) -> None:
    fit, slow = Fit(), Fit()
    optimiser, other = METHODS[method](fit.model.parameters()), METHODS[method](slow.model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(other, 1, 1e-3)
    for each, task in ((optimiser, fit), (other, slow)):
        each.step(task.closure)
    schedule.step()
    assert other.param_groups[0]["lr"] == 1e-3
    before = slow.loss().item()
    other.param_groups[0]["max_evaluations"] = 5 if method == "NewtonCG" else 1
    other.step(slow.closure)
    optimiser.step(fit.closure)
    if method != "NewtonCG":  # Whose limit leaves it another direction.
        assert 0.0 < other.report.step_size < optimiser.report.step_size
    assert slow.loss().item() < before


@every_method
def test_a_model_may_change_its_dtype_between_steps(method: str) -> None:
    fit = Fit(torch.float32)
    optimiser = METHODS[method](fit.model.parameters())
    for dtype in (torch.float32, torch.float64, torch.float32):
        fit.model.to(dtype)
        before = fit.loss().item()
        for _ in range(4):
            optimiser.step(fit.closure)
            assert optimiser.report.failed is None
        assert fit.loss().item() < before
    if method == "LBFGS":
        assert optimiser._memory.pairs > 8  # It has forgotten none.


@every_method
def test_a_closure_that_changes_once_is_evaluated_anew_and_the_step_goes_on(method: str) -> None:
    fit = Fit()
    fit.rows = lambda: slice(0, 24)
    optimiser = METHODS[method](fit.model.parameters())
    for _ in range(20):
        optimiser.step(fit.closure)
    fit.rows = lambda: slice(24, 48)
    at_change, changes = fit.loss(slice(24, 48)).item(), []
    for _ in range(20):
        optimiser.step(fit.closure)
        changes.append(optimiser.report.changed)
    found = [change for change in changes if change is not None]
    assert len(found) == 1
    assert "the closure is another function than before: at the same weights it gave" in found[0]
    assert f"now {at_change:.6g}"[:8] in found[0]
    assert fit.loss(slice(24, 48)).item() < 0.5 * at_change


def test_a_change_of_the_closure_keeps_the_pairs_and_none_is_of_two_functions() -> None:
    fit = Fit()
    fit.rows = lambda: slice(0, 24)
    optimiser = LBFGS(fit.model.parameters())
    for _ in range(20):
        optimiser.step(fit.closure)
    pairs = optimiser._memory.pairs
    # Above the old loss everywhere nearby, so that the search fails at once.
    shift = fit.closure().item() * 10 + 1

    def closure() -> Tensor:
        return fit.closure() + shift

    optimiser.step(closure)
    assert optimiser.report.changed is not None
    assert optimiser.report.state == "moved"
    memory = optimiser._memory
    assert memory.pairs == pairs + 1
    s_y = (memory.s[: memory.pairs] * memory.y[: memory.pairs]).sum(dim=1)
    torch.testing.assert_close(s_y, torch.ones_like(s_y))


@pytest.mark.parametrize("seed", range(4))
@every_method
def test_a_closure_that_differs_at_every_call_is_found_out_with_what_to_do(method: str, seed: int) -> None:
    fit, generator = Fit(), torch.Generator().manual_seed(seed)
    fit.rows = lambda: torch.randperm(48, generator=generator)[:12]
    optimiser = METHODS[method](fit.model.parameters())

    def walk() -> None:
        for _ in range(12):
            optimiser.step(fit.closure)

    with pytest.warns(UserWarning, match="the closure is not one function: .*reuse=False.*ProgressiveLBFGS"):
        walk()


@pytest.mark.parametrize("every", [1, 20])
def test_new_data_every_few_steps_are_warned_of_where_reuse_does_not_pay(every: int) -> None:
    fit, steps = Fit(), [0]
    fit.rows = lambda: torch.arange(48).roll(7 * (steps[0] // every))[:16]
    optimiser, before = LBFGS(fit.model.parameters()), fit.loss().item()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for steps[0] in range(100):
            optimiser.step(fit.closure)
    texts = [str(warning.message) for warning in said]
    assert len(texts) == (every == 1)
    assert all("as with reuse=False. That is for data that are new at every step" in text for text in texts)
    assert fit.loss().item() < before


def test_new_data_at_every_step_are_fine_without_reuse() -> None:
    fit = Fit()
    turn = [0]
    fit.rows = lambda: slice(turn[0] % 2 * 24, turn[0] % 2 * 24 + 24)
    optimiser = LBFGS(fit.model.parameters(), reuse=False)
    before = fit.loss().item()
    for turn[0] in range(30):
        optimiser.step(fit.closure)
        assert optimiser.report.changed is None
    assert fit.loss().item() < 0.5 * before


def test_where_nothing_descends_a_step_costs_one_evaluation_until_something_changes() -> None:
    fit = Fit()
    optimiser = LBFGS(fit.model.parameters(), self_scaled=True)
    states, spent = [], []
    fit.rows = lambda: slice(0, 8)  # Fewer values than weights: a loss of zero, but for rounding.
    while states[-3:] != ["converged"] * 3:
        optimiser.step(fit.closure)
        states.append(optimiser.report.state)
        spent.append(optimiser.report.gradients)
        assert len(states) < 300
    assert fit.loss(slice(0, 8)).item() < 1e-28
    assert spent[-2:] == [1, 1]
    assert max(spent) < 20
    fit.rows = lambda: slice(None)
    optimiser.step(fit.closure)
    assert optimiser.report.state == "moved"
    assert optimiser.report.changed is not None


def test_a_gradient_that_points_uphill_is_stuck_and_a_limit_says_so() -> None:
    fit = Fit()
    optimiser = LBFGS(fit.model.parameters())

    def uphill() -> Tensor:
        loss = fit.closure()
        for parameter in fit.model.parameters():
            parameter.grad.neg_()
        return loss

    optimiser.step(uphill)
    assert optimiser.report.state == "stuck"
    optimiser.restart()
    optimiser.param_groups[0]["max_evaluations"] = 1
    optimiser.step(uphill)
    assert optimiser.report.state == "limit reached"


@every_method
def test_a_loss_without_a_minimum_ends_in_a_report(method: str) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimiser = METHODS[method]([weight])

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = weight.sum()
        loss.backward()
        return loss

    for _ in range(60):
        optimiser.step(closure)
    assert torch.isfinite(weight).all()


def test_a_forgotten_zero_grad_does_no_harm() -> None:
    fit, forgetful = Fit(), Fit()
    optimiser, other = LBFGS(fit.model.parameters()), LBFGS(forgetful.model.parameters())

    def closure() -> Tensor:
        loss = forgetful.loss()
        loss.backward()
        return loss

    for _ in range(8):
        optimiser.step(fit.closure)
        other.step(closure)
    assert fit.loss().item() == forgetful.loss().item()


# Mistakes


def without_backward(fit: Fit) -> Tensor:
    fit.model.zero_grad()
    return fit.loss()


def without_backward_zeroed_in_place(fit: Fit) -> Tensor:
    fit.closure()
    fit.model.zero_grad(set_to_none=False)
    return fit.loss()


def of_another_model(fit: Fit) -> Tensor:
    return Fit().closure()


def constant(fit: Fit) -> Tensor:
    loss = torch.tensor(1.0)
    loss.backward()
    return loss


def detached(fit: Fit) -> Tensor:
    return fit.loss().detach()


def frozen(fit: Fit) -> Tensor:
    fit.model.requires_grad_(False)
    return fit.closure()


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (without_backward, "it did not call backward"),
        (without_backward_zeroed_in_place, "it did not call backward"),
        (of_another_model, "does not depend on the optimiser's parameters: they are of another model"),
        (constant, "does not depend on any parameter that requires a gradient: a constant, or detached"),
        (detached, "did not call backward.*Or the parameters are others"),
        (frozen, "every parameter is frozen"),
    ],
)
@every_method
def test_a_closure_that_leaves_no_gradient_is_told_why(
    method: str, closure: Callable[[Fit], Tensor], message: str
) -> None:
    fit = Fit()
    optimiser = METHODS[method](fit.model.parameters())
    before = [parameter.detach().clone() for parameter in fit.model.parameters()]
    with pytest.raises(MisuseError, match=message):
        optimiser.step(lambda: closure(fit))
    assert all(map(torch.equal, before, fit.model.parameters()))


def test_a_gradient_that_is_zero_is_no_mistake() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimiser = LBFGS([weight])

    def closure() -> Tensor:
        optimiser.zero_grad(set_to_none=False)
        loss = (weight.square() + 1.0).sum()
        loss.backward(retain_graph=True)
        return loss

    for _ in range(2):
        optimiser.step(closure)
        assert optimiser.report.state == "converged"


def test_surroundings_that_blur_losses_are_refused() -> None:
    fit = Fit(torch.float32)
    optimiser = LBFGS(fit.model.parameters())
    with torch.inference_mode(), pytest.raises(MisuseError, match="inference mode does not record"):
        optimiser.step(fit.closure)
    with torch.autocast("cpu"), pytest.raises(MisuseError, match="autocast is on around the step of LBFGS"):
        optimiser.step(fit.closure)
    with pytest.raises(MisuseError, match="A GradScaler does not: leave it out"):
        torch.amp.GradScaler("cpu", enabled=False).step(optimiser)
    assert fit.calls == 0


# Adam's preconditioner, by identity


def handed_over(fit: Fit) -> torch.optim.Adam:
    adam = torch.optim.Adam(fit.model.parameters(), lr=1e-2)
    for _ in range(20):
        fit.closure()
        adam.step()
    return adam


def test_the_preconditioner_follows_its_parameters_and_refuses_others() -> None:
    fit = Fit()
    preconditioner = adam_preconditioner(handed_over(fit))
    parts = dict(zip(fit.model.parameters(), preconditioner.diagonal.split([24, 8, 8, 1]), strict=True))
    some = [fit.model[2].bias, fit.model[0].weight]
    optimiser = LBFGS(some, preconditioner=preconditioner)
    assert torch.equal(optimiser.preconditioner.diagonal, torch.cat([parts[one] for one in some]))
    with pytest.raises(MisuseError, match=r"knows 4 parameters, but not 1 of those given, of shapes \(2,\)"):
        LBFGS([fit.model[0].bias, nn.Parameter(torch.ones(2).double())], preconditioner=preconditioner)


def test_the_first_trial_is_as_long_as_adams_last_step() -> None:
    fit = Fit()
    adam = torch.optim.Adam(fit.model.parameters(), lr=1e-2)
    for _ in range(20):
        before = torch.cat([parameter.detach().reshape(-1) for parameter in fit.model.parameters()])
        fit.closure()
        adam.step()
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in fit.model.parameters()])
    preconditioner = adam_preconditioner(adam)
    length = (weights - before).norm().item()
    assert preconditioner.step_length == pytest.approx(length, rel=1e-10)
    places: list[Tensor] = []

    def closure() -> Tensor:
        places.append(torch.cat([parameter.detach().reshape(-1) for parameter in fit.model.parameters()]))
        return fit.closure()

    LBFGS(fit.model.parameters(), preconditioner=preconditioner).step(closure)
    assert (places[1] - places[0]).norm().item() == pytest.approx(length, rel=1e-10)


# States


@pytest.mark.parametrize(
    ("stored", "loaded", "message"),
    [
        ({}, {"self_scaled": False}, "stored with self_scaled=True, but this LBFGS has False"),
        ({}, {"history": 7}, "stored with history=400, but this LBFGS has 7"),
        ({"preconditioner": True}, {}, "preconditioner='DiagonalPreconditioner', but this LBFGS has None"),
    ],
)
def test_a_state_of_other_settings_is_refused(stored: dict[str, Any], loaded: dict[str, Any], message: str) -> None:
    fit = Fit()
    preconditioner = adam_preconditioner(handed_over(fit))
    made = [
        LBFGS(
            fit.model.parameters(),
            **options | ({"preconditioner": preconditioner} if "preconditioner" in options else {}),
        )
        for options in (stored, loaded)
    ]
    made[0].step(fit.closure)
    with pytest.raises(MisuseError, match=message):
        made[1].load_state_dict(made[0].state_dict())


def test_a_state_of_another_model_is_refused() -> None:
    fit = Fit()
    optimiser = LBFGS(fit.model.parameters())
    optimiser.step(fit.closure)
    shapes = [(8, 4), (8,), (1, 8), (1,)]
    other = LBFGS([nn.Parameter(torch.ones(shape)) for shape in shapes])
    with pytest.raises(MisuseError, match="the state is of 41 numbers, but the parameters have 49"):
        other.load_state_dict(optimiser.state_dict())
    with pytest.raises(MisuseError, match="of other parameter groups"):
        LBFGS([nn.Parameter(torch.ones(41))]).load_state_dict(optimiser.state_dict())
    with pytest.raises(MisuseError, match="expected what state_dict"):
        other.load_state_dict({"weights": 1})
