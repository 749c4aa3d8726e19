"""From a finished run to the folder of a trained network, on runs of a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import convexlab as cl
from convexlab.checkpoints import read_checkpoint
from convexlab.errors import MisuseError
from convexlab.publishing import Card, publish, read_card, write_index
from convexlab.publishing.card import FIELDS
from convexlab.publishing.folder import chosen_epochs
from convexlab.runs import Run, write_json
from tests.tiny import PARAMETERS, write_problem

CARD = Card(
    title="A <network> of: nothing",
    model="small: one layer",
    dataset="noise",
    loss="mse",
    data_license="none: made up.",
    what="What it is.",
    purpose="What for.",
    limits="All that it cannot.",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tiny")
    options: dict[str, Any] = write_problem(folder)
    return cl.train_two_phase(
        out=folder / "run",
        epochs=20,
        switch_epoch=9,
        phase_two="lbfgs-adam-scaled",
        checkpoint_every=1,
        no_baseline=True,
        probe_every=0,
        lr=1e-2,
        **options,
    )


def test_checkpoint_every_keeps_them_without_probing(trained: Run) -> None:
    assert [int(path.stem[-5:]) for path in trained.checkpoints] == [row["epoch"] for row in trained.metrics]
    assert not trained.probe


def test_the_folder_of_a_run(trained: Run, tmp_path: Path) -> None:
    run = publish(trained, tmp_path / "net", CARD, stored_as=torch.float16, probe_size=40)
    card = read_card(tmp_path / "net" / "README.md")
    assert list(card) == [*FIELDS]
    assert (card["name"], card["parameters"], card["stored_as"]) == ("net", PARAMETERS, "float16")
    assert (card["training_examples"], card["examples_probed"]) == (120, 40)
    assert card["model"] == CARD.model, "a colon is no end of a key"
    last = card["epochs"]["adam"] + card["epochs"]["lbfgs-adam-scaled"]
    assert last == card["checkpoints"][-1]["epoch"] == int(trained.checkpoints[-1].stem[-5:])
    for row, path in zip(card["checkpoints"], run.checkpoints, strict=True):
        stored, original = load_file(path), load_file(trained.checkpoint_path(row["epoch"]))
        assert all(tensor.dtype == torch.float16 for tensor in stored.values())
        assert all(torch.equal(stored[name], original[name].half()) for name in stored)
        assert read_checkpoint(path).metadata["probe_size"] == "40"
        # Half precision rounds weights by at most 2⁻¹¹ of them; the loss is smooth in them, and of the order of 0.1.
        assert row["loss"] == pytest.approx(row["loss_in_training"], rel=2e-2)
    # What the probe says of a sample is of the stored weights, and the card's loss is that of all 120.
    (whole,) = cl.probe(run.checkpoints[-1], probe_size=120, max_steps=2, density_probes=1, out=tmp_path / "p").rows
    assert whole["train_loss"] == pytest.approx(card["checkpoints"][-1]["loss"], rel=1e-4)
    assert whole["gradient_norm"] == pytest.approx(card["checkpoints"][-1]["gradient_norm"], rel=1e-4)
    listed = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"| [net](net/README.md) | {PARAMETERS} | noise | mse |" in listed


def test_publishing_again_replaces_what_was_there(trained: Run, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    first = publish(trained, folder, CARD).checkpoints
    first[0].rename(first[0].with_name("epoch-99999.safetensors"))
    assert publish(trained, folder, CARD).checkpoints == first
    assert "They are the very weights of training." in (folder / "README.md").read_text(encoding="utf-8")


def test_chosen_epochs_span_both_phases(trained: Run) -> None:
    chosen = chosen_epochs(trained, 9)
    stored = [int(path.stem[-5:]) for path in trained.checkpoints]
    assert chosen == sorted(set(chosen))
    assert {0, 1, 9, stored[-1]} <= set(chosen) <= set(stored)
    assert 4 <= sum(epoch > 9 for epoch in chosen) <= 5


def test_an_unfinished_run_is_refused(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="is not finished: train it to its end first"):
        publish(Run(tmp_path), tmp_path / "net", CARD)


def test_a_run_that_never_switched_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "summary.json", {"switch": {"epoch": None}})
    with pytest.raises(MisuseError, match=r"has never switched: expected a run of both phases. Train with"):
        publish(Run(tmp_path / "run"), tmp_path / "net", CARD)
    assert not (tmp_path / "net").exists()


def test_a_card_without_front_matter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# A network\n---\n", encoding="utf-8")
    with pytest.raises(MisuseError, match="is no card: expected it to begin with front matter"):
        read_card(path)
    write_index(tmp_path)  # Of no networks: a table without rows.
    assert path.read_text(encoding="utf-8").startswith("# Trained networks")


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("informed")
    options: dict[str, Any] = {"epochs": 18, "switch_epoch": 6, "train_size": 20, "checkpoint_every": 3}
    return cl.train_two_phase(
        out=folder / "run", objective="pinn-convection", no_baseline=True, probe_every=0, **options
    )


def test_a_physics_informed_run_is_a_run_directory(informed: Run, tmp_path: Path) -> None:
    rows, summary = informed.metrics, informed.summary
    assert summary is not None
    # A step of Adam sees all points: it is an epoch, and costs one.
    assert [(row["epoch"], row["gradient_equivalents"]) for row in rows[:7]] == [(k, k) for k in range(7)]
    assert {row["phase"] for row in rows} == {"start", "adam", "lbfgs-adam-scaled"}
    assert rows[-1]["gradient_equivalents"] <= 18 + 1e-12
    assert summary["two_phase"]["train_loss"] == rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert summary["measures"] == ["validation_loss", "relative_error"]
    assert summary["two_phase"]["validation_loss"] > 0
    assert summary["two_phase"]["relative_error"] > 0
    (probed,) = cl.probe(informed.checkpoints[-1], max_steps=2, density_probes=1, out=tmp_path / "p").rows
    # The same sums: the checkpoint names the objective that was trained.
    assert probed["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=1e-6)
    assert probed["gradient_norm"] == pytest.approx(rows[-1]["gradient_norm"], rel=1e-5)


def test_the_folder_of_a_physics_informed_run(informed: Run, tmp_path: Path) -> None:
    run = publish(informed, tmp_path / "net", dataclasses.replace(CARD, dataset="convection", loss="residuals"))
    card = read_card(tmp_path / "net" / "README.md")
    assert (card["name"], card["parameters"], card["stored_as"]) == ("net", 7851, "float32")
    last = card["epochs"]["adam"] + card["epochs"]["lbfgs-adam-scaled"]
    assert last == card["checkpoints"][-1]["epoch"] == informed.metrics[-1]["epoch"]
    by_epoch = {row["epoch"]: row["train_loss"] for row in informed.metrics}
    for row in card["checkpoints"]:
        # The very weights, and the very points; the card has five digits.
        assert row["loss"] == pytest.approx(by_epoch[row["epoch"]], rel=5.1e-5)
    assert informed.summary is not None
    assert card["final"]["relative_error"] == pytest.approx(informed.summary["two_phase"]["relative_error"], rel=5.1e-5)
    assert read_checkpoint(run.checkpoints[-1]).metadata["objective"] == "pinn-convection"
    (probed,) = cl.probe(run.checkpoints[-1], max_steps=2, density_probes=1, out=tmp_path / "p").rows
    assert probed["train_loss"] == pytest.approx(card["checkpoints"][-1]["loss"], rel=5.1e-5)


BOWL = """
import convexlab as cl
from torch import nn

def bowl():
    model = nn.Linear(3, 2, bias=False)
    return cl.Objective.from_batch_loss(
        model, [None], lambda model, _: model.weight.cosh().sum(), weight=lambda _: 1
    )
"""


def test_a_loss_without_examples_to_count_has_a_card_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "bowl.py").write_text(BOWL, encoding="utf-8")
    options: dict[str, Any] = {"epochs": 18, "switch_epoch": 6, "no_baseline": True, "probe_every": 0}
    trained = cl.train_two_phase(
        out=tmp_path / "run", objective=f"{tmp_path / 'bowl.py'}:bowl", checkpoint_every=3, **options
    )
    card = read_card(publish(trained, tmp_path / "net", CARD).path / "README.md")
    assert card["training_examples"] is card["examples_probed"] is None
    text = (tmp_path / "net" / "README.md").read_text(encoding="utf-8")
    assert "trained and probed on the whole of its loss, which has no examples to count" in text
