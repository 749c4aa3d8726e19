"""Curvature in Adam's own metric, and the border of its stability.

Adam with frozen second moments is gradient descent with momentum in the coordinates P^½ θ. On a quadratic loss that is
stable if the largest eigenvalue of P^-½ H P^-½ is less than 2 (1 + β₁) / ((1 - β₁) η). Here P = (1 - β₁^t) (diag(√v̂) +
ε) (Cohen et al. 2022, arXiv 2207.14484, section 2 and appendix B). Full-batch Adam was seen to train at that border.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.soundness import require_sound
from convexlab.curvature.top import top_eigenpairs
from convexlab.errors import MisuseError
from convexlab.linalg.operators import SymmetricOperator
from convexlab.linalg.vectors import accumulation_dtype, flatten
from convexlab.objective import Objective, Products
from convexlab.optim.preconditioners import DiagonalPreconditioner, split_operator

__all__ = ["AdamMetric", "AdamSharpness", "adam_metric", "adam_sharpness", "metric_of", "sharpness_in"]

# It rarely takes more than twenty.
_MOST_PRODUCTS = 100


@dataclass(frozen=True)
class AdamMetric:
    """Adam's metric P for the parameters of an objective, and the threshold of its stability."""

    diagonal: Tensor
    """(n,) of P, in the objective's order; relative to the first group's rate where the groups' differ."""
    learning_rate: float
    """η, of the first group."""
    momentum: float
    """β₁."""

    @property
    def threshold(self) -> float:
        """2 (1 + β₁) / ((1 - β₁) η)."""
        return 2 * (1 + self.momentum) / ((1 - self.momentum) * self.learning_rate)


@dataclass(frozen=True)
class AdamSharpness:
    """The largest eigenvalue of P^-½ H P^-½, and the threshold of Adam's stability."""

    value: float
    """Up to rounding, never above the truth."""
    residual: float
    """‖A v - value v‖: some eigenvalue is this near."""
    threshold: float
    """Above it, Adam with frozen moments diverges along that direction on a quadratic loss."""
    converged: bool
    """Whether the residual is at most ``tolerance`` times the value."""
    vector: Tensor
    """(n,), unit length, in the coordinates P^½ θ."""
    effort: Effort

    @property
    def ratio(self) -> float:
        """Value over threshold: above 1, Adam is unstable on a quadratic loss."""
        return self.value / self.threshold


def adam_metric(objective: Objective, adam: torch.optim.Optimizer) -> AdamMetric:
    """Return P and the stability threshold of an Adam optimiser, for the parameters of an objective.

    Args:
        objective: of the model that the optimiser trains.
        adam: a ``torch.optim.Adam`` or ``AdamW`` (``amsgrad`` too: the maxima are used) after at least one step. Weight
            decay is not part of the objective, and not of this.

    Raises:
        MisuseError: ``adam`` is no Adam, has made no step, or does not train all parameters of the objective. Its
            groups differ in β₁, or one of them has no positive learning rate.
    """
    trained = [p for group in adam.param_groups for p in group["params"]] if _is_optimizer(adam) else []
    places = {id(parameter): place for place, parameter in enumerate(trained)}
    named = dict(objective.model.named_parameters())
    wanted = [named[name] for name in objective.parameter_names]
    missing = [name for name in objective.parameter_names if id(named[name]) not in places]
    if missing:
        raise MisuseError(
            f"expected an Adam that trains all parameters of the objective, got one without {', '.join(missing[:3])}"
            f"{'' if len(missing) <= 3 else f' and {len(missing) - 3} more'}. Select those it trains by `params`, "
            "or pass the optimiser of this model."
        )
    return metric_of(adam.state_dict(), [places[id(parameter)] for parameter in wanted], wanted, objective)


def metric_of(
    state: Mapping[str, Any], places: Sequence[int], parameters: Sequence[nn.Parameter | Tensor], objective: Objective
) -> AdamMetric:
    """Return the metric from an optimiser's ``state_dict``.

    Args:
        state: of an Adam.
        places: of the objective's parameters among those of the optimiser.
        parameters: the same, whose shapes say what fits.
        objective: whose dtype and device the metric has.

    Raises:
        MisuseError: as `adam_metric` does, or moments of other shapes.
    """
    groups = {place: group for group in state["param_groups"] for place in group["params"]}
    if not all({"betas", "eps", "lr"} <= group.keys() for group in groups.values()):
        raise MisuseError("expected the state of an Adam or AdamW, whose groups have betas, eps and lr.")
    used = [groups[place] for place in places]
    rates = [float(group["lr"]) for group in used]
    if len({float(group["betas"][0]) for group in used}) > 1 or min(rates) <= 0:
        raise MisuseError(
            "expected one beta1 in all groups, and positive learning rates: otherwise there is no single border."
        )
    dtype = accumulation_dtype(objective.device)
    parts: list[Tensor | None] = []
    for place, parameter, group, rate in zip(places, parameters, used, rates, strict=True):
        part = _scaled_root(state["state"].get(place, {}), group)
        if part is not None and part.shape != parameter.shape:
            raise MisuseError(f"expected moments of shape {tuple(parameter.shape)}, got {tuple(part.shape)}.")
        parts.append(None if part is None else part.to(objective.device, dtype) * (rates[0] / rate))
    known = [part.reshape(-1) for part in parts if part is not None]
    if not known:
        raise MisuseError("expected an Adam that has made a step, got one without moments.")
    mean = torch.cat(known).mean()  # A parameter that never had a gradient counts as average.
    filled = _filled(parts, parameters, mean)
    return AdamMetric(flatten(filled), rates[0], float(used[0]["betas"][0]))


def adam_sharpness(
    objective: Objective,
    adam: torch.optim.Optimizer | AdamMetric,
    *,
    tolerance: float = 1e-2,
    max_steps: int = _MOST_PRODUCTS,
    products: Products = "auto",
    seed: int = 0,
) -> AdamSharpness:
    """Return the largest curvature in Adam's metric, with the threshold of its stability.

    Args:
        objective: at the weights that the optimiser has reached.
        adam: see `adam_metric`, or what that returned.
        tolerance: wanted residual, relative to the value.
        max_steps: products at most; more than twenty are rarely needed.
        products: how the Hessian multiplies, see `Objective.hessian`.
        seed: of the random start.

    Raises:
        MisuseError: as `adam_metric` does, or a tolerance out of range.
        FailureError: a product is not finite or wrong, or the run does not fit into memory.
    """
    metric = adam if isinstance(adam, AdamMetric) else adam_metric(objective, adam)
    with Meter(objective) as meter:
        sharpness = sharpness_in(
            objective.hessian(products), metric, tolerance=tolerance, max_steps=max_steps, seed=seed
        )
        return replace(sharpness, effort=meter.effort(sharpness.effort.products, sharpness.effort.plan))


def sharpness_in(
    hessian: SymmetricOperator, metric: AdamMetric, *, tolerance: float, max_steps: int = _MOST_PRODUCTS, seed: int = 0
) -> AdamSharpness:
    """Return what `adam_sharpness` does, with an operator that is there."""
    require_sound(hessian)
    pair = top_eigenpairs(in_metric(hessian, metric), 1, tolerance=tolerance, max_steps=max_steps, seed=seed)
    return AdamSharpness(
        value=float(pair.values[0]),
        residual=float(pair.residuals[0]),
        threshold=metric.threshold,
        converged=pair.converged,
        vector=pair.vectors[:, 0],
        effort=pair.effort,
    )


def in_metric(hessian: SymmetricOperator, metric: AdamMetric) -> SymmetricOperator:
    """Return P^-½ H P^-½."""
    return split_operator(hessian, DiagonalPreconditioner(1 / metric.diagonal))


def _is_optimizer(adam: object) -> bool:
    return isinstance(adam, torch.optim.Optimizer)


def _scaled_root(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
    """Return (1 - β₁^t) (√v̂ + ε), or None where there are no moments."""
    moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    if moment is None or not float(state["step"]):
        return None
    first, second, steps = *map(float, group["betas"]), float(state["step"])
    root = (moment.to(accumulation_dtype(moment.device)) / (1 - second**steps)).sqrt()
    scaled: Tensor = (1 - first**steps) * (root + float(group["eps"]))
    return scaled


def _filled(parts: Sequence[Tensor | None], like: Sequence[Tensor], value: Tensor) -> Iterator[Tensor]:
    for part, tensor in zip(parts, like, strict=True):
        yield value.expand(tensor.shape) if part is None else part
