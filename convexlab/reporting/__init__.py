"""Reports for people: one self-contained HTML page of one run or of several side by side."""

from __future__ import annotations

from convexlab.reporting.page import summary_lines, write_report

__all__ = ["summary_lines", "write_report"]
