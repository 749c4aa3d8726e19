"""A model, data and a loss put together by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from convexlab.errors import MisuseError
from convexlab.problems import build_problem
from tests.tiny import CLASSES, PARAMETERS, TRAIN_SIZE, VALIDATION_SIZE, write_problem


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_problem(tmp_path_factory.mktemp("tiny"))


def _named(names: dict[str, Any], model: str) -> dict[str, Any]:
    return {**names, "model": f"{names['model'].rpartition(':')[0]}:{model}"}


def test_sizes_and_overdetermination(names: dict[str, Any]) -> None:
    problem = build_problem(**names, loss="mse", device="cpu")
    assert problem.objective.size == PARAMETERS
    assert problem.x.shape == (TRAIN_SIZE, 1, 32, 32)
    assert problem.y.shape == (TRAIN_SIZE,)
    assert problem.overdetermination == TRAIN_SIZE * CLASSES / PARAMETERS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
def test_measures_are_those_of_all_examples(names: dict[str, Any], loss: str, dtype: str) -> None:
    problem = build_problem(**names, loss=loss, dtype=dtype, device="cpu")
    measures = problem.measures()
    train_loss, train_accuracy = problem.evaluate(problem.objective.data)

    def by_hand(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        output = problem.model(x.to(problem.x.dtype)).detach().double().numpy()
        labels = y.numpy()
        if loss == "mse":
            losses = ((output - np.eye(CLASSES)[labels]) ** 2).mean(axis=1)
        else:
            losses = np.log(np.exp(output).sum(axis=1)) - output[np.arange(len(labels)), labels]
        return losses.mean(), (output.argmax(axis=1) == labels).mean()

    data = problem.dataset
    train, validation = by_hand(data.x_train, data.y_train), by_hand(data.x_test, data.y_test)
    assert len(data.y_test) == VALIDATION_SIZE
    # Losses of the order of 1, averaged in the model's precision.
    tolerance = 20 * torch.finfo(problem.x.dtype).eps
    assert train_loss == pytest.approx(train[0], rel=tolerance)
    assert measures["validation_loss"] == pytest.approx(validation[0], rel=tolerance)
    assert measures["train_accuracy"] == train_accuracy == pytest.approx(train[1], abs=1e-15)
    assert measures["validation_accuracy"] == pytest.approx(validation[1], abs=1e-15)
    assert train_loss == pytest.approx(problem.objective.value(), rel=tolerance)


def test_building_and_judging_leave_a_moody_model_as_it_was(names: dict[str, Any]) -> None:
    random_state = torch.get_rng_state()
    problem = build_problem(**_named(names, "moody"), loss="cross-entropy", device="cpu")
    assert torch.equal(torch.get_rng_state(), random_state)
    norm = next(module for module in problem.model.modules() if isinstance(module, torch.nn.BatchNorm1d))
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(16))
    assert all(module.training for module in problem.model.modules())
    first, second = problem.measures(), problem.measures()
    assert first == second
    assert problem.evaluate(problem.objective.data)[0] == pytest.approx(problem.objective.value(), rel=1e-6)
    assert all(module.training for module in problem.model.modules())
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), random_state)
    # The frozen layer is no part of the problem.
    assert problem.objective.size == 16 + 16 + 17 * CLASSES


def test_the_same_seed_gives_the_same_weights_and_subset(names: dict[str, Any]) -> None:
    def build(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.rand(3)
        problem = build_problem(**names, loss="mse", train_size=30, seed=seed, device="cpu")
        return problem.objective.flat_parameters(), problem.x

    (weights, subset), (again, same), (others, other) = build(1), build(1), build(2)
    assert torch.equal(weights, again)
    assert torch.equal(subset, same)
    assert not torch.equal(weights, others)
    assert not torch.equal(subset, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit-mpl"}, "unknown model 'vit-mpl'.*'vit-mlp'"),
        ({"loss": "msee"}, "unknown loss 'msee'.*'mse'"),
        ({"dataset": "digit"}, "unknown (data set|dataset) 'digit'.*'digits'"),
        ({"dtype": "float16"}, "unknown dtype"),
        ({"device": "meta"}, "device 'meta'"),
        ({"train_size": 10**6}, str(TRAIN_SIZE)),
    ],
)
def test_what_cannot_be_built(names: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        build_problem(**{**names, "loss": "mse", "device": "cpu", **changes})


def test_a_model_that_does_not_fit_is_refused_with_its_name(names: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match=r"models\.py:mismatched' does not fit the data.*\(1, 32, 32\)"):
        build_problem(**_named(names, "mismatched"), loss="mse", device="cpu")


@pytest.mark.parametrize("size", [None, 1, 2, 7, 60])
def test_samples_are_the_same_examples_in_batches_of_about_equal_size(names: dict[str, Any], size: int | None) -> None:
    problem = build_problem(**names, loss="mse", train_size=size, dtype="float64", device="cpu")
    examples, sample = size or TRAIN_SIZE, problem.sample()
    sizes = [weight for _, weight in sample.parts()]
    assert sum(sizes) == examples
    assert len(sizes) == min(16, max(1, examples // 2))
    assert max(sizes) - min(sizes) <= 1
    # One sum in another order: 120 terms in float64.
    assert sample.value() == pytest.approx(problem.objective.value(), rel=1e-13)
    # In random order: the classes, which come by turns in the data, do not.
    labels = torch.cat([batch[1] for batch, _ in sample.parts()])
    assert torch.equal(labels.sort().values, problem.y.sort().values)
    assert examples < 30 or not torch.equal(labels, problem.y)


@pytest.mark.parametrize(("size", "fresh", "population"), [(None, VALIDATION_SIZE, TRAIN_SIZE), (20, 20, TRAIN_SIZE)])
def test_fresh_examples_are_not_those_of_the_objective(
    names: dict[str, Any], size: int | None, fresh: int, population: int
) -> None:
    problem = build_problem(**names, loss="mse", train_size=size, device="cpu")
    assert problem.population == population
    images = torch.cat([batch[0] for batch, _ in problem.fresh().parts()])
    assert len(images) == fresh
    assert not any(torch.equal(image, own) for image in images for own in problem.x)
    expected = problem.dataset.x_test if size is None else problem.dataset.fresh[0]
    assert torch.equal(images.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)


def test_fresh_examples_are_at_most_as_many_as_the_objective_has(names: dict[str, Any]) -> None:
    problem = build_problem(**names, loss="mse", train_size=110, device="cpu")
    assert sum(weight for _, weight in problem.fresh().parts()) == TRAIN_SIZE - 110
    whole = build_problem(**names, loss="mse", device="cpu")
    less = replace(whole.dataset, x_train=whole.dataset.x_train[:8], y_train=whole.dataset.y_train[:8])
    assert sum(weight for _, weight in replace(whole, dataset=less).fresh().parts()) == 8
