"""Products of the Hessian and of the Gauss-Newton matrix of a loss with vectors.

Both are differentiated in reverse twice. All products of one Krylov run are taken at one point. So the gradient graph
of a micro-batch is built once and kept, for as many micro-batches as the memory budget holds. The others are built
again for every product, one at a time. Where evaluations are `captured`, recordings take the place of kept graphs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from convexlab.errors import FailureError
from convexlab.linalg.operators import SymmetricOperator
from convexlab.linalg.vectors import flatten, scale_of, unflatten
from convexlab.machine.memory import LiveTensors, is_out_of_memory, release_freed_memory, room_for_graphs
from convexlab.machine.random_state import generators_of, seed_all
from convexlab.machine.ranks import Ranks
from convexlab.objective.batched_loss import BatchedLoss, Point
from convexlab.objective.cost import Cost
from convexlab.objective.differences import GradientDifferences
from convexlab.objective.differentiation import BY_DIFFERENCES, differentiate
from convexlab.objective.footprint import Footprint, product_bytes, sizes_of
from convexlab.objective.noise import NEARBY, POINTS, coarsest_eps, noise_of
from convexlab.objective.output_curvature import OutputCurvature
from convexlab.objective.soundness import CHECKED_ROWS, ProductCheck, compare, compare_second_derivatives, random_unit
from convexlab.objective.suspects import suspect_in

__all__ = [
    "GaussNewtonOperator",
    "HessianOperator",
    "ObjectiveOperator",
    "ResidualOperator",
]


_BLOCK_BYTES = 2**32
"""Most bytes of the graphs of a block of directions. At 4 TB/s some 300 kernels then run as long as they take to start,
5 µs each. Larger blocks would save no time. By arithmetic, not measured."""


def launches_bound(device: torch.device) -> bool:
    """Whether small kernels take longer to start than to run: on a CPU they do not (benchmarks/README.md)."""
    return device.type != "cpu"


class ObjectiveOperator(SymmetricOperator):
    """A weighted mean over micro-batches of matrices that are known by products."""

    _unit: Cost
    _at_once = True
    """Whether `_product` takes stacks of directions."""

    def __init__(self, loss: BatchedLoss, *, keep_graphs: bool = True) -> None:
        """Take the loss at its model's present parameters, of which a copy is kept."""
        super().__init__(loss.size, dtype=loss.dtype, device=loss.device)
        self._loss = loss
        with torch.inference_mode(False):  # Copies made in inference mode can never be differentiated in.
            point = loss.point()
            self._point = replace(
                point,
                leaves=[leaf.detach().clone().requires_grad_() for leaf in point.leaves],
                rest={name: tensor.clone() for name, tensor in point.rest.items()},
                buffers={name: tensor.clone() for name, tensor in point.buffers.items()},
            )
        self._leaves = self._point.leaves
        self._room: int | None = None if keep_graphs else 0
        self._kept: list[Any] = []
        self._complete = False
        self._kept_rows: int | None = None
        self._graph_bytes: int | None = None
        self._proven = False
        self._place = object()  # Of this point; recordings compare it.

    @property
    def cost(self) -> Cost:
        """What the objective has spent, on this operator and otherwise."""
        return self._loss.cost

    @property
    def ranks(self) -> Ranks:
        """The ranks that make products together."""
        return self._loss.ranks

    def graph_bytes(self) -> int:
        """Return the size of the first micro-batch's gradient graph; the others are assumed to be no larger.

        The first call builds the graph, and keeps it for the products if the memory budget allows.
        """
        if self._graph_bytes is None:
            self.ranks.alike(lambda: self._loss.in_memory(self._build_first, Cost(), self._release))
        assert self._graph_bytes is not None
        return self._graph_bytes

    def _build_first(self) -> None:
        if self._graph_bytes is None:
            with self._loss.evaluating(), sdpa_kernel(SDPBackend.MATH), LiveTensors() as live:
                batch, weight = next(self._loss.parts(), (None, 0.0))
                if not weight:  # Of several ranks, one without examples.
                    self._graph_bytes, self._room = 1, 0
                    return
                linearised = self._linearise(batch)
                self._graph_bytes = max(1, live.bytes)
            if self._most_kept() > 0:
                self._keep(linearised, weight)

    def _most_kept(self) -> int:
        """Return how many graphs there is room for; none where recordings stand for them."""
        if self._replays:
            return 0
        if self._room is None:
            assert self._graph_bytes is not None
            room = room_for_graphs(self._loss.device, self._loss.memory_budget)
            self._room = (room or 0) // self._graph_bytes
        return self._room

    @property
    def _replays(self) -> bool:
        return self._loss.replayer is not None and not self._loss.replayer.refuses(self._name)

    @property
    def _name(self) -> str:
        return f"product of {type(self).__name__}"

    def _release(self) -> bool:
        """Drop the graphs that are kept, keep none any more, and return whether there were any."""
        there = bool(self._kept)
        self._room, self._kept, self._complete = 0, [], False
        return there

    def graphs_to_come(self) -> int:
        """Return at most how many bytes of graphs are still to be built and kept."""
        graph_bytes = self.graph_bytes()
        return 0 if self._complete else max(0, self._most_kept() - len(self._kept)) * graph_bytes

    def keep_at_most(self, graphs_to_come: int) -> None:
        """Beside the graphs that are kept now, keep at most this many bytes of them."""
        if graphs_to_come < self.graphs_to_come():
            self._room = len(self._kept) + graphs_to_come // self.graph_bytes()

    def footprint(self) -> Footprint:
        """Return what products take: products with the first micro-batch, scaled by the sizes of the others."""
        graph_bytes = self.graph_bytes()
        sizes, share = sizes_of(self._loss)
        will_be_kept = sizes[: self._most_kept()]
        product = product_bytes(self._loss, share, lambda first: self._at(self._point, first))
        if len(will_be_kept) == len(sizes):
            product -= graph_bytes
        return Footprint(
            graphs=round(graph_bytes * sum(will_be_kept) / sizes[0]) if sizes else 0,
            kept=graph_bytes * len(self._kept),
            product=max(product, self._stand_in_bytes(share)),
        )

    def _stand_in_bytes(self, share: float) -> int:
        """Return the size of a product that a Krylov run may make instead of this operator's own."""
        return 0

    def recomputed(self, v: Tensor, *, seed: int) -> Tensor:
        """Return A v for v (n,) again, with other rounding errors.

        It is made in float64 where the loss allows that, at parameters moved by a relative 2⁻²² of either sign, drawn
        from ``seed``. Two products at one point in one precision would share most of their errors. For example, the
        errors of softmax minus 1 make a symmetric, indefinite matrix that is the same every time.
        """
        return self._loss.precisely(lambda dtype: self._product_nearby(dtype, seed, v))

    def prove(self) -> None:
        """Raise a FailureError unless the loss is one function, and products are those of its derivatives.

        The products are compared with differences (`soundness`) for `CHECKED_ROWS` examples at most, or for the first
        batch where it is not cut. That takes two products and one or two gradients over these examples. It is done for
        every operator, because a fault may be invisible at some points, such as at fresh weights. The loss is evaluated
        twice with its gradient, once an objective.
        """
        self._loss.require_one_function()
        if not self._proven:
            self._loss.precisely(self._prove_in)
            self._proven = True

    def _prove_in(self, dtype: torch.dtype) -> None:
        few = self._loss.of_few(CHECKED_ROWS)
        loss = few.in_dtype(dtype)
        start = time.perf_counter()
        with loss.evaluating():
            leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in self._leaves]
            point = replace(self._point, leaves=leaves)
            batch, _ = next(loss.parts())
            check = self._compared(loss, point, batch)
            evaluations = Cost(gradients=check.comparison.evaluations, seconds=time.perf_counter() - start)
            few.spend(self._unit * 2 + evaluations)
            if check.refuted:
                where = suspect_in(loss.model, lambda: loss.first_part_again(point, batch))
                raise FailureError(
                    f"products are not those of the second derivative of this loss: {check}. The error is in {where}. "
                    f"Write that in operations that torch differentiates twice, or multiply by {BY_DIFFERENCES}."
                )

    def _compared(self, loss: BatchedLoss, point: Point, batch: Any) -> ProductCheck:
        """Return the check of this operator's products for one micro-batch."""
        raise NotImplementedError

    def _product_nearby(self, dtype: torch.dtype, seed: int, v: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        leaves = []
        for leaf in self._leaves:
            signs = torch.randint(0, 2, leaf.shape, generator=generator).to(leaf) * 2 - 1
            leaves.append((leaf.detach().to(dtype) * (1 + NEARBY * signs)).requires_grad_())
        other = self._at(replace(self._point, leaves=leaves), self._loss.in_dtype(dtype))
        product = other.matvec(v)
        self._loss.spend(other.cost)
        return product

    def _at(self, point: Point, loss: BatchedLoss) -> ObjectiveOperator:
        """Return the same matrix of another loss and at another point, which keeps no graphs."""
        other = copy.copy(self)
        other._loss, other.dtype = loss, loss.dtype
        other._point, other._leaves = point, point.leaves
        other._room, other._kept, other._complete = 0, [], False
        other._place = object()
        return other

    def _linearise(self, batch: Any) -> Any:
        raise NotImplementedError

    def _product(self, linearised: Any, parts: list[Tensor], *, stacked: bool = False) -> list[Tensor]:
        """Return the product of what `_linearise` made, by default the graph of a gradient, with a vector.

        Stacked, every part has one more dimension in front, over vectors.
        """
        return differentiate(linearised, self._leaves, parts, retain_graph=True, stacked=stacked)

    def _multiply(self, v: Tensor) -> Tensor:
        if (self._room is None and not self._replays) or self._takes_blocks(v.shape[1]):
            self.graph_bytes()
        count, marks = v.shape[1], self._loss.marks(type(self).__name__, self._point, v)
        unit = self._unit * count
        mean = self._loss.mean(v.numel(), lambda total: self._add_products(v, total), unit, marks, self._release)
        return mean.view(count, self.shape[0]).to(self.dtype).T

    def _add_products(self, v: Tensor, total: Tensor) -> float:
        start = time.perf_counter()
        if self._kept and not self._complete and self._kept_rows != self._loss.rows_at_a_time:
            self._release()  # Another evaluation has cut the batches into smaller parts since.
        weights, columns = 0.0, v.shape[1]
        with self._loss.evaluating(), sdpa_kernel(SDPBackend.MATH):
            for products, weight in self._products_of_parts(v):
                for place, product in enumerate(products):
                    # One view a row: torch 2.6 forbids to change one of several that were made in another grad mode.
                    total.view(columns, self.shape[0])[place].add_(product, alpha=weight)
                    del product  # Before the next graph is built.
                weights += weight
        self._loss.spend(self._unit * columns + Cost(seconds=time.perf_counter() - start))
        return weights

    def _products_of_parts(self, v: Tensor) -> Iterator[tuple[Iterable[Tensor], float]]:
        """Yield the products (k times (n,)) of every micro-batch with columns (n, k), and its weight."""
        if self._replays and v.shape[1]:
            for number, (batch, weight) in enumerate(self._loss.parts()):
                yield self.times(batch, v, number), weight
            return
        for linearised, weight in self._linearised_parts():
            yield self._columns_of(linearised, v), weight
            del linearised  # It has to be gone before the next graph is built.

    def times(self, batch: Any, v: Tensor, number: int) -> Tensor:
        """Return the products (k, n) of one micro-batch's matrix with columns (n, k), valid until the next call.

        For use within `evaluating` and torch's plain attention; no graph is kept. A recording is prepared for a point
        and a micro-batch once in a row.

        Args:
            batch: one of the loss's parts.
            v: columns, in this dtype and on this device.
            number: of the part.
        """
        point, replayer = self._point, self._loss.replayer
        if replayer is None:
            return self._product_columns(self._linearise(batch), v)
        self._block(v.shape[1])  # Which may build a graph; not within a recording.
        # Recordings outlive this operator: they must not hold its graphs.
        bare = self._at(point, self._loss)

        def prepare(tensors: Any, part: Any) -> tuple[ObjectiveOperator, Any]:
            there = bare._at(point.with_tensors(tensors), bare._loss)
            return there, there._linearise(part)

        def apply(prepared: tuple[ObjectiveOperator, Any], columns: Tensor) -> Tensor:
            there, linearised = prepared
            return there._product_columns(linearised, columns)

        place = self._place, number, self._loss.rows_at_a_time
        key = type(self), self._loss.parameter_key
        return replayer.apply(self._name, key, prepare, apply, v, place, point.tensors(), batch)

    def _product_columns(self, linearised: Any, v: Tensor) -> Tensor:
        return torch.stack(list(self._columns_of(linearised, v)))

    def _columns_of(self, linearised: Any, v: Tensor) -> Iterator[Tensor]:
        """Yield the products (n,) with columns (n, k): in blocks where starting kernels takes longer than they do."""
        for block in v.split(self._block(v.shape[1]), dim=1):
            together = self._together(linearised, block) if block.shape[1] > 1 else None
            if together is not None:
                yield from together
                continue
            for column in block.unbind(dim=1):
                parts = unflatten(column.clone(), self._leaves)
                yield flatten(self._product(linearised, parts))

    def _together(self, linearised: Any, block: Tensor) -> Tensor | None:
        """Return the products (k, n) with a block (n, k); None where an operation does not take a stack."""
        try:
            products = self._product(linearised, _stacks(block, self._leaves), stacked=True)
        except FailureError:
            raise
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._at_once = False
            return None
        return torch.cat([product.flatten(1) for product in products], dim=1)

    def _block(self, columns: int) -> int:
        """Return how many columns to multiply with at once."""
        if not self._takes_blocks(columns):
            return 1
        return max(1, min(columns, _BLOCK_BYTES // self.graph_bytes()))

    def _takes_blocks(self, columns: int) -> bool:
        return columns > 1 and self._at_once and launches_bound(self.device)

    def _linearised_parts(self) -> Iterator[tuple[Any, float]]:
        yield from self._kept
        if self._complete:
            return
        known, number = len(self._kept), 0
        for number, (batch, weight) in enumerate(self._loss.parts(), start=1):
            if number <= known:
                continue
            linearised = self._linearise(batch)
            if len(self._kept) < self._most_kept():
                self._keep(linearised, weight)
            yield linearised, weight
            del linearised
        self._complete = len(self._kept) == number

    def _keep(self, linearised: Any, weight: float) -> None:
        self._kept.append((linearised, weight))
        self._kept_rows = self._loss.rows_at_a_time
        if self.device.type == "cpu":
            release_freed_memory()


def _stacks(columns: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return columns (n, k) as tensors (k, ...) in the shapes of ``like``, the inverse of flattening each."""
    parts = torch.split(columns.T, [tensor.numel() for tensor in like], dim=1)
    return [part.reshape(-1, *tensor.shape) for part, tensor in zip(parts, like, strict=True)]


class HessianOperator(ObjectiveOperator):
    """The Hessian of an objective at one point, by reverse mode over reverse mode (Pearlmutter 1994)."""

    _unit = Cost(hessian_products=1)
    exact = False
    """Whether a Krylov run may not use differences of gradients where these prove accurate enough."""

    def _linearise(self, batch: Any) -> list[Tensor]:
        return differentiate([self._loss.batch_loss(self._point, batch)], self._leaves, create_graph=True)

    def _compared(self, loss: BatchedLoss, point: Point, batch: Any) -> ProductCheck:
        return compare_second_derivatives(
            lambda leaves: loss.first_part_again(replace(point, leaves=leaves), batch), point.leaves
        )

    def second_difference(self, v: Tensor) -> float | None:
        """Return (L(θ + h v) - 2 L(θ) + L(θ - h v)) / h² for a unit vector v (n,), with h = (σ / L)^¼.

        It uses no derivative. So it is a check of derivatives, and shows kinks, which they do not. It is made in
        float64 where the loss allows that; σ, the rounding of the loss, is measured (`noise`), at least ε L. None where
        three standard deviations of that rounding are more than a quarter of the result. It costs seven values, 2⅓
        gradients.
        """
        return self._loss.precisely(lambda dtype: self._second_difference(dtype, v))

    def _second_difference(self, dtype: torch.dtype, v: Tensor) -> float | None:
        loss = self._loss.in_dtype(dtype)
        leaves = [leaf.detach().to(dtype) for leaf in self._leaves]
        directions = unflatten(v.to(dtype), leaves)
        length = scale_of(leaves)

        def value(step: float) -> Tensor:
            moved = [leaf + step * direction for leaf, direction in zip(leaves, directions, strict=True)]
            return loss.value_at(replace(self._point, leaves=moved))

        spacing = max(NEARBY, loss.coarsest_eps(self._point)) * length
        nearby = torch.stack([value(spacing * place) for place in range(POINTS)])
        scale = float(nearby.abs().max())
        noise = max(noise_of(nearby), torch.finfo(dtype).eps * scale)
        step = (noise / scale) ** 0.25 if scale else torch.finfo(dtype).eps ** 0.25
        result = float((value(step) - 2 * nearby[0] + value(-step)) / step**2)
        self._loss.spend(loss.cost)
        # Three independent roundings, of weights 1, -2 and 1.
        return None if 3 * 6**0.5 * noise / step**2 > abs(result) / 4 else result

    def differences(self) -> GradientDifferences:
        """Return products by differences of gradients at the same point: cheaper, and less accurate."""
        return GradientDifferences(self._loss, self._point)

    def _stand_in_bytes(self, share: float) -> int:
        return product_bytes(self._loss, share, lambda first: GradientDifferences(first, self._point))


class GaussNewtonOperator(ObjectiveOperator):
    """The generalised Gauss-Newton matrix JᵀH_LJ (Schraudolph 2002, doi 10.1162/08997660260028683).

    J is the Jacobian of the model's output, H_L the Hessian of the criterion in the output. J v is the derivative of
    Jᵀu in a dummy u, so only reverse mode is needed and the graph can be kept. The dummy takes no memory. Where
    `output_curvature` knows H_L, that takes none either, and a product takes four tensors of the output's size.
    """

    _unit = Cost(gauss_newton_products=1)
    _at_once = False

    def _linearise(self, batch: Any) -> tuple[Tensor, Tensor, list[Tensor], OutputCurvature]:
        output = self._output(self._loss, self._point, batch)
        dummy = output.new_zeros(()).expand(output.shape).requires_grad_()
        transposed = differentiate([output], self._leaves, [dummy], create_graph=True)
        return output, dummy, transposed, self._curvature(output, batch)

    def _product(self, linearised: Any, parts: list[Tensor], *, stacked: bool = False) -> list[Tensor]:
        output, dummy, transposed, curvature = linearised
        (jacobian_product,) = differentiate(transposed, [dummy], parts, retain_graph=True)
        return differentiate([output], self._leaves, [curvature.times(jacobian_product)], retain_graph=True)

    def _output(self, loss: BatchedLoss, point: Point, batch: Any) -> Tensor:
        """Return what J is the Jacobian of, for a micro-batch."""
        return loss.batch_output(point, batch)

    def _curvature(self, output: Tensor, batch: Any) -> OutputCurvature:
        """Return what stands between Jᵀ and J, for a micro-batch."""
        return self._loss.output_curvature(output, batch)

    def _compared(self, loss: BatchedLoss, point: Point, batch: Any) -> ProductCheck:
        """Compare J v with differences of the output: that product alone takes second derivatives."""

        def output_of(leaves: list[Tensor]) -> Tensor:
            seed_all(generators_of(loss.device), 1)
            return self._output(loss, replace(point, leaves=leaves), batch)

        def output_at(step: float) -> Tensor:
            moved = [leaf.detach() + step * part for leaf, part in zip(point.leaves, directions, strict=True)]
            return output_of(moved).detach().reshape(-1)

        directions, output = random_unit(point.leaves, 0), output_of(point.leaves)
        dummy = torch.zeros_like(output, requires_grad=True)
        transposed = differentiate([output], point.leaves, [dummy], create_graph=True)
        (along,) = differentiate(transposed, [dummy], directions)
        here, along = output.detach().reshape(-1), along.detach().reshape(-1)
        eps = coarsest_eps(lambda: output_of(point.leaves))
        comparison = compare(along, output_at, here, scale=scale_of(point.leaves), eps=eps)
        return ProductCheck(comparison, asymmetry=0.0)


class ResidualOperator(ObjectiveOperator):
    """What the Hessian has beyond the Gauss-Newton matrix: Σ_k (∂L/∂f_k) ∇²f_k (Schraudolph 2002).

    It is the Hessian of uᵀf(θ), f the model's output, with the slope u = ∂L/∂f held fixed.
    """

    _unit = Cost(hessian_products=1)

    def _linearise(self, batch: Any) -> list[Tensor]:
        output = self._loss.batch_output(self._point, batch)
        at = output.detach().requires_grad_()
        slope = differentiate([self._loss.criterion(at, batch)], [at])
        return differentiate([output], self._leaves, slope, create_graph=True)

    def _compared(self, loss: BatchedLoss, point: Point, batch: Any) -> ProductCheck:
        at = loss.batch_output(point, batch).detach().requires_grad_()
        (slope,) = differentiate([loss.criterion(at, batch)], [at])

        def weighted(leaves: list[Tensor]) -> Tensor:
            seed_all(generators_of(loss.device), 1)
            return (loss.batch_output(replace(point, leaves=leaves), batch) * slope).sum()

        return compare_second_derivatives(weighted, point.leaves)
