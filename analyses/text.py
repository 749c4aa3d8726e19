"""Do the paper's claims hold for a language model, which the paper announces as its next step?

Claim: the paper's claims 1 to 4, for a decoder-only transformer of 30,400 parameters that predicts a text byte by byte:
the loss is first non-convex, then convex; the gradient norm's peak marks the change; Adam until there, then conjugate
gradients with golden section, ends at a lower training loss than Adam alone.
Command: ``python analyses/text.py --scale desk`` (an interrupted study goes on where it was).
Run time: toy seconds; desk a quarter of an hour on a busy core; paper, 6,000 windows of the text, days.
Expected outcome: the page ``reports/text.html``: one seed, the names of Unicode characters, cross-entropy. No claim
holds: all six probed points are proven non-convex, three behind the norm's peak; Algorithm 1 switches after epoch
2 and ends far above Adam. Our second phase is level with the better Adam from 50 % of the budget on, ahead from 80 %.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import convexlab as cl
from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.training import cost_charts, norm_chart
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.reporting.parts.tables import curvature_table, results_table
from convexlab.runs import Run
from convexlab.wording.numbers import number

# Frozen settings: what differs from the command line's defaults.
ALONE: dict[str, Any] = {"no_baseline": True}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "default": {},
    "half": ALONE | {"switch_epoch": 0.5},
    "late": ALONE | {"switch_epoch": 0.8},
    "paper": ALONE | {"detector": "algorithm-1", "phase_two": "cg-golden"},
}
"""Ours, the same switched later, and the paper's Algorithm 1; all beside the same two runs of Adam alone."""
PROBED = "late"
"""Its checkpoints are probed: along most of Adam, then to the end of the second phase."""
SCALES: dict[str, dict[str, Any]] = {
    "toy": {"epochs": 5, "train_size": 10},
    "desk": {"epochs": 100, "train_size": 300},
    "paper": {"epochs": 700, "train_size": 6000},
}
POINTS = 5
"""Probed in equal distances, besides the end."""
KRYLOV_STEPS = {"toy": 6, "desk": 32, "paper": 64}
"""What they cannot decide is unresolved."""
NAMES = {
    "default": "Adam to 30 %, then L-BFGS with Adam’s second moments",
    "half": "the same from 50 % on",
    "late": "the same from 80 % on",
    "paper": "Algorithm 1: Adam to the detected peak, then conjugate gradients with golden section",
}


def train(scale: str, protocol: str) -> Run:
    """Return the run of a protocol, gone on with where it was interrupted."""
    path = Path("runs/text") / scale / protocol
    settings: dict[str, Any] = {"objective": "text", "probe_every": 0} | SCALES[scale] | PROTOCOLS[protocol]
    if protocol == PROBED:
        settings["checkpoint_every"] = max(1, settings["epochs"] // POINTS)
    if "switch_epoch" in settings:
        settings["switch_epoch"] = round(settings["switch_epoch"] * settings["epochs"])
    run = cl.train_two_phase(out=path, resume=(path / "config.json").exists(), **settings)
    if protocol == PROBED:
        cl.probe(run.path, max_steps=KRYLOV_STEPS[scale], slice_points=0, resume=True)
    return run


def convexity(facts: RunFacts) -> str:
    """Say whether claim 1 holds along the probed checkpoints."""
    verdicts = [point.verdict for point in facts.probe]
    proven, nothing, open_ = (verdicts.count(kind) for kind in ("non-convex", "no-negative-curvature", "unresolved"))
    last = max((place for place, kind in enumerate(verdicts) if kind == "non-convex"), default=-1)
    convex = [kind == "no-negative-curvature" for kind in verdicts[last + 1 :]]
    if convex and all(convex):
        outcome = "holds" if "no-negative-curvature" not in verdicts[: last + 1] else "fails: there is a patchwork"
    else:
        outcome = "fails: training ends in a region that is proven non-convex" if not convex else "is undecided"
    return (
        f"Claim 1, first non-convex, then convex, {outcome}. Of {len(verdicts)} probed points {proven} are proven "
        f"non-convex, at {nothing} no negative curvature was found, {open_} are unresolved."
    )


def peak(facts: RunFacts) -> str:
    """Say whether claim 2 holds along Adam, to the switch."""
    curve = facts.curves["two-phase"]
    adam = [place for place, phase in enumerate(curve.phases) if phase == "adam"]
    highest = max(adam, key=lambda place: curve.norm[place])
    verdicts = [point.verdict for point in facts.probe if (point.epoch or 0.0) > curve.epoch[highest]]
    proven, nothing = verdicts.count("non-convex"), verdicts.count("no-negative-curvature")
    if proven or highest == adam[-1]:
        outcome = "fails"
    else:
        outcome = "holds" if verdicts and nothing == len(verdicts) else "is undecided"
    lowest = min(curve.norm[1:highest], default=curve.norm[0])
    return (
        f"Claim 2, the norm’s peak is the border, {outcome}. The norm is {number(curve.norm[0])} at the start, falls "
        f"to {number(lowest)}, is highest in epoch {curve.epoch[highest]:.0f} "
        f"of Adam’s {curve.epoch[adam[-1]]:.0f}, {number(curve.norm[highest])}, and {number(curve.norm[adam[-1]])} "
        f"where Adam ends. Of {len(verdicts)} points probed behind that peak {proven} are proven non-convex, at "
        f"{nothing} no negative curvature was found."
    )


def ends(runs: dict[str, RunFacts]) -> list[str]:
    """Say when Algorithm 1 switched, and whether what it leads to is ahead of Adam at equal cost: claims 3 and 4."""
    better = runs["default"].better_baseline
    assert better is not None
    name, adam = better
    answers = []
    for protocol, facts in runs.items():
        switch = facts.switch.epoch if facts.switch else None
        assert facts.two_phase is not None
        ratio = (facts.two_phase.train_loss or 0.0) / (adam.train_loss or 1.0)
        when = "never switches" if switch is None else f"switches after epoch {switch:.0f}"
        verdict = {"paper": f"Claims 3 and 4 {'hold' if ratio < 1 and switch is not None else 'fail'}. "}.get(
            protocol, ""
        )
        answers.append(
            f"{verdict}{NAMES[protocol]}: {when}, and ends at {number(facts.two_phase.train_loss)}, "
            f"{number(ratio)} of the better Adam ({name}, {number(adam.train_loss)}) at equal cost."
        )
    return answers


def study(runs: dict[str, RunFacts], scale: str) -> Study:
    """Return the page."""
    ours, probed = runs["default"], runs[PROBED]
    charts = [norm_chart(probed, "norm"), eigenvalue_chart(probed, "ends"), mass_chart(probed, "mass")]
    curvature, results = curvature_table(probed), results_table(ours)
    return Study(
        title="A language model: do the claims hold?",
        claim="The paper’s claims 1 to 4 hold for a small language model, its announced next step: first non-convex, "
        "then convex; the norm’s peak between; Adam until there, then conjugate gradients, beats Adam.",
        answer=[convexity(probed), peak(probed), *ends(runs)],
        command=f"python analyses/text.py --scale {scale}",
        parts=[
            Part(
                "Along training",
                [
                    "A decoder-only transformer of two layers of width 32 (30,400 parameters) predicts the names of "
                    "Unicode characters byte by byte, from up to 32 bytes before. One seed; what was found of it need "
                    "not hold for larger ones.",
                ],
                charts=[chart for chart in charts if chart is not None],
                tables=[curvature] if curvature else [],
            ),
            Part("Loss over cost", charts=cost_charts(ours, "cost")[:1], tables=[results] if results else []),
        ],
        settings=SCALES[scale]
        | {
            "krylov_steps": KRYLOV_STEPS[scale],
            "text": "names of the characters below U+3000 in Unicode 3.2",
            "loss": "nats a byte",
        },
    )


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/text.html"), show_default=True)
def main(scale: str, out: Path) -> None:
    """Train by every protocol, and write one page."""
    runs = {protocol: read_facts(train(scale, protocol), protocol) for protocol in PROTOCOLS}
    page = study(runs, scale)
    click.echo("\n".join([*page.answer, str(write_study(page, out))]))


if __name__ == "__main__":
    main()
