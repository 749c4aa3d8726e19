"""The default second phase beside its peers on small networks, mostly physics-informed: equal evaluations, equal time.

Run: ``tox -e bench -- benchmarks/physics_peers.py run``, then ``... report``. Every run is a line of
results/physics_peers.jsonl; those that are there are not made again.

From one switch point, after full-batch Adam at the rate 1e-3, every method goes on until it has spent as many
evaluations, and as many processor seconds, as ``auto`` took for its budget. The lowest loss within either limit counts.
An evaluation is a value with its gradient; a Hessian product counts two, a Jacobian what the trainer charges for it.
L-BFGS of torch begins again where it stops by itself.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
import torch
from common import RESULTS
from phase_two_problems import matching
from torch import Tensor

import convexlab as cl
from convexlab.architectures import Perceptron
from convexlab.linalg.vectors import flatten, unflatten
from convexlab.machine.random_state import drawn_from
from convexlab.objective import LeastSquares
from convexlab.optim import LBFGS, adam_preconditioner
from convexlab.problems.physics_informed import (
    DifferentialEquation,
    Points,
    allen_cahn,
    burgers,
    convection,
    helmholtz,
    klein_gordon,
    wave,
)

_RECORDS = RESULTS / "physics_peers.jsonl"
_RATE = 1e-3
_POINTS, _EDGE = 500, 50  # In the interior; on each side.
_WIDTH, _DEPTH = 20, 3  # 921 parameters.
_KNOWN_BEFORE = {"width": _WIDTH}
"""What older records do not say."""
_FLOORS = {"float64": 1e-15, "float32": 1e-9}
"""Losses below count as that: rounding."""

Residuals = Callable[[Callable[[Tensor], Tensor]], list[Tensor]]
"""Maps a network to the parts of the residual, whose squares add up to the loss."""


class Problem:
    """A network and its residuals."""

    def __init__(self, name: str, seed: int, dtype: torch.dtype, width: int) -> None:
        """Put it together, with fresh weights."""
        inputs = 8 if name == "regression" else 2
        self.model = drawn_from(seed, lambda: Perceptron(inputs, width=width, depth=_DEPTH)).to(dtype)
        self.residuals = _regression(seed, dtype) if name == "regression" else _equation(name, seed, dtype)

    @property
    def parameters(self) -> list[Tensor]:
        """Of the network."""
        return list(self.model.parameters())

    def loss(self) -> Tensor:
        """Return the loss where the network stands."""
        return _loss_of(self.residuals(self.model))

    def least_squares(self) -> LeastSquares:
        """Return the residuals and their Jacobian."""
        return cl.Objective.from_batch_loss(
            self.model,
            [torch.zeros(1)],  # The points are in the residuals.
            lambda model, _: _loss_of(self.residuals(model)),
            residuals=lambda model, _: self.residuals(model),
        ).least_squares()


def _loss_of(residuals: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.square().sum() for part in residuals]).sum()


def _regression(seed: int, dtype: torch.dtype) -> Residuals:
    from sklearn.datasets import make_friedman1

    inputs, values = make_friedman1(_POINTS, n_features=8, noise=0.1, random_state=seed)
    x = torch.from_numpy(2 * inputs - 1).to(dtype)
    y = torch.from_numpy((values - values.mean()) / values.std())[:, None].to(dtype)
    return lambda model: [(model(x) - y) / math.sqrt(_POINTS)]


def _equation(name: str, seed: int, dtype: torch.dtype) -> Residuals:
    equation = _EQUATIONS[name]()
    drawn = equation.points(_POINTS, _EDGE, _EDGE, seed=seed)
    points = Points(*(part.to(dtype) for part in drawn))
    return lambda model: equation.scaled_residuals(model, points)


_EQUATIONS: Mapping[str, Callable[[], DifferentialEquation]] = {
    "helmholtz": helmholtz,
    "klein-gordon": klein_gordon,
    "allen-cahn": allen_cahn,
    "wave": wave,
    "convection": convection,
    "burgers": burgers,
}
PROBLEMS = (*_EQUATIONS, "regression")


class _SpentError(Exception):
    """Ends a method from within an evaluation."""


class Meter:
    """Counts evaluations and processor seconds, and keeps the lowest loss over both."""

    def __init__(self, problem: Problem, evaluations: float, seconds: float) -> None:
        """Begin where the network stands; it ends when both limits are reached."""
        self.problem = problem
        self.spent = 0.0
        self.seconds = 0.0
        self.curve: list[tuple[float, float, float]] = [(0.0, 0.0, problem.loss().item())]
        """(evaluations, seconds, lowest loss), where that has fallen; first where everyone begins."""
        self._limits = evaluations, seconds
        self._begin = time.process_time()

    def pay(self, evaluations: float) -> None:
        """Charge what is about to be evaluated.

        Raises:
            _SpentError: nothing is left.
        """
        self.seconds = time.process_time() - self._begin
        if self.spent >= self._limits[0] and self.seconds >= self._limits[1]:
            raise _SpentError
        self.spent += evaluations

    def record(self, loss: float) -> None:
        """Take in a loss that was evaluated."""
        self.seconds = time.process_time() - self._begin
        if loss < self.curve[-1][2]:
            self.curve.append((self.spent, self.seconds, loss))

    def closure(self, *, backward: bool = True) -> Tensor:
        """Evaluate as torch's closures do."""
        self.pay(1.0 if backward else 1 / 3)
        for parameter in self.problem.parameters:
            parameter.grad = None
        loss = self.problem.loss()
        if backward:
            loss.backward()
        self.record(loss.item())
        return loss.detach()

    def best(self, evaluations: float = math.inf, seconds: float = math.inf) -> float:
        """Return the lowest loss within a limit."""
        return min(loss for cost, second, loss in self.curve if cost <= evaluations and second <= seconds)


Method = Callable[[Meter, torch.optim.Adam], None]


def _ours(make: Callable[[torch.optim.Adam], torch.optim.Optimizer], meter: Meter, adam: torch.optim.Adam) -> None:
    optimizer = make(adam)
    while True:
        optimizer.step(meter.closure)  # type: ignore[arg-type]  # Ours take torch's closures of tensors, too.
        if optimizer.report.state == "converged":  # type: ignore[attr-defined]
            return


def _torch_lbfgs(history: int, meter: Meter, adam: torch.optim.Adam) -> None:
    while True:
        before = meter.curve[-1][2]
        optimizer = torch.optim.LBFGS(
            meter.problem.parameters,
            max_iter=10**9,
            max_eval=10**9,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=history,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(meter.closure)
        if not meter.curve[-1][2] < before:
            return


def _adam_on(meter: Meter, adam: torch.optim.Adam) -> None:
    while True:
        meter.closure()
        adam.step()


def _soap(decayed: bool, steps: int, meter: Meter, adam: torch.optim.Adam) -> None:
    """Defaults but for weight decay; decayed as a half cosine over the evaluations."""
    import pytorch_optimizer

    optimizer = pytorch_optimizer.SOAP(meter.problem.parameters, weight_decay=0.0)
    rate = optimizer.param_groups[0]["lr"]
    while True:
        if decayed:
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(1.0, meter.spent / steps)))
        meter.closure()
        optimizer.step()


def _published_broyden(update: str, adam: torch.optim.Adam) -> cl.SelfScaledBroyden:
    """From the identity, with a strong Wolfe search, without what Adam has learnt."""
    return cl.SelfScaledBroyden(adam.param_groups[0]["params"], update=update, line_search="strong-wolfe")


def _all_pairs(adam: torch.optim.Adam) -> LBFGS:
    parameters = adam.param_groups[0]["params"]
    return LBFGS(parameters, history=2000, self_scaled=True, preconditioner=adam_preconditioner(adam))


def _levenberg_marquardt(meter: Meter, adam: torch.optim.Adam) -> None:
    """Our own; what finding out about its Jacobians takes is charged too."""
    squares = meter.problem.least_squares()
    meter.pay(squares.setup)
    optimizer = cl.second_phase(adam, method="levenberg-marquardt")

    def closure(*, jacobian: Sequence[Tensor] | None = None) -> Any:
        meter.pay(1 / 3 if jacobian is None else squares.price)
        result: Any = squares.closure(jacobian=jacobian)
        residuals = result if jacobian is None else result[0]
        meter.record(float(residuals.square().sum()))
        return result

    while optimizer.report is None or optimizer.report.state == "moved":
        optimizer.step(closure)


@torch.no_grad()
def _newton_cg(damping: float, meter: Meter, adam: torch.optim.Adam) -> None:
    """NysNewton-CG (Rathore et al. 2024, arXiv 2402.01868): Nyström-preconditioned CG, Armijo's rule.

    As there: rank 60, renewed every 20 steps. CG ends at a relative residual of 1e-3 or after 100 products.
    """
    problem, generator = meter.problem, torch.Generator().manual_seed(0)
    basis = values = torch.empty(0)
    for step in range(10**9):
        meter.pay(1.0)
        with torch.enable_grad():
            start = problem.loss()
            graph = torch.autograd.grad(start, problem.parameters, create_graph=True)
        gradient, loss = flatten(part.detach() for part in graph), start.item()
        meter.record(loss)

        def product(v: Tensor, graph: Any = graph) -> Tensor:
            meter.pay(2.0)
            parts = torch.autograd.grad(graph, problem.parameters, unflatten(v, problem.parameters), retain_graph=True)
            return flatten(parts)

        if step % 20 == 0:
            basis, values = _nystrom(product, gradient, 60, generator)
        d = -_conjugate_gradients(product, gradient, basis, values, damping)
        slope, theta, size = float(gradient @ d), flatten(problem.parameters), 1.0
        if slope >= 0.0:
            d, slope = -gradient, -float(gradient @ gradient)
        while size > 1e-12:
            torch._foreach_copy_(problem.parameters, unflatten(theta + size * d, problem.parameters))
            meter.pay(1 / 3)
            now = problem.loss().item()
            meter.record(now)
            if now <= loss + 0.1 * size * slope:
                break
            size *= 0.5
        else:
            return


def _nystrom(
    product: Callable[[Tensor], Tensor], like: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors (n, rank) and values (rank,) of the nearest positive matrix, by one sketch."""
    sketch = torch.linalg.qr(torch.randn(like.numel(), rank, generator=generator, dtype=torch.float64).to(like))[0]
    image = torch.stack([product(column) for column in sketch.T], dim=1)
    shift = torch.finfo(like.dtype).eps * math.sqrt(like.numel()) * float(image.norm())
    core = sketch.T @ (image + shift * sketch)
    lowest = float(torch.linalg.eigvalsh(core).min())
    if lowest <= 0.0:  # As the authors do: the shift makes an indefinite sketch positive.
        shift += 2 * abs(lowest) + shift
        core = sketch.T @ (image + shift * sketch)
    factor = torch.linalg.cholesky(0.5 * (core + core.T))
    half = torch.linalg.solve_triangular(factor, (image + shift * sketch).T, upper=False).T
    basis, singular, _ = torch.linalg.svd(half, full_matrices=False)
    return basis, (singular.square() - shift).clamp(min=0.0)


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, basis: Tensor, values: Tensor, damping: float
) -> Tensor:
    least = float(values.min()) + damping

    def precondition(v: Tensor) -> Tensor:
        along = basis.T @ v
        return basis @ (along * (least / (values + damping))) + v - basis @ along

    x, r = torch.zeros_like(right), right.clone()
    z = precondition(r)
    p, r_z, target = z, float(r @ z), 1e-3 * float(right.norm())
    for _ in range(100):
        image = product(p) + damping * p
        curvature = float(p @ image)
        if curvature <= 0.0:
            return x if bool(x.any()) else right
        x, r = x + p * (r_z / curvature), r - image * (r_z / curvature)
        if float(r.norm()) <= target:
            break
        z = precondition(r)
        before, r_z = r_z, float(r @ z)
        p = z + p * (r_z / before)
    return x


def _methods(evaluations: int) -> dict[str, Method]:
    return {
        "auto": partial(_ours, cl.second_phase),
        "lbfgs-adam-scaled": partial(_ours, partial(cl.second_phase, method="lbfgs-adam-scaled")),
        "all pairs": partial(_ours, _all_pairs),
        "adam": _adam_on,
        "torch L-BFGS, 10": partial(_torch_lbfgs, 10),
        "torch L-BFGS, 100": partial(_torch_lbfgs, 100),
        "SSBroyden as published": partial(_ours, partial(_published_broyden, "ssbroyden")),
        "SSBFGS as published": partial(_ours, partial(_published_broyden, "ssbfgs")),
        "SOAP": partial(_soap, False, evaluations),
        "SOAP, cosine": partial(_soap, True, evaluations),
        "Levenberg-Marquardt": _levenberg_marquardt,
        "NysNewton-CG, 1e-2": partial(_newton_cg, 1e-2),
        "NysNewton-CG, 1e-4": partial(_newton_cg, 1e-4),
    }


# Of these the better counts, problem by problem.
_BETTER = {
    "torch L-BFGS": ("torch L-BFGS, 10", "torch L-BFGS, 100"),
    "SOAP": ("SOAP", "SOAP, cosine"),
    "NysNewton-CG": ("NysNewton-CG, 1e-2", "NysNewton-CG, 1e-4"),
}
_KEY = ("problem", "dtype", "seed", "steps", "evaluations", "width")


@click.group()
def main() -> None:
    """Compare the default second phase with its peers on small networks."""


@main.command("run")
@click.option("--problems", default="*", show_default=True, help="Comma-separated patterns.")
@click.option("--methods", default="*", show_default=True, help="Comma-separated patterns; auto is always there.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--dtype", type=click.Choice(["float64", "float32"]), default="float64", show_default=True)
@click.option("--steps", default=1000, show_default=True, help="Of Adam, before the switch.")
@click.option("--evaluations", default=1000, show_default=True, help="After it.")
@click.option("--width", default=_WIDTH, show_default=True, help="Units of each of the three hidden layers.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=_RECORDS, help="JSON lines, added to.")
def run_command(
    problems: str, methods: str, seeds: str, dtype: str, steps: int, evaluations: int, width: int, out: Path
) -> None:
    """Make the runs that are not yet in the file."""
    torch.set_num_threads(1)
    wanted = ["auto", *(name for name in matching(_methods(evaluations), methods) if name != "auto")]
    if any(name.startswith("SOAP") for name in wanted):
        importlib.import_module("pytorch_optimizer")  # Not within what is timed.
    for seed in map(int, seeds.split(",")):
        for name in matching(PROBLEMS, problems):
            setting = dict(zip(_KEY, (name, dtype, seed, steps, evaluations, width), strict=True))
            _make(setting, wanted, out)


def _make(setting: Mapping[str, Any], wanted: Sequence[str], out: Path) -> None:
    """Make the runs of one switch point."""
    there = {line["method"]: line for line in _lines(out) if all(line[key] == setting[key] for key in _KEY)}
    missing = [name for name in wanted if name not in there]
    if not missing:
        return
    problem = Problem(setting["problem"], setting["seed"], getattr(torch, setting["dtype"]), setting["width"])
    adam = torch.optim.Adam(problem.parameters, lr=_RATE)
    until = Meter(problem, setting["steps"], 0.0)
    for _ in range(setting["steps"]):
        until.closure()
        adam.step()
    weights, moments = flatten(problem.parameters).clone(), adam.state_dict()
    seconds = there["auto"]["seconds"] if "auto" in there else 0.0
    for name in missing:
        with torch.no_grad():
            torch._foreach_copy_(problem.parameters, unflatten(weights, problem.parameters))
        again = torch.optim.Adam(problem.parameters, lr=_RATE)
        again.load_state_dict(moments)
        meter = Meter(problem, setting["evaluations"], seconds)
        try:
            _methods(setting["evaluations"])[name](meter, again)
        except _SpentError:
            pass
        except RuntimeError as error:
            click.echo(f"{name} ended: {error}", err=True)
        seconds = meter.seconds if name == "auto" else seconds
        line = dict(setting) | {
            "method": name,
            "parameters": weights.numel(),
            "seconds": meter.seconds,
            "at_evaluations": meter.best(evaluations=setting["evaluations"]),
            "at_seconds": meter.best(seconds=seconds),
            "evaluations_in_seconds": max(cost for cost, second, _ in meter.curve if second <= seconds),
            "torch": torch.__version__,
        }
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        losses = [f"{line[column]:.2e}" for column in ("at_evaluations", "at_seconds") if line[column] is not None]
        click.echo(f"{list(setting.values())} {name}: {', '.join(losses)}")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [_KNOWN_BEFORE | json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@main.command("report")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=_RECORDS)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=_RECORDS.with_suffix(".md"))
def report_command(path: Path, out: Path) -> None:
    """Write the tables in Markdown."""
    groups: dict[tuple[str, int, int, int], list[dict[str, Any]]] = defaultdict(list)
    for line in _lines(path):
        groups[line["dtype"], line["steps"], line["evaluations"], -line["width"]].append(line)
    text = "\n\n".join(_tables(key, lines) for key, lines in sorted(groups.items(), reverse=True))
    out.write_text(f"# The default second phase beside its peers\n\n{text}\n", encoding="utf-8")
    click.echo(out)


def _tables(key: tuple[str, int, int, int], lines: Sequence[Mapping[str, Any]]) -> str:
    dtype, steps, evaluations, _ = key
    sizes = sorted({line["parameters"] for line in lines})  # The regression has more inputs.
    about = f"{dtype}, {' or '.join(f'{size:,}' for size in sizes)} parameters, {steps} steps of Adam"
    return "\n\n".join(
        f"## {about}, {title}\n\n{_table(lines, column, _FLOORS[dtype])}"
        for column, title in (
            ("at_evaluations", f"then {evaluations} evaluations"),
            ("at_seconds", "then the processor seconds that auto took for them"),
        )
    )


def _table(lines: Sequence[Mapping[str, Any]], column: str, floor: float) -> str:
    """Return medians over seeds, and geometric means of the ratio of auto to each method over problems and seeds."""
    losses: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for line in lines:
        if line[column] is None:
            continue
        losses[line["method"]][line["problem"], line["seed"]] = max(floor, line[column])
    for name, parts in _BETTER.items():
        both = [losses.pop(part) for part in parts if part in losses]
        if both:
            losses[name] = {run: min(part[run] for part in both if run in part) for run in set().union(*both)}
    problems = [name for name in PROBLEMS if any(run[0] == name for run in losses["auto"])]
    rows = [["", *problems, "auto over it, equations", "... all"], ["---"] * (len(problems) + 3)]
    for name, runs in losses.items():
        medians = [_median(loss for run, loss in runs.items() if run[0] == problem) for problem in problems]
        rows.append([name, *medians, *(_ratio(losses["auto"], runs, within) for within in (_EQUATIONS, PROBLEMS))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _ratio(
    ours: Mapping[tuple[str, int], float], theirs: Mapping[tuple[str, int], float], problems: Iterable[str]
) -> str:
    """Return the geometric mean of ours over theirs, over all runs of these problems that both have."""
    within = set(problems)
    logarithms = [math.log(ours[run] / theirs[run]) for run in ours if run in theirs and run[0] in within]
    return f"{math.exp(fmean(logarithms)):.2g}" if logarithms else "–"


def _median(losses: Iterable[float]) -> str:
    found = list(losses)
    return f"{median(found):.1e}" if found else "–"


if __name__ == "__main__":
    main()
