"""The plane that holds most of a training path: principal components of its checkpoints' weights.

Li, Xu, Taylor, Studer, Goldstein 2018, "Visualizing the Loss Landscape of Neural Nets" (arXiv 1712.09913), section 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.probing.vectors import StoredVectors

__all__ = ["Projection", "project"]

# Numbers of all points taken at a time: 32 MB in float64, however many points there are and however long they are.
_CHUNK = 2**22
# A second component with less than this share of the first one's variance is rounding: the path is a straight line.
_LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class Projection:
    """The plane of the first two principal components, through the last point; all in float64 on the CPU."""

    directions: Tensor
    """(2, n), orthonormal."""
    coordinates: Tensor
    """(k, 2), of each point less the last one, which is at zero; the first one is on the left."""
    distances: Tensor
    """(k,), of each point from the plane."""
    explained: tuple[float, float]
    """Shares of the variance of all points that lie along either direction."""


def project(points: StoredVectors) -> Projection | None:
    """Return the principal plane of points (n,); None where they lie on one line.

    The principal components are those of a matrix with a row a point, its difference to the last one. They are found
    by its k × k Gram matrix, centred as a principal component analysis does.
    """
    count = len(points)
    if count < 3:
        return None
    gram = torch.zeros(count, count, dtype=torch.float64)
    for rows in _differences(points):
        gram.addmm_(rows, rows.T)
    centre = torch.eye(count, dtype=torch.float64) - 1 / count
    variances, vectors = torch.linalg.eigh(centre @ gram @ centre)
    first, second = variances[-1], variances[-2]
    if not bool(second > _LEAST_SHARE * first):
        return None
    coefficients = centre @ vectors[:, [-1, -2]] / torch.stack([first, second]).sqrt()
    coordinates = gram @ coefficients
    signs = _signs(coordinates)
    directions = torch.cat([(coefficients * signs).T @ rows for rows in _differences(points)], dim=1)
    off_plane = (gram.diagonal() - coordinates.square().sum(dim=1)).clamp_min(0).sqrt()
    shares = (torch.stack([first, second]) / variances.clamp_min(0).sum()).tolist()
    return Projection(directions, coordinates * signs, off_plane, (shares[0], shares[1]))


def _differences(points: StoredVectors) -> Iterator[Tensor]:
    """Yield (k, m) differences to the last point, some parameters at a time."""
    step = max(1, _CHUNK // len(points))
    for start in range(0, points.size, step):
        rows = points.parts(start, min(start + step, points.size)).double()
        yield rows - rows[-1]


def _signs(coordinates: Tensor) -> Tensor:
    """Return the signs (2,) by which a path runs from left to right, and its farthest point is above the last one."""
    farthest = coordinates[:, 1].abs().argmax()
    ends = torch.stack([-coordinates[0, 0], coordinates[farthest, 1]])
    return torch.where(ends < 0, -1.0, 1.0).to(coordinates)
