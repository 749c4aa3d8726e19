"""Where the studies find what they share: the scripts beside it have its folder on their path."""

from __future__ import annotations

import sys
from pathlib import Path

# At the end: analyses/hypothesis.py may not stand for the library of that name.
sys.path.append(str(Path(__file__).parents[2] / "analyses"))
