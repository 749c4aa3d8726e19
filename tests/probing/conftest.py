from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _undrawn(undrawn: None) -> None:
    """What charts look like is tested elsewhere."""
