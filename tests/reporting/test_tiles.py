"""One look answers: did switching pay, when was it, and what was the curvature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.reporting.words.tiles import Tile, joint_tiles, tiles
from convexlab.runs import Run

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def facts(full_run: Run) -> RunFacts:
    return read_facts(full_run, "run")


def _plain(shown: list[Tile]) -> list[tuple[str, ...]]:
    return [tuple(text.replace("\N{NO-BREAK SPACE}", " ") for text in tile) for tile in shown]


def test_a_run_answers_with_numbers(facts: RunFacts) -> None:
    assert _plain(tiles(facts)) == [
        (
            "Did switching pay?",
            "yes, 1.64× lower",
            "training loss 1.40×10⁻⁴, better Adam 2.30×10⁻⁴, at equal cost (120 gradient equivalents)",
        ),
        ("When did it switch?", "epoch 40", "44 % of the budget, gradient-norm-peak"),
        ("Curvature at the switch", "non-convex", "epoch 40: −0.0546 along a direction found"),
        (
            "Curvature at the end",
            "no negative curvature found",
            "epoch 100: no eigenvalue below −0.0516, confidence 99.9 %",
        ),
        ("Proven non-convex at", "6 of 11", "checkpoints probed, last at epoch 48"),
    ]


@pytest.mark.parametrize(
    ("loss", "answer"), [(1e-4, "yes, 2.30× lower"), (4.6e-4, "no, 2.00× higher"), (2.31e-4, "no difference")]
)
def test_the_answer_follows_the_losses(facts: RunFacts, loss: float, answer: str) -> None:
    assert facts.two_phase is not None
    changed = dataclasses.replace(facts, two_phase=dataclasses.replace(facts.two_phase, train_loss=loss))
    assert tiles(changed)[0].value == answer


def test_at_a_higher_cost_nothing_is_answered(make_run: MakeRun) -> None:
    """As in the fixture without a switch, the run spends 133.3 against 120; but here it did switch."""
    facts = read_facts(make_run(switch=None, probed=False), "run")
    assert facts.switch is not None
    assert tiles(facts)[0].value == "not tried"
    assert tiles(facts)[1].value == "never"
    at_40 = dataclasses.replace(facts, switch=dataclasses.replace(facts.switch, epoch=40.0))
    assert tiles(at_40)[0].value == "not decided"


def test_without_baselines_there_is_no_answer(make_run: MakeRun) -> None:
    first = tiles(read_facts(make_run(baselines=False, probed=False), "run"))[0]
    assert first == Tile("Training loss, two-phase", "1.40×10⁻⁴", "no baseline to compare with")


def test_an_unfinished_run_tells_when_it_switched(make_run: MakeRun) -> None:
    assert _plain(tiles(read_facts(make_run(finished=False, probed=False), "run"))) == [
        ("When did it switch?", "epoch 40", "44 % of the budget")
    ]


def test_the_checkpoint_near_the_switch_is_called_near(facts: RunFacts) -> None:
    without = tuple(checkpoint for checkpoint in facts.probe if checkpoint.epoch != 40)
    names = [tile.label for tile in tiles(dataclasses.replace(facts, probe=without))]
    assert names[2:4] == ["Curvature near the switch", "Curvature at the end"]
    only = dataclasses.replace(facts, probe=facts.probe[:1])
    assert [tile.label for tile in tiles(only)][2:] == ["Curvature at the switch and at the end"]


def test_a_probe_tells_its_last_verdict(make_probe: MakeRun) -> None:
    assert [tile[:2] for tile in tiles(read_facts(make_probe(), "probe"))] == [
        ("Curvature at the end", "no negative curvature found"),
        ("Proven non-convex at", "2 of 3"),
    ]


def test_several_runs_answer_together(facts: RunFacts, make_run: MakeRun) -> None:
    worse = read_facts(make_run("b", switch=20, final=9e-4, epochs=40), "b")
    never = read_facts(make_run("c", switch=None, probed=False), "c")
    assert _plain(joint_tiles([facts, worse, never])) == [
        # The geometric mean of 1.4 / 2.3 and 9 / 2.3.
        ("Did switching pay?", "in 1 of 2 runs", "two-phase loss over the better Adam's, geometric mean: 1.54"),
        ("When did they switch?", "epoch 20 to 40", "22 % to 44 % of the budget, 1 of 3 never"),
        ("Non-convex at the switch", "2 of 2", ""),
        ("Non-convex at the end", "0 of 2", "2 × no negative curvature found"),
    ]


def test_runs_without_anything_have_no_tile(make_run: MakeRun) -> None:
    bare = read_facts(make_run(finished=False, trained=False, probed=False), "run")
    assert tiles(bare) == []
    assert joint_tiles([bare, bare]) == []


@pytest.mark.parametrize("verdict", ["non-convex", "no-negative-curvature", "unresolved", ""])
def test_no_tile_calls_anything_convex(verdict: str, make_probe: MakeRun) -> None:
    facts = read_facts(make_probe(verdict=verdict), "probe")
    text = " ".join(" ".join(tile) for tile in [*tiles(facts), *joint_tiles([facts, facts])])
    assert "convex" not in text.lower().replace("non-convex", "")
