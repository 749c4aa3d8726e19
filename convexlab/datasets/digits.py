"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import torch

from convexlab.datasets.arrays import Source, source_from_arrays

__all__ = ["read_digits"]

TEST_EVERY = 5


def read_digits() -> Source:
    """Return the 1,797 digits of 8 x 8 pixels, of which every fifth of each class is held out for testing.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI, doi 10.24432/C50P49), whose test
    part scikit-learn ships. Values 0 to 16 become 0 to 1. The split needs no random numbers, so it is the same
    everywhere: 1,442 images for training, 355 for testing.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images / 16).unsqueeze(1)
    y = torch.from_numpy(digits.target)
    rank_in_class = (y[:, None] == y).tril(-1).sum(1)
    test = rank_in_class % TEST_EVERY == TEST_EVERY - 1
    return source_from_arrays("digits", x[~test], y[~test], x[test], y[test], channels_last=False)
