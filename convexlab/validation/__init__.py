"""Detectors and hypothesis against the truth: what curvature did, and what every switch would have led to."""
