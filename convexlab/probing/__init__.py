"""Curvature of checkpoints."""

from __future__ import annotations

from convexlab.probing.places import AXES
from convexlab.probing.point import ProbeOptions, probe_objective, probe_point
from convexlab.probing.probe import Probe, probe

__all__ = ["AXES", "Probe", "ProbeOptions", "probe", "probe_objective", "probe_point"]
