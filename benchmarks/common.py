"""What the benchmarks share: options, fresh processes, figures with their spread, tables in Markdown and JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from statistics import median
from typing import Any, ParamSpec, TypeVar

import click
import torch

from convexlab.machine.environment import describe_environment

__all__ = [
    "MODELS",
    "RESULTS",
    "Spread",
    "Table",
    "examples_option",
    "in_fresh_process",
    "models_option",
    "out_option",
    "repeats_option",
    "seconds",
    "write_json",
]

P = ParamSpec("P")
R = TypeVar("R")

MODELS = ("vit-mlp", "vit-nomlp", "vit-nomlp-wkewq", "vit-nomlp-wkewq-wvwo", "vgg5-max-relu")

RESULTS = Path(__file__).parent / "results"
"""Figures that a benchmark keeps in the repository."""

# Of NumPy's BLAS too, and of whatever compiles.
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)

# linear_operator, on which curvlinops builds, says so whenever it is imported.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")

models_option = click.option(
    "--models",
    type=click.Choice(MODELS),
    multiple=True,
    default=MODELS,
    help="One architecture; repeat the option for more.  [default: all five]",
)
examples_option = click.option(
    "--examples",
    type=click.IntRange(1),
    default=2048,
    show_default=True,
    help="CIFAR-10 images; few for a quick check.",
)
out_option = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write every figure to this JSON file."
)


def repeats_option(default: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return the option that says how often everything is timed, one thing after the other."""
    return click.option(
        "--repeats", type=click.IntRange(1), default=default, show_default=True, help="Timings of each, interleaved."
    )


@dataclass(frozen=True)
class Spread:
    """The values of one figure over the repeats."""

    values: tuple[float, ...]
    cut: bool = False
    """Whether what was measured was stopped before its end: these are lower bounds."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Collect them."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The figure that is quoted."""
        return median(self.values)

    def __truediv__(self, other: Spread) -> Spread:
        """Return the ratios, repeat by repeat; a figure taken once stands beside all the other's."""
        length = max(len(self.values), len(other.values))
        pairs = zip(_filled(self.values, length), _filled(other.values, length), strict=True)
        return Spread(tuple(mine / theirs for mine, theirs in pairs), cut=self.cut)

    def __str__(self) -> str:
        sign = ">" if self.cut else ""
        ends = "" if len(self.values) == 1 else f" [{min(self.values):.3g}, {max(self.values):.3g}]"
        return f"{sign}{self.median:.3g}{ends}"


def _filled(values: tuple[float, ...], length: int) -> tuple[float, ...]:
    return values * length if len(values) == 1 else values


@dataclass(frozen=True)
class Table:
    """Rows with the same keys; the keys are the columns."""

    title: str
    rows: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        """Return the table in Markdown."""
        columns = list(self.rows[0]) if self.rows else []
        lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_json(out: Path | None, options: Mapping[str, Any], **content: Any) -> None:
    """Write what was measured, where, and with which options; nothing without a file.

    It is called after every part of a long benchmark: an interrupted one leaves what it had.
    """
    if out is None:
        return
    environment = describe_environment(torch.device("cpu"), "float32") | {"threads": 1}
    record = {"environment": environment, "options": options} | content
    out.write_text(json.dumps(record, default=_plain, indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        ordered = {"min": min(value.values), "median": value.median, "max": max(value.values)}
        return ordered | {"values": value.values, "cut": value.cut}
    if is_dataclass(value) and not isinstance(value, type):
        # Not asdict: it would take the spreads inside apart.
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return str(value)


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of a module in a new interpreter with one thread and nothing compiled before.

    Whatever a method compiles, it compiles within its own time, and its peak memory is its own.
    """
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"), TORCHINDUCTOR_CACHE_DIR=cache)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            return pool.submit(function, *args, **kwargs).result()


def seconds(call: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
