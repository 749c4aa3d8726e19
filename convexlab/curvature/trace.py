"""Trace of a symmetric operator from products with random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.intervals import Interval, standard_error, student_interval
from convexlab.curvature.lanczos import Lanczos
from convexlab.curvature.soundness import require_sound
from convexlab.errors import MisuseError, unknown_name
from convexlab.linalg.operators import MatrixVectorProduct, SymmetricOperator
from convexlab.linalg.vectors import accumulation_dtype

__all__ = ["TraceEstimate", "trace", "trace_beside"]

Estimate = tuple[float, float, float, int]
"""Value, standard error, degrees of freedom of that, products."""

# XTrace's error is that of so many parts of its vectors, left out in turn.
_PARTS = 24


@dataclass(frozen=True)
class TraceEstimate:
    """An unbiased estimate of a trace."""

    value: float
    standard_error: float
    """Over the random vectors; NaN with fewer than two, 0 where the trace was computed exactly.

    For XTrace it is the jackknife's, which on average is too large rather than too small (Efron & Stein 1981, doi
    10.1214/aos/1176345462). The authors' own formula takes correlated estimates as uncorrelated. On spectra of networks
    the true error was 1.0 to 1.4 times that of their formula, and 0.4 to 0.9 times that of the jackknife.
    """
    degrees: float
    """Degrees of freedom of the standard error; infinite where the trace was computed exactly."""
    effort: Effort

    def interval(self, level: float = 0.95) -> Interval:
        """Return an interval for the trace, by Student's t; both ends NaN with fewer than two random vectors.

        Args:
            level: probability over the random vectors with which it holds, for estimates that are nearly normal. With
                one dominating eigenvalue, that takes many vectors.

        Raises:
            MisuseError: a level that is no probability.
        """
        return student_interval(self.value, self.standard_error, self.degrees, level)


def trace(operator: MatrixVectorProduct, *, method: str = "hutch++", samples: int = 48, seed: int = 0) -> TraceEstimate:
    """Estimate the trace of a symmetric operator.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        method: ``"hutchinson"`` (Hutchinson 1990, doi 10.1080/03610919008812866). ``"hutch++"`` (Meyer, Musco, Musco &
            Woodruff 2021, doi 10.1137/1.9781611976496.16, algorithm 1) takes the part in a sketched range exactly.
            ``"xtrace"`` (Epperly, Tropp & Webber 2024, doi 10.1137/23M1548323) does so with every random vector
            in turn left out of the sketch and used for the rest.
        samples: products to make at most. Hutch++ spends a third on each of sketch, exact part and remainder, XTrace a
            half on each of sketch and exact part. XTrace takes the trace itself if n products are allowed.
        seed: of the random vectors.

    Raises:
        MisuseError: an unknown method, or too few samples for it.
        FailureError: the products are wrong, see `soundness`.
    """
    if method not in _METHODS:
        raise unknown_name("trace method", method, _METHODS)
    least, estimate = _METHODS[method]
    if samples < least:
        raise MisuseError(f"expected at least {least} samples for {method!r}, got {samples!r}.")
    with Meter(operator) as meter:
        require_sound(operator)
        value, error, degrees, products = estimate(operator, samples, torch.Generator().manual_seed(seed))
        return TraceEstimate(value, error, degrees, meter.effort(products))


def trace_beside(process: Lanczos, samples: int, generator: torch.Generator) -> tuple[float, float, float]:
    """Return the trace from a Krylov run and a few products beside it: value, standard error, degrees of freedom.

    tr A = tr T + tr (I - V Vᵀ) A (I - V Vᵀ). The run's own space V gives the first term, which is most of the trace
    where the spectrum decays. New random vectors, projected onto its complement, estimate the second term without bias.
    Source: Chen & Hallman 2023, doi 10.1137/22M1494257. It is Hutch++ with a Krylov space for its sketch.

    Args:
        process: a run, which counts the products.
        samples: products at most.
        generator: of random vectors that are independent of the run.
    """
    inside = float(process.coefficients()[0].sum())
    if process.steps == process.operator.shape[0]:
        return inside, 0.0, math.inf
    forms = []
    for _ in range(samples):  # In turn, because each takes several vectors of size n.
        rest = process.without_part_in_space(_signs(process.operator, 1, generator)[:, 0])
        forms.append(rest @ process.multiply(rest[None])[0])
    values = torch.stack(forms).cpu()
    return inside + float(values.mean()), standard_error(values), samples - 1


def _hutchinson(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> Estimate:
    signs = _signs(operator, samples, generator)
    return (*_mean_form(signs, _multiply(operator, signs)), samples)


def _hutch_plus_plus(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> Estimate:
    third = min(samples // 3, operator.shape[0])
    basis, _ = torch.linalg.qr(_multiply(operator, _signs(operator, third, generator)))
    exact = (basis * _multiply(operator, basis)).sum()
    if third == operator.shape[0]:
        return float(exact), 0.0, math.inf, 2 * third
    signs = _signs(operator, third, generator)
    images = _multiply(operator, signs - basis @ (basis.T @ signs))
    rest, error, degrees = _mean_form(signs, images - basis @ (basis.T @ images))
    return float(exact) + rest, error, degrees, 3 * third


def _mean_form(signs: Tensor, images: Tensor) -> tuple[float, float, float]:
    """Return the mean of zᵀBz over vectors of signs z (n, m), given B z: value, standard error, degrees of freedom.

    The variance of zᵀBz is 2 (‖B‖² - Σ b_ii²). Single vectors estimate the first term by ‖B z‖². Pairs estimate the
    second, because z ∘ B z estimates the diagonal. That gives far more degrees of freedom than the m values themselves
    have. The relative variance of the first is 2 tr B⁴ / (m ‖B‖⁴), where pairs estimate tr B⁴ by the square of (B z)ᵀB
    z'. The degrees of freedom follow by Satterthwaite (1946, doi 10.2307/3002019).
    """
    count = signs.shape[1]
    diagonals = signs * images
    values = diagonals.sum(dim=0)
    if count < 2:
        return float(values.mean()), math.nan, 0.0
    gram, pairs = images.T @ images, count * (count - 1)
    square, fourth = gram.diagonal().mean(), (gram.square().sum() - gram.diagonal().square().sum()) / pairs
    on_diagonal = (diagonals.sum(dim=1).square().sum() - gram.diagonal().sum()) / pairs
    # No matrix has fewer degrees than one with a single eigenvalue that is not zero.
    degrees = count * max(float(square**2 / fourth), 1.0) if fourth else math.inf
    return float(values.mean()), math.sqrt(max(2 * float(square - on_diagonal), 0.0) / count), degrees


def _xtrace(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> Estimate:
    """Return the mean of the estimates tr_i with test vector ω_i left out of the sketch, and its jackknife error."""
    size, count = operator.shape[0], samples // 2
    if size <= samples:
        identity = torch.eye(size, dtype=accumulation_dtype(operator.device), device=operator.device)
        return float(_multiply(operator, identity).trace()), 0.0, math.inf, size
    vectors = _sphere(operator, count, generator)
    basis, triangle = torch.linalg.qr(_multiply(operator, vectors))
    inner = basis.T @ _multiply(operator, basis)
    sketch = _Sketch(size, triangle, inner, basis.T @ vectors)
    if count < 2:
        return sketch.trace(), math.nan, 0.0, 2 * count
    kept = [torch.cat(parts) for parts in _all_but_one(torch.arange(count).tensor_split(min(count, _PARTS)))]
    without = torch.tensor([sketch.of(part).trace() for part in kept], dtype=torch.float64)
    error = (len(kept) - 1) * standard_error(without)
    return sketch.trace(), error, len(kept) - 1, 2 * count


def _all_but_one(parts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for left_out in range(len(parts)):
        yield [part for index, part in enumerate(parts) if index != left_out]


@dataclass(frozen=True)
class _Sketch:
    """Test vectors Ω (n, k), each of length √n, and the sketch A Ω = Q R, in the coordinates of Q."""

    size: int
    """n."""
    triangle: Tensor
    """R (k, k)."""
    inner: Tensor
    """QᵀA Q (k, k)."""
    coordinates: Tensor
    """QᵀΩ (k, k)."""

    def of(self, kept: Tensor) -> _Sketch:
        """Return the same of some of the test vectors; it takes no products."""
        rotation, triangle = torch.linalg.qr(self.triangle[:, kept])
        inner = rotation.T @ self.inner @ rotation
        return _Sketch(self.size, triangle, inner, rotation.T @ self.coordinates[:, kept])

    def trace(self) -> float:
        """Return the mean of tr_i = tr(P_i A P_i) + (n - k + 1) v_iᵀA v_i / v_iᵀv_i (algorithm 1.2).

        P_i projects onto the range of A times the other k - 1 test vectors, and v_i = ω_i - P_i ω_i. The ratio is the
        normalisation for rotationally invariant test vectors (section 2.3).
        """
        count = self.triangle.shape[1]
        # In the basis Q, P_i is I - s_i s_iᵀ and P_i ω_i is x_i.
        left_out = _left_out_directions(self.triangle, self.size)
        along = (left_out * self.coordinates).sum(dim=0)
        kept = self.coordinates - left_out * along
        exact = self.inner.trace() - (left_out * (self.inner @ left_out)).sum(dim=0)
        # v_iᵀA v_i, with ω_iᵀA Q = r_iᵀ, as A is symmetric, and ω_iᵀA ω_i = w_iᵀr_i, as A ω_i is in the range of Q.
        rest = ((self.coordinates - 2 * kept) * self.triangle + kept * (self.inner @ kept)).sum(dim=0)
        scale = (self.size - count + 1) / (self.size - kept.square().sum(dim=0))
        return float((exact + scale * rest).mean())


def _left_out_directions(triangle: Tensor, size: int) -> Tensor:
    """Return the columns s_i of R⁻ᵀ, normalised: Q s_i is orthogonal to every column of the sketch Q R but the i-th.

    A sketch of lower rank than width contains the range of A without any one column too. Every s_i that is orthogonal
    to the others up to rounding is then as good. So pivots are kept from zero by as much as rounding moves them.
    """
    precision = torch.finfo(triangle.dtype)
    noise = (math.sqrt(size) * precision.eps * triangle.abs().max()).clamp_min(precision.tiny)
    pivots = triangle.diagonal()
    safe = torch.where(pivots.abs() < noise, noise, pivots)
    # Columns scaled by the pivots: 1 on the diagonal, whatever the scale of A.
    factor = triangle + torch.diag(safe - pivots)
    columns: Tensor = torch.linalg.solve_triangular(factor.T, torch.diag(safe), upper=False)
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return columns / lengths


_METHODS: dict[str, tuple[int, Callable[[MatrixVectorProduct, int, torch.Generator], Estimate]]] = {
    "hutchinson": (1, _hutchinson),
    "hutch++": (3, _hutch_plus_plus),
    "xtrace": (2, _xtrace),
}


def _signs(operator: MatrixVectorProduct, count: int, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (operator.shape[0], count), generator=generator) * 2 - 1
    return signs.to(device=operator.device, dtype=accumulation_dtype(operator.device))


def _sphere(operator: MatrixVectorProduct, count: int, generator: torch.Generator) -> Tensor:
    """Return columns distributed uniformly on the sphere of radius √n."""
    columns = torch.randn(operator.shape[0], count, generator=generator, dtype=torch.float64)
    columns *= math.sqrt(operator.shape[0]) / torch.linalg.vector_norm(columns, dim=0)
    return columns.to(device=operator.device, dtype=accumulation_dtype(operator.device))


def _multiply(operator: MatrixVectorProduct, matrix: Tensor) -> Tensor:
    """Return A times a matrix (n, m): at once if the operator can, as it may build a graph once for all columns."""
    if isinstance(operator, SymmetricOperator):
        return operator.matmat(matrix.to(operator.dtype)).to(matrix.dtype)
    columns = [operator.matvec(column.to(operator.dtype)).to(matrix.dtype) for column in matrix.unbind(dim=1)]
    return torch.stack(columns, dim=1)
