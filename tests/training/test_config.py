"""The settings of a run: defaults that are allowed, and everything that is not."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

from convexlab import MisuseError, TwoPhaseConfig
from convexlab.problems import friedman
from convexlab.training import phase_two_names
from convexlab.training.config import FROM_PYTHON
from convexlab.training.phases import phase_two


def test_defaults_are_valid_and_survive_storage() -> None:
    config = TwoPhaseConfig()
    assert TwoPhaseConfig.of(json.loads(json.dumps(config.as_dict()))) == config
    assert (config.model, config.dataset, config.loss) == ("vit-mlp", "digits", "mse")
    assert (config.train_size, config.epochs) == (250, 100)


@pytest.mark.parametrize(
    ("options", "size", "epochs"),
    [
        ({"model": "vit-nomlp"}, 250, 100),
        ({"epochs": 7, "train_size": 20}, 20, 7),
        ({"dataset": "digits"}, None, 30),
        ({"dataset": "digits", "epochs": 7}, None, 7),
        ({"objective": "pinn-helmholtz"}, None, 2000),
        ({"objective": "pinn-helmholtz", "epochs": 7}, None, 7),
        ({"objective": "mine.py:make"}, None, 30),
        ({"objective": friedman}, None, 30),
    ],
)
def test_size_and_budget_go_with_what_is_trained(options: dict[str, Any], size: int | None, epochs: int) -> None:
    config = TwoPhaseConfig(**options)
    assert (config.train_size, config.epochs) == (size, epochs)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1},
        {"epochs": 2, "switch_epoch": 1},
        {"batch_size": 1, "train_size": 1, "seeds": 1, "seed": 0},
        {"probe_every": 0},
        {"checkpoint_every": 1},
        {"lr": 1},
        {"dtype": "float64"},
        {"detector": "algorithm-1", "phase_two": "cg"},
        {"epochs": 12, "oracle_every": 10},
    ],
)
def test_allowed(options: dict[str, Any]) -> None:
    assert TwoPhaseConfig.of(options).as_dict() == TwoPhaseConfig().as_dict() | options


@pytest.mark.parametrize("more", [{}, {"train_size": 20, "batch_size": 4, "seeds": 2}, {"dtype": "float64"}])
def test_an_objective_comes_with_its_model_data_and_loss(more: dict[str, Any]) -> None:
    config = TwoPhaseConfig(objective="friedman", **more)
    assert (config.model, config.dataset, config.loss) == (None, None, None)
    assert config.dtype == more.get("dtype")
    assert TwoPhaseConfig.of(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize("subject", [friedman, friedman(train_size=20), friedman(train_size=20).objective])
def test_what_has_no_name_is_stored_as_such(subject: Any) -> None:
    stored = TwoPhaseConfig(objective=subject).as_dict()
    assert stored["objective"] == FROM_PYTHON
    json.dumps(stored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "expected epochs to be a whole number from 1, got 0."),
        ({"epochs": 2.5}, "expected epochs to be a whole number from 1, got 2.5."),
        ({"epochs": True}, "expected epochs to be a whole number from 1, got True."),
        ({"seeds": 0}, "expected seeds to be a whole number from 1, got 0."),
        ({"seed": -1}, "expected seed to be a whole number from 0, got -1."),
        ({"batch_size": 0}, "expected batch_size to be a whole number from 1, got 0."),
        ({"train_size": "all"}, "expected train_size to be a whole number from 1, got 'all'."),
        ({"switch_epoch": 0}, "expected switch_epoch to be a whole number from 1, got 0."),
        ({"probe_every": -1}, "expected probe_every to be a whole number from 0, got -1."),
        ({"checkpoint_every": 0}, "expected checkpoint_every to be a whole number from 1, got 0."),
        ({"lr": 0.0}, "expected lr to be a positive number, got 0.0."),
        ({"lr": -1e-3}, "expected lr to be a positive number, got -0.001."),
        ({"lr": math.nan}, "expected lr to be a positive number, got nan."),
        ({"lr": math.inf}, "expected lr to be a positive number, got inf."),
        ({"lr": "fast"}, "expected lr to be a positive number, got 'fast'."),
        ({"lr": None}, "expected lr to be a positive number, got None."),
        ({"epochs": 4, "switch_epoch": 4}, "switch_epoch 4 leaves nothing of the budget of 4 epochs for phase two."),
        ({"detector": "algorithm"}, "unknown detector 'algorithm'. Did you mean 'algorithm-1'?"),
        ({"phase_two": "cg-gold"}, "unknown phase two 'cg-gold'. Did you mean 'cg-golden'?"),
        ({"dtype": "float16"}, "unknown dtype 'float16'. Did you mean 'float"),
        (
            {"objective": "friedman", "model": "vit-mlp"},
            "an objective comes with its model, data and loss: expected no model beside it, got 'vit-mlp'. Leave one",
        ),
        ({"objective": "friedman", "loss": "mse"}, "expected no loss beside it, got 'mse'."),
        (
            {"objective": friedman(train_size=20), "batch_size": 4},
            "is built already has its examples and batches: expected no batch_size, got 4. Pass a factory",
        ),
        ({"objective": friedman(train_size=20).objective, "train_size": 4}, "expected no train_size, got 4."),
        ({"objective": friedman(train_size=20), "seeds": 2}, "has one start: expected seeds=1, got 2. Pass a factory"),
        ({"epoch": 3}, "unknown option 'epoch'. Did you mean 'epochs'?"),
    ],
)
def test_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=re.escape(message)):
        TwoPhaseConfig.of(options)


def test_second_phases_by_name() -> None:
    assert {"cg-golden", "cg"} <= set(phase_two_names())
    for name, description in phase_two_names().items():
        assert phase_two(name).description == description
        assert phase_two(name).search_cost in (1 / 3, 1.0)  # a value, or a gradient
    with pytest.raises(MisuseError, match="unknown phase two 'sgd'"):
        phase_two("sgd")


@pytest.mark.parametrize(("name", "most"), [("epochs", 10_000_000), ("seeds", 10_000)])
def test_work_that_would_never_end_has_to_be_forced(name: str, most: int) -> None:
    assert getattr(TwoPhaseConfig.of({name: most}), name) == most
    with pytest.raises(MisuseError, match=rf"{name} to be at most {most:,}, got {most + 1:,}: .* Pass --force"):
        TwoPhaseConfig.of({name: most + 1})
    forced = TwoPhaseConfig.of({name: 10**15, "force": True})
    assert TwoPhaseConfig.of(forced.as_dict()) == forced
    with pytest.raises(MisuseError, match=r"at most 9,223,372,036,854,775,807, got [\d,]+: that would never end\.$"):
        TwoPhaseConfig.of({name: 2**63, "force": True})
    with pytest.raises(MisuseError, match="expected force to be True or False, got 1"):
        TwoPhaseConfig.of({"force": 1})
