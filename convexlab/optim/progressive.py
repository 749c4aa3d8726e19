"""L-BFGS on a growing sample of the training set, as a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, dot, flatten, gradient_of, unflatten
from convexlab.optim.evaluation import Evaluation
from convexlab.optim.lbfgs import LBFGS, PairMemory
from convexlab.optim.preconditioners import precondition

__all__ = ["ProgressiveLBFGS", "SampleClosure", "SampleMemory"]

SampleClosure = Callable[[Tensor], Tensor]
"""Takes the rows of examples, (m,) on the host: zeroes the gradients, forward, backward, returns their mean loss."""

_GROUPS = 16  # Whose gradients tell how much single examples differ; each takes n numbers.


@dataclass
class SampleMemory(PairMemory):
    """What `PairMemory` has, learnt from a sample."""

    kept_examples: int = 0
    """|S| of the kept loss and gradient; 0 before the first step."""


class ProgressiveLBFGS(LBFGS):
    """L-BFGS on a sample that grows when it no longer tells the direction: hundreds of cheap steps on large data.

    Source: Bollapragada, Mudigere, Nocedal, Shi and Tang (2018, ICML, arXiv 1802.05374). After a step the inner-product
    quasi-Newton test (their equation 3.4) asks whether the products of single examples' gradients with B²g scatter

        Var_i(g_iᵀB²g) (1/|S| - 1/N) ≤ θ² ‖Bg‖⁴

    little enough that -Bg descends on the whole set too, most likely; otherwise the sample becomes as large as that
    takes. The variance is that of the means of 16 groups, times their size; 1/N is for drawing without replacement.

    Departures from the source: the sample is nested, S ⊂ S₊, the first rows of one random order. So the overlap on
    which the pair (s, y) is taken is all of S, a step searches one function and needs no gradient twice, and growing
    costs a gradient of what is added alone. The search is `LBFGS`'s, not stochastic backtracking. A search
    that fails, since the sample has no more to tell, doubles it.

    An evaluation costs |S| / N. When S is the whole set, everything is as in `LBFGS`.

    Its own argument of ``step`` is a closure of rows: ``optimizer.step(lambda rows: ...)``, see `SampleClosure`. Losses
    in `report` are those of the sample. ``param_groups[0]["sample_size"]`` is |S|, and may be raised between steps.

    Args:
        params: parameters, or one group of them.
        examples: N.
        sample_size: of the first sample.
        theta: θ, positive; the source's 0.9 asks that the direction descend with a probability of about 87 %.
        seed: of the order of the examples.
        **options: those of `LBFGS`, but for ``reuse``; 100 pairs that are not scaled unless asked for otherwise, for a
            sample that grows soon changes the function.

    Raises:
        MisuseError: settings other than these.
    """

    def __init__(
        self,
        params: Any,
        *,
        examples: int,
        sample_size: int = 512,
        theta: float = 0.9,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, value in (("examples", examples), ("sample_size", sample_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MisuseError(f"expected {name} to be a whole number from 1, got {value!r}.")
        if not 0.0 < theta < math.inf:
            raise MisuseError(f"expected theta to be a positive number, got {theta!r}.")
        if "reuse" in options:
            raise MisuseError("ProgressiveLBFGS reuses gradients by itself: leave `reuse` out.")
        self.examples = examples
        self.theta = theta
        self.seed = seed
        super().__init__(params, **{"history": 100, "self_scaled": False} | options)
        self.param_groups[0]["sample_size"] = min(sample_size, examples)

    @property
    def sample_size(self) -> int:
        """|S|."""
        return min(self.examples, int(self.param_groups[0]["sample_size"]))

    @property
    def known(self) -> tuple[float, float] | None:
        """As in `FlatOptimizer`; None too where the last step saw a part of the examples only."""
        whole = self._memory.kept_examples == self.examples
        return super().known if whole else None

    @property
    def _memory(self) -> SampleMemory:
        return self._remembered(SampleMemory)

    @torch.no_grad()
    def step(self, closure: SampleClosure) -> Tensor:  # type: ignore[override]
        """Search along one direction on the present sample and move there; then let the sample grow if it must.

        Returns:
            The sample's loss where the step began, 0-dimensional.

        Raises:
            MisuseError: as in `FlatOptimizer`.
        """
        if not callable(closure):
            raise MisuseError(f"step needs a closure that takes the rows of examples, got {closure!r}.")
        sample = _Sample(closure, self._parameters)
        limit = self._limit()
        try:
            return self._step_on_samples(sample, math.inf if limit is None else limit * self.sample_size)
        finally:
            self.param_groups[0]["max_evaluations"] = limit

    def _step_on_samples(self, sample: _Sample, left: float) -> Tensor:
        """Search on the present sample, and on twice as many where that fails, for at most ``left`` single examples."""
        first: Tensor | None = None
        values = gradients = 0
        seconds = 0.0
        while True:
            size = self.sample_size
            self._take_up(sample, size)
            sample.rows = self._rows(0, size)
            self.param_groups[0]["max_evaluations"] = None if left == math.inf else int(left // size)
            loss = super().step(sample)
            first = loss if first is None else first
            report = self.report
            assert report is not None
            left -= report.gradients * size
            values, gradients = values + report.values, gradients + report.gradients
            seconds += report.evaluation_seconds
            self.report = replace(report, values=values, gradients=gradients, evaluation_seconds=seconds)
            self._memory.kept_examples = size
            wanted = self._wanted_size(sample, size) if report.failed is None else 2 * size
            self.param_groups[0]["sample_size"] = min(self.examples, max(size, wanted))
            # As many again to take up, then all of them once: where that is too much, the next step does it.
            if report.failed is None or size == self.examples or left < 3 * size:
                return first
            left -= size

    def _rows(self, begin: int, end: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(self.examples, generator=generator)[begin:end]

    def _take_up(self, sample: _Sample, size: int) -> None:
        """Add to the kept loss and gradient what has joined the sample since the last step."""
        memory = self._memory
        before, weights, kept = memory.kept_examples, memory.weights, memory.kept
        if before in (0, size) or weights is None or not torch.equal(weights, flatten(self._parameters)):
            return  # Weights that were changed are found out by the step, which starts afresh.
        if before > size or kept is None:
            self.restart()
            return
        self._learn(kept)
        loss, gradient = sample.mean(self._rows(before, size))
        old, new = before / size, 1.0 - before / size
        gradient = kept.gradient * old + gradient * new
        merged = Evaluation(kept.loss * old + float(loss) * new, gradient, dot(gradient, gradient).item())
        self._remember(replace(memory.keeping(merged), kept_examples=size))

    def _wanted_size(self, sample: _Sample, size: int) -> int:
        """Return the size that the test asks for, at least the present one."""
        memory, gradients = self._memory, sample.gradients
        kept, weights = memory.kept, memory.weights
        if size == self.examples or gradients is None or len(gradients) < 2 or kept is None or weights is None:
            return size
        if not torch.equal(sample.weights, weights):
            return size  # The last point tried is not the one taken.
        self._learn(kept)
        direction = self._minus_b(kept.gradient)
        twice = self._minus_b(direction)
        products = torch.stack([dot(gradients[i], twice) for i in range(len(gradients))])
        variance, length = torch.stack([products.var() * size / len(gradients), dot(direction, direction)]).tolist()
        allowed = self.theta**2 * length**2
        if not (math.isfinite(variance) and 0.0 < allowed < math.inf):
            return size
        return max(size, math.ceil(1.0 / (allowed / variance + 1.0 / self.examples))) if variance > 0.0 else size

    def _minus_b(self, vector: Tensor) -> Tensor:
        z = precondition(self.preconditioner, vector)
        pairs = self._memory.pairs
        return self._newton(vector, z, pairs, math.sqrt(dot(vector, vector).item())) if pairs else -z


class _Sample:
    """A sample's loss as a torch closure, evaluated in groups whose gradients are kept."""

    def __init__(self, closure: SampleClosure, parameters: list[Tensor]) -> None:
        self._closure = closure
        self._parameters = parameters
        self.rows = torch.empty(0, dtype=torch.int64)
        """(|S|,)."""
        self.gradients: Tensor | None = None
        """(groups, n), of the last evaluation."""
        self.weights = torch.empty(0)
        """(n,), where that was."""

    def __call__(self) -> Tensor:
        """Evaluate the sample."""
        dtype = accumulation_dtype(self._parameters[0].device)
        mean = gradient = torch.zeros((), dtype=dtype, device=self._parameters[0].device)
        gradients = []
        for rows in self.rows.tensor_split(min(_GROUPS, len(self.rows))):
            loss, one = self.mean(rows)
            share = len(rows) / len(self.rows)
            mean, gradient = mean + loss.to(mean) * share, gradient + one.to(dtype) * share
            gradients.append(one)
        self.gradients = torch.stack(gradients)
        self.weights = flatten(self._parameters)
        for parameter, part in zip(self._parameters, unflatten(gradient, self._parameters), strict=True):
            parameter.grad = part.to(parameter)
        return mean

    def mean(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean loss and gradient (n,) of some examples."""
        with torch.enable_grad():
            loss = self._closure(rows)
        return torch.as_tensor(loss).detach().reshape(()), flatten(
            gradient_of(parameter) for parameter in self._parameters
        )
