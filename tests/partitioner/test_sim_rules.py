"""The fleet's rules over arrays decide as the cloud's own scheduler does."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("simpy", reason="needs outrider[plan]")

from outrider.cli.committer import make
from outrider.cloud import scheduler as real
from outrider.partitioner.sim import rules
from outrider.partitioner.sim.agreement import DEPTHS, Agreement, Bits, runs
from outrider.partitioner.sim.policies import Policy, parse
from outrider.partitioner.sim.setup import CloudSetup

CURVES = (
    ((1.0, 40.0), (2.0, 41.0), (4.0, 44.0), (8.0, 60.0), (16.0, 90.0), (32.0, 200.0)),
    ((1.0, 20.0), (8.0, 20.5), (32.0, 24.0)),
)
RATES = st.lists(st.floats(0.05, 0.97), min_size=DEPTHS, max_size=DEPTHS)


def test_the_constants_are_the_schedulers() -> None:
    for name in ("PREFILL_ROWS", "MAX_WISH", "MAX_HINT_ROWS", "LEAST_VALUE", "LEAST_RATE"):
        assert getattr(rules, name) == getattr(real, name)


class Known:
    """An acceptance that is given."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def rate(self, depth: int) -> float:
        return self.rates[min(depth, DEPTHS - 1)]

    def expected(self, rows: int) -> float:
        return float(np.cumprod(self.rates[:rows]).sum())


def committer(curve: tuple[tuple[float, float], ...], trigger: str = "auto") -> Any:
    return make(CloudSetup(curve, max_rows=24), parse(f"draft/{trigger}"))


@settings(max_examples=60, deadline=None)
@given(
    curve=st.sampled_from(CURVES),
    answers=st.lists(
        st.tuples(RATES, st.integers(0, 9), st.integers(0, 12), st.integers(2, 20)),
        min_size=1,
        max_size=6,
    ),
)
def test_hint_rows_are_granted_alike(
    curve: tuple[tuple[float, float], ...],
    answers: list[tuple[list[float], int, int, int]],
) -> None:
    committed = make(CloudSetup(curve, max_rows=24), parse("draft"))
    for ticket, (rates, live, deep, left) in enumerate(answers):
        committed.open(ticket, 4, deep + left, 0, 0.0)
        committed.seat(ticket)
        choice = committed.choices[ticket]
        choice.ledger.tokens.extend([1] * (deep + 1))
        choice.filled = 4 + deep
        window = choice.window
        window.start, window.chain, window.alive = 1, [1] * (deep + live), True
        window.checked, window.acceptance = deep + 1, cast(Any, Known(rates))
    plan = committed.scheduler.plan(list(committed.choices.values()), 0.0)
    wanted = [len(work.hints) for work in plan.works]

    values = np.stack(
        [rules.value_table(rates)[min(deep, DEPTHS - 1)] for rates, _, deep, _ in answers]
    )
    allowed = np.array([min(live, 7, left - 2) for _, live, _, left in answers])
    cost = np.array([committed.step_ms(n) for n in range(64)])
    found = rules.grants(values, np.maximum(allowed, 0), len(answers), 24, cost)
    assert found.sum() == sum(wanted)
    # Equal values may be granted to either.
    if len({rates[0] for rates, *_ in answers}) == len(answers):
        assert sorted(found) == sorted(wanted)


@settings(max_examples=60, deadline=None)
@given(
    curve=st.sampled_from(CURVES),
    rates=RATES,
    lag_ms=st.floats(1.0, 400.0),
    trigger=st.sampled_from(["auto", "free", "wait:30"]),
)
def test_wishes_and_waiting_are_alike(
    curve: tuple[tuple[float, float], ...], rates: list[float], lag_ms: float, trigger: str
) -> None:
    committed = committer(curve, trigger)
    committed.open(0, 4, 100, 0, 0.0)
    choice = committed.choices[0]
    choice.window.acceptance, choice.lag_s = Known(rates), lag_ms / 1e3
    cost = np.array([committed.step_ms(n) for n in range(64)])
    found = rules.habits(rates, lag_ms, cost, parse(f"draft/{trigger}"))
    assert found.wish == committed.scheduler.wish(choice)
    for sharing in (1, 3):
        patience = rules.patience_s(
            parse(f"draft/{trigger}"),
            np.array([lag_ms / 1e3]),
            np.array([found.waits_alone]),
            sharing,
            committed.step_ms(sharing) / 1e3,
        )
        ready = [choice] * sharing
        assert patience[0] == pytest.approx(committed.scheduler._patience_s(choice, ready))


def test_rights_come_by_the_rates() -> None:
    rates = Agreement((0.5, 0.8, 0.9), 0.0).shifted(0.0)
    random = np.random.default_rng(1)
    drawn = runs(rates, 40_000, random)
    assert (drawn > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert (drawn[drawn > 0] > 1).mean() == pytest.approx(0.8, abs=0.015)
    assert (drawn[drawn > 20] > 21).mean() == pytest.approx(0.9, abs=0.04)
    bits = Bits(rates, random)
    lengths = np.diff([p for p in range(20_000) if not bits.right(p)]) - 1
    assert lengths.mean() == pytest.approx(drawn.mean(), rel=0.06)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_never_and_always(rate: float) -> None:
    found = runs((rate,), 10, np.random.default_rng(1))
    assert (found == 0).all() if rate == 0.0 else (found > 1000).all()


def test_a_skilled_answer_is_more_often_right() -> None:
    agreement = Agreement((0.6, 0.7), 0.5)
    low, mean, high = (agreement.shifted(skill) for skill in (-1.0, 0.0, 1.0))
    assert low[0] < mean[0] == pytest.approx(0.6) and mean[1] < high[1] < 1.0


def test_policies_by_name() -> None:
    assert parse("auto") == Policy("auto")
    assert parse("draft/wait:50") == Policy("draft/wait:50", "draft", "wait", 50.0)
    assert not parse("mains").power
    from outrider.errors import ConfigError

    for text in ("fast", "draft/never", "draft/wait:x", "draft/free:3", "draft/wait:-1", ""):
        with pytest.raises(ConfigError, match="no policy"):
            parse(text)
