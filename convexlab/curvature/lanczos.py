"""The Lanczos process with full reorthogonalisation.

A V = V T + β w eᵀ, with V orthonormal and T tridiagonal (Golub & Van Loan, "Matrix Computations", 4th ed., section
10.1). Each new vector is made orthogonal to all earlier ones twice ("twice is enough", Giraud et al. 2005, doi
10.1007/s00211-005-0615-4), each time by two matrix-vector products with the whole basis. Coefficients stay on the
device: the host waits for it once an `extend`, not once a step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from convexlab.errors import FailureError
from convexlab.operators import MatrixVectorProduct
from convexlab.parameters import accumulation_dtype, norm

__all__ = ["Lanczos", "random_run", "random_unit_vector"]

Array = NDArray[np.float64]


def random_unit_vector(operator: MatrixVectorProduct, generator: torch.Generator) -> Tensor:
    """Return a vector (n,) distributed uniformly on the unit sphere; the same on every device for the same seed."""
    vector = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
    return (vector / norm(vector)).to(device=operator.device, dtype=accumulation_dtype(operator.device))


class Lanczos:
    """A Krylov run that can be extended.

    Args:
        operator: the symmetric matrix A.
        start: the unit vector (n,) to start from.
        max_steps: products at most; the basis takes 8 n (max_steps + 1) bytes.
    """

    def __init__(self, operator: MatrixVectorProduct, start: Tensor, max_steps: int) -> None:
        """Allocate the basis; no product is made yet."""
        size = operator.shape[0]
        self.operator = operator
        self.max_steps = min(max_steps, size)
        self.products = 0
        self.invariant = False
        """Whether A maps the Krylov space into itself, up to rounding in the basis."""
        self._basis = start.new_empty((self.max_steps + 1, size))
        self._basis[0] = start
        self._diagonal = start.new_empty(self.max_steps)
        self._off_diagonal = start.new_empty(self.max_steps)
        self._steps = 0

    @property
    def steps(self) -> int:
        """The dimension of the Krylov space."""
        return self._steps

    @property
    def exhausted(self) -> bool:
        """Whether no further step is possible: the space is invariant or the basis is full."""
        return self.invariant or self._steps == self.max_steps

    def extend(self, steps: int) -> None:
        """Take ``steps`` more steps, fewer if the basis is full or the space turns out invariant."""
        if self.invariant:
            return
        stop = min(self._steps + steps, self.max_steps)
        for step in range(self._steps, stop):
            self._step(step)
        self._steps = stop
        self._truncate_at_breakdown()

    def coefficients(self) -> tuple[Array, Array]:
        """Return the diagonal (k,) and the off-diagonal (k,) of T; the last β leads out of the space."""
        both = torch.stack([self._diagonal[: self._steps], self._off_diagonal[: self._steps]])
        diagonal, off_diagonal = both.cpu().to(torch.float64).numpy()
        return diagonal, off_diagonal

    @property
    def precision(self) -> float:
        """ε of the basis."""
        return torch.finfo(self._basis.dtype).eps

    def ritz(self) -> tuple[Array, Array]:
        """Return the Ritz values (k,), ascending, and the eigenvectors of T (k, k) by column."""
        diagonal, off_diagonal = self.coefficients()
        values, vectors = eigh_tridiagonal(diagonal, off_diagonal[:-1])
        return values, vectors

    def ritz_vectors(self, coefficients: Array) -> Tensor:
        """Return unit vectors (n, m) for columns of coefficients (k, m) in the basis."""
        basis = self._basis[: self._steps]
        vectors: Tensor = basis.T @ torch.as_tensor(coefficients, dtype=basis.dtype, device=basis.device)
        lengths: Tensor = torch.linalg.vector_norm(vectors, dim=0)
        return vectors / lengths

    def combined(self, coefficients: Tensor) -> Tensor:
        """Return V C as rows (m, n) for coefficients C (k, m)."""
        basis = self._basis[: self._steps]
        return coefficients.to(basis).T @ basis

    def image(self, coefficients: Tensor) -> Tensor:
        """Return (V T + β v eᵀ) C as rows (m, n) for coefficients C (k, m): A V C as the run knows it."""
        diagonal, off_diagonal = (part.to(coefficients) for part in (self._diagonal, self._off_diagonal))
        image = coefficients.new_zeros((self._steps + 1, coefficients.shape[1]))
        image[:-1] = diagonal[: self._steps, None] * coefficients
        image[1:] += off_diagonal[: self._steps, None] * coefficients
        image[:-2] += off_diagonal[: self._steps - 1, None] * coefficients[1:]
        basis = self._basis[: self._steps + 1]
        return image.to(basis).T @ basis

    def _step(self, step: int) -> None:
        basis = self._basis[: step + 1]
        vector = self.operator.matvec(basis[step].to(self.operator.dtype)).to(basis.dtype)
        coefficients = basis @ vector
        vector = vector - coefficients @ basis
        corrections = basis @ vector
        vector = vector - corrections @ basis
        length = torch.linalg.vector_norm(vector)
        self._diagonal[step] = coefficients[step] + corrections[step]
        self._off_diagonal[step] = length
        # A zero length is a breakdown, found when the host next looks; until then it must not make a NaN.
        self._basis[step + 1] = vector / length.clamp_min(torch.finfo(basis.dtype).tiny)
        self.products += 1

    def _truncate_at_breakdown(self) -> None:
        """Cut T where the space became invariant: beyond it there is only amplified rounding error.

        What is left of A v is then rounding error of this process, of length about √n ε ‖T‖ in the basis' precision.
        The errors of an operator in a lower one are no end of the process: it goes on as if from a random vector, and
        the Ritz values remain those of a space that holds the earlier ones.
        """
        diagonal, off_diagonal = self.coefficients()
        if not (np.isfinite(diagonal).all() and np.isfinite(off_diagonal).all()):
            raise FailureError(
                "a product with the operator is not finite: its loss, or the parameters it was made at, hold a NaN or "
                "an infinity. Check them, or evaluate in float64."
            )
        scale = float(np.max(np.abs(diagonal) + off_diagonal, initial=0.0))
        noise = self.operator.shape[0] ** 0.5 * self.precision * scale
        broken = np.flatnonzero(~(off_diagonal > noise))
        if broken.size:
            self._steps = int(broken[0]) + 1
            self.invariant = True


def random_run(operator: MatrixVectorProduct, generator: torch.Generator, steps: int) -> Lanczos:
    """Return a Krylov run of ``steps`` products, fewer if the space turns out invariant, from a random start."""
    process = Lanczos(operator, random_unit_vector(operator, generator), steps)
    process.extend(steps)
    return process
