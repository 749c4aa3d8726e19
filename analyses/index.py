"""All published pages at a glance: what the paper says, what was measured, and where.

Claim: the paper's four claims and six figures, each beside the answer of the page that tests it.
Command: ``python analyses/index.py`` (after the pages in ``reports/`` were made; it reads them and computes nothing)
Run time: a second at every scale.
Expected outcome: the page ``reports/index.html``, which links every page with the command and the commit that made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from paper.published import Published, read_page

from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.tables import Cell, Column, Table, make_table
from convexlab.wording.numbers import MISSING


@dataclass(frozen=True)
class Entry:
    """What the paper says, and which sentences of which page answer."""

    subject: str
    said: str
    page: str
    sentences: tuple[int, ...] | None = None
    """By their place; None is all."""

    def answer(self, pages: Mapping[str, Published]) -> list[str]:
        """Return them."""
        told = pages[self.page].answer
        return list(told) if self.sentences is None else [told[place] for place in self.sentences]


ENTRIES = (
    Entry(
        "Claim 4, Table 1",
        "In all 15 rows Adam, then conjugate gradients, ends at a training loss no higher than Adam’s.",
        "table-1",
        (0, 1),
    ),
    Entry(
        "Claim 4, against the best Adam",
        "The same, with every evaluation charged and Adam’s best rate.",
        "fair-table-1",
    ),
    Entry(
        "Claim 1",
        "Along training the loss is first non-convex, then convex around the minimum; no patchwork in between.",
        "hypothesis",
        (0, 2),
    ),
    Entry(
        "Claim 2",
        "The gradient norm over the loss rises in the non-convex part and falls in the convex one.",
        "hypothesis",
        (1,),
    ),
    Entry("Claim 3", "The peak of the gradient norm is the moment to leave Adam.", "detector-validation", (0, 1, 2)),
    Entry("Figure 1", "Random tanh tasks are convex around the minimum, non-convex at the margins.", "figure-1"),
    Entry("Figure 2", "On each branch the norm rises, then falls; its peak is the swap.", "figure-2"),
    Entry("Figure 3", "Across level curves the norm grows, then shrinks.", "figure-3"),
    Entry("Figure 4", "With two tanh layers a second convex region and minimum arise as C grows.", "figure-4"),
    Entry("Figure 5", "A vision transformer’s norm rises, turns at a loss near 0.04, and falls.", "figure-5"),
    Entry("Figure 6", "Adam, then conjugate gradients, lowers the loss fastest over cost.", "figure-6"),
    Entry("Beyond: digits", "Not in the paper: its protocol and two of ours on a short budget.", "two-phase-digits"),
    Entry("Beyond: physics", "Not in the paper: physics-informed networks.", "pinn"),
    Entry("Beyond: language", "Announced by the paper as its next step: a language model.", "text"),
)


def command(page: Published) -> str:
    """Return what makes a page again; page and study have the same name, but for a block of Table 1."""
    study, _, block = Path(page.file).stem.rpartition("-")
    if study == "table-1":
        return f"python analyses/table_1.py --scale paper --block {block}"
    return f"python analyses/{Path(page.file).stem.replace('-', '_')}.py --scale desk"


def measured(entries: Sequence[Entry], pages: Mapping[str, Published]) -> Table:
    """Return the paper's statements beside the answers of the pages."""
    rows: list[list[Cell | str]] = [
        [
            Cell(entry.subject, link=pages[entry.page].file),
            entry.said,
            " ".join(entry.answer(pages)),
        ]
        for entry in entries
        if entry.page in pages
    ]
    return make_table(
        "The paper beside what was measured; the first column links the page.",
        [Column("Subject", False), Column("The paper", False), Column("Measured", False)],
        rows,
    )


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
    told = [entry for entry in ENTRIES if entry.page in pages]
    if not told and scale != "toy":
        raise click.ClickException(f"no published page in {out.parent}: run the studies first.")
    study = Study(
        title="The paper, reproduced and judged",
        claim="Hrycej et al.: along training the loss becomes convex, the gradient norm’s peak says when, and "
        "conjugate gradients from there beat Adam.",
        answer=[f"{entry.subject}: {sentence}" for entry in told[:1] for sentence in entry.answer(pages)]
        or ["No page is published yet."],
        command=f"python analyses/index.py --scale {scale}",
        parts=[
            Part("Paper and measurement", tables=[measured(told, pages)]),
            Part("All pages", tables=[published(list(pages.values()))]),
        ],
        settings={"pages": len(pages)},
    )
    click.echo(str(write_study(study, out)))


if __name__ == "__main__":
    main()
