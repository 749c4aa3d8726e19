"""The card of a trained network: a README.md whose front matter programs read, and whose text people read.

The front matter is YAML, as model hubs require, and simple enough to be read without a YAML library. A line is a field,
``name: value``, or below ``name:`` an item of a list, ``- value``. Values are JSON, which is YAML too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically
from convexlab.runs import Row

__all__ = ["FIELDS", "Card", "read_card", "write_card", "write_index"]

_FENCE = "---\n"

FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "model": str,
    "parameters": int,
    "dataset": str,
    "training_examples": (int, NoneType),
    "examples_probed": (int, NoneType),
    "loss": str,
    "recipe": str,
    "seed": int,
    "stored_as": str,
    "epochs": dict,
    "gradient_equivalents": dict,
    "license": str,
    "data_license": str,
    "final": dict,
    "checkpoints": list,
}
"""Fields of a card's front matter and their types. Numbers of examples are None where they are not known."""


@dataclass(frozen=True)
class Card:
    """What only the recipe knows of its network."""

    title: str
    model: str
    """In words."""
    dataset: str
    """In words."""
    loss: str
    """In words."""
    data_license: str
    what: str
    """A paragraph: what it is."""
    purpose: str
    """A paragraph: what it is for."""
    limits: str
    """A paragraph: what it is not good for."""
    recipe: str = field(default="recipe.py", kw_only=True)


def read_card(path: Path) -> Row:
    """Return the front matter of a card.

    Raises:
        MisuseError: the file has none, or one that `write_card` did not write.
    """
    text = path.read_text(encoding="utf-8")
    before, *rest = text.split(_FENCE, 2)
    if before or len(rest) != 2:
        raise MisuseError(f"{str(path)!r} is no card: expected it to begin with front matter between lines of '---'.")
    fields: Row = {}
    items: list[Any] = []
    for number, line in enumerate(rest[0].removesuffix("\n").split("\n"), start=2):
        name, _, value = line.partition(": ")
        try:
            if line.startswith("- "):
                items.append(json.loads(line[2:]))
            elif line.endswith(":"):
                items = fields[line[:-1]] = []
            else:
                fields[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise MisuseError(
                f"{path}, line {number}: expected 'name: value' or '- value' with a value in JSON, got {line[:60]!r}."
            ) from error
    return fields


def write_card(path: Path, facts: Row, card: Card) -> None:
    """Write front matter and text, atomically."""
    front = "\n".join(_lines(facts))
    write_atomically(path, f"{_FENCE}{front}\n{_FENCE}\n{_text(facts, card)}".encode())


def _lines(facts: Row) -> Iterator[str]:
    for name, value in facts.items():
        if isinstance(value, list) and value:
            yield f"{name}:"
            yield from (f"- {_value(item)}" for item in value)
        else:
            yield f"{name}: {_value(value)}"


def _value(value: Any) -> str:
    """Return a value as text that JSON and YAML read alike."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(key)}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "null"
        # YAML 1.1 takes 1e-06 for text: its numbers have a point.
        return repr(value) if "." in repr(value) else repr(value).replace("e", ".0e")
    return json.dumps(value, ensure_ascii=False)


def _text(facts: Row, card: Card) -> str:
    phases = ", then ".join(
        f"{count} epochs of {name} ({facts['gradient_equivalents'][name]:g} gradient equivalents)"
        for name, count in facts["epochs"].items()
    )
    final = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in facts["final"].items())
    return f"""# {card.title}

{card.what}

```sh
python -m convexlab probe models/{facts["name"]}    # the curvature at every checkpoint, under a minute on two cores
python -m convexlab report models/{facts["name"]}   # the training alone
python {facts["recipe"]}    # makes this folder again
```

**How it was made.** {phases}; an epoch of the second phase is a step of it, or as many as cost what an epoch of Adam
does. It is {_examples(facts)}. At the last checkpoint, as stored: {final}.

**Stored as {facts["stored_as"]}.** {_rounding(facts)}

**What it is for.** {card.purpose}

**Limits.** {card.limits}

{_table(facts["checkpoints"])}

Data: {facts["data_license"]} Weights: {facts["license"]}.
"""


def _examples(facts: Row) -> str:
    examples, probed = facts["training_examples"], facts["examples_probed"]
    if examples is None:
        return "trained and probed on the whole of its loss, which has no examples to count"
    if probed == examples:
        return f"trained and probed on {examples:,} points"
    return (
        f"trained on {examples:,} examples, probed on a stratified sample of {probed:,} of them. `probe` measures the "
        "curvature of the sample's loss, and along the same directions that of other examples"
    )


def _rounding(facts: Row) -> str:
    rows = facts["checkpoints"]
    changes = [
        max(abs(row[name] / row[f"{name}_in_training"] - 1) for row in rows) for name in ("loss", "gradient_norm")
    ]
    difference = (
        f"Beside them stand those of the weights before they were rounded. Over all checkpoints the loss differs by at "
        f"most {changes[0]:.1g} of it, the gradient norm by {changes[1]:.1g}."
        if max(changes) > 0
        else "They are the very weights of training."
    )
    return f"Loss and gradient norm are those of the stored weights over all training examples. {difference}"


def _table(rows: Sequence[Row]) -> str:
    lines = ["| epoch | phase | loss | gradient norm | loss, in training | gradient norm, in training |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        numbers = (row["loss"], row["gradient_norm"], row["loss_in_training"], row["gradient_norm_in_training"])
        lines.append(f"| {row['epoch']} | {row['phase']} | {' | '.join(f'{value:.3g}' for value in numbers)} |")
    return "\n".join(lines)


_INDEX = """# Trained networks

Every network has a folder with a card (`README.md`), the recipe that trained it, and its checkpoints as safetensors.
It is a run directory that `probe` and `report` take. The whole folder stays under 8 MB.

| network | parameters | data | loss | checkpoints | training loss | made by |
|---|---|---|---|---|---|---|
"""


def write_index(folder: Path) -> None:
    """Write ``folder``/README.md, a table of the networks whose cards lie in its sub-folders."""
    lines = []
    for path in sorted(folder.glob("*/README.md")):
        facts = read_card(path)
        link = f"[{facts['name']}]({facts['name']}/README.md)"
        lines.append(
            f"| {link} | {facts['parameters']:,} | {facts['dataset']} | {facts['loss']} | "
            f"{len(facts['checkpoints'])} | {facts['final']['training_loss']:.3g} | `python {facts['recipe']}` |"
        )
    write_atomically(folder / "README.md", (_INDEX + "\n".join(lines) + "\n").encode())
