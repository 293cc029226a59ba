"""The acceptance rule: what is kept is what the target alone would have said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cloud.accept import accepted


@pytest.mark.parametrize(
    ("hints", "chosen", "count"),
    [
        ((), (7,), 0),
        ((7,), (7, 8), 1),
        ((9,), (7, 8), 0),
        ((7, 8, 9), (7, 8, 9, 1), 3),
        ((7, 9, 9), (7, 8, 9, 1), 1),
    ],
)
def test_the_longest_equal_beginning(
    hints: tuple[int, ...], chosen: tuple[int, ...], count: int
) -> None:
    assert accepted(hints, chosen) == count


def said(text: tuple[int, ...]) -> int:
    """A target: the next token is a function of all before it."""
    return sum((i + 1) * token for i, token in enumerate(text)) % 3


@given(st.lists(st.integers(0, 2), max_size=6).map(tuple), st.lists(st.integers(0, 2), max_size=8))
def test_whatever_the_hints_the_text_is_the_targets(
    text: tuple[int, ...], hints: list[int]
) -> None:
    chosen = [said((*text, *hints[:i])) for i in range(len(hints) + 1)]
    kept = chosen[: accepted(hints, chosen) + 1]
    alone = text
    for token in kept:
        assert token == said(alone)
        alone = (*alone, token)
