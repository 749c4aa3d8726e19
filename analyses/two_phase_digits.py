"""Does two-phase training beat Adam on scikit-learn's digits, at equal cost?

Claim: the paper's claims 2 and 4, on data that everyone has: the gradient norm rises, then falls, and from its peak on
conjugate gradients end at a lower training loss than Adam.
Command: ``python analyses/two_phase_digits.py --scale desk`` (an interrupted run goes on where it was).
Run time: toy seconds, desk about 8 minutes on two cores.
Expected outcome: the page ``reports/two-phase-digits.html``, with one run for each second phase below from the same
start. By epochs the paper's second phase looks well; with its line search charged it loses to Adam here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import convexlab as cl
from convexlab.reporting import write_report

# Frozen settings: what differs from the command line's defaults.
SCALES: dict[str, dict[str, Any]] = {
    "toy": {"epochs": 4, "switch_epoch": 2, "train_size": 80, "model": "vit-nomlp-wkewq-wvwo", "probe_every": 0},
    "desk": {},
}
PHASES = ("cg-golden", "lbfgs-adam")


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports/two-phase-digits.html"), show_default=True
)
def main(scale: str, out: Path) -> None:
    """Train with each second phase and write one page."""
    runs = []
    for phase in PHASES:
        path = Path("runs/two-phase-digits") / scale / phase
        begun = (path / "config.json").exists()
        runs.append(cl.train_two_phase(out=path, resume=begun, phase_two=phase, **SCALES[scale]))
    click.echo(write_report(runs, out))


if __name__ == "__main__":
    main()
