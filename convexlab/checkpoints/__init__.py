"""Weights in files."""

from __future__ import annotations

from convexlab.checkpoints.files import Checkpoint, read_checkpoint, write_checkpoint
from convexlab.checkpoints.weights import load_weights

__all__ = ["Checkpoint", "load_weights", "read_checkpoint", "write_checkpoint"]
