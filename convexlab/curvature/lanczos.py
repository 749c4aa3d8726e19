"""The Lanczos process with full reorthogonalisation.

A V = V T + β w eᵀ, with V orthonormal and T tridiagonal (Golub & Van Loan, "Matrix Computations", 4th ed., section
10.1). Each new vector is made orthogonal to all earlier ones twice, each time by two matrix-vector products with every
block of the basis. "Twice is enough": Giraud et al. 2005, doi 10.1007/s00211-005-0615-4. Coefficients stay on the
device: the host waits for it once in an `extend`, not at every step. Where ranks make the products together, each holds
its part of the basis.

A run may be compressed to some of its Ritz vectors, and go on from there (thick restart, Wu & Simon 2000, doi
10.1137/S0895479898334605). Of those and of the vector after them T is an arrow then, and tridiagonal beyond.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh, eigh_tridiagonal
from torch import Tensor

from convexlab.curvature.basis import Basis
from convexlab.curvature.forecast import plan_run
from convexlab.curvature.soundness import require_operator, require_sound
from convexlab.errors import FailureError
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.linalg.vectors import accumulation_dtype, norm
from convexlab.machine.ranks import ranks_of

__all__ = ["Lanczos", "random_run", "random_unit_vector"]

Array = NDArray[np.float64]
Places = NDArray[np.int64]


def random_unit_vector(operator: MatrixVectorProduct, generator: torch.Generator) -> Tensor:
    """Return a vector (n,) distributed uniformly on the unit sphere; the same on every device for the same seed."""
    require_operator(operator)
    vector = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
    return (vector / norm(vector)).to(device=operator.device, dtype=accumulation_dtype(operator.device))


class Lanczos:
    """A Krylov run that can be extended.

    Args:
        operator: the symmetric matrix A.
        start: the unit vector (n,) to start from.
        max_steps: products at most. The basis takes 8 n bytes a step. Where it would not fit, it takes half of that, or
            memory of the host.

    Raises:
        FailureError: that many steps do not fit into memory, or the products are wrong, see `soundness`.
    """

    def __init__(self, operator: MatrixVectorProduct, start: Tensor, max_steps: int) -> None:
        """Plan the memory and check the products; none with all of A is made yet."""
        self.operator = operator
        self.max_steps = min(max_steps, operator.shape[0])
        self.products = 0
        """Products made with A for this run, including those that check its results."""
        self.invariant = False
        """Whether A maps the Krylov space into itself, up to rounding in the basis."""
        self.approximate = False
        """Whether T leaves out residuals, see `deflate`."""
        plan = plan_run(operator, self.max_steps)
        require_sound(operator)
        self.plan = ", ".join(filter(None, [plan.summary, getattr(operator, "summary", "")]))
        """Changes that save memory, and the kind of products if not exact; empty if there are none."""
        self._ranks = ranks_of(operator)
        self._basis = Basis(start.to(device=plan.device, dtype=plan.dtype), self.max_steps + 1, self._ranks)
        dtype = accumulation_dtype(plan.device)
        self._diagonal, self._off_diagonal = torch.empty((2, self.max_steps), dtype=dtype, device=plan.device)
        self._steps = 0
        self._arrow: Array = np.empty(0)

    def restart(self) -> None:
        """Begin again from the same start; `products` counts on."""
        first = self._basis.first.clone()
        del self._basis  # Before another one is there.
        self._basis, self._steps, self.invariant = Basis(first, self.max_steps + 1, self._ranks), 0, False
        self._arrow = np.empty(0)

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
        start, stop = self._steps, min(self._steps + steps, self.max_steps)
        for step in range(start, stop):
            self._step(step)
        self._steps = stop
        self._truncate_at_breakdown(start)

    def compress(self, wanted: Places) -> None:
        """Go on with the Ritz vectors of some places in `ritz` alone, and with the vector that leads out of the space.

        Afterwards `coefficients` and what is read off them say nothing any more.
        """
        values, vectors = self.ritz()
        _, off_diagonal = self.coefficients()
        self._arrow = off_diagonal[-1] * vectors[-1, wanted]
        self._basis.compress(torch.as_tensor(vectors[:, wanted]))
        self._steps = len(wanted)
        self._diagonal[: self._steps] = torch.as_tensor(values[wanted]).to(self._diagonal)
        self._off_diagonal[: self._steps] = 0

    def deflate(self, wanted: Places, vector: Tensor) -> None:
        """Go on from another vector (n,), keeping the Ritz vectors of some places in `ritz` as if they were exact."""
        self.compress(wanted)
        self._arrow = np.zeros(self._steps)
        self.approximate = True
        self.join(vector)

    def join(self, vector: Tensor) -> None:
        """Go on from an invariant space with another vector (n,), less its part in the space."""
        self._basis.keep(self._steps)  # Behind the space there is amplified rounding error.
        rest = self.without_part_in_space(vector)
        unit = (rest / norm(rest)).to(device=self._basis.device, dtype=self._basis.dtype)
        self._basis.append(self._basis.part_of(unit))
        self._off_diagonal[self._steps - 1] = 0
        self.invariant = False

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
        kept = len(self._arrow)
        if not kept:
            values, vectors = eigh_tridiagonal(diagonal, off_diagonal[:-1])
            return values, vectors
        projected = np.diag(diagonal) + np.diag(off_diagonal[:-1], 1)
        projected[:kept, kept : kept + 1] = self._arrow[:, None]
        values, vectors = eigh(projected, lower=False)
        return values, vectors

    def residuals(self, coefficients: Array) -> Array:
        """Return ‖A y - θ y‖ (m,) of Ritz vectors y for their coefficients (k, m), by the recurrence."""
        if self._steps == len(self._arrow):  # Compressed, and not extended yet.
            lengths: Array = np.abs(self._arrow @ coefficients)
        else:
            lengths = np.abs(self.coefficients()[1][-1] * coefficients[-1])
        return lengths

    def ritz_vectors(self, coefficients: Array) -> Tensor:
        """Return unit vectors (n, m) for columns of coefficients (k, m) in the basis."""
        rows = self.combined(torch.as_tensor(coefficients))
        lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows.div_(lengths).T

    def combined(self, coefficients: Tensor) -> Tensor:
        """Return V C as rows (m, n) for coefficients C (k, m)."""
        rows = self._basis.combined(coefficients)
        return rows.to(device=self.operator.device, dtype=accumulation_dtype(self.operator.device))

    def image(self, coefficients: Tensor) -> Tensor:
        """Return (V T + β v eᵀ) C as rows (m, n) for coefficients C (k, m): A V C by the products of the run."""
        diagonal, off_diagonal = (part.to(coefficients) for part in (self._diagonal, self._off_diagonal))
        image = coefficients.new_zeros((self._steps + 1, coefficients.shape[1]))
        image[:-1] = diagonal[: self._steps, None] * coefficients
        image[1:] += off_diagonal[: self._steps, None] * coefficients
        image[:-2] += off_diagonal[: self._steps - 1, None] * coefficients[1:]
        return self.combined(image)

    def coordinates(self, rows: Tensor) -> Tensor:
        """Return VᵀW (k, m) for the rows W (m, n)."""
        return self._coordinates(rows)[: self._steps]

    def image_transposed(self, rows: Tensor) -> Tensor:
        """Return (V T + β v eᵀ)ᵀW (k, m) for the rows W (m, n), of a run that was not compressed."""
        inside = self._coordinates(rows)
        diagonal, off_diagonal = (part[: self._steps, None].to(inside) for part in (self._diagonal, self._off_diagonal))
        image: Tensor = diagonal * inside[:-1] + off_diagonal * inside[1:]
        image[1:] += off_diagonal[:-1] * inside[: self._steps - 1]
        return image

    def _coordinates(self, rows: Tensor) -> Tensor:
        """Return the parts (k + 1, m) of the rows (m, n) along the basis and the vector that leads out of the space."""
        along = self._basis.coordinates(rows.to(device=self._basis.device, dtype=self._basis.dtype))
        return along[: self._steps + 1].to(rows)

    def multiply(self, vectors: Tensor) -> Tensor:
        """Return A v for every row v of ``vectors`` (m, n), by new products, in their dtype; `products` counts them."""
        products = torch.empty_like(vectors)
        for product, vector in zip(products, vectors, strict=True):
            product.copy_(self.operator.matvec(vector.to(self.operator.dtype)))
        self.products += len(vectors)
        return products

    def without_part_in_space(self, vector: Tensor) -> Tensor:
        """Return a vector (n,) of the operator's device less its part in the Krylov space."""
        rest = vector.to(device=self._basis.device, dtype=self._basis.dtype)
        for _ in range(2):  # As for the basis itself.
            rest = self._basis.without_part_in_first(rest, self._steps)
        return rest.to(device=vector.device, dtype=vector.dtype)

    def _step(self, step: int) -> None:
        operator, basis = self.operator, self._basis
        product = operator.matvec(basis.last.to(device=operator.device, dtype=operator.dtype))
        vector, part = basis.project_out(basis.part_of(product.to(device=basis.device, dtype=basis.dtype)))
        vector, correction = basis.project_out(vector)
        length = basis.norm(vector)
        self._diagonal[step] = part + correction
        self._off_diagonal[step] = length
        # A length of zero is a breakdown, which the host notices later; until then it must not make a NaN.
        basis.append(vector / length.clamp_min(torch.finfo(basis.dtype).tiny))
        self.products += 1

    def _truncate_at_breakdown(self, start: int) -> None:
        """Cut T where the space became invariant after ``start``: beyond there is only amplified rounding error.

        There the rest of A v is rounding error of this process, of length about √n ε ‖T‖, ε that of the basis. The
        larger errors of an operator in a lower precision do not end the process. It goes on as if from a random vector.
        The Ritz values remain those of a space that contains the earlier ones.
        """
        diagonal, off_diagonal = self.coefficients()
        if not (np.isfinite(diagonal).all() and np.isfinite(off_diagonal).all()):
            raise FailureError(
                "a product with the operator is not finite: its loss, or the parameters it was made at, hold a NaN or "
                "an infinity. Check them, or evaluate in float64."
            )
        scale = float(np.max(np.abs(diagonal) + off_diagonal, initial=0.0))
        noise = self.operator.shape[0] ** 0.5 * self.precision * scale
        broken = np.flatnonzero(~(off_diagonal[start:] > noise))
        if broken.size:
            self._steps = start + int(broken[0]) + 1
            self.invariant = True


def random_run(operator: MatrixVectorProduct, generator: torch.Generator, steps: int) -> Lanczos:
    """Return a Krylov run of ``steps`` products, fewer if the space turns out invariant, from a random start."""
    process = Lanczos(operator, random_unit_vector(operator, generator), steps)
    process.extend(steps)
    return process
