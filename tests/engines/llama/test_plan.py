"""Plans cover what was asked for, keep the rule, and are never dearer than one decode a slot."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.engine import RowRule
from outrider.engines.llama.plan import MOST_PADDING, Cost, Decode, plan

LIMIT = 128
RULES = st.sampled_from([RowRule(), RowRule(2, 1, uniform=True), RowRule(8, 8, uniform=True)])
LENGTHS = st.dictionaries(st.integers(0, 15), st.integers(1, 60), min_size=1, max_size=8)
COSTS = st.builds(Cost, st.floats(0, 100), st.floats(0.01, 10))


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, rule=RULES, cost=COSTS)
def test_plans(lengths: dict[int, int], rule: RowRule, cost: Cost) -> None:
    found = plan(tuple(lengths.items()), rule, cost, LIMIT)
    wanted = [slot for decode in found for slot in decode.slots if slot not in decode.fillers]
    assert sorted(wanted) == sorted(lengths)
    for decode in found:
        assert list(decode.slots) == sorted(set(decode.slots))
        assert decode.rows * len(decode.slots) <= LIMIT
        assert decode.rows == rule.padded(decode.rows)
        for slot in decode.slots:
            extra = decode.rows - lengths.get(slot, 0) if slot not in decode.fillers else 0
            assert 0 <= extra <= MOST_PADDING + rule.multiple
        assert not decode.fillers or decode.rows <= MOST_PADDING
    apart = [Decode(rule.padded(n), (slot,), frozenset()) for slot, n in lengths.items()]
    assert sum(d.cost(cost) for d in found) <= sum(d.cost(cost) for d in apart) + 1e-6


def test_what_is_cheaper_decides() -> None:
    rule = RowRule(2, 1, uniform=True)
    ragged = ((0, 1), (1, 5), (2, 1))
    assert len(plan(ragged, rule, Cost(100.0, 1.0), LIMIT)) == 1
    assert len(plan(ragged, rule, Cost(0.1, 1.0), LIMIT)) == 2
    gapped = ((0, 2), (3, 2))
    assert plan(gapped, rule, Cost(100.0, 1.0), LIMIT)[0].fillers == {1, 2}
    assert plan(gapped, rule, Cost(1.0, 1.0), LIMIT)[0].fillers == frozenset()
    assert len(list(plan(gapped, rule, Cost(1.0, 1.0), LIMIT)[0].runs())) == 2
