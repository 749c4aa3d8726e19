"""The front matter of a card: YAML to whoever reads YAML, and the same to the reader that knows none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlab.errors import MisuseError
from convexlab.publishing import Card, read_card
from convexlab.publishing.card import FIELDS, write_card

MODELS = Path(__file__).parents[2] / "models"
CARD = Card("A network", "", "", "", "", "", "", "")
FACTS: dict[str, Any] = {
    "name": "net",
    "epochs": {"adam": 2},
    "gradient_equivalents": {"adam": 2.0},
    "final": {"training_loss": 1e-6},
    "training_examples": 3,
    "examples_probed": 3,
    "recipe": "recipe.py",
    "stored_as": "float32",
    "license": "",
    "data_license": "",
    "checkpoints": [
        {"epoch": 0, "phase": "start"}
        | dict.fromkeys(("loss", "gradient_norm", "loss_in_training", "gradient_norm_in_training"), 1e16)
    ],
}
# YAML cannot hold what cannot be printed, nor what it takes for the end of a line.
text = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.none() | st.booleans() | numbers | text
items = st.dictionaries(text, values | st.lists(values) | st.dictionaries(text, values))


def front_matter(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n", 2)[1])


@settings(deadline=None, max_examples=50)
@given(extra=values | st.lists(values | items) | items)
def test_both_read_what_was_written(tmp_path_factory: pytest.TempPathFactory, extra: object) -> None:
    path = tmp_path_factory.getbasetemp() / "README.md"
    write_card(path, FACTS | {"extra": extra}, CARD)
    assert read_card(path) == front_matter(path) == FACTS | {"extra": extra}


def test_a_number_that_json_has_no_word_for_is_null(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", FACTS | {"final": {"a": math.nan, "b": -math.inf}}, CARD)
    assert read_card(tmp_path / "README.md")["final"] == {"a": None, "b": None}


@pytest.mark.parametrize("line", ["name: net", "- {a: 1}", "name", ""])
def test_another_kind_of_yaml_is_refused_by_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f'---\ntitle: "A"\n{line}\n---\n', encoding="utf-8")
    with pytest.raises(MisuseError, match=r"line 3: expected 'name: value' or '- value' with a value in JSON"):
        read_card(path)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_the_published_cards_are_yaml(path: Path) -> None:
    card = front_matter(path)
    assert card == read_card(path)
    assert list(card) == [*FIELDS]
