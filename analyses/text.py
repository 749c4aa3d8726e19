"""Do the paper's claims hold for a language model, which the paper announces as its next step?

Claim: the paper's claims 1 to 4, for a decoder-only transformer of 30,400 parameters that predicts a text byte by byte.
The loss is first non-convex, then convex. The gradient norm's peak marks the change. Adam until there, then conjugate
gradients with golden section, ends at a lower training loss than Adam alone. Command: ``python analyses/text.py --scale
desk`` (an interrupted study goes on where it was). Run time: toy seconds; desk a quarter of an hour on a busy core;
paper, 6,000 windows of the text, days. Expected outcome: the page ``reports/text.html``: one seed, the names of Unicode
characters, cross-entropy. All six probed points are proven non-convex, three of them behind the norm's peak: claim 1 is
undecided, claim 2 contradicted. Algorithm 1 switches after epoch 2 and ends far above Adam: claims 3 and 4 are
contradicted. Our second phase is level with the better Adam if switched at 50 % of the budget, and ahead at 80 %.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import convexlab as cl
from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.training import cost_charts, norm_chart
from convexlab.reporting.facts.claims import Outcome
from convexlab.reporting.facts.comparison import Result, compare
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.reporting.parts.tables import curvature_table, results_table
from convexlab.reporting.words.claims import ABOUT_OUTCOMES, CLAIM_TEXTS, claim_sentences
from convexlab.reporting.words.run import result_sentence, switch_sentence
from convexlab.runs import Run

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
    "half": "The same from 50 % on",
    "late": "The same from 80 % on",
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


def beside(facts: RunFacts, adam: RunFacts) -> RunFacts:
    """Return a run beside the Adam baselines of another one with the same budget, without its choice of phase two."""
    baselines = {name: adam.curves[name] for name in adam.baselines}
    return replace(facts, baselines=adam.baselines, curves=facts.curves | baselines, phase_two_reason="")


def ends_lower(facts: RunFacts) -> Outcome:
    """Judge claims 3 and 4: Adam to the peak, then conjugate gradients, ends at a lower training loss than Adam."""
    comparison = compare(facts)
    if comparison is None or not comparison.is_conclusive or not facts.has_second_phase:
        return "undecided"
    verdicts: dict[Result, Outcome] = {"better": "supported", "worse": "contradicted", "equal": "undecided"}
    return verdicts[comparison.result]


def ends(runs: dict[str, RunFacts]) -> list[str]:
    """Return what claims 3 and 4 come to, then where every protocol ends beside Adam."""
    compared = {protocol: beside(facts, runs["default"]) for protocol, facts in runs.items()}
    return [
        f"Claims 3 and 4 are {ends_lower(compared['paper'])}, by the protocol of Algorithm 1.",
        *(f"{NAMES[name]}. {result_sentence(facts)} {switch_sentence(facts)}" for name, facts in compared.items()),
    ]


def study(runs: dict[str, RunFacts], scale: str) -> Study:
    """Return the page."""
    ours, probed = runs["default"], runs[PROBED]
    charts = [norm_chart(probed, "norm"), eigenvalue_chart(probed, "ends"), mass_chart(probed, "mass")]
    curvature, results = curvature_table(probed), results_table(ours)
    return Study(
        title="A language model: do the claims hold?",
        claim="The paper’s claims hold for a small language model, its announced next step. "
        f"{' '.join(f'Claim {claim}: {text}' for claim, text in CLAIM_TEXTS.items())} Claims 3 and 4: Adam until the "
        "peak, then conjugate gradients, ends at a lower training loss than Adam alone.",
        answer=[*claim_sentences([probed]), *ends(runs)],
        command=f"python analyses/text.py --scale {scale}",
        parts=[
            Part(
                "Along training",
                [
                    "A decoder-only transformer of two layers of width 32 has 30,400 parameters. It predicts the names "
                    "of Unicode characters byte by byte, each from up to 32 bytes before it. There is one seed. "
                    "Larger models may behave differently.",
                    ABOUT_OUTCOMES,
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
