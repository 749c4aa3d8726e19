"""How far does a probe carry: more parameters, more examples, more ranks?

Claim: a product with the Hessian is a sum over examples and one all-reduce, and ranks divide time and memory. The cost
of a probe follows from four numbers of a machine. Command: ``python analyses/scale.py --scale desk`` (what is measured
already is kept in ``runs/scale``) Run time: toy seconds; desk about a quarter of an hour on two cores, with 9 GB.
Expected outcome: the page ``reports/scale.html``. It has seconds and bytes by parameters, examples and ranks as
measured here, beside the cost model. It also has the model's prediction for a thousand GPUs, which is not measured.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from paper.records import stored
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature.bounds import steps_for
from convexlab.curvature.lanczos import Lanczos, random_unit_vector
from convexlab.machine.memory import resident_bytes
from convexlab.machine.ranks import ALONE, Ranks, of_torchrun
from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.charts.style import PALETTE, draw, legend, scale_log
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.tables import Column, Table, make_table
from convexlab.runs import Row, write_json
from convexlab.wording.numbers import byte_size, count, duration, number, short

# Frozen settings: a perceptron of two equal layers on inputs of this width, in float32, one thread a rank.
INPUTS, REPEATS, KRYLOV_STEPS = 32, 3, 12
MICRO_BATCH = 128
"""Examples that a processor evaluates at a time; a GPU takes all that fit."""
OPERATIONS = 12
"""Of a product, a parameter and example: two gradients, each of a forward pass (2) and a backward pass (4)."""
MOVED = 80
"""Bytes a parameter and micro-batch: weights, their gradient, the sum in float64 are read and written."""
REPLICATED = 40
"""Bytes a parameter on every rank: weights twice, a gradient, and vectors of full length in float64."""
CONFIDENCE = 0.999


@dataclass(frozen=True)
class Case:
    """A loss that is multiplied with."""

    parameters: int
    """About; the nearest that two layers have."""
    examples: int


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    ranks: tuple[int, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Machine:
    """The four numbers of the cost model, and how much memory a rank has."""

    name: str
    operations: float
    """A second, of a rank."""
    link: float
    """Bytes a second that a rank sends in an all-reduce, and as many that it receives."""
    bandwidth: float
    """Bytes a second that a rank reads its memory with."""
    overhead: float
    """Seconds of a micro-batch however few parameters there are."""
    micro_batch: int
    """Examples that are evaluated at a time."""
    memory: float
    """Bytes of a rank."""


SCALES = {
    "toy": Scale((1, 2), (Case(1_000, 64), Case(3_000, 64))),
    "desk": Scale(
        (1, 2, 4),
        (
            *(Case(10**3, examples) for examples in (10**3, 10**4, 10**5, 10**6)),
            *(Case(10**4, examples) for examples in (10**3, 10**4, 10**5)),
            *(Case(10**5, examples) for examples in (10**3, 10**4)),
            Case(10**6, 10**3),
            Case(10**7, 10**2),
            Case(10**8, 16),
        ),
    ),
}
# Where 4 ranks would not fit beside one another.
MOST_BYTES = 9e9
ON_PAPER = Machine("a GPU of 80 GB, on paper", 2e14, 4e10, 2e12, 1e-3, 10**6, 80e9)
"""A third of what such a GPU multiplies with in bfloat16, a link of 400 Gbit/s a GPU, two thirds of its memory's."""
PAPER_SIZES, PAPER_RANKS, PAPER_EXAMPLES = (10**6, 10**9, 10**11), (1, 8, 64, 1024), 10**6


# The cost model.


def product_seconds(machine: Machine, case: Case, ranks: int) -> float:
    """Return the seconds of one product: the examples are divided, the all-reduce is not."""
    examples = case.examples / ranks
    moving = MOVED * case.parameters / machine.bandwidth
    work = OPERATIONS * case.parameters * examples / machine.operations
    work += max(1.0, examples / machine.micro_batch) * (machine.overhead + moving)
    return work + reduce_seconds(machine, case.parameters, ranks)


def reduce_seconds(machine: Machine, parameters: int, ranks: int) -> float:
    """Return the seconds of the all-reduce of one flat buffer in float64, by a ring."""
    return 2 * 8 * parameters * (ranks - 1) / ranks / machine.link


def vector_seconds(machine: Machine, parameters: int, steps: int, ranks: int) -> float:
    """Return the seconds a step that a basis of ``steps`` vectors takes: it is read four times, half of it is there."""
    return 4 * 8 * parameters * steps / 2 / ranks / machine.bandwidth


def bytes_of_rank(parameters: int, steps: int, ranks: int) -> float:
    """Return the bytes that a rank needs beside its graphs: its part of the basis, and what all ranks hold."""
    return 8 * parameters * (steps + 1) / ranks + REPLICATED * parameters


def fitted(rows: Sequence[Row]) -> Machine:
    """Return the machine whose four numbers the measurements of it give."""
    alone = [row for row in rows if row["ranks"] == 1]
    widest = max((row for row in rows if row["ranks"] == 2), key=lambda row: row["parameters"])
    long = max(alone, key=lambda row: row["parameters"] * bool(row["step"]))
    read = 4 * 8 * long["parameters"] * KRYLOV_STEPS / 2
    narrow = min(alone, key=lambda row: (row["parameters"], -row["examples"]))
    overhead = narrow["product"] / max(1.0, narrow["examples"] / MICRO_BATCH)
    # Where operations take longer than all else; at toy size nowhere, and the largest is as good as any.
    busy = [row for row in alone if row["examples"] >= MICRO_BATCH] or alone
    most = max(busy, key=lambda row: row["parameters"])
    left = most["product"] - max(1.0, most["examples"] / MICRO_BATCH) * overhead
    return Machine(
        "this machine",
        operations=OPERATIONS * most["parameters"] * most["examples"] / (left if left > 0 else most["product"]),
        link=8 * widest["parameters"] / widest["reduce"],
        bandwidth=read / long["step"],
        overhead=overhead,
        micro_batch=MICRO_BATCH,
        memory=float(psutil.virtual_memory().total),
    )


# Measuring, in every rank.


def measured(scale: Scale, name: str) -> list[Row]:
    """Return a row a case and number of ranks, measured now or by an earlier call."""
    file, settings = Path("runs/scale") / f"{name}.json", {"scale": json.loads(json.dumps(asdict(scale)))}
    known = stored(file, settings)
    if known is not None:
        return list(known["rows"])
    rows = [row for ranks in scale.ranks for row in (_by_ranks(ranks, name) if ranks > 1 else _alone(scale))]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**settings, "rows": rows})
    return rows


def _alone(scale: Scale) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(case, ALONE) for case in scale.cases if _fits(case, ALONE)]
    finally:
        torch.set_num_threads(threads)


def _by_ranks(ranks: int, name: str) -> list[Row]:
    """Start so many ranks, and return what they have measured."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
    folders = os.pathsep.join(filter(None, [str(Path(cl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": folders}
    done = subprocess.run(
        [*command, "--scale", name, "--as-rank"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def _as_rank(scale: Scale) -> None:
    torch.set_num_threads(1)
    with of_torchrun("cpu") as ranks:
        rows = [_row(case, ranks) for case in scale.cases if _fits(case, ranks)]
        if ranks.is_writer:
            click.echo(json.dumps(rows))


def _fits(case: Case, ranks: Ranks) -> bool:
    return ranks.size * REPLICATED * case.parameters < MOST_BYTES


def _row(case: Case, ranks: Ranks) -> Row:
    before = resident_bytes()
    objective = cl.Objective(_network(case.parameters), _Drawn(case.examples), nn.MSELoss(), group=ranks.group)
    operator, size = objective.hessian("exact"), objective.size
    v = torch.ones(size) / size**0.5
    operator.matvec(v)  # Builds graphs, and keeps those that there is memory for.
    product = _seconds(ranks, partial(operator.matvec, v))
    del operator, v
    reduce = _seconds(ranks, partial(ranks.added, torch.zeros(size + 1, dtype=torch.float64)))
    steps = KRYLOV_STEPS if 8 * size * KRYLOV_STEPS < MOST_BYTES / 2 else 0
    return {
        "ranks": ranks.size,
        "parameters": size,
        "examples": case.examples,
        "product": product,
        "reduce": reduce,
        "step": _step_seconds(size, steps, ranks) if steps else 0.0,
        "bytes": ranks.most(max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)),
    }


class _Drawn:
    """Batches of examples, drawn anew whenever they are asked for, and always the same: a set of any size."""

    _ROWS = 1000

    def __init__(self, examples: int) -> None:
        self._examples = examples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator()
        for start in range(0, self._examples, self._ROWS):
            x = torch.randn(min(self._ROWS, self._examples - start), INPUTS, generator=generator.manual_seed(start))
            yield x, x[:, :1].sin()


def _network(parameters: int) -> nn.Module:
    """Return a perceptron of about so many parameters: w² + (inputs + 3) w + 1, w the width of its two layers."""
    width = max(1, round((((INPUTS + 3) ** 2 + 4 * parameters) ** 0.5 - INPUTS - 3) / 2))
    torch.manual_seed(0)
    layers = nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    return nn.Sequential(*layers)


class _Identity:
    """Products that take no time: what is left of a Krylov run is work with vectors."""

    def __init__(self, size: int, ranks: Ranks) -> None:
        self.shape, self.dtype, self.device, self.ranks = (size, size), torch.float64, torch.device("cpu"), ranks
        self._diagonal = torch.linspace(1, 2, size, dtype=torch.float64)

    def matvec(self, v: Tensor) -> Tensor:
        return v * self._diagonal


def _step_seconds(size: int, steps: int, ranks: Ranks) -> float:
    operator = _Identity(size, ranks)
    process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(0)), steps)
    begin = time.perf_counter()
    process.extend(steps)
    return ranks.most(time.perf_counter() - begin) / process.steps


def _seconds(ranks: Ranks, call: Callable[[], object]) -> float:
    """Return the median of some calls, of the slowest rank each."""
    times = []
    for _ in range(REPEATS):
        ranks.any(False)  # All begin together.
        begin = time.perf_counter()
        call()
        times.append(ranks.most(time.perf_counter() - begin))
    return statistics.median(times)


# The page.


def _case(row: Row) -> Case:
    return Case(row["parameters"], row["examples"])


def _product_chart(rows: Sequence[Row], machine: Machine) -> Chart:
    colors = dict(zip(sorted({row["ranks"] for row in rows}), PALETTE.values(), strict=False))
    with draw(height=4.2) as (figure, (axes,)):
        for ranks, color in colors.items():
            own = [row for row in rows if row["ranks"] == ranks]
            work = [row["parameters"] * row["examples"] for row in own]
            axes.plot(work, [row["product"] for row in own], "o", color=color, label=f"{ranks} ranks, measured")
            known = sorted(zip(work, (product_seconds(machine, _case(row), ranks) for row in own), strict=True))
            axes.plot(*zip(*known, strict=True), "-", color=color, linewidth=1, label=f"{ranks} ranks, model")
        scale_log(axes, "x")
        scale_log(axes, "y")
        axes.set_xlabel("parameters × examples")
        axes.set_ylabel("seconds of a product")
        legend(axes)
        slowest = max(rows, key=lambda row: row["product"])
        return chart(
            figure,
            key="product",
            title="A product with the Hessian",
            caption="Seconds of a product, over what it has to calculate.",
            description=f"The slowest of {len(rows)} took {number(slowest['product'])} seconds.",
        )


def _paper_chart() -> Chart:
    ranks, sizes = PAPER_RANKS[-1], [10.0**power for power in range(6, 12)]
    parts: dict[str, list[float]] = {
        "examples": [OPERATIONS * n * PAPER_EXAMPLES / ranks / ON_PAPER.operations for n in sizes],
        "all-reduce": [reduce_seconds(ON_PAPER, int(n), ranks) for n in sizes],
        "basis": [vector_seconds(ON_PAPER, int(n), steps_for(int(n), 1e-2, CONFIDENCE), ranks) for n in sizes],
    }
    styles = ("o-", "s--", "^:")
    with draw(height=3.8) as (figure, (axes,)):
        for (name, seconds), color, style in zip(parts.items(), PALETTE.values(), styles, strict=False):
            axes.plot(sizes, seconds, style, color=color, label=name)
        axes.axvline(ON_PAPER.memory / REPLICATED, color="#aab1bd", linewidth=1.0, zorder=0)
        scale_log(axes, "x")
        scale_log(axes, "y")
        axes.set_xlabel("parameters")
        axes.set_ylabel("seconds of a step")
        legend(axes)
        return chart(
            figure,
            key="paper",
            title=f"On paper: a step of {count(ranks)} GPUs",
            caption=f"A step on {count(ranks)} GPUs with {count(PAPER_EXAMPLES)} examples, by the cost model. "
            "Beyond the upright line vectors of full length no longer fit into one GPU.",
            description="; ".join(f"{name}: {number(seconds[-1])} s at 10¹¹" for name, seconds in parts.items()) + ".",
        )


def _measured_table(rows: Sequence[Row], machine: Machine) -> Table:
    columns = ["Parameters", "Examples", "Ranks", "Product, s", "By the model", "All-reduce, s", "Step, s", "Memory"]
    return make_table(
        "As measured, beside the model; a rank has one thread.",
        columns,
        [
            [
                count(row["parameters"]),
                count(row["examples"]),
                str(row["ranks"]),
                number(row["product"]),
                number(product_seconds(machine, _case(row), row["ranks"])),
                number(row["reduce"]),
                number(row["step"]) if row["step"] else "",
                byte_size(int(row["bytes"])),
            ]
            for row in rows
        ],
    )


def _paper_rows() -> list[list[str]]:
    rows = []
    for parameters in PAPER_SIZES:
        bound, verdict = (steps_for(parameters, tolerance, CONFIDENCE) for tolerance in (1e-2, 1e-3))
        for ranks in PAPER_RANKS:
            case, need = Case(parameters, PAPER_EXAMPLES), bytes_of_rank(parameters, bound, ranks)
            step = product_seconds(ON_PAPER, case, ranks) + vector_seconds(ON_PAPER, parameters, bound, ranks)
            rows.append(
                [
                    short(float(parameters)),
                    count(ranks),
                    byte_size(int(need)),
                    duration(reduce_seconds(ON_PAPER, parameters, ranks)),
                    duration(step),
                    f"{bound} / {verdict}",
                    duration(step * bound) if need <= ON_PAPER.memory else "does not fit",
                ]
            )
    return rows


def _paper_table() -> Table:
    columns = ["Parameters", "GPUs", "Bytes a GPU", "All-reduce", "A step", "Steps: bound / verdict", "The bound"]
    return make_table(
        f"On paper, with {count(PAPER_EXAMPLES)} examples; steps are those that suffice for any spectrum.",
        [Column(columns[0], False), *columns[1:]],
        _paper_rows(),
    )


def speed_up(rows: Sequence[Row], ranks: int) -> tuple[float, Row]:
    """Return how much faster so many ranks made the largest product that one rank made too, and its row."""
    pairs = [
        (row, alone)
        for row in rows
        for alone in rows
        if (row["ranks"], alone["ranks"]) == (ranks, 1) and _case(row) == _case(alone)
    ]
    row, alone = max(pairs, key=lambda pair: pair[1]["product"])
    return alone["product"] / row["product"], row


def answers(rows: Sequence[Row], machine: Machine) -> list[str]:
    """Return the sentences with the numbers."""
    limit = ON_PAPER.memory / REPLICATED
    errors = [product_seconds(machine, _case(row), row["ranks"]) / row["product"] for row in rows if row["ranks"] == 1]
    return [
        f"On paper, GPUs of {byte_size(int(ON_PAPER.memory))} carry {count(limit)} parameters at most, however many "
        "they are: vectors of full length are on each of them.",
        f"A rank of this machine makes {number(machine.operations)} operations a second, sends "
        f"{byte_size(int(machine.link))} and reads {byte_size(int(machine.bandwidth))} a second, and begins a "
        f"micro-batch in {duration(machine.overhead)}.",
        f"With these numbers the model gives {number(min(errors), 2)} to {number(max(errors), 2)} times the seconds "
        "of a product that were measured, by one rank.",
    ]


def beside_others(rows: Sequence[Row]) -> str:
    """Return what ranks have saved, and how far that is to be trusted."""
    gains = {ranks: speed_up(rows, ranks) for ranks in sorted({row["ranks"] for row in rows}) if ranks > 1}
    faster = ", ".join(f"{ranks} ranks {number(gain, 2)} times as fast" for ranks, (gain, _) in gains.items())
    largest = gains[2][1]
    return (
        f"The largest product, of {count(largest['parameters'])} parameters and {count(largest['examples'])} examples, "
        f"was made by {faster} as by one, on {os.cpu_count()} processors. Where others use the machine too, more ranks "
        "get a larger share of it, so that this says little of ranks. Beyond as many ranks as processors nothing is to "
        "be had."
    )


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/scale.html"), show_default=True)
@click.option("--as-rank", is_flag=True, hidden=True)
def main(name: str, out: Path, as_rank: bool) -> None:
    """Measure by 1, 2 and 4 ranks, fit the cost model, carry it on, and write the page."""
    scale = SCALES[name]
    if as_rank:
        _as_rank(scale)
        return
    rows = measured(scale, name)
    machine = fitted(rows)
    settings: dict[str, Any] = {name: value for name, value in asdict(machine).items() if name != "name"}
    study = Study(
        title="How far does a probe carry?",
        claim="A product with the Hessian is a sum over examples and one all-reduce, so ranks divide time and memory. "
        "The cost of a probe follows from four numbers of a machine.",
        answer=answers(rows, machine),
        command=f"python analyses/scale.py --scale {name}",
        parts=[
            Part(
                "Measured here",
                [beside_others(rows)],
                [_product_chart(rows, machine)],
                [_measured_table(rows, machine)],
            ),
            Part("On paper", [], [_paper_chart()], [_paper_table()]),
        ],
        settings=settings | {"on paper": [f"{key} {value}" for key, value in asdict(ON_PAPER).items()]},
    )
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()
