"""The lines of results that `phase_two.py` has written, looked up and taken together over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from phase_two_problems import EQUATIONS, PROBLEMS

__all__ = ["FLOOR", "Line", "Results", "device_of", "line_key", "mean_ratio", "read_lines", "spread_of", "table"]

Line = dict[str, Any]
FLOOR = 2.0**-23
"""Training losses below float32's resolution count as that: how far cross-entropy falls beyond it, on examples that are
told apart without error, means nothing, and zero has no ratio."""
_FLOORED = ("loss", "phase_loss")


def read_lines(file: Path, *, repair: bool = False) -> Iterator[Line]:
    """Yield the lines of a file, if it exists; with ``repair``, cut off a last line that was not written to its end."""
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if repair and whole != text:
        file.write_text(whole, encoding="utf-8")
    yield from map(json.loads, whole.splitlines())


def line_key(line: Line) -> tuple[Any, ...]:
    """Return what identifies a run."""
    return tuple(line[name] for name in ("problem", "seed", "budget", "train_size", "batch_size", "key"))


class Results:
    """Lines by problem, run and seed. A problem is a model, data and loss at one size and one budget."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines: dict[str, dict[str, dict[int, Line]]] = {}
        for line in sorted(lines, key=lambda line: PROBLEMS.index(line["problem"])):
            label = f"{line['problem']}, {line['train_size']}, {line['budget']}"
            self._lines.setdefault(label, {}).setdefault(line["key"], {})[line["seed"]] = line

    @property
    def problems(self) -> list[str]:
        """Every problem, in the order of `PROBLEMS`."""
        return list(self._lines)

    @staticmethod
    def physics(problem: str) -> bool:
        """Whether it is a physics-informed network."""
        return problem.startswith(tuple(EQUATIONS))

    def lines(self, problem: str, key: str) -> dict[int, Line]:
        """Return a run's lines by seed."""
        found = self._lines.get(problem, {}).get(key, {})
        return {seed: line for seed, line in sorted(found.items()) if "absent" not in line}

    def all_lines(self) -> Iterator[Line]:
        """Yield every line."""
        return (line for runs in self._lines.values() for seeds in runs.values() for line in seeds.values())

    def value(self, problem: str, key: str, name: str = "loss") -> float | None:
        """Return the median over seeds of one figure of a run, or None without any."""
        values = [_figure(line, name) for line in self.lines(problem, key).values() if line.get(name) is not None]
        return median(values) if values else None

    def best(self, problem: str, keys: Iterable[str], name: str = "loss") -> str | None:
        """Return the run of the lowest median loss."""
        known = {key: value for key in keys if (value := self.value(problem, key, name)) is not None}
        return min(known, key=lambda key: known[key]) if known else None

    def ratio(
        self, problem: str, key: str | None, other: str | None, name: str = "loss", other_name: str | None = None
    ) -> float | None:
        """Return the ratio of two runs' medians over the seeds that both have; ``other_name`` is ``name`` if None."""
        if key is None or other is None:
            return None
        mine, theirs = self.lines(problem, key), self.lines(problem, other)
        seeds = mine.keys() & theirs.keys()
        if not seeds:
            return None
        values = (
            median(_figure(lines[seed], which) for seed in seeds)
            for lines, which in ((mine, name), (theirs, other_name or name))
        )
        return next(values) / next(values)

    def spread(self, problem: str, key: str, other: str, name: str = "loss") -> tuple[float, float] | None:
        """Return the least and the largest ratio of two runs, seed by seed."""
        mine, theirs = self.lines(problem, key), self.lines(problem, other)
        ratios = [_figure(mine[seed], name) / _figure(theirs[seed], name) for seed in mine.keys() & theirs.keys()]
        return (min(ratios), max(ratios)) if ratios else None


def device_of(line: Line) -> str:
    """Return where a run was made; of the first ones no line says so."""
    device: str = line.get("device", "cpu")
    return device


def _figure(line: Line, name: str) -> float:
    value: float = line[name]
    return max(value, FLOOR) if name in _FLOORED else value


def mean_ratio(ratios: Iterable[float | None]) -> float | None:
    """Return the geometric mean of those that are there."""
    known = [ratio for ratio in ratios if ratio is not None and math.isfinite(ratio) and ratio > 0]
    return geometric_mean(known) if known else None


def spread_of(ratios: Iterable[float | None]) -> list[Any]:
    """Return least, median, largest, how many are above 1, and how many there are."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return [None, None, None, 0, 0]
    return [min(known), median(known), max(known), sum(ratio > 1 for ratio in known), len(known)]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return "never" if math.isinf(value) else f"{value:.3g}"
    return str(value)
