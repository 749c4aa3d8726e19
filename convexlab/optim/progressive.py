"""L-BFGS on a growing sample of the training set, as a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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

# The examples held out, as a share of the first sample, and the fewest that are worth a look.
_HELD_OUT_SHARE, _LEAST_HELD_OUT = 4, 16
# The sample grows where, over this many steps, the held-out loss has fallen by less than this share of the sample's.
_WINDOW, _FOLLOWS = 10, 0.5


@dataclass
class SampleMemory(PairMemory):
    """What `PairMemory` has, learnt from a sample."""

    kept_examples: int = 0
    """|S| of the kept loss and gradient; 0 before the first step."""
    window: list[float] = field(default_factory=list)
    """Losses of the sample and of the examples held out, one after the other, at the ends of the latest steps on it."""
    first_weights: Tensor | None = None
    """x where the first step began, (n,); None where nothing is held out."""
    first_losses: list[float] = field(default_factory=list)
    """There: losses of the sample and of the examples held out."""
    first_examples: int = 0
    """|S| of the former."""


class ProgressiveLBFGS(LBFGS):
    """L-BFGS on a sample that grows when it no longer determines the direction: hundreds of cheap steps on large data.

    Source: Bollapragada, Mudigere, Nocedal, Shi and Tang (2018, ICML, arXiv 1802.05374). After a step the inner-product
    quasi-Newton test (their equation 3.4) asks whether the products of single examples' gradients with B²g scatter

        Var_i(g_iᵀB²g) (1/|S| - 1/N) ≤ θ² ‖Bg‖⁴

    little enough that -Bg descends on the whole set too, most likely; otherwise the sample becomes as large as that
    takes. The variance is that of the means of 16 groups, times their size; 1/N is for drawing without replacement.

    Departures from the source: the sample is nested, S ⊂ S₊, the first rows of one random order. So the overlap on
    which the pair (s, y) is taken is all of S. A step searches one function and needs no gradient twice, and growing
    costs a gradient of what is added alone. The search is `LBFGS`'s, not stochastic backtracking. If a search fails,
    the sample is exhausted and doubles.

    The optimiser can overfit a sample. So some examples V, the last ones of the order, are held out until the sample
    reaches them. They are evaluated after every step, at |V| / N of an evaluation. Where their loss falls by less than
    half as much as the sample's over ten steps, the sample doubles. S and V together estimate the loss of the whole
    set, as (|S| f_S + (N - |S|) f_V) / N. The loss at the start of the first step is estimated from the same examples,
    so examples that join the sample are evaluated there too. A step that would raise the estimate above that of the
    start is taken back, and the sample doubles. `report` has both losses.

    An evaluation costs |S| / N. When S is the whole set, everything is as in `LBFGS`.

    Its own argument of ``step`` is a closure of rows: ``optimizer.step(lambda rows: ...)``, see `SampleClosure`. Losses
    in `report` are those of the sample. ``param_groups[0]["sample_size"]`` is |S|, and may be raised between steps.

    Args:
        params: parameters, or one group of them.
        examples: N.
        sample_size: of the first sample.
        held_out: |V|; None is a quarter of the first sample. Of fewer than 16, or where so few are left, nothing is
            watched.
        theta: θ, positive; the source's 0.9 asks that the direction descend with a probability of about 87 %.
        seed: of the order of the examples.
        **options: those of `LBFGS` except ``reuse``. The default is 100 pairs that are not scaled, because a growing
            sample soon changes the function.

    Raises:
        MisuseError: settings other than these.
    """

    def __init__(
        self,
        params: Any,
        *,
        examples: int,
        sample_size: int = 512,
        held_out: int | None = None,
        theta: float = 0.9,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, value in (("examples", examples), ("sample_size", sample_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MisuseError(f"expected {name} to be a whole number from 1, got {value!r}.")
        if held_out is not None and (not isinstance(held_out, int) or not 0 <= held_out < examples):
            raise MisuseError(f"expected held_out to be None or a whole number below {examples}, got {held_out!r}.")
        if not 0.0 < theta < math.inf:
            raise MisuseError(f"expected theta to be a positive number, got {theta!r}.")
        if "reuse" in options:
            raise MisuseError("ProgressiveLBFGS reuses gradients by itself: leave `reuse` out.")
        self.examples = examples
        self.theta = theta
        self.seed = seed
        super().__init__(params, **{"history": 100, "self_scaled": False} | options)
        self.held_out = sample_size // _HELD_OUT_SHARE if held_out is None else held_out
        self.param_groups[0].update(sample_size=min(sample_size, examples))

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
            held_out = self._rows(max(size, self.examples - self.held_out), self.examples)
            watched = len(held_out) >= _LEAST_HELD_OUT
            begun = self._begun(sample, held_out, size) if watched or size == self.examples else self._memory
            left = max(size, left - len(held_out) * watched)
            weights = flatten(self._parameters)
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
            if begun.first_losses and math.isnan(begun.first_losses[0]):
                begun.first_losses[0] = float(loss)
            self._keep(begun, size)
            if watched:
                self._look(sample, held_out, weights, size)
            elif size == self.examples:
                self._compare()
            report = self.report
            wanted = self._wanted_size(sample, size) if report.failed is None else 2 * size
            wanted = 2 * size if self._parted() else wanted
            self.param_groups[0]["sample_size"] = min(self.examples, max(size, wanted))
            # As many again to take up, then all of them once: where that is too much, the next step does it.
            if report.failed is None or size == self.examples or left < 3 * size + 2 * len(held_out):
                return first
            left -= size

    def _begun(self, sample: _Sample, held_out: Tensor, size: int) -> SampleMemory:
        """Return the memory with what is known of where the first step began, on the present examples."""
        memory, weights = self._memory, flatten(self._parameters)
        if memory.first_weights is None:
            if not len(held_out):
                return memory
            losses = [math.nan, float(sample.mean(held_out)[0])]  # The step evaluates the former.
            return replace(memory, first_weights=weights, first_losses=losses, first_examples=size)
        if memory.first_examples == size:
            return memory
        self._write(memory.first_weights)
        share = memory.first_examples / size
        joined = float(sample.mean(self._rows(memory.first_examples, size))[0])
        there = memory.first_losses[1]
        if 0 < len(held_out) < self.held_out:
            there = float(sample.mean(held_out)[0])
        self._write(weights)
        sampled = memory.first_losses[0] * share + joined * (1.0 - share)
        return replace(memory, first_losses=[sampled, there], first_examples=size)

    def _keep(self, begun: SampleMemory, size: int) -> None:
        """Carry over what a step that drops the memory must not forget."""
        memory = self._memory
        memory.kept_examples = size
        memory.first_weights, memory.first_losses = begun.first_weights, begun.first_losses
        memory.first_examples = begun.first_examples

    def _look(self, sample: _Sample, held_out: Tensor, before: Tensor, size: int) -> None:
        """Evaluate the examples held out where a step has ended; take it back where the whole loss rose too far."""
        report, memory, share = self.report, self._memory, size / self.examples
        assert report is not None
        loss = float(sample.mean(held_out)[0])
        sampled = report.loss if memory.kept is None else memory.kept.loss
        self.report = replace(report, held_out_loss=loss)
        whole, first = (
            share * ours + (1.0 - share) * others for ours, others in ([sampled, loss], memory.first_losses)
        )
        if report.failed is None and not whole <= first:
            self._write(before)
            self.restart()
            self._keep(memory, 0)
            failed = (
                f"on {len(held_out)} examples held out the loss went to {loss:.6g}, while that of the sample fell to "
                f"{sampled:.6g}: the whole loss would have risen"
            )
            self.report = replace(self.report, failed=failed, state="stuck", step_size=0.0)
            return
        memory.window = [*memory.window, sampled, loss][-2 * _WINDOW - 2 :]

    def _compare(self) -> None:
        """Go back to where the first step began if the loss of all examples, known at last, is lower there."""
        memory = self._memory
        higher = memory.kept is not None and memory.first_losses and not memory.kept.loss <= memory.first_losses[0]
        if memory.first_weights is not None and higher:
            self._write(memory.first_weights)
            self.restart()
        self._memory.first_weights, self._memory.first_losses = None, []

    def _parted(self) -> bool:
        """Whether the examples held out no longer follow the sample; the next window then begins."""
        window = self._memory.window
        if len(window) < 2 * _WINDOW + 2:
            return False
        parted = window[1] - window[-1] < _FOLLOWS * (window[0] - window[-2])
        if parted:
            self._memory.window = []
        return parted

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
        self._remember(replace(memory.keeping(merged), kept_examples=size, window=[]))

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
