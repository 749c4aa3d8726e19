"""Reports for people: one self-contained HTML page of one run or of several side by side."""

from __future__ import annotations

from convexlab.reporting.page import write_report

__all__ = ["write_report"]
