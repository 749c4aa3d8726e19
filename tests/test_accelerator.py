"""The way from data to a trained network on an accelerator, beside the same on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.architectures import Perceptron
from convexlab.errors import CaptureWarning
from convexlab.machine.capture import Replayer
from convexlab.problems import build_problem, friedman, physics_informed
from convexlab.problems.physics_informed import burgers
from convexlab.training.adam import adam_epoch
from convexlab.training.captured_step import CapturedStep
from convexlab.training.phases import phase_two, phase_two_names
from tests.counting import Counting
from tests.tiny import write_problem

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> torch.device:
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


def test_all_examples_at_once_or_as_many_as_fit(device: torch.device) -> None:
    x, y = torch.randn(1000, 4), torch.arange(1000) % 3
    for budget, parts in ((None, 1), (100_000, 2)):
        model = Counting().to(device)
        objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), memory_budget=budget)
        objective.value()
        measured = model.rows[1:]  # The first call is a trial of eight rows.
        assert sum(measured) == 1000
        assert len(measured) >= parts
        # Cut to a power of two, so that they do not depend on every byte that is free.
        assert measured[0] == 1000 or measured[0].bit_count() == 1


def test_a_problem_by_name_is_where_it_is_asked_for(tmp_path: Path, device: torch.device) -> None:
    named = write_problem(tmp_path)
    here, there = (
        build_problem(named["model"], named["dataset"], "cross-entropy", device=d) for d in ("cpu", str(device))
    )
    assert there.x.device.type == device.type
    assert there.objective.value() == pytest.approx(here.objective.value(), rel=1e-5)
    torch.testing.assert_close(there.objective.gradient().cpu(), here.objective.gradient(), rtol=1e-4, atol=1e-6)


def test_training_in_two_phases(tmp_path: Path, device: torch.device) -> None:
    options = write_problem(tmp_path) | {"epochs": 12, "switch_epoch": 4, "lr": 1e-2, "probe_every": 4}
    here, there = (cl.train_two_phase(out=tmp_path / name, device=name, **options) for name in ("cpu", device.type))
    assert there.summary["environment"]["device"].startswith(device.type)
    assert there.summary["two_phase"]["gradient_equivalents"] == here.summary["two_phase"]["gradient_equivalents"]
    # Float32's rounding, grown over twelve epochs.
    for name in ("adam-constant", "adam-cosine"):
        assert there.summary["baselines"][name]["train_loss"] == pytest.approx(
            here.summary["baselines"][name]["train_loss"], rel=1e-2
        )
    assert there.summary["two_phase"]["train_loss"] < there.summary["switch"]["train_loss"]


@pytest.mark.parametrize("name", phase_two_names())
def test_second_phases_lower_the_loss(name: str, device: torch.device) -> None:
    problem = friedman(train_size=200, seed=0, batch_size=20, device=device)
    adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
    adam_epoch(problem, adam, torch.Generator(), seed=0, epoch=0)
    before, phase = problem.objective.value(), phase_two(name)
    optimizer = phase.build(problem.model.parameters(), adam, 200)
    closure: Any = problem.loss_of_rows if phase.sampled else problem.objective.closure
    if phase.residuals:
        closure = problem.objective.least_squares().closure
    for _ in range(10):
        optimizer.step(closure)
    assert problem.objective.flat_parameters().device.type == device.type
    assert problem.objective.value() < 0.95 * before


def test_physics_informed_networks(device: torch.device) -> None:
    here, there = (physics_informed(burgers(), train_size=100, seed=0, device=place) for place in ("cpu", str(device)))
    assert there.objective.value() == pytest.approx(here.objective.value(), rel=1e-4)
    torch.testing.assert_close(there.objective.gradient().cpu(), here.objective.gradient(), rtol=1e-3, atol=1e-4)
    assert there.measures() == pytest.approx(here.measures(), rel=1e-3)


def test_the_verdict_of_a_network(device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2)
    model = Perceptron(2, width=8, depth=2)
    verdicts = []
    for place in (torch.device("cpu"), device):
        objective = cl.Objective(model.to(place), [(x, x[:, :1] * x[:, 1:])], nn.MSELoss())
        verdicts.append(cl.convexity_verdict(objective))
    assert verdicts[0].kind == verdicts[1].kind
    assert verdicts[1].largest == pytest.approx(verdicts[0].largest, rel=1e-3)
    assert verdicts[1].witness.device.type == device.type


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """Only CUDA has graphs of kernels, and TensorFloat-32."""
    if device.type != "cuda":
        pytest.skip(f"{device.type} is not CUDA")
    return device


def _transformer(device: torch.device, criterion: Any = None, **options: Any) -> cl.Objective:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 1, 32, 32, generator=generator), torch.randint(0, 10, (70,), generator=generator)
    torch.manual_seed(0)
    model = cl.build_model("vit-nomlp", channels=1).to(device)
    # The second batch has fewer rows: two shapes.
    data = [(x[:40].to(device), y[:40].to(device)), (x[40:].to(device), y[40:].to(device))]
    return cl.Objective(model, data, criterion or nn.CrossEntropyLoss(), **options)


def test_objectives_evaluate_without_tensorfloat_32(cuda: torch.device) -> None:
    exact = _transformer(cuda, dtype=torch.float64).gradient()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        objective = _transformer(cuda)
        gradient = objective.gradient()
        product = objective.hessian() @ gradient
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    # With 10 bits of mantissa errors are near 1e-3; float32's own, summed over a network, stay below 1e-5.
    assert float((gradient - exact).norm() / exact.norm()) < 1e-5
    again = _transformer(cuda).hessian() @ gradient
    assert float((product - again).norm() / again.norm()) < 1e-5


def _evaluated(objective: cl.Objective) -> list[torch.Tensor]:
    v = torch.randn(objective.size, 3, generator=torch.Generator().manual_seed(1)).to(objective.device)
    results, start = [], objective.flat_parameters()
    for step in range(4):
        with objective.at(start + 0.01 * step * v[:, 0]):
            value, gradient = objective.value_and_gradient()
            results += [torch.tensor([objective.value(), value]), gradient.clone()]
            for operator in (objective.hessian(), objective.ggn()):
                results += [operator @ v[:, 0], operator @ v]
    return results


def test_captured_objectives_are_the_plain_ones(cuda: torch.device) -> None:
    objective = _transformer(cuda)
    expected = _evaluated(objective)
    with objective.captured() as replayer:
        captured = _evaluated(objective)
    assert replayer is not None
    assert replayer.reasons == {}
    # Values, gradients, and two kinds of products, of two shapes each.
    assert replayer.recordings == 8
    for ours, theirs in zip(captured, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_blocks_of_directions_are_single_ones(cuda: torch.device) -> None:
    objective = _transformer(cuda, dtype=torch.float64)
    v = torch.randn(objective.size, 4, dtype=torch.float64, device=cuda)
    operator = objective.hessian()
    together = operator @ v
    assert operator._at_once  # type: ignore[attr-defined]
    single = torch.stack([operator @ column for column in v.unbind(dim=1)], dim=1)
    torch.testing.assert_close(together, single, rtol=1e-10, atol=1e-12 * float(single.abs().max()))


def test_a_loss_that_draws_on_the_device_draws_the_same_when_it_is_captured(cuda: torch.device) -> None:
    def noisy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output + 0.1 * torch.randn_like(output), target)

    objective = _transformer(cuda, noisy)
    expected = objective.value()
    with objective.captured() as replayer:
        values = [objective.value() for _ in range(5)]
    assert replayer is not None
    assert values == pytest.approx([expected] * 5, rel=1e-6)


def test_what_waits_for_the_device_is_evaluated_plainly_and_named(cuda: torch.device) -> None:
    def waiting(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target) * (1.0 if float(output.detach().sum()) > 1e9 else 2.0)

    objective = _transformer(cuda, waiting)
    expected = objective.gradient()

    def evaluate_captured() -> Replayer | None:
        with objective.captured() as replayer:
            for _ in range(4):
                torch.testing.assert_close(objective.gradient(), expected, rtol=1e-5, atol=1e-7)
        return replayer

    with pytest.warns(CaptureWarning, match="kernel by kernel"):
        replayer = evaluate_captured()
    assert replayer is not None
    assert replayer.recordings == 0
    assert replayer.refuses("gradient")
    # Nothing is left of the attempt.
    with _transformer(cuda).captured() as other:
        assert other is not None
        assert other.reasons == {}


def test_replayed_steps_of_adam_are_plain_ones(tmp_path: Path, cuda: torch.device) -> None:
    named = write_problem(tmp_path)
    problem = build_problem(named["model"], named["dataset"], "mse", batch_size=50, device=str(cuda))
    ends = []
    for captured in (False, True):
        problem.reset()
        adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2, fused=True)
        step, order = CapturedStep(problem, adam) if captured else None, torch.Generator().manual_seed(0)
        for epoch in range(5):
            adam_epoch(
                problem, adam, order, seed=0, epoch=epoch, learning_rate=lambda done: 1e-2 / (1 + done), step=step
            )
        ends.append(problem.objective.flat_parameters())
    assert step is not None
    assert step.reason is None
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


def test_a_captured_probe_measures_the_same(
    tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = write_problem(tmp_path)
    run = cl.train_two_phase(out=tmp_path / "run", epochs=6, switch_epoch=2, probe_every=3, device="cuda", **named)
    rows = []
    for place, asked in enumerate(("", "1")):
        monkeypatch.setenv("CONVEXLAB_CAPTURE", asked)
        rows.append(cl.probe(run.path, out=tmp_path / str(place), device="cuda").rows)
    for plain, captured in zip(*rows, strict=True):
        assert captured["verdict"] == plain["verdict"]
        for name in ("train_loss", "smallest", "largest", "trace"):
            assert captured[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-4 * plain["largest"])
