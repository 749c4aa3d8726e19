"""Several eigenpairs at an end of a spectrum, by one Krylov run that is restarted where memory asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.extremes import stages
from convexlab.curvature.inexact import Inexact, cheapest_operator
from convexlab.curvature.lanczos import Lanczos, random_unit_vector
from convexlab.curvature.soundness import require_operator
from convexlab.errors import FailureError, MisuseError, unknown_name
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.linalg.vectors import accumulation_dtype
from convexlab.machine.memory import available_memory
from convexlab.machine.ranks import ranks_of
from convexlab.wording.numbers import byte_size

__all__ = ["Eigenpairs", "check_count", "pairs_of", "top_eigenpairs"]

Array = NDArray[np.float64]

# A residual is not asked to be below the tolerance times this share of the largest absolute eigenvalue.
_FLOOR = 1e-3
# Of a run before it is first looked at.
_FIRST_STEPS = 10
# Products at most, where the caller does not say.
_MOST_PRODUCTS = 1000
# Vectors of a basis beyond which a longer one saves few products.
_LONG = 400
# Vectors that a basis has to have beside the wanted ones, and beside the basis.
_LEAST_BESIDE, _WORK = 6, 4
# Products from which a run may be long enough to repay what cheap ones cost to check.
_LONG_RUN = 20
# Share of the tolerance that a run on cheap products is extended to; the rest is for their error.
_CHEAP_SHARE = 0.75

_ORDERS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {"largest": lambda values: -values, "smallest": lambda values: values, "magnitude": lambda values: -np.abs(values)}
)


@dataclass(frozen=True)
class Eigenpairs:
    """The k eigenpairs at an end of a spectrum, the outermost first.

    The i-th value is never beyond the i-th eigenvalue from that end, up to rounding (Cauchy's interlacing). It need not
    be equal to it: a single random start sees a multiple eigenvalue only once.
    """

    values: Tensor
    """(k,), vᵀA v; float64, on the CPU."""
    vectors: Tensor
    """(n, k), orthonormal columns, float64."""
    residuals: Tensor
    """(k,), ‖A v - value v‖: by fresh products if those of the run were not exact, else by its recurrence."""
    bounds: Tensor
    """(k, 2): an eigenvalue lies between the two for certain, up to rounding: value ∓ residual."""
    converged: bool
    """Whether every residual is at most ``tolerance`` times |value|, or a thousandth of the largest |value|, or
    rounding."""
    steps: int
    """Products of the Krylov run."""
    restarts: int
    """How often the run was compressed to save memory."""
    effort: Effort


def check_count(count: int, size: int) -> None:
    """Raise a MisuseError unless ``count`` eigenpairs can be had of n = ``size``."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= size:
        raise MisuseError(f"expected a whole number of eigenpairs from 1 to {size}, got {count!r}.")


def top_eigenpairs(
    operator: MatrixVectorProduct,
    k: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-2,
    max_steps: int | None = None,
    memory_budget: int | None = None,
    seed: int = 0,
) -> Eigenpairs:
    """Return the k eigenpairs at an end of the spectrum of a symmetric operator.

    Lanczos with thick restarts (Wu & Simon 2000, doi 10.1137/S0895479898334605). On the Hessian of an objective it uses
    differences of gradients where these prove accurate enough, see `inexact`. Values and residuals then come from k
    exact products. Where these residuals are too large, the run is repeated with exact products.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        k: how many.
        which: ``"largest"``, ``"smallest"`` or ``"magnitude"``, the largest absolute ones.
        tolerance: wanted residual relative to the eigenvalue, as ARPACK has it.
        max_steps: products of the Krylov run at most; None is 1,000, or 30 k if that is more.
        memory_budget: bytes that basis and results may take; None is half of what is free. With less, the run is
            restarted, and makes more products.
        seed: of the random start.

    Raises:
        MisuseError: an option out of range.
        FailureError: the least basis, of k + 6 vectors, does not fit into the budget; or a product is not finite.
    """
    require_operator(operator)
    check_count(k, operator.shape[0])
    if which not in _ORDERS:
        raise unknown_name("end of the spectrum", which, _ORDERS)
    if not 0 < tolerance < 1:
        raise MisuseError(f"expected a tolerance between 0 and 1, got {tolerance!r}.")
    if max_steps is not None and max_steps < k:
        raise MisuseError(f"expected max_steps of at least k, {k}, got {max_steps!r}.")
    most = max(_MOST_PRODUCTS, 30 * k) if max_steps is None else max_steps
    room = min(_room(operator, k, memory_budget), most)
    wanted = _Wanted(k, which, tolerance)
    with Meter(operator) as meter:
        run = _Run.of(operator, wanted, room, most, seed, cheaply=most >= _LONG_RUN)
        spent = run.process.products
        if run.cheaply and not run.converged:
            del run  # Before another basis is there.
            run = _Run.of(operator, wanted, room, most, seed, cheaply=False)
            spent += run.process.products
        return Eigenpairs(
            values=run.values,
            vectors=run.vectors,
            residuals=run.residuals,
            bounds=torch.stack([run.values - run.residuals, run.values + run.residuals], dim=1),
            converged=run.converged,
            steps=run.steps,
            restarts=run.restarts,
            effort=meter.effort(spent, run.process.plan),
        )


def pairs_of(process: Lanczos, k: int, *, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest eigenpairs of a run that is extended for them as far as it has room, and is not restarted.

    Values (k,), vectors (n, k) and residuals (k,) by the recurrence; fewer where the space is smaller.
    """
    wanted = _Wanted(k, "largest", tolerance)
    for steps in stages(process.steps, process.max_steps):
        process.extend(steps - process.steps)
        if process.exhausted or wanted.done(process):
            break
    return _pairs(process, wanted, afresh=False)


@dataclass(frozen=True)
class _Wanted:
    """What a run is made for."""

    count: int
    which: str
    tolerance: float

    def places(self, values: Array) -> NDArray[np.int64]:
        """Return the places of Ritz values, the outermost first."""
        return np.argsort(_ORDERS[self.which](values), kind="stable")

    def done(self, process: Lanczos, share: float = 1.0) -> bool:
        """Return whether the residuals of the run are within a share of what is allowed."""
        if process.steps < self.count:
            return False
        values, vectors = process.ritz()
        places = self.places(values)[: self.count]
        return self.suffices(process, values[places], process.residuals(vectors[:, places]) / share)

    def nothing_new(self, process: Lanczos, before: Array, now: Array) -> bool:
        """Return whether the wanted values are the same as before another start, up to rounding."""
        noise = _rounding(process.operator, float(np.abs(process.ritz()[0]).max()))
        return len(before) == len(now) == self.count and bool(np.abs(now - before).max() <= noise)

    def suffices(self, process: Lanczos, values: Array, residuals: Array) -> bool:
        """Return whether residuals are small enough, rounding allowed for."""
        scale = float(np.abs(process.ritz()[0]).max())
        allowed = self.tolerance * np.maximum(np.abs(values), _FLOOR * scale)
        return bool((residuals <= np.maximum(allowed, _rounding(process.operator, scale))).all())


@dataclass(frozen=True)
class _Run:
    """A run that has been made, and what it gave."""

    process: Lanczos
    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool
    cheaply: bool
    """Whether its products were cheaper than the operator's own."""
    steps: int
    restarts: int

    @classmethod
    def of(
        cls, operator: MatrixVectorProduct, wanted: _Wanted, room: int, most: int, seed: int, *, cheaply: bool
    ) -> _Run:
        """Make a run."""
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(seed)), room)
        if cheaply:
            process.operator = cheapest_operator(process, wanted.tolerance)
        cheap = process.operator is not operator
        restarts = _extend(process, wanted, most, seed, share=_CHEAP_SHARE if cheap else 1.0)
        steps, process.operator = process.products, operator
        values, vectors, residuals = _pairs(process, wanted, afresh=cheap or process.approximate)
        good = len(values) == wanted.count and wanted.suffices(process, values.numpy(), residuals.numpy())
        return cls(process, values, vectors, residuals, good, cheap, steps, restarts)


def _rounding(operator: MatrixVectorProduct, scale: float) -> float:
    return float(operator.shape[0] ** 0.5 * torch.finfo(operator.dtype).eps * scale)


def _extend(process: Lanczos, wanted: _Wanted, most: int, seed: int, *, share: float) -> int:
    """Extend a run until it is done or has made as many products as it may; return how often it was compressed.

    Once there is a reason to think that a start has not seen all, others follow until one finds nothing further out.
    """
    generator, restarts, known = torch.Generator().manual_seed(seed + 1), 0, np.empty(0)
    operator, begin = process.operator, 0
    process.extend(min(max(_FIRST_STEPS, wanted.count + 2), most - process.products))
    while process.products < most and process.steps < operator.shape[0]:
        if process.invariant or (process.products >= begin + _FIRST_STEPS and wanted.done(process, share)):
            values = process.ritz()[0]
            places = wanted.places(values)[: wanted.count]
            outermost = values[places]
            if wanted.nothing_new(process, known, outermost):
                break
            if not (process.invariant or known.size or _something_is_further_out(process, wanted, generator)):
                break
            known, start = outermost, random_unit_vector(operator, generator)
            if process.invariant:
                process.join(start)
            else:
                process.deflate(places, start)
            begin = process.products
        elif process.steps == process.max_steps:
            process.compress(wanted.places(process.ritz()[0])[: (wanted.count + process.max_steps) // 2])
            restarts += 1
        else:
            process.extend(min(max(1, process.steps // 20), most - process.products))
    return restarts


def _something_is_further_out(process: Lanczos, wanted: _Wanted, generator: torch.Generator) -> bool:
    """Return whether a random vector outside of the space is further out than the last wanted Ritz value.

    Then that is not the eigenvalue that was asked for: there is, for example, a large space of zeros, of which the run
    sees one. Takes a product.
    """
    vector = process.without_part_in_space(random_unit_vector(process.operator, generator))
    vector /= torch.linalg.vector_norm(vector)
    values = process.ritz()[0]
    last = values[wanted.places(values)[wanted.count - 1]]
    quotient = np.array([float(vector @ process.multiply(vector[None])[0]), last])
    order, scale = _ORDERS[wanted.which](quotient), float(np.abs(values).max())
    return bool(order[0] < order[1] - max(wanted.tolerance * abs(last), _rounding(process.operator, scale)))


def _pairs(process: Lanczos, wanted: _Wanted, *, afresh: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return values, vectors and residuals: by fresh products, one after the other, or by the run's own.

    The run's own do not show the error of `Inexact` products; fresh ones of their reference do.
    """
    operator, (ritz, coefficients) = process.operator, process.ritz()
    if isinstance(operator, Inexact):
        process.operator, afresh = operator.reference(), True
    places = wanted.places(ritz)[: wanted.count]
    vectors = process.ritz_vectors(coefficients[:, places])
    if not afresh:
        return (
            torch.from_numpy(ritz[places].copy()),
            vectors,
            torch.from_numpy(process.residuals(coefficients[:, places])),
        )
    pairs = []
    for vector in vectors.T:
        product = process.multiply(vector[None])[0]
        value = vector @ product
        pairs.append(torch.stack([value, torch.linalg.vector_norm(product - value * vector)]))
    process.operator = operator  # The run may go on.
    values, lengths = torch.stack(pairs, dim=1).cpu().double()
    return values, vectors, lengths


def _room(operator: MatrixVectorProduct, k: int, budget: int | None) -> int:
    """Return the steps that a basis within the budget has room for.

    Raises:
        FailureError: fewer than the least.
    """
    vector = operator.shape[0] * accumulation_dtype(operator.device).itemsize
    ranks, free = ranks_of(operator), available_memory(operator.device)
    free = None if free is None else int(ranks.least(free))
    given = budget if budget is not None else None if free is None else free // 2
    least = min(k + _LEAST_BESIDE, operator.shape[0])
    most = min(max(_LONG, 4 * k), operator.shape[0])
    if given is None:
        return most
    beside = k + _WORK + 1  # The result, work, and the vector that leads out of the space.
    room = (given - beside * vector) // -(-vector // ranks.size)  # Of the basis each rank holds a part.
    if room < least:
        raise FailureError(
            f"{k} eigenpairs of {operator.shape[0]:,} parameters take {byte_size((least + beside) * vector)} at least, "
            f"but {byte_size(given)} are given or free. Ask for fewer, allow more by memory_budget, or select fewer "
            "parameters by `params`."
        )
    return min(room, most)
