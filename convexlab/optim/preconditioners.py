"""Preconditioners P ≈ H⁻¹ of the flat optimisers: of Adam's second moments, of H's diagonal, of its eigenpairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.diagonal import sampled_diagonal
from convexlab.linalg.operators import MatrixVectorProduct, SymmetricOperator
from convexlab.linalg.vectors import flatten

__all__ = [
    "DiagonalPreconditioner",
    "LowRankPreconditioner",
    "Preconditioner",
    "adam_preconditioner",
    "check_preconditioner",
    "hessian_diagonal_preconditioner",
    "low_rank_preconditioner",
    "precondition",
    "split_operator",
]

Preconditioner = Callable[[Tensor], Tensor]
"""Maps a flat gradient (n,), which it leaves as it is, to Pg (n,); linear, symmetric, positive definite."""


@dataclass(frozen=True, eq=False)
class DiagonalPreconditioner:
    """P = diag(p)."""

    diagonal: Tensor
    """p, (n,), positive."""
    parameters: tuple[Tensor, ...] = ()
    """Those that the entries are of, in their order; empty where that is not known."""
    step_length: float | None = None
    """‖s‖ of the last step of the optimiser that P was made from: the length of a first trial. None if there is
    none."""

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return p ∘ g, on the gradient's device.

        Raises:
            MisuseError: a gradient of another size.
        """
        if gradient.shape != self.diagonal.shape:
            raise MisuseError(
                f"the preconditioner is for {self.diagonal.numel()} parameters, got a gradient of shape "
                f"{tuple(gradient.shape)}. Give the optimiser the parameters that it was made from."
            )
        return self.diagonal.to(gradient.device) * gradient

    def of(self, parameters: Sequence[Tensor]) -> DiagonalPreconditioner:
        """Return the preconditioner for these parameters in this order; they are matched by identity.

        Raises:
            MisuseError: one of them is not in `parameters`.
        """
        if not self.parameters or list(map(id, parameters)) == list(map(id, self.parameters)):
            return self
        parts = self.diagonal.split([parameter.numel() for parameter in self.parameters])
        by_identity = {id(parameter): part for parameter, part in zip(self.parameters, parts, strict=True)}
        foreign = [tuple(parameter.shape) for parameter in parameters if id(parameter) not in by_identity]
        if foreign:
            raise MisuseError(
                f"the preconditioner knows {len(self.parameters)} parameters, but not {len(foreign)} of those given, "
                f"of shapes {', '.join(map(str, foreign[:3]))}. Make it from the optimiser that has trained them."
            )
        return replace(
            self, diagonal=torch.cat([by_identity[id(one)] for one in parameters]), parameters=tuple(parameters)
        )


def adam_preconditioner(
    adam: torch.optim.Optimizer, *, ridge: float = 0.03, exponent: float = 0.5
) -> DiagonalPreconditioner:
    """Return P = diag(1 / (v̂^q + r m)) from Adam's second moments v̂, corrected for their bias; m is the mean of v̂^q.

    With q = 1/2, Adam's own direction is this P times its averaged gradient, with r m = 1e-8. Relative to the mean, the
    same r holds whatever the scale of the loss.

    The default r was chosen of 0.001, 0.01, 0.03, 0.1, 0.3 and 1, from one seed and 40 gradients each. With it L-BFGS
    ends within 2 % of the best r on digits, MNIST (ViT) and CIFAR-10 (VGG5). r = 1 ends at 1.22, 1.23 and 1.09 times
    the best loss. No P ends at 1.45 and 1.64 times; on CIFAR-10 that was not measured.

    The default q was chosen of 0, 1/4, 1/2, 3/4 and 1, from one seed, with self-scaled L-BFGS from the middle of the
    budget on. The losses, over that with 1/2, were 1.16, 1.06, 1, 0.94, 1.00 on a regression, and 1.27, 1.13, 1, 0.95,
    0.94 on digits. With squared error they were 1.06, 1.03, 1, 1.00, 1.01 on CIFAR-10, and 1.94, 1.52, 1, 0.86, 0.94 on
    MNIST. With cross-entropy they were 17, 2.9, 1, 0.09, 0.06 on CIFAR-10. So classifiers gain from more than 1/2. But
    on a physics-informed network (convection, 1,500 gradients) the losses were 0.5, 0.5, 1, 558 and 467: more than 1/2
    did not leave a plateau. 1/2 fails on none of these.

    The entries follow the parameters by identity: the next optimiser may take them in another order, or some of them. A
    parameter that never had a gradient, and so has no moments, counts as average. P is a copy: later steps of Adam do
    not change it. With P goes the length of Adam's last step, which becomes that of the next optimiser's first trial.

    Args:
        adam: a ``torch.optim.Adam`` or ``AdamW`` (``amsgrad`` too: the maxima are used) after at least one step.
        ridge: r, positive.
        exponent: q, from 0 (no preconditioner) to 1.

    Raises:
        MisuseError: ``adam`` is no Adam, has made no step, or has seen only zero gradients. The ridge is not positive,
            or the exponent is outside [0, 1].
    """
    _check_ridge(ridge)
    if not 0.0 <= exponent <= 1.0:
        raise MisuseError(f"expected exponent to be from 0 to 1, got {exponent!r}.")
    roots = list(_roots(adam, exponent))
    seen = [root for root, _ in roots if root is not None]
    mean = torch.cat([root.reshape(-1) for root in seen]).mean() if seen else torch.zeros(())
    if not mean > 0.0:
        raise MisuseError(
            f"expected a torch.optim.Adam or AdamW that has made a step, got {type(adam).__name__} without second "
            "moments. Train with it before it is handed over, or load its state_dict."
        )
    filled = [torch.full_like(parameter, float(mean)) if root is None else root for root, parameter in roots]
    parameters = tuple(parameter for group in adam.param_groups for parameter in group["params"])
    return DiagonalPreconditioner(1.0 / (flatten(filled) + ridge * mean), parameters, _step_length(adam))


def hessian_diagonal_preconditioner(
    operator: MatrixVectorProduct, *, samples: int = 10, seed: int = 0, ridge: float = 0.03
) -> DiagonalPreconditioner:
    """Return P = diag(1 / (|h| + r m)) from the diagonal h of a matrix, estimated from products; m is the mean of |h|.

    h is the mean of ω ∘ Hω over random signs ω (Bekas, Kokiopoulou and Saad 2007, doi 10.1016/j.apnum.2007.01.003). It
    is unbiased, with variance Σ_{j≠i} H_ij² / ``samples`` in entry i. Absolute values and a ridge make P positive
    definite where h is not, as in AdaHessian (Yao et al. 2021, arXiv 2006.00719). AdaHessian averages over parameters
    and time instead of samples.

    It is for a first phase that leaves no second moments. It was measured with self-scaled L-BFGS, its products
    charged, on a regression, a vision transformer and a physics-informed network
    (``benchmarks/second_phase_choices.py``). The loss ends at 0.91, 1.32 and 0.06 times that without a preconditioner,
    and at 1.8, 1.8 and 1.2 times that with Adam's moments.

    Args:
        operator: the Hessian, such as ``objective.hessian()``, or the Gauss-Newton matrix.
        samples: products.
        seed: of the signs.
        ridge: r, positive.

    Raises:
        MisuseError: no sample, a ridge that is not positive, or a diagonal that is zero or not finite.
    """
    _check_ridge(ridge)
    if not isinstance(samples, int) or samples < 1:
        raise MisuseError(f"expected samples to be a whole number from 1, got {samples!r}.")
    size = sampled_diagonal(operator, samples, seed)[0].abs()
    mean = size.mean()
    if not 0.0 < mean.item() < float("inf"):
        raise MisuseError(f"expected a matrix with a diagonal, but the mean of its size is {mean.item():.3g}.")
    return DiagonalPreconditioner((1.0 / (size + ridge * mean)).to(operator.dtype))


@dataclass(frozen=True)
class LowRankPreconditioner:
    """P = B^½ (V diag(w) Vᵀ + c (I - VVᵀ)) B^½."""

    vectors: Tensor
    """V, (n, k), orthonormal."""
    weights: Tensor
    """w, (k,), positive."""
    rest: float
    """c, positive."""
    root: Tensor | None
    """Diagonal of B^½, (n,); None for B = I."""

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return Pg, in the gradient's dtype.

        Raises:
            MisuseError: a gradient of another size.
        """
        if gradient.shape != self.vectors.shape[:1]:
            raise MisuseError(
                f"the preconditioner is for {self.vectors.shape[0]} parameters, got a gradient of shape "
                f"{tuple(gradient.shape)}. Give the optimiser the parameters that it was made from, in their order."
            )
        x = gradient.to(self.vectors)
        x = x if self.root is None else self.root * x
        x = self.rest * x + self.vectors @ ((self.weights - self.rest) * (self.vectors.T @ x))
        return (x if self.root is None else self.root * x).to(gradient)


def low_rank_preconditioner(
    values: Tensor, vectors: Tensor, *, ridge: float = 1e-3, base: DiagonalPreconditioner | None = None
) -> LowRankPreconditioner:
    """Return P = B^½ (V diag(1 / (|θ| + μ)) Vᵀ + (I - VVᵀ) / (min |θ| + μ)) B^½ from eigenpairs of B^½ H B^½.

    Along V it is the inverse, with the absolute values of negative eigenvalues (Dauphin et al. 2014, arXiv 1406.2572).
    Elsewhere its curvature is that of the smallest pair. That is the form of Nyström preconditioners (Frangella, Tropp
    and Udell 2023, SIAM J. Matrix Anal. Appl. 44), up to a factor that makes no difference to the optimisers here. Pass
    pairs from the outer ends of a Krylov run, and only those that have converged. Their smallest |θ| is taken to bound
    all other eigenvalues.

    With a base the pairs have to be those of `split_operator`, not of H. The product of two independent preconditioners
    is worse than either.

    It is for systems with a few outliers that are solved often. In a second phase it is not worth its products, on the
    problems of `hessian_diagonal_preconditioner`. With the 5 outermost pairs and Adam's moments, self-scaled L-BFGS
    ends at 1.6, 3.2 and 1.8 times the loss with Adam's moments alone. With the pairs alone it ends at 1.4, 2.8 and 9.5
    times the loss without a preconditioner.

    Args:
        values: θ, (k,).
        vectors: V, (n, k), orthonormal.
        ridge: μ relative to the largest |θ|, positive.
        base: B; None is the identity.

    Raises:
        MisuseError: shapes that do not fit, vectors that are not orthonormal, no positive |θ|, or a bad ridge.
    """
    _check_ridge(ridge)
    if values.ndim != 1 or vectors.ndim != 2 or vectors.shape[1] != len(values) or not len(values):
        raise MisuseError(
            f"expected values of shape (k,) and vectors of shape (n, k), got {tuple(values.shape)} and "
            f"{tuple(vectors.shape)}."
        )
    overlap = vectors.T @ vectors - torch.eye(len(values), dtype=vectors.dtype, device=vectors.device)
    if not overlap.abs().max().item() <= torch.finfo(vectors.dtype).eps ** 0.5:
        raise MisuseError("expected orthonormal vectors, in columns. Take those of one Krylov run.")
    size = values.abs().to(vectors)
    smallest, largest = size.min().item(), size.max().item()
    if not 0.0 < largest < float("inf"):
        raise MisuseError(f"expected finite eigenvalues that are not all zero, got a largest size of {largest}.")
    shift = ridge * largest
    root = None if base is None else base.diagonal.to(vectors).sqrt()
    return LowRankPreconditioner(vectors, 1.0 / (size + shift), 1.0 / (smallest + shift), root)


def split_operator(operator: MatrixVectorProduct, base: DiagonalPreconditioner) -> SymmetricOperator:
    """Return B^½ A B^½, whose eigenpairs say what the base leaves of A's curvature."""
    return _SplitOperator(operator, base)


class _SplitOperator(SymmetricOperator):
    def __init__(self, operator: MatrixVectorProduct, base: DiagonalPreconditioner) -> None:
        super().__init__(operator.shape[0], dtype=operator.dtype, device=operator.device)
        self._operator = operator
        self._root = base.diagonal.to(operator.device, operator.dtype).sqrt()

    @property
    def cost(self) -> object:
        """What the operator within has spent, if it counts that."""
        return getattr(self._operator, "cost", None)

    def _multiply(self, v: Tensor) -> Tensor:
        columns = [self._root * self._operator.matvec(self._root * column) for column in v.unbind(dim=1)]
        return torch.stack(columns, dim=1)


def check_preconditioner(preconditioner: object) -> None:
    """Refuse what cannot be called.

    Raises:
        MisuseError: neither None nor callable.
    """
    if preconditioner is not None and not callable(preconditioner):
        raise MisuseError(
            "preconditioner must be None or a function of a flat gradient, "
            f"got {type(preconditioner).__name__}. For a diagonal p pass DiagonalPreconditioner(p)."
        )


def precondition(preconditioner: Preconditioner | None, gradient: Tensor) -> Tensor:
    """Return Pg, or g itself without a preconditioner.

    Raises:
        MisuseError: the preconditioner does not return a flat vector of the gradient's size.
    """
    if preconditioner is None:
        return gradient
    z = preconditioner(gradient)
    if not isinstance(z, Tensor) or z.shape != gradient.shape:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise MisuseError(f"the preconditioner must return a flat vector of shape {tuple(gradient.shape)}, got {got}.")
    return z.to(gradient)


def _check_ridge(ridge: float) -> None:
    if not 0.0 < ridge < float("inf"):
        raise MisuseError(f"expected ridge to be a positive number, got {ridge!r}.")


@torch.no_grad()
def _roots(adam: torch.optim.Optimizer, exponent: float) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Yield v̂^q and the parameter, in order; None where there are no moments."""
    for group in adam.param_groups if isinstance(adam, torch.optim.Optimizer) else []:
        for parameter in group["params"]:
            state: dict[str, Any] = adam.state.get(parameter, {})
            moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
            if moment is None:
                yield None, parameter.detach()
            else:
                bias = 1.0 - float(group["betas"][1]) ** float(state["step"])
                yield (moment / bias) ** exponent, parameter.detach()


@torch.no_grad()
def _step_length(adam: torch.optim.Optimizer) -> float | None:
    """Return ‖α m̂ / (√v̂ + ε)‖, the length of Adam's last step without weight decay; None where it did not move."""
    squares = [torch.zeros((), dtype=torch.float64)]
    for group in adam.param_groups:
        for parameter in group["params"]:
            state: dict[str, Any] = adam.state.get(parameter, {})
            if "exp_avg" not in state:
                continue
            step, (beta_1, beta_2) = float(state["step"]), map(float, group["betas"])
            moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
            root = (moment / (1.0 - beta_2**step)).sqrt_().add_(float(group["eps"]))
            scale = float(group["lr"]) / (1.0 - beta_1**step)
            squares.append((scale * torch.linalg.vector_norm(state["exp_avg"] / root)).cpu().double().square())
    length = math.sqrt(float(torch.stack(squares).sum()))
    return length if 0.0 < length < math.inf else None
