"""A study's record is used again only under the settings that it was made with."""

from __future__ import annotations

from pathlib import Path

import pytest
from paper.records import stored

from convexlab import MisuseError
from convexlab.runs import write_json


def test_only_the_same_settings_are_taken_up(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    assert stored(file, {"rate": 1e-3}) is None
    write_json(file, {"rate": 1e-3, "shares": (0.2, 0.5), "loss": 4.0})
    # A tuple comes back as a list.
    assert stored(file, {"rate": 1e-3, "shares": (0.2, 0.5)}) == {"rate": 1e-3, "shares": [0.2, 0.5], "loss": 4.0}
    assert stored(file, {"rate": 2e-3}) is None
    assert stored(file, {"seed": 0}) is None


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"rate": 1e-')
    with pytest.raises(MisuseError, match=r"run\.json.* is not JSON .*Delete the file"):
        stored(file, {"rate": 1e-3})
