from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convexlab.datasets import stratified_indices
from convexlab.datasets.subset import other_indices
from convexlab.errors import MisuseError


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.data())
def test_shares_are_kept_to_within_one_example(labels: list[int], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(labels)))
    seed = data.draw(st.integers(0, 2**63 - 1))
    chosen = stratified_indices(torch.tensor(labels), size, seed=seed).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == size
    taken = [labels[index] for index in chosen]
    for label in set(labels):
        due = Fraction(labels.count(label) * size, len(labels))
        assert due - 1 < taken.count(label) < due + 1


def test_same_seed_same_subset_and_another_seed_another() -> None:
    labels = torch.arange(1000) % 10
    first = stratified_indices(labels, 100, seed=3)
    assert torch.equal(first, stratified_indices(labels, 100, seed=3))
    assert not torch.equal(first, stratified_indices(labels, 100, seed=4))


def test_every_example_can_be_drawn() -> None:
    labels = torch.tensor([0] * 5 + [1] * 5)
    drawn = torch.cat([stratified_indices(labels, 2, seed=seed) for seed in range(100)])
    # Each of 10 examples has chance 1/5 a draw: all but certain to appear in 100 (missing one: 10 x 0.8^100 = 2e-9).
    assert set(drawn.tolist()) == set(range(10))


def test_largest_remainders_get_the_examples_that_are_left() -> None:
    labels = torch.tensor([0] * 47 + [1] * 16 + [2] * 37)
    # Due 4.7, 1.6 and 3.7 of 10: floors 4, 1, 3; the two left go to the remainders 0.7, not to 0.6.
    assert torch.bincount(labels[stratified_indices(labels, 10)]).tolist() == [5, 1, 4]


def test_classes_that_would_be_absent_come_first() -> None:
    labels = torch.tensor([0] * 96 + [1] * 2 + [2] * 2)
    # Due 9.6, 0.2 and 0.2 of 10: one is left, and a class without any gets it although 0.6 > 0.2.
    assert torch.bincount(labels[stratified_indices(labels, 10)], minlength=3)[0] == 9


def test_fewer_examples_than_classes() -> None:
    labels = torch.arange(40) % 10
    subsets = [labels[stratified_indices(labels, 4, seed=seed)].tolist() for seed in range(20)]
    assert all(len(set(subset)) == 4 for subset in subsets)
    # Which classes are present is drawn too: a fixed tie-break would always take the same four.
    assert len({tuple(sorted(subset)) for subset in subsets}) > 1


def test_all_examples_keep_their_order() -> None:
    labels = torch.tensor([2, 0, 0, 1, 2])
    assert stratified_indices(labels, 5).tolist() == [0, 1, 2, 3, 4]


def test_label_without_examples() -> None:
    labels = torch.tensor([0, 0, 5, 5])
    assert labels[stratified_indices(labels, 2)].tolist() == [0, 5]


@pytest.mark.parametrize("size", [0, -1, 5])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(MisuseError, match=f"train_size of mine must be from 1 to 4 .*, got {size}"):
        stratified_indices(torch.tensor([0, 1, 0, 1]), size, name="mine")


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.data())
def test_others_are_none_of_the_chosen_and_at_most_as_many(labels: list[int], data: st.DataObject) -> None:
    size, seed = data.draw(st.integers(1, len(labels))), data.draw(st.integers(0, 2**63 - 1))
    chosen = stratified_indices(torch.tensor(labels), size, seed=seed)
    others = other_indices(torch.tensor(labels), chosen, seed=seed).tolist()
    assert others == sorted(set(others))
    assert not set(others) & set(chosen.tolist())
    assert len(others) == min(size, len(labels) - size)
    left = [labels[index] for index in range(len(labels)) if index not in set(chosen.tolist())]
    for label in set(left):
        due = Fraction(left.count(label) * len(others), len(left))
        assert due - 1 < [labels[index] for index in others].count(label) < due + 1
