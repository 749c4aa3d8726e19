"""Symmetric linear operators: what Lanczos and its relatives multiply with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from convexlab.errors import MisuseError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse.linalg import LinearOperator

__all__ = ["MatrixVectorProduct", "SymmetricOperator"]


class MatrixVectorProduct(Protocol):
    """The interface that an operator needs; a dense matrix takes five lines."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        ...

    @property
    def device(self) -> torch.device:
        """Of the vectors."""
        ...

    def matvec(self, v: Tensor) -> Tensor:
        """Return A v for v of shape (n,)."""
        ...


class SymmetricOperator(ABC):
    """A symmetric n × n matrix known by its products."""

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        """Describe the vectors: ``size`` entries of ``dtype`` on ``device``."""
        self.shape = (size, size)
        self.dtype = dtype
        self.device = device

    @abstractmethod
    def _multiply(self, v: Tensor) -> Tensor:
        """Return A v for a matrix v (n, k) of this dtype on this device."""

    def matmat(self, v: Tensor) -> Tensor:
        """Return A v for v of shape (n, k)."""
        self._check(v, dimensions=2)
        return self._multiply(v.to(device=self.device, dtype=self.dtype))

    def matvec(self, v: Tensor) -> Tensor:
        """Return A v for v of shape (n,)."""
        self._check(v, dimensions=1)
        return self.matmat(v[:, None])[:, 0]

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return A v for v of shape (n,) or (n, k)."""
        return self.matvec(v) if v.ndim == 1 else self.matmat(v)

    def to_scipy(self) -> LinearOperator:
        """Return the operator for SciPy, in its own dtype, on the CPU."""
        from scipy.sparse.linalg import LinearOperator

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def multiply(v: NDArray[Any]) -> NDArray[Any]:
            # A copy: torch takes no array that is read-only or runs backwards.
            return (self @ torch.from_numpy(v.astype(dtype, order="C")).to(self.device)).cpu().numpy()

        def multiply_flat(v: NDArray[Any]) -> NDArray[Any]:
            return multiply(v.reshape(-1))

        return LinearOperator(
            self.shape, matvec=multiply_flat, rmatvec=multiply_flat, matmat=multiply, rmatmat=multiply, dtype=dtype
        )

    def _check(self, v: Tensor, *, dimensions: int) -> None:
        if v.ndim != dimensions or v.shape[0] != self.shape[0]:
            expected = f"({self.shape[0]},)" if dimensions == 1 else f"({self.shape[0]}, k)"
            raise MisuseError(f"expected a tensor of shape {expected}, got {tuple(v.shape)}.")
