"""Weights in files."""

from __future__ import annotations

from convexlab.checkpoints.files import (
    Checkpoint,
    CheckpointHeader,
    add_tensors,
    read_checkpoint,
    read_header,
    reread,
    write_checkpoint,
)
from convexlab.checkpoints.layouts import is_weights_folder
from convexlab.checkpoints.moments import read_moments, write_moments
from convexlab.checkpoints.timing import Time
from convexlab.checkpoints.weights import check_fit, load_weights

__all__ = [
    "Checkpoint",
    "CheckpointHeader",
    "Time",
    "add_tensors",
    "check_fit",
    "is_weights_folder",
    "load_weights",
    "read_checkpoint",
    "read_header",
    "read_moments",
    "reread",
    "write_checkpoint",
    "write_moments",
]
