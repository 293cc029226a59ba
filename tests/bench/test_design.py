"""Which combinations a bench runs."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import design

LEVELS = st.lists(st.integers(1, 4), min_size=2, max_size=4)


def factors(sizes: list[int]) -> list[list[str]]:
    return [[f"{i}.{level}" for level in range(size)] for i, size in enumerate(sizes)]


@settings(deadline=None, max_examples=25)
@given(LEVELS, st.integers(0, 9))
def test_the_beginning_covers_all_pairs_and_the_whole_is_the_grid(
    sizes: list[int], seed: int
) -> None:
    levels = factors(sizes)
    rows = design.covering(levels, seed)
    first = design.first_covering(levels, rows)
    assert sorted(rows) == sorted(product(*levels))
    assert not design.uncovered(levels, first)
    largest, second, *_ = sorted(sizes, reverse=True)
    assert len(first) >= largest * second


def test_few_rows_are_enough() -> None:
    levels = factors([3, 6, 2, 3])
    assert len(design.first_covering(levels, design.covering(levels, 20))) <= 20


def test_uncovered_pairs_are_named() -> None:
    levels = [["a", "b"], ["x", "y"]]
    assert design.uncovered(levels, [("a", "x"), ("b", "y")]) == {
        (0, "a", 1, "y"),
        (0, "b", 1, "x"),
    }


def test_seeds_give_other_orders() -> None:
    levels = factors([3, 4, 2])
    assert design.covering(levels, 1) == design.covering(levels, 1)
    assert design.covering(levels, 1) != design.covering(levels, 2)


@pytest.mark.parametrize("least", [1, 16, 17, 400])
def test_batches_reach_the_number_of_cases_and_no_more(least: int) -> None:
    rows = design.covering(factors([2, 3]), 0)
    inner = design.covering(factors([5, 2]), 0)
    found = design.batches(rows, inner, 16, least)
    assert least <= 16 * len(found) < least + 16
    assert all(len(within) == 16 for _, within in found)


def test_rows_meet_every_inner_combination_when_there_are_enough_batches() -> None:
    outer, inner = factors([3, 6, 2, 3]), factors([24, 2])
    rows, within = design.covering(outer, 20), list(product(*inner))
    found = design.batches(rows, within, 16, 1500)
    whole = [(*row, *each) for row, some in found for each in some]
    assert not design.uncovered([*outer, *inner], whole)
