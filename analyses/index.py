"""All published pages at a glance: what the paper says, what was measured, and where.

Claim: the paper's four claims and six figures, each beside the answer of the page that tests it.
Command: ``python analyses/index.py`` (after the pages in ``reports/`` were made; it reads them and computes nothing)
Run time: a second at every scale.
Expected outcome: the page ``reports/index.html``, with a card for each claim and each figure. A card has a word, the
number that it rests on and a picture. Behind it is what was measured, and the page with all of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import click
from paper.published import Published, read_page

from convexlab.reporting import Card, Part, Study, write_study
from convexlab.reporting.facts.claims import OUTCOMES
from convexlab.reporting.tables import Cell, Column, Table, make_table
from convexlab.wording.numbers import MISSING, plain_number


class Finding(NamedTuple):
    """What a page's answer comes to."""

    word: str
    tone: Literal["good", "bad", "open"]
    figure: str


OPEN = Finding("see the page", "open", MISSING)
"""Where an answer is none of those that a rule reads."""
Rule = Callable[[Sequence[str]], Finding]
"""Reads the sentences of an answer."""


def held(hits: int, trials: int, what: str) -> Finding:
    """Return how often a statement held, as a word: by the half of what was tried."""
    figure = f"{hits:,} of {trials:,} {what}"
    if hits == trials:
        return Finding("holds", "good", figure)
    if hits == 0:
        return Finding("does not hold", "bad", figure)
    return Finding("mostly holds", "open", figure) if 2 * hits >= trials else Finding("mostly fails", "bad", figure)


def counted(pattern: str, what: str) -> Rule:
    """Read the first ``hits of trials`` that a pattern has."""

    def rule(answer: Sequence[str]) -> Finding:
        match = re.search(pattern, " ".join(answer))
        if match is None:
            return OPEN
        hits, trials = (int(group.replace(",", "")) for group in match.groups())
        return held(hits, trials, what)

    return rule


def by_proof(supported: int, contradicted: int, undecided: int, trials: int, what: str) -> Finding:
    """Return how often a statement had which outcome, as a word: one proof contradicts it."""
    figure = f"supported in {supported}, contradicted in {contradicted}, undecided in {undecided} of {trials} {what}"
    if contradicted:
        return Finding("contradicted", "bad", figure)
    return Finding("supported", "good", figure) if supported else Finding("undecided", "open", figure)


def judged(claim: str) -> Rule:
    """Read in how many runs a claim is supported, contradicted and undecided: one proof contradicts it."""
    pattern = rf"Claim {claim} is supported in (\d+) of (\d+) .*?contradicted in (\d+) .*?undecided in (\d+) "

    def rule(answer: Sequence[str]) -> Finding:
        match = re.search(pattern, " ".join(answer).replace("\N{NO-BREAK SPACE}", " "))
        if match is None:
            return OPEN
        supported, runs, contradicted, undecided = map(int, match.groups())
        return by_proof(supported, contradicted, undecided, runs, "runs")

    return rule


def behind_the_peak(answer: Sequence[str]) -> Finding:
    """Read at how many points after the norm's peak non-convexity is not proven."""
    match = re.search(r"Of the (\d+) points measured after it, (\d+) are proven non-convex", " ".join(answer))
    if match is None:
        return OPEN
    points, proven = map(int, match.groups())
    return held(points - proven, points, "points behind the peak may be convex")


def lowest(answer: Sequence[str]) -> Finding:
    """Read on how many axes the paper's protocol is the lowest."""
    winners = re.findall(r": (.+?) is lowest", "\n".join(answer))
    return held(winners.count("Adam, then CG"), len(winners), "axes have it lowest") if winners else OPEN


def modelled(answer: Sequence[str]) -> Finding:
    """Read how far the cost model is from what was measured: it holds within a factor of 2."""
    match = re.search(r"gives ([\d.]+) to ([\d.]+) times the seconds", " ".join(answer))
    if match is None:
        return OPEN
    low, high = map(float, match.groups())
    figure = f"{match[1]} to {match[2]} times the seconds measured"
    return Finding("holds", "good", figure) if 0.5 <= low <= high <= 2 else Finding("does not hold", "bad", figure)


def below_adam(answer: Sequence[str]) -> Finding:
    """Read for how many equations the switch ends below Adam alone."""
    ratios = [float(plain_number(text)) for text in re.findall(r"ends at (\S+) of Adam’s loss", " ".join(answer))]
    return held(sum(ratio < 1 for ratio in ratios), len(ratios), "equations end lower") if ratios else OPEN


def claims_together(answer: Sequence[str]) -> Finding:
    """Read the outcome of every claim of one run; a sentence may speak of two claims."""
    said = re.findall(r"\bClaims? (\d)(?: and (\d))? (?:is|are) (supported|contradicted|undecided)", " ".join(answer))
    outcomes = Counter(outcome for *claims, outcome in said for claim in claims if claim)
    if not outcomes:
        return OPEN
    supported, contradicted, undecided = (outcomes[outcome] for outcome in OUTCOMES)
    return by_proof(supported, contradicted, undecided, outcomes.total(), "claims")


@dataclass(frozen=True)
class Entry:
    """What is said, which page answers, and how its answer is read."""

    subject: str
    said: str
    page: str
    rule: Rule
    picture: tuple[str, int] | None = None
    """A page and the place of one of its charts; None is the first of the page itself."""

    def card(self, pages: Mapping[str, Published]) -> Card:
        """Return the entry at a glance."""
        page, finding = pages[self.page], self.rule(pages[self.page].answer)
        name, place = self.picture or (self.page, 0)
        key = re.sub(r"\W+", "-", self.subject).strip("-").lower()
        return Card(
            heading=self.subject,
            statement=self.said,
            verdict=finding.word,
            tone=finding.tone,
            figure=finding.figure,
            details=page.answer,
            link=page.file,
            chart=pages[name].chart(place, key) if name in pages else None,
        )


CLAIMS = (
    Entry(
        "Claim 1",
        "Along training the loss is first non-convex, then convex around the minimum; no patchwork in between.",
        "hypothesis",
        judged("1"),
    ),
    Entry(
        "Claim 2",
        "The gradient norm over the loss rises in the non-convex part and falls in the convex one.",
        "hypothesis",
        judged("2"),
        ("figure-5", 0),
    ),
    Entry(
        "Claim 3",
        "The peak of the gradient norm is the moment to leave Adam.",
        "detector-validation",
        counted(r"gradient-norm-peak .*?\((\d+) of (\d+) within", "runs end within 10 % of their best switch"),
        ("detector-validation", 1),
    ),
    Entry(
        "Claim 4, Table 1",
        "In all 15 rows Adam, then conjugate gradients, ends at a training loss no higher than Adam’s.",
        "table-1",
        counted(r"lower than Adam in (\d+) of (\d+) rows", "rows, epoch against epoch, at a fraction of the epochs"),
    ),
    Entry(
        "Claim 4, against the best Adam",
        "The same, with every evaluation charged and Adam’s best rate.",
        "fair-table-1",
        counted(r"lower than the best Adam in (\d+) of (\d+) rows", "rows"),
    ),
)
FIGURES = (
    Entry(
        "Figure 1",
        "Random tanh tasks are convex around the minimum, non-convex at the margins.",
        "figure-1",
        counted(r"([\d,]+) of ([\d,]+) \(.*? random tasks", "random tasks"),
    ),
    Entry(
        "Figure 2",
        "On each branch the norm rises, then falls; its peak is the swap.",
        "figure-2",
        counted(r"on ([\d,]+) of ([\d,]+) \([^)]*\) branches", "branches have one peak"),
    ),
    Entry(
        "Figure 3",
        "With two parameters, descent goes from the non-convex region into the convex one, once.",
        "figure-3",
        counted(r"(\d+) of (\d+) \([^)]*\) paths go from non-convex to convex", "paths"),
        ("figure-3", 1),
    ),
    Entry(
        "Figure 4",
        "With two tanh layers a second convex region and minimum arise as C grows.",
        "figure-4",
        counted(r"target 0\.1, (\d+) of (\d+) curves", "curves"),
    ),
    Entry(
        "Figure 5",
        "A vision transformer’s norm rises, turns at a loss near 0.04, and falls: there the loss has become convex.",
        "figure-5",
        behind_the_peak,
    ),
    Entry("Figure 6", "Adam, then conjugate gradients, lowers the loss fastest over cost.", "figure-6", lowest),
)
BEYOND = (
    Entry(
        "Digits",
        "Not in the paper: on a short budget two phases end below the better Adam.",
        "two-phase-digits",
        counted(r"ended better in (\d+), worse in \d+ of (\d+)", "runs"),
    ),
    Entry(
        "Physics",
        "Not in the paper: a physics-informed network ends lower by a switch than with Adam alone.",
        "pinn",
        below_adam,
    ),
    Entry(
        "Language", "The paper’s announced next step: its claims hold for a language model.", "text", claims_together
    ),
    Entry("Scale", "Not in the paper: the cost of a probe follows from four numbers of a machine.", "scale", modelled),
)
PARTS = {"The claims": CLAIMS, "The figures": FIGURES, "Beyond the paper": BEYOND}
ABOUT = (
    "“Holds”: wherever it was tried; “does not hold”: nowhere; “mostly”: by the half. A claim on curvature is "
    "contradicted by one proof, and undecided where none was found. The words are read off the pages’ own counts, at "
    "the scale that they were made at."
)


def command(page: Published) -> str:
    """Return what makes a page again; page and study have the same name, except for a block of Table 1."""
    study, _, block = Path(page.file).stem.rpartition("-")
    if study == "table-1":
        return f"python analyses/table_1.py --scale paper --block {block}"
    return f"python analyses/{Path(page.file).stem.replace('-', '_')}.py --scale desk"


def published(pages: Sequence[Published]) -> Table:
    """Return every page with what made it."""
    return make_table(
        "Every page, the command that makes it again, and the commit that it was made at, where it says so.",
        [Column("Page", False), Column("Question", False), Column("Command", False), Column("Commit", False)],
        [[Cell(page.file, link=page.file), page.title, command(page), page.commit or MISSING] for page in pages],
    )


@click.command()
@click.option("--scale", type=click.Choice(["toy", "desk", "paper"]), default="desk", help="Makes no difference here.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/index.html"), show_default=True)
def main(scale: str, out: Path) -> None:
    """Read the pages beside the index and write it."""
    files = sorted(path for path in out.parent.glob("*.html") if path.name != out.name)
    pages = {path.stem: read_page(path) for path in files}
    if not pages and scale != "toy":
        raise click.ClickException(f"no published page in {out.parent}: run the studies first.")
    cards = {name: [entry.card(pages) for entry in entries if entry.page in pages] for name, entries in PARTS.items()}
    words = [f"{card.heading}: {card.verdict}" for card in cards["The claims"]]
    study = Study(
        title="The paper, reproduced and judged",
        claim="Hrycej et al.: along training the loss becomes convex, the gradient norm’s peak says when, and "
        "conjugate gradients from there beat Adam.",
        answer=[f"{'; '.join(words)}." if words else "No page is published yet."],
        command=f"python analyses/index.py --scale {scale}",
        parts=[
            *(Part(name, [ABOUT] if name == "The claims" else [], cards=some) for name, some in cards.items() if some),
            Part("All pages", tables=[published(list(pages.values()))]),
        ],
        settings={"pages": len(pages)},
    )
    click.echo(str(write_study(study, out)))


if __name__ == "__main__":
    main()
