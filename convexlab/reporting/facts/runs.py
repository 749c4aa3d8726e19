"""The facts of the runs that are named."""

from __future__ import annotations

from collections.abc import Sequence

from convexlab.errors import MisuseError
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.runs import Run

__all__ = ["read_runs"]


def read_runs(runs: Sequence[Run]) -> list[RunFacts]:
    """Return the facts of every run, those of several seeds one by one, each once.

    Raises:
        MisuseError: no run is given, or a directory is not a run's.
    """
    if not runs:
        raise MisuseError("no run to report: expected at least one run directory.")
    members = _members(runs)
    return [read_facts(run, label) for run, label in zip(members, _labels(members), strict=True)]


def _members(runs: Sequence[Run]) -> list[Run]:
    """Return the single-seed runs in the order given, each once."""
    members = (Run.open(member.path) for run in runs for member in run.members)
    return list({member.path.resolve(): member for member in members}.values())


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return the shortest names that tell runs apart: directory, with its parent, or numbered."""
    paths = [run.path.resolve() for run in runs]
    for depth in (1, 2, 3):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({index})" for index, name in enumerate(names, start=1)]
