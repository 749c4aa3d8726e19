"""From DeepXDE's Adam to the second phase, within a number of evaluations."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

from convexlab.errors import MisuseError
from convexlab.integrations.deepxde import hand_over

os.environ.setdefault("DDE_BACKEND", "pytorch")
with warnings.catch_warnings(action="ignore"):
    dde = pytest.importorskip("deepxde")


def compiled(optimizer: str = "adam") -> Any:
    dde.config.set_random_seed(0)
    domain = dde.geometry.Interval(-1, 1)
    boundary = dde.icbc.DirichletBC(domain, lambda x: np.zeros_like(x), lambda x, on_boundary: on_boundary)
    data = dde.data.PDE(domain, lambda x, u: dde.grad.hessian(u, x) + 1, boundary, num_domain=8, num_boundary=2)
    model = dde.Model(data, dde.nn.FNN([1, 4, 1], "tanh", "Glorot normal"))
    model.compile(optimizer, lr=1e-2, verbose=0)
    return model


def test_it_goes_on_from_adam_within_its_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled()
    model.train(iterations=20, display_every=20, verbose=0)
    before = sum(model.train_state.loss_train)
    evaluated, losses = [], model.data.losses_train

    def counted(*args: Any, **options: Any) -> Any:
        evaluated.append(args)
        return losses(*args, **options)

    monkeypatch.setattr(model.data, "losses_train", counted)
    history, state = hand_over(model, 40, verbose=0)
    shown = 3  # DeepXDE evaluates for its display too: before, and as it is asked where it ended
    assert 30 < len(evaluated) <= 40 + shown
    assert sum(state.loss_train) < 0.5 * before
    assert sum(history.loss_train[-1]) == pytest.approx(sum(state.loss_train))
    assert type(model.opt).__name__ == "SelfScaledBroyden"


def test_what_cannot_be_handed_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled("sgd")
    model.train(iterations=1, display_every=1, verbose=0)
    with pytest.raises(MisuseError, match="Adam"):
        hand_over(model, 10)
    with pytest.raises(MisuseError, match="at least 2"):
        hand_over(compiled(), 1)
    monkeypatch.setattr(dde.config, "mixed", True)
    with pytest.raises(MisuseError, match="full precision"):
        hand_over(compiled(), 10)
