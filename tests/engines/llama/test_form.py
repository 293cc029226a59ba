"""Forms hand each span its own rows' scores, and ask for as many as the rule wants."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.engine import RowRule
from outrider.engines.llama.form import forms
from outrider.engines.llama.plan import Cost

LIMIT = 128
RULES = st.sampled_from([RowRule(), RowRule(2, 1, uniform=True), RowRule(8, 8, uniform=True)])
COSTS = st.builds(Cost, st.floats(0, 100), st.floats(0.01, 10))


@st.composite
def asked(draw: st.DrawFn) -> tuple[tuple[int, int, int], ...]:
    slots = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True))
    lengths = [draw(st.integers(1, 20)) for _ in slots]
    firsts = [draw(st.integers(0, length - 1)) for length in lengths]
    return tuple(zip(slots, lengths, firsts, strict=True))


@settings(max_examples=200, deadline=None)
@given(asked=asked(), rule=RULES, cost=COSTS)
def test_every_span_gets_the_scores_of_its_rows(
    asked: tuple[tuple[int, int, int], ...], rule: RowRule, cost: Cost
) -> None:
    places = []
    for form in forms(asked, rule, cost, LIMIT):
        given_back = np.flatnonzero(form.rows.wanted)
        assert form.rows.count == len(given_back)
        assert form.rows.sequences.tolist() == [
            p.slot for p in form.parts for _ in range(form.size)
        ]
        for i, part in enumerate(form.parts):
            if part.place is None:
                assert part.real == part.stop - part.start == 0
                continue
            slot, length, first = asked[part.place]
            places.append(part.place)
            assert (part.slot, part.real) == (slot, length)
            rows = given_back[part.start : part.stop] - i * form.size
            assert rows.tolist() == list(range(first, length))
    assert sorted(places) == list(range(len(asked)))


def test_a_prefill_that_wants_one_row_asks_for_as_many_as_the_rule() -> None:
    (form,) = forms(((3, 5, 4),), RowRule(2, 1, uniform=True), Cost(1.0, 1.0), LIMIT)
    assert form.rows.wanted.tolist() == [0, 0, 0, 2, 1]
    assert (form.parts[0].start, form.parts[0].stop) == (1, 2)
