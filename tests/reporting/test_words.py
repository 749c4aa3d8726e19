from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from convexlab.reporting.facts.comparison import compare
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.reporting.words.run import has_paid, headline, judgement, verdict_clause
from convexlab.reporting.words.sampling import sampling_sentence
from convexlab.reporting.words.several import joint_headline
from convexlab.runs import Run
from convexlab.runs.rows import ProbedCheckpoint, Switch

MakeRun = Callable[..., Run]


@pytest.fixture
def facts(make_run: MakeRun) -> RunFacts:
    return read_facts(make_run(), "run")


def _with_losses(facts: RunFacts, ours: float, theirs: float) -> RunFacts:
    assert facts.two_phase is not None
    baseline = facts.baselines["adam-cosine"]
    return dataclasses.replace(
        facts,
        two_phase=dataclasses.replace(facts.two_phase, train_loss=ours),
        baselines={"adam-cosine": dataclasses.replace(baseline, train_loss=theirs)},
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        (
            1e-4,
            2.5e-4,
            "Switching paid here. "
            "Two-phase training reached a lower training loss than the better Adam baseline (Adam, cosine rate): "
            "1.00×10⁻⁴ against 2.50×10⁻⁴, a factor of 2.50, at equal cost (120 gradient equivalents).",
        ),
        (
            3e-4,
            2e-4,
            "Switching did not pay here. "
            "Two-phase training reached a higher training loss than the better Adam baseline (Adam, cosine rate): "
            "3.00×10⁻⁴ against 2.00×10⁻⁴, a factor of 1.50, at equal cost (120 gradient equivalents).",
        ),
        (
            2.01e-4,
            2e-4,
            "Switching made no difference here. "
            "Two-phase training reached the training loss of the better Adam baseline (Adam, cosine rate): 2.01×10⁻⁴ "
            "against 2.00×10⁻⁴, at equal cost (120 gradient equivalents).",
        ),
        # No ratio to a loss of zero.
        (
            0.0,
            2e-4,
            "Switching paid here. "
            "Two-phase training reached a lower training loss than the better Adam baseline (Adam, cosine rate): 0 "
            "against 2.00×10⁻⁴, at equal cost (120 gradient equivalents).",
        ),
    ],
)
def test_headline_says_better_or_worse_with_numbers(facts: RunFacts, ours: float, theirs: float, sentence: str) -> None:
    assert headline(_with_losses(facts, ours, theirs))[0] == sentence


def test_the_better_of_the_two_baselines_counts(facts: RunFacts) -> None:
    comparison = compare(facts)
    assert comparison is not None
    assert (comparison.baseline, comparison.baseline_loss) == ("adam-cosine", 2.3e-4)


@pytest.mark.parametrize(
    ("ours", "cost", "conclusive"),
    [
        (1e-4, 120.0, True),
        (1e-4, 120.9, True),
        (1e-4, 122.0, False),
        (1e-4, 90.0, True),
        (9e-4, 122.0, True),
        (9e-4, 90.0, False),
        (2.3e-4, 90.0, False),
        (1e-4, float("nan"), False),
    ],
)
def test_a_lower_loss_at_a_higher_cost_is_no_win(facts: RunFacts, ours: float, cost: float, conclusive: bool) -> None:
    comparison = compare(_with_losses(facts, ours, 2.3e-4))
    assert comparison is not None
    changed = dataclasses.replace(comparison, costs=(cost, 120.0))
    assert changed.is_conclusive is conclusive


def test_an_unequal_cost_is_stated(make_run: MakeRun) -> None:
    """Without a switch the run of the fixture spends 4/3 an epoch for 100 epochs: 133.3 against 120."""
    first = headline(read_facts(make_run(switch=None), "run"))[0]
    assert first.startswith("Two-phase training cannot be compared fairly")
    assert "at higher cost (133.3 against 120 gradient equivalents)" in first


def test_switch_is_stated(make_run: MakeRun) -> None:
    facts = read_facts(make_run("a", switch=40), "a")
    assert facts.curve is not None
    assert headline(facts)[1].startswith("It switched from Adam to cg-golden after epoch 40 at training loss ")
    assert headline(read_facts(make_run("b", switch=None), "b"))[1] == "It never switched, so the whole run is Adam."


def test_the_switch_is_stated_with_the_share_of_the_budget(make_run: MakeRun) -> None:
    """40 epochs of Adam at 4/3 each are 53.3 of 120 gradient equivalents."""
    assert headline(read_facts(make_run(), "run"))[1].endswith(", with 44\N{NO-BREAK SPACE}% of the budget spent.")


def test_without_a_switch_nothing_is_said_about_switching(facts: RunFacts) -> None:
    never = dataclasses.replace(_with_losses(facts, 1e-4, 2e-4), switch=Switch(None, "", None, None, ""))
    assert headline(never)[0].startswith("Two-phase training reached a lower training loss than")
    assert not has_paid(never)
    assert has_paid(_with_losses(facts, 1e-4, 2e-4))
    assert not has_paid(_with_losses(facts, 2e-4, 1e-4))


@pytest.mark.parametrize(
    ("epochs", "sentence"),
    [
        ((0, 40, 100), "At the switch (epoch 40): non-convex, with curvature −0.5 along a direction found."),
        ((0, 36, 100), "At the checkpoint nearest the switch (epoch 36): non-convex, with curvature −0.5 along"),
        ((0, 40), "At the switch, the last checkpoint probed (epoch 40): non-convex, with curvature −0.5 along"),
    ],
)
def test_the_verdict_at_the_switch_is_stated(facts: RunFacts, epochs: tuple[int, ...], sentence: str) -> None:
    row = {"verdict": "non-convex", "smallest": -0.5}
    probe = tuple(ProbedCheckpoint.from_row(row | {"epoch": epoch}) for epoch in epochs)
    sentences = headline(dataclasses.replace(facts, probe=probe))
    assert sentences[2].replace("−0.500", "−0.5").startswith(sentence)
    # Each checkpoint once.
    assert len(sentences) == 2 + min(2, len(epochs) - 1)


def test_a_return_to_adam_is_stated(make_run: MakeRun) -> None:
    resort = {"epoch": 61, "reason": "the line search failed three times"}
    facts = read_facts(make_run(summary={"safe_resort": resort}), "run")
    assert headline(facts)[1].endswith(" After epoch 61 phase two gave up, and training went back to Adam.")


def test_the_choice_of_the_second_phase_has_its_reason(make_run: MakeRun) -> None:
    facts = read_facts(make_run(summary={"phase_two_reason": "33 parameters, at most the 3,000"}), "run")
    assert headline(facts)[1].endswith(" That second phase was chosen for its size: 33 parameters, at most the 3,000.")


def test_what_was_expected_of_a_switch_is_said(make_run: MakeRun) -> None:
    facts = read_facts(make_run(summary={"expectation": "21 evaluations are left. It will lose."}), "run")
    assert " What was expected then: 21 evaluations are left. It will lose." in headline(facts)[1]


def test_a_run_without_baselines_claims_nothing(make_run: MakeRun) -> None:
    first = headline(read_facts(make_run(baselines=False), "run"))[0]
    assert first == (
        "Two-phase training reached a training loss of 1.40×10⁻⁴. "
        "No Adam baseline was run, so there is nothing to compare it with."
    )


def test_an_unfinished_run_tells_where_it_stands(make_run: MakeRun) -> None:
    facts = read_facts(make_run(finished=False, probed=False, switch=None), "run")
    assert re.fullmatch(r"After epoch 100 the training loss is \S+\.", headline(facts)[0])
    assert headline(facts)[1] == "It has not switched from Adam yet."
    switched = read_facts(make_run("other", finished=False), "other")
    assert headline(switched)[1].startswith("It switched from Adam to cg-golden after epoch 40 at training loss ")


ROW: dict[str, Any] = {
    "checkpoint": "epoch-00040.safetensors",
    "epoch": 40,
    "smallest": -0.13333,
    "smallest_lower_bound": -0.25,
    "largest": 5.0,
    "rounding_floor": 1e-6,
    "confidence": 0.999,
    "floor": 1e-3,
    "examples": 1437,
    "train_size": 1437,
}
CONFIDENCE = "with confidence 99.9\N{NO-BREAK SPACE}% over the random start"


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"verdict": "non-convex"}, "non-convex, with curvature −0.133 along a direction found"),
        ({"verdict": "non-convex", "smallest": None}, "non-convex"),
        (
            {"verdict": "no-negative-curvature"},
            f"no negative curvature below −0.00500 (0.001 of the largest eigenvalue), {CONFIDENCE}",
        ),
        ({"verdict": "no-negative-curvature", "floor": None, "confidence": None}, "no negative curvature"),
        (
            {"verdict": "unresolved"},
            f"unresolved: the smallest eigenvalue found is −0.133, none is below −0.250, {CONFIDENCE}",
        ),
        (
            {"verdict": "unresolved", "smallest": -5e-7, "smallest_lower_bound": -6e-7, "confidence": None},
            "unresolved: the smallest eigenvalue found is 0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}1.0×10⁻⁶, "
            "none is below −1.0×10⁻⁶",
        ),
        ({}, "not judged"),
    ],
)
def test_verdict_clause(changes: dict[str, Any], clause: str) -> None:
    assert verdict_clause(ProbedCheckpoint.from_row(ROW | changes)) == clause


def test_the_last_sample_stands_after_the_last_verdict(make_run: MakeRun, make_probe: MakeRun) -> None:
    for run, place in ((make_run(), "epoch 100"), (make_probe(), "epoch 100")):
        *_, verdict, sample = headline(read_facts(run, "run"))
        assert verdict.startswith(f"At the last checkpoint probed ({place}): no negative curvature")
        assert sample.startswith("The loss is that of all 1,437 training examples. On 360 validation examples the")
    uncounted = dict.fromkeys(["examples", "train_size", "population"])
    objective = headline(read_facts(make_probe("objective", **uncounted), "objective"))
    assert objective[-1].startswith("At the last checkpoint probed")


FRESH: dict[str, Any] = {"fresh_examples": 99, "smallest_fresh": -0.25, "interval_level": 0.95}
KNOWN = FRESH | {"smallest_fresh_low": -0.35, "smallest_fresh_high": -0.15}
VALIDATION = (
    "On 99 validation examples the direction of smallest curvature (−0.133) has −0.250 "
    "(−0.350 to −0.150 with 95 % confidence)"
)


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, "The loss is that of all 1,437 training examples."),
        # An old row does not say how many examples there are.
        ({"examples": 512}, "The loss is that of 512 of 1,437 training examples."),
        (
            {"examples": 512, "train_size": 512, "population": 1442},
            "The loss is that of 512 of 1,442 training examples.",
        ),
        ({"examples": None}, ""),
        ({"train_size": None}, ""),
        (KNOWN, f"The loss is that of all 1,437 training examples. {VALIDATION}."),
        (
            KNOWN | {"verdict": "non-convex"},
            f"The loss is that of all 1,437 training examples. {VALIDATION}: negative there too.",
        ),
        (
            KNOWN | {"verdict": "non-convex", "smallest_fresh_high": 0.15},
            "The loss is that of all 1,437 training examples. "
            f"{VALIDATION.replace('−0.150', '0.150')}: its sign there is open.",
        ),
        (
            # An old row has a standard error, over nobody knows how many batches.
            FRESH | {"verdict": "non-convex", "smallest_fresh_standard_error": 0.05},
            "The loss is that of all 1,437 training examples. "
            f"{VALIDATION.partition(' (−0.350')[0]} (error unknown): its sign there is open.",
        ),
        (
            KNOWN
            | {"examples": 512, "verdict": "non-convex"}
            | dict.fromkeys(["smallest_full", "smallest_full_low", "smallest_full_high"], 0.3),
            "The loss is that of 512 of 1,437 training examples. "
            f"{VALIDATION.replace('validation', 'other training')}, hence on all 1,437 0.300: not negative there.",
        ),
        (
            FRESH | {"smallest_fresh": None, "verdict": "non-convex"},
            "The loss is that of all 1,437 training examples. On 99 validation examples the direction of smallest "
            "curvature (−0.133) has no finite curvature: its sign there is open.",
        ),
    ],
)
def test_sampling_sentence(changes: dict[str, Any], sentences: str) -> None:
    sentence = sampling_sentence(ProbedCheckpoint.from_row(ROW | changes))
    assert sentence.replace("\N{NO-BREAK SPACE}", " ") == sentences


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"verdict": "non-convex", "second_difference": -0.12},
            "Non-convex here: a direction of curvature −0.133 was found (rounding error below 1×10⁻⁶; −0.120 from "
            "values of the loss alone; largest curvature 5.00).",
        ),
        (
            {"verdict": "no-negative-curvature"},
            "No negative curvature below −0.250 with confidence 99.9 % over the random start (0.05 of the largest "
            "curvature, 5.00).",
        ),
        (
            {"verdict": "no-negative-curvature", "smallest": 1.0, "smallest_lower_bound": 0.5, "confidence": None},
            "No curvature below 0.500 (0.1 of the largest curvature, 5.00).",
        ),
        (
            {"verdict": "unresolved", "steps": 40},
            "Unresolved: no direction of negative curvature was found in 40 steps, but curvature down to −0.250 cannot "
            "be ruled out with confidence 99.9 % over the random start (largest curvature 5.00; rounding error below "
            "1×10⁻⁶).",
        ),
        (
            {"verdict": "unresolved", "smallest_lower_bound": None, "steps": 2},
            "Unresolved: no direction of negative curvature was found in 2 steps, and the steps are too few for a "
            "lower bound (largest curvature 5.00; rounding error below 1×10⁻⁶).",
        ),
        # Older or damaged rows.
        (
            {"verdict": "non-convex", "largest": None, "rounding_floor": None},
            "Non-convex here: a direction of curvature −0.133 was found.",
        ),
        ({"verdict": "non-convex", "smallest": None}, "non-convex."),
        (
            {"verdict": "non-convex", "verdict_summary": "Old words."},
            "Non-convex here: a direction of curvature −0.133 "
            "was found (rounding error below 1×10⁻⁶; largest curvature 5.00).",
        ),
        # Nothing was measured.
        (
            {"verdict": "unresolved", "smallest": None, "train_loss": None},
            "The loss is not finite here: curvature has no meaning.",
        ),
        (
            {"verdict": "unresolved", "smallest": None, "train_loss": 0.5, "gradient_norm": None},
            "The gradient is not finite here: curvature has no meaning.",
        ),
        (
            {"verdict": "unresolved", "smallest": None, "failure": "a product is not finite."},
            "Nothing can be said about curvature here: a product is not finite.",
        ),
    ],
)
def test_judgement_is_the_verdict_and_what_the_sample_says(changes: dict[str, Any], sentence: str) -> None:
    row = ROW | {"examples": None} | changes
    assert judgement(ProbedCheckpoint.from_row(row)).replace("\N{NO-BREAK SPACE}", " ") == sentence
    sampled = judgement(ProbedCheckpoint.from_row(row | {"examples": 1437}))
    assert sampled == f"{judgement(ProbedCheckpoint.from_row(row))} The loss is that of all 1,437 training examples."


@pytest.mark.parametrize("verdict", ["non-convex", "no-negative-curvature", "unresolved", ""])
def test_nothing_is_called_convex(verdict: str, make_probe: MakeRun) -> None:
    for sentence in headline(read_facts(make_probe(verdict=verdict), "probe")):
        assert not re.search(r"(?<!non-)\bconvex", sentence)


def test_several_runs_are_summed_up(make_run: MakeRun) -> None:
    runs = [
        _with_losses(read_facts(make_run(name), name), ours, 1e-4)
        for name, ours in (("a", 0.25e-4), ("b", 0.5e-4), ("c", 1e-4), ("d", 8e-4))
    ]
    # Geometric mean of 1/4, 1/2, 1 and 8 is 1.
    assert joint_headline(runs)[0] == (
        "Switching paid in 2 of 4 runs. "
        "Against the better Adam baseline of each run, two-phase training ended better in 2, level in 1, worse in 1 "
        "of 4. Its training loss is 1.00 times Adam's in the geometric mean (0.250 to 8.00)."
    )


def test_several_runs_tell_when_they_switched(make_run: MakeRun) -> None:
    runs = [read_facts(make_run(name, switch=switch, probed=False), name) for name, switch in (("a", 20), ("b", 40))]
    # A third of an epoch a detection: 26.7 and 53.3 of 120.
    spaced = [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in joint_headline(runs)]
    assert spaced[1] == "They switched after epoch 20 to 40, with 22 % to 44 % of the budget spent."
    never = read_facts(make_run("c", switch=None), "c")
    assert "; 1 of 3 never did." in joint_headline([*runs, never])[1]
    assert joint_headline([*runs, never])[0].startswith("Switching paid in 2 of the 2 runs that switched. Against")
    first = joint_headline([never, never])[0]
    assert first.startswith("None of them switched. Against the better")
    assert "switched after" not in " ".join(joint_headline([never, never]))


def test_several_verdicts_are_counted_at_the_switch_and_at_the_end(make_run: MakeRun) -> None:
    runs = [read_facts(make_run(name, epochs=40, switch=16), name) for name in "ab"]
    assert joint_headline(runs)[2:] == [
        "Verdicts at or nearest the switch: 2\N{NO-BREAK SPACE}× non-convex.",
        "Verdicts at the last checkpoint probed: 2\N{NO-BREAK SPACE}× no negative curvature found.",
    ]
