"""Does two-phase training beat Adam on scikit-learn's digits, at equal cost, and does it matter when to switch?

Claim: the paper's claims 2 to 4, on data that everyone has. The gradient norm rises, then falls. Adam until its peak,
then a second-order method, ends at a lower training loss than Adam alone. Command: ``python
analyses/two_phase_digits.py --scale desk`` (an interrupted study goes on where it was). Run time: toy seconds; desk
about 20 minutes on one core; paper hours. Expected outcome: the page ``reports/two-phase-digits.html`` with three seeds
of three protocols, each beside Adam alone. They are the paper's (Algorithm 1, conjugate gradients with golden section),
a switch at the detected peak to L-BFGS with Adam's second moments, and the same switch at four fifths of the budget. At
equal cost one run of nine beats the better Adam.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import convexlab as cl
from convexlab.reporting import summary_lines, write_report

# Frozen settings: what differs from the command line's defaults.
EPOCHS = 40
LATE = 0.8
WAYS: dict[str, dict[str, Any]] = {
    "paper": {"detector": "algorithm-1", "phase_two": "cg-golden"},
    "peak": {"detector": "gradient-norm-peak"},
    "late": {},
}
SCALES: dict[str, dict[str, Any]] = {
    "toy": {"epochs": 4, "seeds": 1, "train_size": 40, "model": "vit-nomlp-wkewq-wvwo", "probe_every": 0},
    "desk": {"epochs": EPOCHS, "seeds": 3},
    "paper": {"epochs": 700, "seeds": 3},
}


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports/two-phase-digits.html"), show_default=True
)
def main(scale: str, out: Path) -> None:
    """Train by every protocol and write one page."""
    runs = []
    for protocol, options in WAYS.items():
        path = Path("runs/two-phase-digits") / scale / protocol
        settings = SCALES[scale] | options
        if protocol == "late":
            settings["switch_epoch"] = round(LATE * settings["epochs"])
        runs.append(cl.train_two_phase(out=path, resume=(path / "config.json").exists(), **settings))
    click.echo("\n".join([*summary_lines(runs), str(write_report(runs, out))]))


if __name__ == "__main__":
    main()
