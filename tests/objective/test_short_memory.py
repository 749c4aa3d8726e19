"""Memory that is short: half the examples at a time, said once and charged; then an error that names what to set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import ShortageError, ShortageWarning
from convexlab.probing.point import ProbeOptions, probe_objective


class Greedy(nn.Module):
    """Memory holds so many of its examples at a time, in either precision."""

    def __init__(self, most: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.most = most
        self.attempts: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.attempts.append(len(x))
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes.")
        return self.layers(x)


def objective(most: int = 10**9, micro_batch: int | None = 64) -> cl.Objective:
    x = torch.linspace(-1, 1, 300).reshape(100, 3)
    return cl.Objective(Greedy(most), [(x, x[:, :1] ** 2)], nn.MSELoss(), micro_batch=micro_batch, dtype=torch.float64)


@pytest.fixture
def ample() -> cl.Objective:
    return objective()


@pytest.fixture
def short() -> Iterator[cl.Objective]:
    subject = objective(20)
    with pytest.warns(ShortageWarning, match="evaluated on 16 examples at a time") as warned:
        yield subject
    assert len(warned) == 1  # However often it is evaluated.


def test_a_value_and_a_gradient(short: cl.Objective, ample: cl.Objective) -> None:
    value, gradient = short.value_and_gradient()
    # 64 and 32 examples at a time did not fit, 16 do; each attempt costs a gradient.
    assert short.cost.gradients == 3
    assert value == pytest.approx(ample.value(), rel=1e-12)
    torch.testing.assert_close(gradient, ample.gradient())
    short.value()
    assert short.cost.values == 1


def test_products_give_up_their_kept_graphs_first(short: cl.Objective, ample: cl.Objective) -> None:
    v = torch.linspace(-1, 1, ample.size, dtype=torch.float64)
    operator = short.hessian("exact")
    torch.testing.assert_close(operator @ v, ample.hessian() @ v)
    torch.testing.assert_close(short.ggn() @ v, ample.ggn() @ v)


def test_what_was_kept_before_is_not_mixed_with_smaller_parts(ample: cl.Objective) -> None:
    """Two parts of 64 and 36, of which one is kept, would be followed by the seventh of 16."""
    v = torch.linspace(-1, 1, ample.size, dtype=torch.float64)
    subject = objective()
    operator = subject.hessian("exact")
    operator.keep_at_most(operator.graph_bytes() - 1)
    expected = operator @ v
    subject.model.most = 20
    with pytest.warns(ShortageWarning):
        subject.value()
    torch.testing.assert_close(operator @ v, expected)


def test_a_float64_check_that_does_not_fit_is_made_in_the_losss_own_precision(ample: cl.Objective) -> None:
    verdict = cl.convexity_verdict(objective())
    with pytest.warns(ShortageWarning):
        assert cl.convexity_verdict(objective(20)).kind == verdict.kind


@pytest.mark.parametrize(
    ("most", "micro_batch", "message"),
    [
        (1, 64, "too short for 2 examples at a time. Free memory, take a smaller model or fewer of its parameters"),
        (
            20,
            None,
            "for a batch of 100 examples, which this loss does not cut. Make smaller batches, or, .* micro_batch=",
        ),
    ],
)
def test_it_ends_with_what_to_set(most: int, micro_batch: int | None, message: str) -> None:
    subject = objective(most, micro_batch)
    with pytest.raises(ShortageError, match=message):
        subject.value_and_gradient()
    assert subject.model.attempts[-1] == (100 if micro_batch is None else 2)


def test_a_loss_that_is_no_mean_over_rows_is_not_cut_for_want_of_memory() -> None:
    def deviation(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        output: Tensor = model(batch[0])
        return output.var()

    x = torch.linspace(-1, 1, 300).reshape(100, 3)
    subject = cl.Objective.from_batch_loss(Greedy(20), [(x, x)], deviation, micro_batch=100)
    with pytest.raises(cl.MisuseError, match="it is no mean over rows"):
        subject.value()


def test_other_errors_are_left_alone() -> None:
    subject = cl.Objective(nn.Linear(7, 1), [(torch.ones(4, 3), torch.ones(4, 1))], nn.MSELoss())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        subject.value_and_gradient()


def test_a_product_that_does_not_fit_is_a_row_of_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = objective(micro_batch=None)
    measured = subject.value_and_gradient()
    subject.model.most = 20
    monkeypatch.setattr(subject, "value_and_gradient", lambda: measured)
    point, verdict = probe_objective(subject, ProbeOptions())
    assert verdict is None
    assert point.failure is not None
    assert "pass micro_batch=" in point.failure
