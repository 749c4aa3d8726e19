"""What the choices within a second phase cost or gain that the trainer does not offer.

Run: ``tox -e bench -- benchmarks/second_phase_choices.py``, five minutes of one core. On each problem Adam at a
rate of 1e-3 spends half of the budget. Every choice goes on from Adam's weights and moments and spends the other half,
in gradient equivalents: a value with its gradient 1, a value alone 1/3, a product with the Hessian 2, with the
Gauss-Newton matrix 4/3, and those that a preconditioner is made of count. The result is the lowest training loss within
the budget, over that of the trainer's default from the same state.

A choice has Adam's second moments as its preconditioner, as the default has, unless its name says otherwise:

* ``cg / BETA / SEARCH``: `NonlinearCG` with every β and every line search.
* ``lbfgs / SEARCH``: the default with another line search.
* ``lbfgs / plain``: the default without a preconditioner; ``diagonal``, ``low rank``: with one of the Hessian at the
  switch, of its diagonal from 10 products or of its 5 outermost eigenpairs; ``moments and low rank``: of the eigenpairs
  that Adam's moments leave.
* ``newton``: `NewtonCG` with products by differences of gradients, or exact ones. ``gauss-newton``: `GaussNewtonCG`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import click
import torch
from common import Table, out_option, write_json
from phase_two_adam import AdamTrajectory
from phase_two_problems import REGRESSION, Setting, Task, build_task, matching
from phase_two_runs import SOLVER_RATE
from phase_two_solvers import Meter, solve
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.operators import SymmetricOperator
from convexlab.optim import (
    LBFGS,
    GaussNewtonCG,
    NewtonCG,
    NonlinearCG,
    adam_preconditioner,
    beta_names,
    hessian_diagonal_preconditioner,
    line_search_names,
    low_rank_preconditioner,
    split_operator,
)
from convexlab.optim.preconditioners import DiagonalPreconditioner, Preconditioner
from convexlab.training.phases import LARGE, PhaseTwo, phase_two

PROBLEMS = {
    "regression": Setting(REGRESSION, 0, 400, 500, 50),
    "ViT": Setting("vit-nomlp-wkewq-wvwo/digits/mse", 0, 160, 64, 16),
    "PINN": Setting("pinn/convection", 0, 600, 100, 0),
}
"""Friedman's function, digits, and convection, small enough for every choice on three seeds."""

_BY_VALUES = ("golden-section", "brent")
_PAIRS, _ACCURACY = 5, 0.1

Choice = Callable[[Task], PhaseTwo]
MakePreconditioner = Callable[[Task, torch.optim.Adam], Preconditioner | None]
Losses = Mapping[str, list[float | None]]
"""By choice: the lowest loss for each seed, None where a choice is not for the problem."""


@click.command()
@click.option(
    "--choices", default="*", show_default=True, help="Comma-separated patterns; the default is always there."
)
@click.option("--problems", default="*", show_default=True, help=f"Comma-separated patterns of {', '.join(PROBLEMS)}.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--scale", default=1.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Of the budgets."
)
@out_option
def main(choices: str, problems: str, seeds: int, scale: float, out: Path | None) -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    every = _choices()
    names = [LARGE, *(name for name in matching(every, choices) if name != LARGE)]
    results: dict[str, Losses] = {}
    for problem in matching(PROBLEMS, problems):
        setting = PROBLEMS[problem]
        setting = dataclasses.replace(setting, budget=max(4, round(scale * setting.budget)))
        asked = {name: every[name] for name in names}
        runs = [_losses(dataclasses.replace(setting, seed=seed), asked) for seed in range(seeds)]
        results[problem] = {name: [run[name] for run in runs] for name in names}
        write_json(out, {"seeds": seeds, "scale": scale}, losses=results)
    rows = _rows(results)
    click.echo(_grid(rows))
    click.echo(Table(f"Each choice: median loss and ratio to {LARGE}, {seeds} seeds", list(rows.values())))


def _losses(setting: Setting, choices: Mapping[str, Choice]) -> dict[str, float | None]:
    """Return the lowest loss of every choice from one state of Adam."""
    task = build_task(setting)
    task.problem.reset()
    start = AdamTrajectory(task, "adam-constant", SOLVER_RATE)
    while start.epoch < setting.budget // 2:
        start.train()
    start.measure()
    state = start.state(start.epoch)
    losses: dict[str, float | None] = {}
    for name, choice in choices.items():
        trajectory = AdamTrajectory(task, "adam-constant", SOLVER_RATE)
        trajectory.restore(state)
        meter = Meter(task, setting.budget - start.epoch)
        try:
            solve(choice(task), task, meter, trajectory.adam)
            losses[name] = min(start.loss, meter.curve.best_loss)
        except MisuseError:  # No Gauss-Newton matrix, or no eigenpair that has converged.
            losses[name] = None
        click.echo(f"{setting.problem}, seed {setting.seed}, {name}: {losses[name]}, {meter.seconds:.1f} s", err=True)
    return losses


def _rows(results: Mapping[str, Losses]) -> dict[str, dict[str, Any]]:
    """Return a line a choice: per problem its median loss and the ratio to the default's, and that over all of them."""
    rows = {}
    for name in next(iter(results.values())):
        row: dict[str, Any] = {"choice": name}
        for problem, losses in results.items():
            known = [loss for loss in losses[name] if loss is not None]
            complete = len(known) == len(losses[name])
            row[f"{problem}: loss"] = median(known) if complete else None
            row[f"{problem}: ratio"] = _ratio(known, losses[LARGE]) if complete else None
        ratios = [value for column, value in row.items() if column.endswith(": ratio")]
        rows[name] = row | {"all": None if None in ratios else geometric_mean(ratios)}
    return rows


def _ratio(losses: Sequence[float], defaults: Sequence[float | None]) -> float:
    return geometric_mean(loss / default for loss, default in zip(losses, defaults, strict=True) if default is not None)


def _grid(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the ratios over all problems of nonlinear CG, a line a β."""
    lines = [
        {"β": beta} | {search: rows.get(_cg_name(beta, search), {}).get("all") for search in line_search_names()}
        for beta in beta_names()
    ]
    return Table(f"Nonlinear CG with Adam's moments: loss over that of {LARGE}, all problems", lines)


def _choices() -> dict[str, Choice]:
    """Return every choice by name: what makes the second phase for a task."""
    searches = line_search_names()
    choices = {name: _named(name) for name in (LARGE, "lbfgs-adam", "lbfgs", "cg-golden")}
    choices |= {_cg_name(beta, search): _cg(beta, search) for beta in beta_names() for search in searches}
    choices |= {f"lbfgs / {search}": _lbfgs(_moments, search) for search in searches if search != "hager-zhang"}
    makers = {
        "plain": _nothing,
        "diagonal": _diagonal,
        "low rank": _low_rank,
        "moments and low rank": _low_rank_on_moments,
    }
    choices |= {f"lbfgs / {name}": _lbfgs(make) for name, make in makers.items()}
    choices |= {
        "newton / differences": _newton(_moments),
        "newton / differences / plain": _newton(_nothing),
        "newton / exact": _newton(_moments, exact=True),
        "newton / exact / plain": _newton(_nothing, exact=True),
        "gauss-newton": _gauss_newton(_moments),
        "gauss-newton / plain": _gauss_newton(_nothing),
    }
    return choices


def _cg_name(beta: str, search: str) -> str:
    return f"cg / {beta} / {search}"


def _named(name: str) -> Choice:
    return lambda task: phase_two(name)


def _cg(beta: str, search: str) -> Choice:
    return lambda task: PhaseTwo(
        f"nonlinear CG, {beta}, {search}",
        lambda params, adam, examples: NonlinearCG(
            params, beta=beta, line_search=search, preconditioner=_moments(task, adam)
        ),
        _search_cost(search),
    )


def _lbfgs(make: MakePreconditioner, search: str = "hager-zhang") -> Choice:
    return lambda task: PhaseTwo(
        f"self-scaled L-BFGS, 400 pairs, {search}",
        lambda params, adam, examples: LBFGS(
            params, history=400, self_scaled=True, line_search=search, preconditioner=make(task, adam)
        ),
        _search_cost(search),
    )


def _newton(make: MakePreconditioner, *, exact: bool = False) -> Choice:
    return lambda task: PhaseTwo(
        "Newton-CG",
        lambda params, adam, examples: NewtonCG(
            params, operator=task.objective.hessian if exact else None, preconditioner=make(task, adam)
        ),
    )


def _gauss_newton(make: MakePreconditioner) -> Choice:
    return lambda task: PhaseTwo(
        "Gauss-Newton-CG",
        lambda params, adam, examples: GaussNewtonCG(params, task.objective.ggn, preconditioner=make(task, adam)),
    )


def _search_cost(search: str) -> float:
    return 1 / 3 if search in _BY_VALUES else 1.0


def _nothing(task: Task, adam: torch.optim.Adam) -> None:
    return None


def _moments(task: Task, adam: torch.optim.Adam) -> DiagonalPreconditioner:
    return adam_preconditioner(adam)


def _diagonal(task: Task, adam: torch.optim.Adam) -> Preconditioner:
    return hessian_diagonal_preconditioner(task.objective.hessian())


def _low_rank(task: Task, adam: torch.optim.Adam) -> Preconditioner:
    return low_rank_preconditioner(*_eigenpairs(task.objective.hessian()))


def _low_rank_on_moments(task: Task, adam: torch.optim.Adam) -> Preconditioner:
    base = adam_preconditioner(adam)
    return low_rank_preconditioner(*_eigenpairs(split_operator(task.objective.hessian(), base)), base=base)


def _eigenpairs(operator: SymmetricOperator) -> tuple[Tensor, Tensor]:
    """Return the outermost values (k,) and vectors (n, k), those that have converged."""
    start = torch.randn(operator.shape[0], generator=torch.Generator().manual_seed(0)).numpy()
    try:
        values, vectors = eigsh(operator.to_scipy(), _PAIRS, which="LM", tol=_ACCURACY, v0=start, maxiter=3)
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    return torch.from_numpy(values), torch.from_numpy(vectors.copy())


if __name__ == "__main__":
    main()
