"""Reports for people: one self-contained HTML page of one run or of several side by side."""

from __future__ import annotations

from convexlab.reporting.page import summary_lines, write_report
from convexlab.reporting.study import Card, Part, Study, write_study

__all__ = ["Card", "Part", "Study", "summary_lines", "write_report", "write_study"]
