"""A watch in a training loop: what it measures, against dense references, what it may spend, what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convexlab as cl
from convexlab.architectures import Perceptron, VisionTransformer
from convexlab.detection import Signals
from convexlab.objective.batches import rows_of
from convexlab.problems.physics_informed import convection
from tests.dense import as_vector, derivatives, loss_of
from tests.slowly import mostly_slow


@dataclass
class Loop:
    """A plain training loop: what it is, and an epoch of it."""

    model: nn.Module
    objective: cl.Objective
    losses: Callable[[], Iterator[Tensor]]
    """The graphs of an epoch's losses, one a step."""
    cost: float = 1.0
    """Of an epoch."""
    rate: float = 3e-3

    def train(self, watch: cl.Watch | None, adam: torch.optim.Optimizer, epochs: int) -> None:
        for _ in range(epochs):
            losses = []
            for loss in self.losses():
                adam.zero_grad()
                loss.backward()
                adam.step()
                losses.append(loss.detach())
            if watch is not None:
                watch.update(loss=float(torch.stack(losses).mean()), cost=self.cost)

    def adam(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.model.parameters(), lr=self.rate)


def _images(model: nn.Module, rows: int, batch: int) -> Loop:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:rows] / 16, dtype=torch.float32).reshape(rows, 1, 8, 8)
    y, criterion = torch.tensor(labels[:rows]), nn.CrossEntropyLoss()

    def losses() -> Iterator[Tensor]:
        return (criterion(model(x[part]), y[part]) for part in torch.randperm(rows).split(batch))

    return Loop(model, cl.Objective(model, list(zip(x.split(100), y.split(100), strict=True)), criterion), losses)


def perceptron() -> Loop:
    torch.manual_seed(0)
    return _images(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)), 400, 100)


def transformer() -> Loop:
    torch.manual_seed(0)
    model = VisionTransformer(channels=1, classes=10, image_size=8, patch_size=4, width=8, depth=1, heads=2)
    return _images(model, 400, 200)


def physics() -> Loop:
    """Return one on the whole batch: ten steps are an epoch that costs ten gradients."""
    torch.manual_seed(0)
    model, equation = Perceptron(width=6, depth=2), convection()
    points = equation.points(40, 10, 10)
    objective = cl.Objective.from_batch_loss(model, [points], equation.loss)
    return Loop(model, objective, lambda: (equation.loss(model, points) for _ in range(10)), cost=10.0)


def tiny(dtype: torch.dtype = torch.float64) -> Loop:
    """Return one with 13 parameters, fewer than the steps of a Krylov run."""
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1)).to(dtype), nn.MSELoss()
    x, y = torch.randn(30, 4, dtype=dtype), torch.randn(30, 1, dtype=dtype)
    return Loop(
        model, cl.Objective(model, [(x, y)], criterion, micro_batch=None), lambda: iter([criterion(model(x), y)])
    )


def _known(watch: cl.Watch, name: str) -> list[int]:
    """Return the epochs, from 1, at which something is known."""
    return [epoch for epoch, signals in enumerate(watch.history, start=1) if math.isfinite(getattr(signals, name))]


def test_single_steps_on_the_whole_batch_are_put_together() -> None:
    loop = tiny()
    adam, alone = loop.adam(), cl.GradientNormPeak()
    watch = cl.Watch(loop.objective, adam, detector=cl.GradientNormPeak(), share=0.0)
    for step in range(1, 61):
        loop.train(None, adam, 1)
        watch.update(loss=float(step))
        assert len(watch.history) == step // 20
        if step % 20 == 0:
            signals = watch.history[-1]
            assert signals.loss == pytest.approx(step - 9.5)
            assert alone.update(loss=signals.loss, gradient_norm=signals.gradient_norm) == watch.fired
    assert watch.trained == 60.0


# The share of the cost.


@pytest.mark.parametrize("build", mostly_slow([perceptron, physics, transformer], quick=2))
@pytest.mark.parametrize(("share", "steps", "epochs"), mostly_slow([(0.19, 16, 47), (0.053, 8, 105)], quick=1))
def test_it_keeps_within_its_share_and_measures_as_often_as_that_pays_for(
    build: Callable[[], Loop], share: float, steps: int, epochs: int
) -> None:
    loop, examples = build(), 30
    adam = loop.adam()
    loop.objective.require_one_function()
    before = loop.objective.cost
    watch = cl.Watch(loop.objective, adam, share=share, examples=examples, steps=steps, every=1)
    for epoch in range(1, epochs + 1):
        loop.train(watch, adam, 1)
        # Of rounding in sums of `epochs` terms.
        assert watch.spent <= share * epoch * loop.cost * (1 + epochs * 2**-52)
        assert watch.spent == pytest.approx((loop.objective.cost - before).gradient_equivalents, rel=1e-12)
    assert watch.trained == epochs * loop.cost
    # The points of the physics loss differ in number and stay whole.
    part = 1.0 if build is physics else examples / 400
    income = share * loop.cost / 2
    # The check of the products costs 6 over the first batch.
    sizes = [rows_of(batch) for batch in loop.objective.sample(examples).data]
    ends = 2 * (steps + 2) + 6 * (1.0 if build is physics else sizes[0] / sum(sizes))
    for names, price in ((("gradient_curvature",), 3 * part), (("smallest", "largest"), ends * part)):
        for name in names:
            known = _known(watch, name)
            # None of these is so near a whole number that rounding could count one less. A Krylov run that is within
            # its tolerance early costs less, so that the next comes sooner.
            assert len(known) >= math.floor(epochs * income / price) >= 1
            assert known[0] == math.ceil(price / income)
    assert watch.seconds == pytest.approx((loop.objective.cost - before).seconds)


def test_what_other_evaluations_cost_is_not_its_own() -> None:
    loop = tiny()
    watch = cl.Watch(loop.objective, loop.adam(), share=0.5, examples=10)
    loop.objective.gradient()
    assert watch.spent == 0.0
    assert watch.seconds == 0.0


def test_a_share_of_nothing_measures_nothing_and_costs_nothing() -> None:
    loop = tiny()
    adam = loop.adam()
    watch = cl.Watch(loop.objective, adam, share=0.0, every=1)
    loop.train(watch, adam, 50)
    assert watch.spent == watch.seconds == 0.0
    assert loop.objective.cost == cl.Cost()
    assert {(signals.gradient_curvature, signals.smallest, signals.largest) for signals in watch.history} == {
        (None, None, None)
    }
    assert all(signals.gradient_norm > 0 and signals.projected_rate is not None for signals in watch.history)


def test_epochs_that_cost_nothing_pay_for_nothing() -> None:
    loop = tiny()
    adam = loop.adam()
    watch = cl.Watch(loop.objective, adam, share=0.9, every=1)
    for _ in range(20):
        loop.cost = 0.0
        loop.train(watch, adam, 1)
    assert watch.trained == watch.spent == 0.0
    assert not _known(watch, "gradient_curvature")


# What it measures.


def test_what_it_measures_is_what_a_dense_hessian_has() -> None:
    loop = tiny()
    adam, names = loop.adam(), [name for name, _ in loop.model.named_parameters()]
    watch = cl.Watch(loop.objective, adam, share=0.9, examples=12, steps=16, every=1)
    ((x, y), _), *none = loop.objective.sample(12).parts()
    assert not none
    assert len(x) == 12
    function, checked = loss_of(loop.model, nn.MSELoss(), x, y, names), 0
    whole = loss_of(loop.model, nn.MSELoss(), *next(loop.objective.parts())[0], names)
    for _ in range(80):
        _, before, _ = derivatives(whole, as_vector(loop.model, names))
        loop.train(watch, adam, 1)
        signals = watch.history[-1]
        assert signals.gradient_norm == pytest.approx(float(before.norm()), rel=1e-12)  # Of the step, on all examples.
        _, gradient, hessian = derivatives(function, as_vector(loop.model, names))
        if math.isfinite(signals.gradient_curvature):
            expected = float(gradient @ hessian @ gradient / (gradient @ gradient))
            assert signals.gradient_curvature == pytest.approx(expected, rel=1e-10)
        if math.isfinite(signals.smallest):
            (smallest, largest), checked = torch.linalg.eigvalsh(hessian)[[0, -1]].tolist(), checked + 1
            # Ritz values lie within; with 16 steps for 13 parameters the run ends by its tolerance, 1 % of the range.
            # Sums of 12 terms and 13 steps are off by some 100 ε of the largest.
            rounding, margin = 1e-12 * largest, 0.01 * (largest - smallest)
            assert -rounding <= signals.smallest - smallest <= margin
            assert -rounding <= largest - signals.largest <= margin
    assert checked >= 2


def test_halves_of_a_batch_take_the_noise_out() -> None:
    loop = perceptron()
    x, y = next(iter(loop.objective._data))
    adam = torch.optim.SGD(loop.model.parameters(), lr=0.0)
    watch = cl.Watch(loop.objective, adam, every=1)
    products = []
    for part in (x[:40], x[40:80]), (x[20:60], x[60:100]):
        adam.zero_grad()
        gradients = []
        for rows, labels in zip(part, (y[:40], y[40:80]), strict=True):
            loss = nn.functional.cross_entropy(loop.model(rows), labels)
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(loop.model.parameters()))]))
            (nn.functional.cross_entropy(loop.model(rows), labels) / 2).backward()
            if len(gradients) == 1:
                watch.accumulated()
        products.append(float(gradients[0].double() @ gradients[1].double()))
        adam.step()
    watch.update(loss=1.0)
    (signals,) = watch.history
    # Gradients in float32, of a mean of 40 terms; the difference of squares that are up to ten times it.
    assert signals.gradient_norm**2 == pytest.approx(max(0.0, sum(products) / 2), rel=1e-4)
    assert signals.gradient_noise > 0


# Who decides.


class CurvatureAlong(cl.Detector):
    """Fires on the first epoch of which all the curvature is known."""

    needs = frozenset({"gradient_curvature", "smallest", "largest"})

    def __init__(self) -> None:
        super().__init__()
        self.signals: list[Signals] = []

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        self.signals.append(signals)
        known = (getattr(signals, name) for name in sorted(self.needs))
        return all(map(math.isfinite, known)), "the curvature is known"


def test_a_detector_gets_what_it_needs_and_fires() -> None:
    loop = tiny()
    adam, detector = loop.adam(), CurvatureAlong()
    watch = cl.Watch(loop.objective, adam, detector=detector, share=0.9, examples=3, every=1)
    assert not watch.fired
    assert watch.reason == "no epoch was seen"
    answers = []
    for _ in range(30):
        loop.train(None, adam, 1)
        answers.append(watch.update(loss=1.0))
    first = _known(watch, "smallest")[0]
    assert answers == [epoch >= first for epoch in range(1, 31)]
    assert watch.fired
    assert watch.reason == "the curvature is known"
    assert detector.signals == watch.history[:first]


def test_the_papers_algorithm_through_a_watch() -> None:
    loop = perceptron()
    adam = loop.adam()
    watch, alone = cl.Watch(loop.objective, adam, detector=cl.Algorithm1(), share=0.0, every=1), cl.Algorithm1()
    for _ in range(200):
        loop.train(watch, adam, 1)
        signals = watch.history[-1]
        assert alone.update(loss=signals.loss, gradient_norm=signals.gradient_norm) == watch.fired
        if watch.fired:
            break
    assert watch.fired
    assert watch.reason == alone.reason
    assert "fell to" in watch.reason


def test_without_a_detector_it_only_measures() -> None:
    loop = tiny()
    adam = loop.adam()
    watch = cl.Watch(loop.objective, adam, every=1)
    loop.train(watch, adam, 2)
    assert not watch.fired
    assert watch.reason == "there is no detector"
    assert len(watch.history) == 2


# What it leaves alone.


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_training_is_bit_for_bit_the_same(share: float) -> None:
    def train(watched: bool) -> tuple[dict[str, Tensor], Tensor, list[Any]]:
        torch.manual_seed(3)
        layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1)
        model = nn.Sequential(*layers)
        loader = DataLoader(TensorDataset(torch.randn(40, 4), torch.randn(40, 1)), batch_size=10, shuffle=True)
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        objective = cl.Objective(model, loader, nn.MSELoss())
        watch = cl.Watch(objective, adam, share=share, examples=8) if watched else None
        modes = []
        for _ in range(50):
            for x, y in loader:
                adam.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                adam.step()
            if watch is not None:
                gradients = [parameter.grad.clone() for parameter in model.parameters()]
                watch.update(loss=1.0)
                assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
                modes.append(model.training)
        if share and watch is not None:
            assert len(_known(watch, "smallest")) > 2
        return dict(model.state_dict()), torch.get_rng_state(), modes

    (plain, state, _), (watched, watched_state, modes) = train(False), train(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert torch.equal(state, watched_state)
    assert all(modes)


def test_closed_it_looks_on_no_longer() -> None:
    loop = tiny()
    adam = loop.adam()
    watch = cl.Watch(loop.objective, adam, every=1)
    watch.close()
    loop.train(watch, adam, 1)
    assert math.isnan(watch.history[-1].gradient_norm)


# What is not finite.


def test_epochs_whose_loss_is_not_finite_decide_nothing() -> None:
    loop = tiny()
    adam, detector = loop.adam(), cl.Algorithm1()
    watch = cl.Watch(loop.objective, adam, detector=detector, every=1)
    loop.train(None, adam, 1)
    for loss in (math.nan, math.inf):
        assert not watch.update(loss=loss)
    assert detector.epoch == 2
    assert detector.reason == "no epoch was seen"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_have_no_curvature(value: float) -> None:
    loop = tiny()
    adam = loop.adam()
    watch = cl.Watch(loop.objective, adam, share=0.9, examples=3, every=1)
    loop.train(watch, adam, 12)
    before, measured = watch.spent, len(_known(watch, "smallest"))
    assert measured
    with torch.no_grad():
        loop.model[2].weight.fill_(value)
    loop.train(watch, adam, 12)
    assert len(_known(watch, "smallest")) == measured
    assert max(_known(watch, "gradient_curvature")) <= 12
    assert before < watch.spent <= 0.9 * 24  # It was tried, and is paid.


def test_at_a_gradient_of_zero_there_is_no_direction() -> None:
    loop = tiny()
    with torch.no_grad():
        for parameter in loop.model.parameters():
            parameter.zero_()
    objective = cl.Objective(loop.model, [(torch.ones(8, 4).double(), torch.zeros(8, 1).double())], nn.MSELoss())
    watch = cl.Watch(objective, loop.adam(), share=0.9)
    for _ in range(10):
        watch.update(loss=0.0)
    assert not _known(watch, "gradient_curvature")
    assert objective.cost.gradients > 0


# Misuse.


def _arguments(**changes: Any) -> Callable[[Loop], object]:
    return lambda loop: cl.Watch(loop.objective, loop.adam(), **changes)


MISUSES: dict[str, tuple[Callable[[Loop], object], str]] = {
    **{
        f"share {bad}": (_arguments(share=bad), "share from 0 to below 1") for bad in (-0.1, 1.0, 5, math.nan, math.inf)
    },
    **{f"steps {bad}": (_arguments(steps=bad), "steps from 2 to 19") for bad in (1, 0, 20)},
    "examples": (_arguments(examples=0), "at least 1 example"),
    "curvature for nothing": (
        _arguments(share=0, detector=CurvatureAlong()),
        "CurvatureAlong needs gradient_curvature and largest and smallest, which share=0 does not",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name: str) -> None:
    build, message = MISUSES[name]
    with pytest.raises(cl.MisuseError, match=message):
        build(tiny())


@pytest.mark.parametrize("cost", [-1.0, math.nan, math.inf])
def test_an_epoch_that_costs_no_number(cost: float) -> None:
    loop = tiny()
    watch = cl.Watch(loop.objective, loop.adam())
    with pytest.raises(cl.MisuseError, match="cost of an epoch"):
        watch.update(loss=1.0, cost=cost)
    assert not watch.history


# In Adam's metric


def test_the_curvature_in_adams_metric_is_measured_within_its_share() -> None:
    loop = perceptron()
    adam = loop.adam()
    watch = cl.Watch(loop.objective, adam, share=0.9, examples=20, adam_metric=True, every=1)
    loop.train(watch, adam, 60)
    places = [place for place, sharpness in enumerate(watch.adam_history) if sharpness is not None]
    assert len(watch.adam_history) == 60
    assert 3 < len(places) < 60
    while watch.adam_history[-1] is None:  # Until the model is where it was measured last.
        loop.train(watch, adam, 1)
    last = watch.adam_history[-1]
    again = cl.adam_sharpness(loop.objective.sample(20), adam, max_steps=16)
    assert last.value == pytest.approx(again.value, rel=1e-3)
    assert last.threshold == pytest.approx(2 * 1.9 / (0.1 * loop.rate))
    assert watch.spent <= 0.9 * watch.trained
    assert set(vars(watch.history[-1])) == {field.name for field in fields(Signals)}


def test_the_metric_is_adams_and_costs_something() -> None:
    loop = perceptron()
    with pytest.raises(cl.MisuseError, match="positive share for adam_metric, got share=0"):
        cl.Watch(loop.objective, loop.adam(), share=0, adam_metric=True)
    sgd = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    with pytest.raises(cl.MisuseError, match="the state of an Adam or AdamW"):
        loop.train(cl.Watch(loop.objective, sgd, share=0.9, examples=5, adam_metric=True), sgd, 50)
