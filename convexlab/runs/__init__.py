"""The run directory: one reader and one writer of every file in it."""

from __future__ import annotations

from convexlab.runs.directory import Run, refuse_file
from convexlab.runs.files import Row, read_json, write_json, write_json_lines

__all__ = ["Row", "Run", "read_json", "refuse_file", "write_json", "write_json_lines"]
