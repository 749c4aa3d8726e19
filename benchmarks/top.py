"""What the five largest eigenpairs of a Hessian cost, ours beside the peers', in one run.

Run: ``tox -e bench -- benchmarks/top.py`` with CONVEXLAB_DATA set. One thread, float32, mean squared error,
half-trained weights. Timings are processor seconds of a fresh process from setting up to the result, interleaved.

- ConvexLab: `top_eigenpairs` at its default, residuals within 1e-2 of each eigenvalue.
- hessian-eigenthings: `lanczos` with the fewest steps, of multiples of 5, that its own test accepts at 1e-2; and with
  the fewest that are accurate to 1e-2 as well, which only a reference tells. Its default of 10 steps is shown too.
- PyHessian: `eigenvalues` at its default, power iteration with deflation until a value changes by less than 1e-3.

The error of a result is the largest of the five, relative to the eigenvalue, against a run of ours to 1e-5.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
import torch
from common import (
    Spread,
    Table,
    examples_option,
    in_fresh_process,
    models_option,
    out_option,
    repeats_option,
    write_json,
)
from hessian_eigenthings import lanczos
from libraries import HessianEigenthings, PyHessian
from measuring import Point, load, train

import convexlab as cl

COUNT, TOLERANCE = 5, 1e-2
_BATCH = 512
_MOST_STEPS = 150


def ours(point: Point, tolerance: float = TOLERANCE) -> tuple[float, list[float], bool, int]:
    """Return seconds, values, whether they were accepted, and products."""
    problem = load(point)
    problem.objective.gradient()
    begin = time.process_time()
    pairs = cl.top_eigenpairs(problem.objective.hessian(), COUNT, tolerance=tolerance)
    return time.process_time() - begin, pairs.values.tolist(), pairs.converged, pairs.effort.products


def eigenthings(point: Point, steps: int) -> tuple[float, list[float], bool, int]:
    """Likewise with so many steps."""
    problem = load(point)
    problem.objective.gradient()
    begin = time.process_time()
    user = HessianEigenthings(problem, min(_BATCH, point.examples))
    found = lanczos(user._operator, which="LA", seed=0, k=COUNT, max_iter=steps, tol=TOLERANCE)
    took = time.process_time() - begin
    return took, found.eigenvalues.tolist(), bool(found.converged.all()), steps


def pyhessian(point: Point) -> tuple[float, list[float], bool, int]:
    """Likewise at the default."""
    problem = load(point)
    problem.objective.gradient()
    torch.manual_seed(0)
    begin = time.process_time()
    user = PyHessian(problem, min(_BATCH, point.examples))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        values, _ = user._hessian.eigenvalues(top_n=COUNT)
    return time.process_time() - begin, [float(value) for value in values], True, len(user.products.seconds)


def fewest_steps(point: Point, reference: Sequence[float]) -> tuple[int, int]:
    """Return the fewest steps that hessian-eigenthings' own test accepts, and of those that are accurate too."""
    accepted = 0
    for steps in range(COUNT + 5, _MOST_STEPS, 5):
        _, values, good, _ = eigenthings(point, steps)
        accepted = accepted or (steps if good else 0)
        if good and error_of(values, reference) <= TOLERANCE:
            return accepted, steps
    return accepted or _MOST_STEPS, _MOST_STEPS


def error_of(values: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest relative error."""
    return max(abs(a - b) / abs(b) for a, b in zip(values, reference, strict=True))


def rows_of(point: Point, repeats: int) -> list[dict[str, Any]]:
    """Measure everything at one point."""
    reference = in_fresh_process(ours, point, 1e-5)[1]
    accepted, accurate = in_fresh_process(fewest_steps, point, reference)
    calls: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
        "ConvexLab": (ours, ()),
        f"hessian-eigenthings, accepted ({accepted} steps)": (eigenthings, (accepted,)),
        f"hessian-eigenthings, accurate ({accurate} steps)": (eigenthings, (accurate,)),
        "hessian-eigenthings, default": (eigenthings, (2 * COUNT,)),
        "PyHessian, default": (pyhessian, ()),
    }
    results: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (function, arguments) in calls.items():
            results[name].append(in_fresh_process(function, point, *arguments))
    base = Spread.of(result[0] for result in results["ConvexLab"])
    rows = []
    for name, made in results.items():
        taken = Spread.of(result[0] for result in made)
        rows.append(
            {
                "model": point.model,
                "who": name,
                "products": made[0][3],
                "seconds": taken,
                "accepted": made[0][2],
                "largest relative error": error_of(made[0][1], reference),
                "ours / theirs": base / taken,
            }
        )
    return rows


@click.command()
@models_option
@examples_option
@repeats_option(3)
@click.option("--epochs", type=click.IntRange(0), default=6, show_default=True, help="Of Adam, before.")
@out_option
def main(models: Sequence[str], examples: int, repeats: int, epochs: int, out: Path | None) -> None:
    """Time the five largest eigenpairs of each architecture, side by side."""
    options = {"models": models, "examples": examples, "repeats": repeats, "epochs": epochs}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            point = Point(model, examples)
            if epochs:
                point = replace(point, weights=Path(folder) / f"{model}.pt")
                in_fresh_process(train, point, epochs)
            rows.extend(rows_of(point, repeats))
            write_json(out, options, rows=rows)
            click.echo(str(Table(f"{COUNT} largest eigenpairs, {model}", rows[-5:])))
    for peer in ("hessian-eigenthings, accurate", "PyHessian"):
        ratios = [row["ours / theirs"].median for row in rows if row["who"].startswith(peer)]
        if ratios:
            click.echo(f"{peer}: ours / theirs {geometric_mean(ratios):.2f} (geometric mean)")


if __name__ == "__main__":
    main()
