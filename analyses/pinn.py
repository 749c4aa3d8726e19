"""Does a physics-informed network gain from the detected switch and from what Adam hands over?

Claim: Adam until the detector fires, then L-BFGS with Adam's second moments, solves the equation better at equal cost
than two others. These are Adam alone, and the usual protocol: Adam, then torch's L-BFGS from a switch chosen by hand.
Command: ``python analyses/pinn.py --scale desk`` (an interrupted study goes on where it was). Run time: toy seconds;
desk about half an hour on one core; paper, ten seeds of a four times larger budget, a day. Expected outcome: the page
``reports/pinn.html``: two equations, three seeds, 5,000 gradient equivalents each. Adam alone is far from solving
either. Second phases are ahead of it by orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import click
import torch
from paper.adam_run import AdamRun, State
from paper.records import stored
from paper.switching import switch_at
from rich.progress import track

import convexlab as cl
from convexlab.problems import Problem, physics_informed
from convexlab.problems.physics_informed import burgers, convection
from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.charts.style import PALETTE, draw, scale_linear, scale_log
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.tables import Column, make_table
from convexlab.runs import Row, write_json
from convexlab.training.phases import LARGE, PhaseTwo, phase_two
from convexlab.wording.numbers import MISSING, number

# Frozen settings.
RATE = 1e-3
STEPS = 20
"""Steps of Adam on the whole batch that count as an epoch, after which the detector is updated."""
POINTS = 1000
BY_HAND = (0.2, 0.5, 0.8)
"""Of the budget: where one would guess the switch."""
EQUATIONS = {"convection, speed 30": convection, "Burgers, viscosity 0.01/π": burgers}
TORCH = "torch L-BFGS"
ADAM, COSINE = "Adam", "Adam, cosine rate"
DETECTED = f"Adam to the detected switch, {LARGE}"


@dataclass(frozen=True)
class PinnScale:
    """How much is done."""

    epochs: int
    seeds: int
    points: int

    @property
    def budget(self) -> int:
        """Gradient equivalents."""
        return self.epochs * STEPS


SCALES = {"toy": PinnScale(4, 1, 30), "desk": PinnScale(250, 3, POINTS), "paper": PinnScale(1000, 10, 10 * POINTS)}


def peer() -> PhaseTwo:
    """Return torch's L-BFGS as people use it, with its strong Wolfe search and 100 pairs."""

    def build(params: Any, adam: torch.optim.Adam, examples: int) -> Any:
        return torch.optim.LBFGS(params, history_size=100, line_search_fn="strong_wolfe")

    return PhaseTwo(TORCH, build)


def protocols() -> Iterator[tuple[str, str | float, PhaseTwo]]:
    """Yield name, switch (a share of the budget, or detected) and second phase."""
    ours = phase_two(LARGE)
    yield DETECTED, "detected", ours
    for share in BY_HAND:
        yield f"Adam to {share:.0%}, {TORCH}", share, peer()
        yield f"Adam to {share:.0%}, {LARGE}", share, ours


def solve(equation: str, seed: int, scale: PinnScale) -> Row:
    """Return loss, relative error and curve of every protocol to train one network."""
    torch.set_num_threads(1)
    problem = physics_informed(EQUATIONS[equation](), train_size=scale.points, seed=seed)
    cosine, _ = adam(problem, seed, scale, lambda done: 0.5 * RATE * (1 + math.cos(math.pi * done)))
    detector = cl.GradientNormPeak()
    constant, states = adam(problem, seed, scale, lambda done: RATE, detector)
    switch = detector.epoch if detector.fired else None
    run = AdamRun(problem, rate=RATE, seed=seed, steps=STEPS)
    found = {COSINE: cosine, ADAM: constant}
    for name, where, phase in protocols():
        epoch = switch if where == "detected" else round(float(where) * scale.epochs)
        found[name] = switched(run, states, epoch, phase, scale) if epoch else found[ADAM] | {"switch": None}
    return {"equation": equation, "seed": seed, "reason": detector.reason, "protocols": found}


def adam(
    problem: Problem, seed: int, scale: PinnScale, rate: Callable[[float], float], detector: cl.Detector | None = None
) -> tuple[Row, list[State]]:
    """Train with Adam at a rate over the share of the budget that is done; judge its best epoch, and return all states.

    A detector is updated after every epoch.
    """
    run = AdamRun(problem, rate=RATE, seed=seed, steps=STEPS)
    curve, states = [[0, run.record()["train_loss"]]], [run.state()]
    best = states[0]
    for epoch in range(scale.epochs):
        run.train(rate(epoch / scale.epochs))
        row = run.record()
        curve.append([row["cost"], row["train_loss"]])
        states.append(run.state())
        best = states[-1] if row["train_loss"] <= run.best_loss else best
        if detector is not None:
            detector.update(loss=row["train_loss"], gradient_norm=row["gradient_norm"])
    return judged(problem, best.weights, curve, None), states


def switched(run: AdamRun, states: Sequence[State], epoch: int, phase: PhaseTwo, scale: PinnScale) -> Row:
    """Go on from an epoch of Adam with a second phase, to the end of the budget."""
    spent = float(epoch * run.epoch_cost)
    ending = switch_at(run, states[epoch], phase, budget=scale.budget, spent=spent)
    return judged(run.problem, ending.weights, [[cost, loss] for cost, loss in ending.curve], epoch) | {
        "resorted": ending.resorted
    }


def judged(problem: Problem, weights: torch.Tensor, curve: list[list[float]], switch: int | None) -> Row:
    """Return the lowest loss of a curve of (cost, loss), and the relative error of the solution at the weights."""
    problem.objective.write(weights)
    thin = max(1, len(curve) // 300)
    return {
        "loss": min(loss for _, loss in curve),
        "error": problem.measures()["relative_error"],
        "switch": None if switch is None else switch * STEPS,
        "curve": [*curve[::thin], curve[-1]],
    }


def curves(rows: Sequence[Row], equation: str, key: str) -> Chart:
    """Draw the loss over the cost, for the first seed."""
    row = next(row for row in rows if row["equation"] == equation)
    styles = {
        ADAM: ("#6f7785", "--"),
        COSINE: (PALETTE["green"], ":"),
        DETECTED: (PALETTE["vermilion"], "-"),
        f"Adam to {BY_HAND[0]:.0%}, {TORCH}": (PALETTE["blue"], "-."),
    }
    with draw(height=4.0) as (figure, (axes,)):
        for name, (color, line) in styles.items():
            x, y = zip(*row["protocols"][name]["curve"], strict=True)
            lowest = [min(y[: place + 1]) for place in range(len(y))]
            axes.plot(x, lowest, color=color, linestyle=line, label=name.replace("detected switch", "detection"))
        scale_log(axes, "y")
        scale_linear(axes, "x")
        axes.set_xlabel("cost in gradient equivalents")
        axes.set_ylabel("lowest training loss so far")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=1, borderaxespad=0.1)
        ends = {name: number(row["protocols"][name]["loss"]) for name in styles}
        return chart(
            figure,
            key=key,
            title=equation,
            caption=f"Seed 0. The detector fired after {row['protocols'][DETECTED]['switch'] or 'no'} steps.",
            description="; ".join(f"{name} ends at {end}" for name, end in ends.items()) + ".",
        )


def ratio(rows: Sequence[Row], equation: str, name: str, other: str, what: str) -> float:
    """Return the geometric mean over the seeds of one protocol over another."""
    chosen = [row["protocols"] for row in rows if row["equation"] == equation]
    return geometric_mean([protocol[name][what] / protocol[other][what] for protocol in chosen])


def results(rows: Sequence[Row], equation: str) -> Any:
    """Return the table of an equation."""
    chosen = [row["protocols"] for row in rows if row["equation"] == equation]
    lines = []
    for name in chosen[0]:
        switches = [str(protocol[name]["switch"]) for protocol in chosen if protocol[name]["switch"] is not None]
        lines.append(
            [
                name,
                ", ".join(switches) or MISSING,
                number(median(protocol[name]["loss"] for protocol in chosen)),
                " to ".join(number(end(protocol[name]["loss"] for protocol in chosen)) for end in (min, max)),
                number(median(protocol[name]["error"] for protocol in chosen)),
                number(ratio(rows, equation, name, ADAM, "loss")),
                str(sum(bool(protocol[name].get("resorted")) for protocol in chosen)),
            ]
        )
    return make_table(
        f"{equation}: {len(chosen)} seeds. Relative error is ‖u − solution‖ / ‖solution‖ on a grid, at the lowest "
        "loss or where the second phase ended.",
        [
            Column("Way", False),
            "Switch after steps",
            "Loss, median",
            "Least to largest",
            "Relative error, median",
            "Loss / Adam",
            "Went back to Adam",
        ],
        lines,
    )


def _share(name: str) -> str:
    return name.partition(",")[0].removeprefix("Adam to ")


def study(rows: Sequence[Row], scale: PinnScale, command: str) -> Study:
    """Return the page."""
    answer = []
    for equation in EQUATIONS:
        best, same = (
            min(names, key=lambda name: ratio(rows, equation, name, ADAM, "loss"))
            for names in (
                [f"Adam to {share:.0%}, {TORCH}" for share in BY_HAND],
                [f"Adam to {share:.0%}, {LARGE}" for share in BY_HAND],
            )
        )
        to_adam, to_hand, to_same = (ratio(rows, equation, DETECTED, other, "loss") for other in (ADAM, best, same))
        ours, adams = (
            number(median(row["protocols"][name]["error"] for row in rows if row["equation"] == equation))
            for name in (DETECTED, ADAM)
        )
        answer.append(
            f"{equation}: the detected switch ends at {number(to_adam)} of Adam’s loss, at {number(to_hand)} of the "
            f"best switch by hand to torch’s L-BFGS ({_share(best)} of the budget). It ends at {number(to_same)} of "
            f"the best switch by hand to the same second phase ({_share(same)}). These are geometric means of "
            f"{scale.seeds} seeds. Relative error of the solution, median: {ours}, Adam {adams}."
        )
    return Study(
        title="Physics-informed networks: when to leave Adam, and for what?",
        claim="Adam until the gradient norm has peaked, then L-BFGS with Adam’s second moments, beats Adam alone. It "
        "also beats the habit of switching to L-BFGS at a step guessed by hand.",
        answer=answer,
        command=command,
        parts=[
            Part(
                "Loss over cost", charts=[curves(rows, name, f"curve-{place}") for place, name in enumerate(EQUATIONS)]
            ),
            Part(
                "Every protocol, at equal cost",
                [
                    "All begin with the same weights and may spend the same; every evaluation of a line search is "
                    "charged. On the whole batch the gradient norm is Adam’s own and free. Losses near 10⁻⁷ are at "
                    "the rounding of float32.",
                ],
                tables=[results(rows, name) for name in EQUATIONS],
            ),
        ],
        settings={
            "network": "4 × 50 tanh units, 7,851 parameters",
            "points": scale.points,
            "budget": scale.budget,
            "adam_rate": RATE,
            "steps_per_epoch": STEPS,
            "seeds": scale.seeds,
            "switches_by_hand": list(BY_HAND),
        },
    )


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/pinn.html"), show_default=True)
def main(name: str, out: Path) -> None:
    """Train every network by every protocol, and write one page."""
    scale, rows = SCALES[name], []
    settings = {"epochs": scale.epochs, "points": scale.points, "rate": RATE, "steps": STEPS, "by_hand": list(BY_HAND)}
    cases = [(equation, seed) for seed in range(scale.seeds) for equation in EQUATIONS]
    for equation, seed in track(cases, "networks"):
        file = Path("runs/pinn") / name / f"{equation.partition(',')[0]}-{seed}.json"
        row = stored(file, {"settings": settings})
        if row is None:
            row = solve(equation, seed, scale) | {"settings": settings}
            write_json(file, row)
        rows.append(row)
    page = study(rows, scale, f"python analyses/pinn.py --scale {name}")
    click.echo("\n".join([*page.answer, str(write_study(page, out))]))


if __name__ == "__main__":
    main()
