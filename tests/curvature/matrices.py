"""Symmetric matrices with spectra that are hard for Krylov methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Spectrum = Callable[[int, np.random.Generator], np.ndarray]


def _few(n: int, dice: np.random.Generator) -> np.ndarray:
    """A fifth of the eigenvalues, of both signs; the others are zero."""
    values = np.zeros(n)
    values[: max(1, n // 5)] = dice.standard_normal(max(1, n // 5))
    return values


def _isolated(n: int, dice: np.random.Generator) -> np.ndarray:
    """One slightly negative eigenvalue below many positive ones."""
    values = dice.uniform(0, 1, n)
    values[0] = -0.02
    return values


def _hidden(n: int, dice: np.random.Generator) -> np.ndarray:
    """One tiny negative eigenvalue beside many large ones that differ little."""
    values = dice.uniform(0.5, 1, n) * 1e3
    values[0] = -1e-3
    return values


SPECTRA: dict[str, Spectrum] = {
    "normal": lambda n, dice: dice.standard_normal(n),
    "clusters": lambda n, dice: dice.choice([-1.0, 0.0, 2.0, 5.0], n) + 1e-6 * dice.standard_normal(n),
    "repeated": lambda n, dice: dice.choice([-2.0, 1.0, 3.0], n),
    "rank deficient": _few,
    "rank deficient, no negative": lambda n, dice: np.abs(_few(n, dice)),
    "isolated negative": _isolated,
    "hidden negative": _hidden,
    "geometric": lambda n, dice: 10.0 ** -dice.uniform(0, 12, n),
    "negative tail": lambda n, dice: np.concatenate(
        [-np.geomspace(1e-8, 1e-2, n // 2), np.geomspace(1e-8, 1, -(-n // 2))]
    ),
    "almost the identity": lambda n, dice: 1 - 3e-6 * (np.arange(n) == 0),
    "Chebyshev": lambda n, dice: np.cos(np.pi * (np.arange(n) + 0.5) / n),
}


def matrix_with(values: np.ndarray, dice: np.random.Generator) -> Tensor:
    """Return a matrix (n, n) with these eigenvalues and random eigenvectors."""
    basis, _ = np.linalg.qr(dice.standard_normal((len(values), len(values))))
    matrix = (basis * values) @ basis.T
    return torch.from_numpy((matrix + matrix.T) / 2)


def random_matrix(spectrum: str, seed: int, least: int = 2, most: int = 60) -> Tensor:
    dice = np.random.default_rng(seed)
    n = int(dice.integers(least, most + 1))
    return matrix_with(SPECTRA[spectrum](n, dice), dice)
