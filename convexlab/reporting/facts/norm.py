"""Where the gradient norm stops falling at the start of training, and where it peaks after that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

__all__ = ["FALL", "FEWEST", "first_rise", "first_where", "norm_peak", "smoothed"]

FALL = 0.9
"""The paper's gnfact: below this share of its peak the norm counts as fallen."""
FEWEST = 10
"""Fewest norms for a peak: twice the window of the median."""
_WINDOW = 5


def smoothed(norms: Sequence[float]) -> list[float]:
    """Return the centred median over five epochs, over fewer at the ends."""
    half = _WINDOW // 2
    return [median(norms[max(0, i - half) : i + half + 1]) for i in range(len(norms))]


def first_where(norms: Sequence[float], ends: Callable[[float, float], bool]) -> int:
    """Return the first place whose smoothed norm and the next one fulfil a condition, or the last place."""
    smooth = smoothed(norms)
    return next((i for i, (now, after) in enumerate(pairwise(smooth)) if ends(now, after)), len(smooth) - 1)


def first_rise(norms: Sequence[float]) -> int:
    """Return the place after which the smoothed gradient norm no longer falls: its first trough."""
    return first_where(norms, lambda now, after: after >= now)


def norm_peak(norms: Sequence[float]) -> int | None:
    """Return the place, from its first trough on, at which the full gradient norm is largest, if it is a peak.

    The norm is smoothed by a centred median over five epochs. Its largest value must exceed both the trough and the end
    by a factor of 1 / 0.9.
    """
    if not norms:
        return None
    smooth, begin = smoothed(norms), first_rise(norms)
    top = max(range(begin, len(smooth)), key=smooth.__getitem__)
    return top if FALL * smooth[top] >= max(smooth[begin], smooth[-1]) else None
