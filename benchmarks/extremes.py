"""What both ends of a Hessian's spectrum cost, ours with a certificate, the peers' at equal accuracy, in one run.

Run: ``tox -e bench -- benchmarks/extremes.py`` with CONVEXLAB_DATA set. One thread, float32, mean squared error,
half-trained weights. Every timing is of a fresh process that has compiled nothing, and holds all that a user waits
for: setting up, compiling, running. Timings are interleaved, so that a machine whose speed drifts slows all alike.

An end is accurate within 1e-2 of the range λ_max - λ_min of a reference, 200 Lanczos steps from another start with a
basis in float64. Of each peer stand here:

- its documented default;
- the least that *its own test* accepts at the tolerance 1e-2, of a small grid of settings: what its user, who has no
  reference, can rely on. The test is relative to the eigenvalue, which is stricter at the smaller end;
- the cheapest setting of the grid that *is* accurate, which only the reference tells. It flatters the peer: nobody
  knows it beforehand.

The two are chosen by counting products. Peers get the batch size at which their product is fastest here. PyHessian's
density calls a function that torch has dropped; it is shown with that put back, and never counted as the fastest peer.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
import torch
from common import (
    MODELS,
    Spread,
    Table,
    examples_option,
    in_fresh_process,
    models_option,
    out_option,
    repeats_option,
    seconds,
    write_json,
)
from libraries import LIBRARIES, PEERS, STEPS, TOLERANCE, Call, ConvexLab, Ends
from measuring import Measurement, Point, batch_sizes, cifar10, load, measure, megabytes, run_calls, train
from torch import Tensor

from convexlab.curvature.lanczos import random_run

REFERENCE_STEPS = 200
OURS, DEFAULT, OWN, CHEAPEST = "certified", "default", "own test", "cheapest here"

Plan = tuple[str, str, tuple[Call, ...], int]
"""Library, kind, calls and batch size."""


@dataclass(frozen=True)
class Reference:
    """The ends that errors are measured from."""

    smallest: float
    largest: float
    residuals: tuple[float, float]
    """‖H v - θ v‖ of both by fresh products."""
    vectors: Tensor
    """(2, n), of unit length."""

    @property
    def range(self) -> float:
        """λ_max - λ_min."""
        return self.largest - self.smallest

    def errors(self, ends: Ends) -> Ends:
        """Return the distance of both ends from these, over the range; None for an end that was not found."""
        pairs = zip(ends, (self.smallest, self.largest), strict=True)
        first, second = (None if end is None else abs(end - true) / self.range for end, true in pairs)
        return first, second

    def offset(self, multiply: Callable[[Tensor], Tensor]) -> float:
        """Return the larger ‖H v - θ v‖ of both ends, over the range, for a peer's product.

        Beyond our own residuals it is what the peer's product is wrong by where it matters here.
        """
        thetas = torch.tensor([[self.smallest], [self.largest]])
        products = torch.stack([multiply(vector.float()) for vector in self.vectors])
        return float(torch.linalg.vector_norm(products - thetas * self.vectors, dim=1).max()) / self.range


@dataclass(frozen=True)
class Trial:
    """What the search for a setting found out about one call."""

    call: Call
    products: int
    errors: Ends
    accepted: bool
    failure: str


@dataclass(frozen=True)
class Search:
    """What is known of a peer at one point before it runs against ours."""

    batch: int
    """The size at which its product is fastest."""
    offset: float
    """See `Reference.offset`."""
    defaults: list[tuple[tuple[Call, ...], Measurement]]
    """Its documented ways, timed once."""
    trials: list[Trial]
    """Of every setting of its grid."""


@dataclass(frozen=True)
class Row:
    """One way to both ends at one point."""

    library: str
    kind: str
    calls: tuple[Call, ...]
    batch: int
    measured: Measurement
    """Once: all but the seconds are the same every time."""
    errors: Ends
    seconds: Spread

    @property
    def name(self) -> str:
        """Library and kind, with what tells one default from another."""
        calls = " and ".join(f"{call.function} {call.end}" for call in self.calls)
        return f"{self.library}, {self.kind}" + (f" ({calls})" if self.kind == DEFAULT else "")

    @property
    def accurate(self) -> bool:
        """Whether both ends are, in the measure of this benchmark."""
        return all(error is not None and error <= TOLERANCE for error in self.errors)

    @property
    def as_shipped(self) -> bool:
        """Whether the library can do it; PyHessian's density calls a function that torch no longer has."""
        return all(call.function != "density" for call in self.calls)


@click.command()
@models_option
@examples_option
@repeats_option(3)
@click.option(
    "--epochs", type=click.IntRange(0), default=6, show_default=True, help="Of Adam, to half-trained weights."
)
@click.option(
    "--max-products", type=click.IntRange(1), default=300, show_default=True, help="After which a peer is stopped."
)
@click.option(
    "--grid/--no-grid", default=True, show_default=True, help="Try the peers' other settings too, which takes longest."
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(list(PEERS)),
    default=list(PEERS),
    help="One peer; repeat the option for more.  [default: all]",
)
@out_option
def main(
    models: Sequence[str],
    examples: int,
    repeats: int,
    epochs: int,
    max_products: int,
    grid: bool,
    peers: Sequence[str],
    out: Path | None,
) -> None:
    """Print a table for every architecture and the geometric means, in Markdown."""
    cifar10()
    options: dict[str, Any] = {"examples": examples, "repeats": repeats, "epochs": epochs, "max_products": max_products}
    options |= {"grid": grid, "peers": list(peers)}
    points: dict[str, Any] = {}
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            point = Point(model, examples, Path(folder) / f"{model}.pt")
            rows[model], points[model] = examine(point, repeats, epochs, max_products, grid, peers)
            click.echo(point_table(model, rows[model]))
            for library, one in points[model]["searches"].items():
                click.echo(f"‖H v - θ v‖ / range at the reference's ends by {library}: {one.offset:.1g}")
            click.echo("")
            write_json(out, options, points=points, ratios=ratios(rows), table=summary(rows).rows)
    click.echo(summary(rows))


def examine(
    point: Point, repeats: int, epochs: int, max_products: int, grid: bool, peers: Sequence[str]
) -> tuple[list[Row], dict[str, Any]]:
    """Return everything measured at one point, and the same for the JSON file."""
    parameters, loss = in_fresh_process(train, point, epochs)
    reference = in_fresh_process(find_reference, point)
    ends = f"{reference.smallest:.4g} and {reference.largest:.4g}"
    note(f"{point.model}: {parameters} parameters, loss {loss:.3g}, ends {ends}")
    plans: list[Plan] = [(ConvexLab.name, OURS, ConvexLab.documented[0], 0)]
    if fewest := in_fresh_process(fewest_steps, point, reference):
        call = Call("extreme_eigenvalues", "both", {"max_steps": fewest})
        plans.append((ConvexLab.name, CHEAPEST, (call,), 0))
    once: list[Row] = []
    searches: dict[str, Search] = {}
    for library in peers:
        searches[library] = one = in_fresh_process(search, point, library, reference, max_products, grid)
        done = [row_of((library, DEFAULT, calls, one.batch), [run], reference) for calls, run in one.defaults]
        # A default that is accurate runs against ours; of the others it is enough to know what they cost.
        plans += [(library, DEFAULT, row.calls, one.batch) for row in done if row.accurate]
        once += [row for row in done if not row.accurate]
        choices = [(kind, calls) for kind, calls in choose(one.trials) if calls not in LIBRARIES[library].documented]
        plans += [(library, kind, calls, one.batch) for kind, calls in choices]
    rows = timed(point, plans, reference, repeats) + once
    facts = {"parameters": parameters, "loss": loss, "smallest": reference.smallest, "largest": reference.largest}
    return rows, facts | {"reference_residuals": reference.residuals, "rows": rows, "searches": searches}


def find_reference(point: Point) -> Reference:
    """Return the ends after many steps of ours, from a start that nothing timed here begins with."""
    objective = load(point).objective
    operator = objective.hessian()
    process = random_run(operator, torch.Generator().manual_seed(1), REFERENCE_STEPS)
    values, coefficients = process.ritz()
    vectors = process.ritz_vectors(coefficients[:, [0, -1]]).T.contiguous()
    offsets = process.multiply(vectors) - vectors * torch.tensor(values[[0, -1]])[:, None]
    first, second = torch.linalg.vector_norm(offsets, dim=1).tolist()
    return Reference(float(values[0]), float(values[-1]), (first, second), vectors)


def fewest_steps(point: Point, reference: Reference) -> int | None:
    """Return the least steps of the peers' grid after which our ends are accurate: hindsight on our side too."""
    operator = load(point).objective.hessian()
    for steps in sorted(STEPS):
        values, _ = random_run(operator, torch.Generator().manual_seed(0), steps).ritz()
        if max(known(reference.errors((float(values[0]), float(values[-1]))))) <= TOLERANCE:
            return steps
    return None


def search(point: Point, library: str, reference: Reference, max_products: int, grid: bool) -> Search:
    """Find a peer's fastest batch size, time its documented defaults, and try every setting of its grid, if wanted."""
    problem = load(point)
    problem.objective.gradient()
    vector = reference.vectors[0].float()

    def product_seconds(batch: int) -> float:
        user = LIBRARIES[library](problem, batch)
        return min(seconds(lambda: user.multiply(vector)) for _ in range(3))

    batch = min(batch_sizes(point.examples), key=product_seconds)
    begin = time.perf_counter()
    user = LIBRARIES[library](problem, batch)
    setup = time.perf_counter() - begin
    defaults = []
    for calls in user.documented:
        user.products.reset(limit=max_products, recall=False)
        defaults.append((calls, run_calls(user, calls, begin=time.perf_counter() - setup)))
        note(f"{point.model}: {library}, {DEFAULT}: {defaults[-1][1].seconds:.1f} s")
    trials = []
    for call in user.grid if grid else ():
        user.products.reset(limit=max_products, recall=True)
        run = run_calls(user, [call], begin=time.perf_counter())
        trials.append(Trial(call, run.products, reference.errors(run.ends), run.accepted, run.failure))
    return Search(batch, reference.offset(user.multiply), defaults, trials)


def choose(trials: Sequence[Trial]) -> list[tuple[str, tuple[Call, ...]]]:
    """Return the cheapest ways to both ends that a peer's own test accepts, and that are accurate."""
    kinds = {
        OWN: [trial for trial in trials if trial.accepted],
        CHEAPEST: [trial for trial in trials if not trial.failure and max(known(trial.errors)) <= TOLERANCE],
    }
    ways = {kind: cheapest_way(good) for kind, good in kinds.items()}
    return [(kind, calls) for kind, calls in ways.items() if calls]


def cheapest_way(trials: Sequence[Trial]) -> tuple[Call, ...]:
    """Return the fewest products to both ends: one call for both, or one for each; nothing if there is no way."""
    best: dict[str, Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.products):
        best.setdefault(trial.call.end, trial)
    pairs = [tuple(best[end] for end in ends if end in best) for ends in (("both",), ("smallest", "largest"))]
    whole = [pair for pair, wanted in zip(pairs, (1, 2), strict=True) if len(pair) == wanted]
    chosen = min(whole, key=lambda pair: sum(trial.products for trial in pair), default=())
    return tuple(trial.call for trial in chosen)


def timed(point: Point, plans: Sequence[Plan], reference: Reference, repeats: int) -> list[Row]:
    """Run every plan ``repeats`` times, one after the other, each in a fresh process."""
    runs: list[list[Measurement]] = [[] for _ in plans]
    for repeat in range(repeats):
        for (library, kind, calls, batch), done in zip(plans, runs, strict=True):
            done.append(in_fresh_process(measure, point, library, batch, calls))
            note(f"{point.model}: {repeat + 1}/{repeats}, {library}, {kind}: {done[-1].seconds:.1f} s")
    return [row_of(plan, done, reference) for plan, done in zip(plans, runs, strict=True)]


def row_of(plan: Plan, runs: Sequence[Measurement], reference: Reference) -> Row:
    """Put the runs of one plan together."""
    times = Spread(tuple(run.seconds for run in runs), cut=bool(runs[0].failure))
    return Row(*plan, runs[0], reference.errors(runs[0].ends), times)


def fastest(rows: Iterable[Row], kinds: Sequence[str]) -> Row | None:
    """Return the fastest accurate peer of these kinds that works as shipped."""
    peers = [row for row in rows if row.library in PEERS and row.as_shipped]
    good = [row for row in peers if row.kind in kinds and row.accurate]
    return min(good, key=lambda row: row.seconds.median, default=None)


def point_table(model: str, rows: Sequence[Row]) -> Table:
    """Return one line a way."""
    bases = {
        "/ fastest peer": fastest(rows, (DEFAULT, OWN)),
        "/ fastest in hindsight": fastest(rows, (DEFAULT, OWN, CHEAPEST)),
    }
    lines = []
    for row in rows:
        relative = {name: None if base is None else row.seconds / base.seconds for name, base in bases.items()}
        lines.append(
            {
                "method": row.name,
                "calls": "; ".join(map(str, row.calls)),
                "batch": row.batch or None,
                "products": Spread((row.measured.products,), cut=row.seconds.cut),
                "seconds": row.seconds,
            }
            | relative
            | {
                "error smallest / range": row.errors[0],
                "error largest / range": row.errors[1],
                "accurate": row.accurate,
                "certified": row.measured.certified,
                "peak MB": megabytes(row.measured.peak_bytes),
            }
        )
    return Table(f"{model}: both ends", lines)


def ratios(rows: dict[str, list[Row]]) -> dict[str, dict[str, Spread]]:
    """Return our seconds over those of each comparison, for every architecture where the other is accurate."""
    found: dict[str, dict[str, Spread]] = {}
    for model, ways in rows.items():
        ours = {row.kind: row for row in ways if row.library not in PEERS}
        known_peer, best = fastest(ways, (DEFAULT, OWN)), fastest(ways, (DEFAULT, OWN, CHEAPEST))
        pairs = {
            "certified / fastest peer, default or own test": (ours[OURS], known_peer),
            "certified / fastest peer in hindsight": (ours[OURS], best),
            "in hindsight / fastest peer in hindsight": (ours.get(CHEAPEST), best),
        }
        others = [row for row in ways if row.library in PEERS and row.accurate]
        pairs |= {f"certified / {row.name}": (ours[OURS], row) for row in others}
        for name, (mine, theirs) in pairs.items():
            if mine is not None and theirs is not None:
                found.setdefault(name, {})[model] = mine.seconds / theirs.seconds
    return found


def summary(rows: dict[str, list[Row]]) -> Table:
    """Return the geometric mean over architectures of our seconds over the others', over the repeats."""
    lines = []
    for name, by_model in ratios(rows).items():
        repeats = zip(*(ratio.values for ratio in by_model.values()), strict=True)
        lines.append(
            {
                "seconds, ConvexLab's over the peer's": name,
                "architectures": f"{len(by_model)} of {len(rows)}",
                "geometric mean": Spread.of(map(geometric_mean, repeats)),
            }
            | {model: by_model.get(model) for model in MODELS if model in rows}
        )
    return Table("Both ends: certified ours beside the peers", lines)


def known(errors: Iterable[float | None]) -> list[float]:
    """Return the errors of the ends that were found; infinity where there is none."""
    return [error for error in errors if error is not None] or [math.inf]


def note(text: str) -> None:
    """Say on stderr how far it is."""
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
