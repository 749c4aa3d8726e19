"""An objective, its products and what is made of them, shared out to ranks: the numbers of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature.lanczos import random_run
from convexlab.machine.ranks import ALONE, Ranks, of_torchrun
from tests.ranks import FORKED, in_ranks, torchrun_environment

# Sums in another order: some hundred roundings at most, amplified by what Lanczos and the steps do with them.
TOLERANCE = 1e-12

ROWS = (9, 17, 1, 4)
"""Of the batches: shared out to 2 and 4 ranks unequally, or to one rank whole."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def batches(*, labels: bool) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(rows, 3, generator=generator, dtype=torch.float64) for rows in ROWS]
    if labels:
        return [(x, torch.randint(0, 4, (len(x),), generator=generator)) for x in inputs]
    return [(x, torch.randn(len(x), 4, generator=generator, dtype=torch.float64)) for x in inputs]


def squares(ranks: Ranks, device: str) -> cl.Objective:
    return cl.Objective(network().to(device), batches(labels=False), nn.MSELoss(), group=ranks.group)


def classes(ranks: Ranks, device: str) -> cl.Objective:
    """Where examples do not count alike, and some not at all."""
    data = batches(labels=True)
    data[0][1][:4] = -100
    data[3][1][:] = -100
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    criterion = nn.CrossEntropyLoss(weight=weights)
    return cl.Objective(network().to(device), data, criterion, micro_batch=3, group=ranks.group)


def whole_batches(ranks: Ranks, device: str) -> cl.Objective:
    """A loss that is no mean over rows."""

    def loss(model: Any, batch: Any) -> Tensor:
        return model(batch[0]).square().mean() ** 2 + model(batch[0]).std()

    data = [batch for batch in batches(labels=False) if len(batch[0]) > 1]
    return cl.Objective.from_batch_loss(network().to(device), data, loss, group=ranks.group)


OBJECTIVES: dict[str, Callable[[Ranks, str], cl.Objective]] = {
    "squares": squares,
    "classes": classes,
    "whole batches": whole_batches,
}


def measured(objective: cl.Objective) -> dict[str, Any]:
    """Loss, gradient, products, and what is drawn from the examples."""
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(objective.size, 2, generator=generator, dtype=torch.float64).to(objective.device)
    value, gradient = objective.value_and_gradient()
    sampled = cl.sampled_curvature(objective, v)
    numbers = {
        "value": objective.value(),
        "loss": value,
        "gradient": gradient,
        "product": objective.hvp(v[:, 0]),
        "products": objective.hessian("exact") @ v,
        "differences": objective.hessian("differences") @ v[:, 0],
        "sampled": [*sampled.value.tolist(), *sampled.standard_error.tolist(), sampled.weights.sum()],
        "sample": objective.sample(14).value(),
        "block": objective.restricted_to("2").hvp(v[:24, 0]),
    }
    if objective._criterion is not None:
        numbers |= {"Gauss-Newton": objective.ggn() @ v, "Fisher": objective.fisher() @ v}
        numbers |= {"residual": objective.residual() @ v}
    return tensors(numbers) | {"cost": objective.cost.gradient_equivalents}


def spectrum(objective: cl.Objective) -> dict[str, Any]:
    """What Krylov runs say, whose basis is split over the ranks."""
    operator = objective.hessian("exact")
    ends, verdict = cl.extreme_eigenvalues(operator), cl.convexity_verdict(objective, max_steps=12)
    density = cl.spectral_density(operator, probes=2, steps=8)
    few = 16 * 8 * objective.size  # Bytes, for fewer vectors than the run takes.
    numbers = {
        "ends": [ends.smallest, ends.largest, ends.smallest_lower_bound],
        "vector": ends.largest_vector,
        "top": cl.top_eigenpairs(operator, 2).values,
        "verdict": [verdict.curvature, verdict.lower_bound],
        "nodes": density.nodes,
        "trace": cl.trace(operator, samples=12).value,
    }
    cost = objective.cost.gradient_equivalents
    # With more ranks there is room for more vectors: a run of fewer products.
    numbers["compressed"] = cl.top_eigenpairs(operator, 1, tolerance=1e-8, memory_budget=few).values
    return tensors(numbers) | {"cost": cost}


def tensors(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.as_tensor(number, dtype=torch.float64).cpu() for name, number in numbers.items()}


def stepped(objective: cl.Objective, optimizer: Any, *, processes: str) -> dict[str, Any]:
    """Where some steps lead, with a state that is stored and restored on the way."""
    model = objective.model

    def build() -> Any:
        made = optimizer(model.parameters())
        made.processes = processes
        return made

    steps, losses = build(), []
    for step in range(8):
        losses.append(steps.step(objective.closure))
        if step == 4:
            state = [steps.state_dict() if objective.ranks.is_writer else steps.state_dict() and None]
            if objective.ranks.shared:
                torch.distributed.broadcast_object_list(state)
            steps = build()
            steps.load_state_dict(state[0])
    return {"losses": torch.stack(losses).cpu(), "weights": objective.flat_parameters().cpu()}


OPTIMIZERS: dict[str, Any] = {
    "L-BFGS": lambda parameters: cl.LBFGS(parameters, history=4),
    "Broyden": lambda parameters: cl.SelfScaledBroyden(parameters),
}


def everything(ranks: Ranks, device: str = "cpu") -> dict[str, Any]:
    results = {name: measured(make(ranks, device)) for name, make in OBJECTIVES.items()}
    results["spectrum"] = spectrum(squares(ranks, device))
    processes = "together" if ranks.shared else "alone"
    return results | {
        name: stepped(squares(ranks, device), optimizer, processes=processes) for name, optimizer in OPTIMIZERS.items()
    }


def some(ranks: Ranks) -> dict[str, Any]:
    """Of each kind what takes the least time; ranks beyond the cores wait for each other."""
    optimizer = OPTIMIZERS["L-BFGS"]
    return {
        "classes": measured(classes(ranks, "cpu")),
        "spectrum": spectrum(squares(ranks, "cpu")),
        "L-BFGS": stepped(squares(ranks, "cpu"), optimizer, processes="together" if ranks.shared else "alone"),
    }


def same(results: dict[str, Any], expected: dict[str, Any]) -> None:
    for group in results:
        assert results[group].keys() == expected[group].keys()
        for name, number in expected[group].items():
            found = results[group][name]
            if isinstance(number, float):
                assert found == pytest.approx(number, rel=TOLERANCE), (group, name)
                continue
            error = float((found - number).abs().max() / number.abs().max())
            # Differences divide roundings by a step of 1e-8 at least, of the parameters' length.
            assert error <= (1e-7 if name == "differences" else TOLERANCE), (group, name, error)


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(
        torch.equal(number, second[group][name]) if isinstance(number, Tensor) else number == second[group][name]
        for group, numbers in first.items()
        for name, number in numbers.items()
    )


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return everything(ALONE)


@FORKED
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_have_the_numbers_of_one_process(size: int, expected: dict[str, Any], tmp_path: Path) -> None:
    results = in_ranks(size, everything if size == 2 else some, tmp_path / "first")
    same(results[0], expected)
    assert all(equal(results[0], other) for other in results[1:])
    if size == 2:
        again = in_ranks(size, some, tmp_path / "second")[0]
        assert equal(again, results[0])


@FORKED
def test_each_rank_has_its_part(tmp_path: Path) -> None:
    """Of the examples, of the Krylov basis, of the pairs and of the dense matrix."""

    def work(ranks: Ranks) -> list[Any]:
        rows = 0

        def loss(model: Any, batch: Any) -> Tensor:
            nonlocal rows
            rows += len(batch[0])
            return nn.functional.mse_loss(model(batch[0]), batch[1])

        data, size = batches(labels=False), squares(ALONE, "cpu").size
        objective = cl.Objective.from_batch_loss(network(), data, loss, micro_batch=32, group=ranks.group)
        objective.value()  # Which finds out first that the loss may be cut.
        rows = 0
        objective.value()
        evaluated = rows
        run = random_run(objective.hessian(), torch.Generator().manual_seed(0), 3)
        memories = []
        for optimizer in OPTIMIZERS.values():
            steps = optimizer(objective.model.parameters())
            steps.processes = "together"
            for _ in range(3):
                steps.step(objective.closure)
            memories.append(steps._memory)
        pairs, dense = memories
        assert dense.matrix.shape[1] == size
        return [evaluated, run._basis._blocks[0].shape[1], pairs.s.shape[1], pairs.y.shape[1], len(dense.matrix)]

    # Of 44 parameters, and of 9, 17, 1 and 4 rows.
    assert in_ranks(2, work, tmp_path) == [[4 + 9 + 1 + 2, 22, 22, 22, 22], [5 + 8 + 0 + 2, 22, 22, 22, 22]]


@FORKED
def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        from torch.distributed.tensor import distribute_module, init_device_mesh

        model = distribute_module(network(), init_device_mesh("cpu", (1,)))
        with pytest.raises(cl.MisuseError, match=r"parameter '0.weight' is a DTensor.*Gather it first"):
            cl.Objective(model, batches(labels=False), nn.MSELoss(), group=ranks.group)
        with pytest.raises(cl.MisuseError, match=r"LBFGS takes parameters that are whole, got a DTensor"):
            cl.LBFGS(model.parameters())

    in_ranks(1, work, tmp_path)


@pytest.mark.gpu
def test_a_rank_of_nccl_has_the_numbers_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in torchrun_environment(1).items():
        monkeypatch.setenv(name, value)
    with of_torchrun("cuda", patience=60) as ranks:
        assert torch.distributed.get_backend(ranks.group) == "nccl"
        results = everything(ranks, "cuda")
    same(results, everything(ALONE, "cuda"))
