"""The loss of a model on a data set as one function of one flat vector.

Everything above sees ``value``, ``gradient`` and ``hvp`` of a flat vector.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError, unknown_name
from convexlab.linalg.operators import SymmetricOperator
from convexlab.linalg.vectors import accumulation_dtype, flatten, select_parameters, unflatten
from convexlab.machine.precision import Precision, require_precision
from convexlab.machine.random_state import fixed_random_state, spread_rows
from convexlab.objective.batched_loss import BatchedLoss, BatchLoss, BatchResiduals
from convexlab.objective.batches import batch_loss_of, common_rows, criterion_weight, mapped, pair_of, rows_of
from convexlab.objective.differences import CentralDifferences
from convexlab.objective.fisher import EmpiricalFisherOperator
from convexlab.objective.least_squares import LeastSquares
from convexlab.objective.narrow import NarrowHessian
from convexlab.objective.products import GaussNewtonOperator, HessianOperator, ResidualOperator

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["PRODUCTS", "Objective", "Products"]

Products = Literal["auto", "exact", "differences"]
"""How a Hessian multiplies, see `Objective.hessian`."""
PRODUCTS = ("auto", "exact", "differences")


class Objective(BatchedLoss):
    """The mean loss of ``model`` over ``data`` as a function of the selected parameters θ, a flat vector (n,).

    Args:
        model: evaluated in eval mode.
        data: re-iterable of (input, target) batches of tensors.
        criterion: maps (output, target) to a scalar, the mean over the examples of the batch. For torch's
            ``CrossEntropyLoss`` and ``NLLLoss`` it is the mean that they define: weighted by class, without the ignored
            targets. Every other criterion has to count examples equally.
        residuals: maps (output, target) to a tensor, or several, whose squares sum to the criterion of a batch, see
            `least_squares`. None declares none; those of torch's ``MSELoss`` are known without it.
        params: names, glob patterns or parameters; None selects all that require a gradient.
        micro_batch: examples evaluated at a time. ``"auto"`` fits them into the cache on a CPU, and into
            ``memory_budget`` on accelerators. A ``memory_budget`` that is given holds everywhere.
        memory_budget: bytes that the graphs of a product may take; None is half of what is free.
        device: where to evaluate; None is where the model is.
        dtype: in which to evaluate, whatever the model's own; None is the model's own.
        group: a process group of torch.distributed whose ranks share the examples, such as
            ``torch.distributed.group.WORLD``. All its ranks make the objective of the same model and the same data, and
            call the same methods in the same order. Results have the same bits in all ranks. A rank evaluates an equal
            share of the rows of every batch. None is this process alone.

    Raises:
        MisuseError: the data can be iterated only once, the criterion sums, no parameter is selected, or an option is
            out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        criterion: Callable[[Any, Any], Tensor],
        *,
        residuals: Callable[[Any, Any], Tensor | Sequence[Tensor]] | None = None,
        params: Iterable[str | nn.Parameter] | str | nn.Parameter | None = None,
        micro_batch: int | Literal["auto"] | None = "auto",
        memory_budget: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        if not callable(criterion):
            raise MisuseError(
                f"expected a criterion that can be called with (output, target), got {type(criterion).__name__}. Data "
                "are one argument, a list of (input, target) pairs: Objective(model, [(x, y)], criterion)."
            )
        reduction = getattr(criterion, "reduction", "mean")
        if reduction not in {"mean", "batchmean"}:
            raise MisuseError(
                f"expected a criterion that returns the mean over a batch, got reduction={reduction!r}. "
                "Use reduction='mean', or Objective.from_batch_loss with a weight."
            )
        super().__init__(
            model,
            data,
            partial(_loss_of_pair, criterion),
            criterion=criterion,
            residuals=_residuals_of_pair(criterion, residuals),
            weight=criterion_weight(criterion),
            params=params,
            micro_batch=micro_batch,
            memory_budget=memory_budget,
            device=device,
            dtype=dtype,
            group=group,
        )

    @classmethod
    def from_batch_loss(
        cls,
        model: nn.Module,
        data: Iterable[Any],
        fn: BatchLoss,
        weight: Callable[[Any], float] | None = None,
        *,
        residuals: BatchResiduals | None = None,
        params: Iterable[str | nn.Parameter] | str | nn.Parameter | None = None,
        micro_batch: int | Literal["auto"] | None = "auto",
        memory_budget: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        group: ProcessGroup | None = None,
    ) -> Objective:
        """Return the objective of any loss, such as a physics-informed network's.

        Args:
            model: see the class.
            data: re-iterable of batches of any kind; tensors in them are moved to the device and dtype.
            fn: ``fn(model, batch)`` returns the scalar mean loss of a batch.
            weight: ``weight(batch)`` returns the weight of the batch in the mean; None counts the rows of its first
                tensor.
            residuals: ``residuals(model, batch)`` returns a tensor, or several, whose squares sum to the loss of the
                batch, see `least_squares`. None where the loss is no sum of squares.
            params: see the class.
            micro_batch: see the class; ``"auto"`` leaves batches whole here, because a loss need not be a mean over
                rows. Pass a number only where it is.
            memory_budget: see the class.
            device: see the class.
            dtype: see the class.
            group: see the class; batches that are not cut go whole to one rank each, in turn.
        """
        self = cls.__new__(cls)
        BatchedLoss.__init__(
            self,
            model,
            data,
            fn,
            residuals=residuals,
            weight=weight,
            params=params,
            micro_batch=None if micro_batch == "auto" else micro_batch,
            memory_budget=memory_budget,
            device=device,
            dtype=dtype,
            group=group,
        )
        return self

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The selected parameters, in the order of the flat vector."""
        return tuple(self._parameters)

    def value(self) -> float:
        """Return the loss, the mean over the whole data set."""
        return float(self.value_at(self.point(requires_grad=False)))

    def gradient(self) -> Tensor:
        """Return the gradient (n,)."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """Return the loss and its gradient (n,)."""
        value, gradient = self.value_and_gradient_at(self.point())
        return float(value), gradient.to(self.dtype)

    def hvp(self, v: Tensor) -> Tensor:
        """Return H v for v of shape (n,) or (n, k), H the Hessian at the model's present parameters.

        For many products at one point, `hessian` is cheaper.
        """
        return HessianOperator(self, keep_graphs=False) @ v

    def hessian(self, products: Products = "auto", precision: Precision = "full") -> SymmetricOperator:
        """Return the Hessian at the model's present parameters; later changes of the model do not change it.

        Args:
            products: how it multiplies. ``"auto"``: exactly, though a long Krylov run may use differences of gradients
                where these prove accurate enough. ``"exact"``: never by differences. ``"differences"``: by differences
                alone, for losses that torch cannot differentiate twice, see `CentralDifferences`.
            precision: in how many bits exact products multiply matrices. ``"full"``: as many as the loss has.
                ``"bf16"``: bfloat16; ``"tf32"``: TensorFloat-32, on CUDA. Both are for losses in float32, see
                `NarrowHessian`. Bounds and verdicts allow for their error, which products in float32 measure.

        Raises:
            MisuseError: an unknown ``products`` or ``precision``, or a precision that the loss or its device does not
                support.
        """
        if products not in PRODUCTS:
            raise unknown_name("kind of products", products, PRODUCTS)
        require_precision(precision, self.device, self.dtype)
        if precision != "full":
            if products == "differences":
                raise MisuseError(
                    f"differences of gradients in {precision} would be rounding errors: expected exact products with a "
                    "precision, got products='differences'. Leave out one of them."
                )
            return NarrowHessian(self, precision)
        if products == "differences":
            return CentralDifferences(self, self.point())
        operator = HessianOperator(self)
        operator.exact = products == "exact"
        return operator

    def ggn(self) -> SymmetricOperator:
        """Return the generalised Gauss-Newton matrix JᵀH_LJ at the model's present parameters (Schraudolph 2002).

        Raises:
            MisuseError: the objective was made by `from_batch_loss`, which does not know the model's output.
        """
        self.require_criterion("the Gauss-Newton matrix")
        return GaussNewtonOperator(self)

    def fisher(self) -> SymmetricOperator:
        """Return the empirical Fisher matrix at the model's present parameters: the mean of g_i g_iᵀ over examples i.

        g_i is the gradient of the loss of one example, a row of a batch. With targets sampled from the model's own
        likelihood it would be the Fisher matrix, which for cross-entropy is the Gauss-Newton matrix. With the targets
        of the data it differs from that, unless the fit is nearly perfect (Kunstner, Balles & Hennig 2019, arXiv
        1905.12558).

        Raises:
            MisuseError: the objective was made by `from_batch_loss`, which knows the loss of a batch alone.
        """
        self.require_criterion("the empirical Fisher matrix")
        return EmpiricalFisherOperator(self)

    def residual(self) -> SymmetricOperator:
        """Return the Hessian less the Gauss-Newton matrix at the model's present parameters: Σ_k (∂L/∂f_k) ∇²f_k.

        For a loss that is convex in the model's output f, all negative curvature of the Hessian comes from this part.

        Raises:
            MisuseError: the objective was made by `from_batch_loss`, as for `ggn`.
        """
        self.require_criterion("the residual part of the Hessian")
        return ResidualOperator(self)

    def least_squares(self) -> LeastSquares:
        """Return the residuals, whose squares sum to the loss, with their Jacobian, for `LevenbergMarquardt`.

        Raises:
            MisuseError: they were not declared, their squares do not sum to the loss, or the Jacobian does not fit
                into memory.
        """
        return LeastSquares(self)

    def restricted_to(self, params: Iterable[str | nn.Parameter] | str | nn.Parameter) -> Objective:
        """Return the same objective as a function of some of its parameters; the others keep the model's values.

        Its Hessian is a diagonal block of that of the whole. It has its own `cost`, which is charged to the whole
        objective too.

        Args:
            params: names, glob patterns or parameters, of those that are selected here.

        Raises:
            MisuseError: a name or a pattern matches no selected parameter.
        """
        requests = [params] if isinstance(params, str | nn.Parameter) else list(params)
        chosen = {name for request in requests for name in self._selected(request)}
        part = self._copy(whole=self)
        part._parameters = select_parameters(self._model, [self._parameters[name] for name in chosen])
        part._share = 1.0
        return part

    def sample(self, examples: int) -> Objective:
        """Return the same loss over a sample of the examples: the same share of every batch, and of every part of it.

        They are drawn once, from a fixed seed, and kept in memory. Batches whose tensors differ in length stay whole;
        the sample is then larger. Its `cost` counts evaluations over the sample. The whole objective is charged `share`
        times that, and the seconds.

        Args:
            examples: number of rows; a number above that of the data gives the whole.

        Raises:
            MisuseError: ``examples`` is below 1, or a batch has no tensor.
        """
        if examples < 1:
            raise MisuseError(f"expected a sample of at least 1 example, got {examples!r}.")
        # The fixed state is that of evaluations: a loader that shuffles gives the same batches twice.
        with fixed_random_state(self.device, data=self._data):
            rows = sum(map(rows_of, self._data))
        share, rows_before, chosen = min(1.0, examples / max(rows, 1)), 0, []
        generator = torch.Generator().manual_seed(0)
        with fixed_random_state(self.device, data=self._data):
            for batch in self._data:
                size = rows_of(batch)
                wanted = round((rows_before + size) * share) - round(rows_before * share)
                rows_before += size
                if common_rows(batch) is None or wanted == size:
                    chosen.append(batch)
                elif wanted:
                    places = spread_rows(size, wanted, generator)
                    chosen.append(mapped(lambda item, places=places: item[places.to(item.device)], batch))
        part = self._copy(whole=self)
        known = self._one_function
        part._set_data(chosen)
        part._one_function = known  # Examples of the same data, and kept.
        part._share = sum(map(rows_of, chosen)) / max(rows, 1)
        return part

    @property
    def data(self) -> Iterable[Any]:
        """The batches that the loss is the mean over."""
        return self._data

    def over(self, data: Iterable[Any]) -> Objective:
        """Return the same loss over other batches, with a cost of its own."""
        other = self._copy()
        other._set_data(data)
        other._share = 1.0
        return other

    @property
    def share(self) -> float:
        """For a `sample`, its examples over those of the objective that it was drawn from; 1 for any other."""
        return self._share

    def flat_parameters(self) -> Tensor:
        """Return a copy of the selected parameters as a vector (n,)."""
        return flatten(self.point(requires_grad=False).leaves).to(self.dtype, copy=True)

    def write(self, theta: Tensor) -> None:
        """Set the model's selected parameters to ``theta`` (n,), in their own dtype and on their own device.

        Raises:
            MisuseError: ``theta`` has another shape.
        """
        _copy(self._parts_of(theta), self._parameters.values())

    @contextlib.contextmanager
    def at(self, theta: Tensor) -> Iterator[Objective]:
        """Give the model the parameters ``theta`` (n,) within the block, and its own again after it.

        An objective that is evaluated in a wider dtype than the model's takes ``theta`` unrounded, until the model's
        parameters are changed within the block.

        Raises:
            MisuseError: ``theta`` has another shape.
        """
        parts = self._parts_of(theta)
        saved = [parameter.detach().clone() for parameter in self._parameters.values()]
        held = self._still_held()
        try:
            _copy(parts, self._parameters.values())
            self._held = self._rounded_off(parts)
            yield self
        finally:
            _copy(saved, self._parameters.values())
            self._held = {name: (part, self._parameters[name]._version) for name, part in held.items()}

    def closure(self, *, backward: bool = True) -> Tensor:
        """Evaluate as a torch closure: set the parameters' ``grad`` if ``backward`` and return the loss (float64)."""
        dtype = accumulation_dtype(self.device)
        if not backward:
            return torch.tensor(self.value(), dtype=dtype)
        value, gradient = self.value_and_gradient()
        self.assign_gradient(gradient)
        return torch.tensor(value, dtype=dtype)

    def assign_gradient(self, gradient: Tensor) -> None:
        """Set the ``grad`` of the selected parameters from a flat gradient (n,)."""
        parameters = list(self._parameters.values())
        for parameter, part in zip(parameters, unflatten(gradient, parameters), strict=True):
            parameter.grad = part.to(device=parameter.device, dtype=parameter.dtype)

    def _parts_of(self, theta: Tensor) -> list[Tensor]:
        if theta.shape != (self.size,):
            raise MisuseError(f"expected parameters of shape ({self.size},), got {tuple(theta.shape)}.")
        return unflatten(theta, list(self._parameters.values()))

    def _selected(self, request: str | nn.Parameter) -> set[str]:
        """Return the names of the selected parameters that ``request`` matches."""
        if isinstance(request, str) and request in self._parameters:
            return {request}
        names = select_parameters(self._model, request).keys() & self._parameters.keys()
        if not names:
            what = repr(request) if isinstance(request, str) else "a parameter in `params`"
            raise MisuseError(
                f"{what} is of the model, but not selected in this objective, which has {', '.join(self._parameters)}. "
                "Select it when the objective is made."
            )
        return names


def _loss_of_pair(criterion: Callable[[Any, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
    input, target = pair_of(batch)
    return batch_loss_of(criterion, model(input), target)


def _residuals_of_pair(
    criterion: Callable[[Any, Any], Tensor], residuals: Callable[[Any, Any], Tensor | Sequence[Tensor]] | None
) -> BatchResiduals | None:
    """Return residuals of (output, target) as those of (model, batch)."""
    if residuals is None and type(criterion) is nn.MSELoss:
        residuals = _errors
    if residuals is None:
        return None
    return lambda model, batch: residuals(model(pair_of(batch)[0]), pair_of(batch)[1])


def _errors(output: Tensor, target: Tensor) -> Tensor:
    """Return the residuals of a mean of squares."""
    return (output - target) / math.sqrt(output.numel())


def _copy(sources: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for source, parameter in zip(sources, parameters, strict=True):
            parameter.copy_(source)
