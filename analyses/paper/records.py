"""Records of a study on disk: kept from run to run, used again where they were made with the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convexlab.errors import MisuseError
from convexlab.runs import Row, read_json

__all__ = ["stored"]


def stored(file: Path, settings: Mapping[str, Any]) -> Row | None:
    """Return a record that holds these settings, or None where there is none or it was made with others.

    Raises:
        MisuseError: the file is no JSON object.
    """
    if not file.is_file():
        return None
    try:
        record = read_json(file)
    except MisuseError as error:
        raise MisuseError(f"{error} Delete the file to make this run again.") from error
    wanted = json.loads(json.dumps(settings))
    return record if all(record.get(key) == value for key, value in wanted.items()) else None
