"""The plan of a pass: who is in it, who is held back, and which hint rows are worth it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from outrider.cloud.cost import StepCost
from outrider.cloud.scheduler import MAX_HINT_ROWS, PREFILL_ROWS, Plan, Scheduler, Trigger, Work
from outrider.cloud.session import Choice
from outrider.engine import RowRule
from outrider.protocol.messages import Hint
from tests.cloud.making import PROMPT, session


def decoding(end: int = 4, *, max_tokens: int = 200, slot: int = 0) -> Choice:
    """A choice with `end` committed tokens, all acknowledged, filled but for the last one."""
    choice = session(committed=range(end), max_tokens=max_tokens).choices[0]
    choice.slot, choice.filled = slot, len(PROMPT) + end - 1
    choice.window.seen = end
    return choice


def hinted(choice: Choice, tokens: Sequence[int], now: float = 0.0) -> Choice:
    end = len(choice.committed)
    choice.hear(Hint(1, 0, end, end, tuple(tokens)), now)
    return choice


def cost(per_row: float, base: float = 10.0, rule: RowRule | None = None) -> StepCost:
    """`base` milliseconds for one row and `per_row` for each more."""
    made = StepCost(rule or RowRule())
    for rows in (1, 2, 4, 8, 16, 32, 64, 128):
        made.note(rows, base + per_row * (rows - 1))
    return made


def scheduler(trigger: Trigger | None = None, **changes: object) -> Scheduler:
    made = Scheduler(cost(0.1), trigger or Trigger("free"))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def hints(plan: Plan) -> list[int]:
    return [len(work.hints) for work in plan.works]


def choices(works: Sequence[Work]) -> list[Choice]:
    return [work.choice for work in works]


# --- who runs ----------------------------------------------------------------------------------


def test_every_ready_choice_has_a_row() -> None:
    ready = [decoding() for _ in range(5)]
    plan = scheduler().plan(ready, 0.0)
    assert choices(plan.works) == ready
    assert plan.rows == 5
    assert plan.held == () and plan.until is None


def test_a_reader_that_is_a_window_behind_stops_and_an_acknowledgement_lets_it_go_on() -> None:
    choice = decoding(20)
    choice.window.seen = 4
    assert scheduler(ahead=16).plan([choice], 0.0).works == ()
    choice.hear(Hint(1, 0, 5, 5, ()), 0.0)
    assert choices(scheduler(ahead=16).plan([choice], 0.0).works) == [choice]


def test_a_detached_session_does_not_run() -> None:
    choice = decoding()
    choice.session.attached = False
    assert scheduler().plan([choice], 0.0).works == ()


def test_an_ended_choice_does_not_run() -> None:
    choice = decoding()
    choice.ledger.finished = object()  # type: ignore[assignment]
    assert scheduler().plan([choice], 0.0).works == ()


def test_a_long_prompt_comes_in_chunks_beside_those_that_decode() -> None:
    long = session(tuple(range(200)) * 2).choices[0]
    long.slot = 1
    others = [decoding(), decoding()]
    seen = 0
    for _ in range(10):
        plan = scheduler().plan([*others, long], 0.0)
        chunk = next(work for work in plan.works if work.choice is long)
        assert chunk.base == seen and chunk.rows <= PREFILL_ROWS
        assert set(choices(plan.works)) == {*others, long}
        seen += chunk.rows
        if chunk.wants:
            break
        long.filled = seen
    assert seen == 400


def test_a_prompt_alone_takes_a_whole_pass() -> None:
    long = session(tuple(range(200)) * 2).choices[0]
    long.slot = 0
    plan = scheduler().plan([long], 0.0)
    assert plan.rows == 400 and plan.works[0].wants


def test_no_pass_is_larger_than_the_engine_takes() -> None:
    long = session(tuple(range(200)) * 2).choices[0]
    long.slot = 0
    ready = [hinted(decoding(), range(4, 11)) for _ in range(6)]
    assert scheduler(max_rows=16).plan([long, *ready], 0.0).rows <= 16


# --- hint rows by worth ------------------------------------------------------------------------


def test_rows_that_cost_little_are_granted() -> None:
    made = scheduler(cost=cost(0.01))
    assert hints(made.plan([hinted(decoding(), range(4, 11))], 0.0)) == [MAX_HINT_ROWS]


def test_rows_that_cost_more_than_they_bring_are_not() -> None:
    made = scheduler(cost=cost(9.9))
    assert hints(made.plan([hinted(decoding(), range(4, 11))], 0.0)) == [0]


def test_a_drafter_that_was_always_wrong_gets_no_rows_at_a_cost() -> None:
    choice = decoding()
    for _ in range(60):
        choice.window.acceptance.note(0, equal=False)
    made = scheduler(cost=cost(1.0))
    assert hints(made.plan([hinted(choice, range(4, 11))], 0.0)) == [0]


def test_the_better_drafter_gets_the_rows() -> None:
    good, bad = decoding(), decoding()
    for _ in range(40):
        for depth in range(4):
            good.window.acceptance.note(depth, equal=True)
        bad.window.acceptance.note(0, equal=False)
    plan = scheduler(cost=cost(3.0)).plan(
        [hinted(bad, range(4, 11)), hinted(good, range(4, 11))], 0.0
    )
    of_bad, of_good = hints(plan)
    assert of_good > of_bad == 0


def test_rows_that_only_fill_padding_are_free() -> None:
    steep = StepCost(RowRule(minimum=4, multiple=4))
    for rows in (4, 8, 12):
        steep.note(rows, 10.0 * rows)
    made = scheduler(cost=steep)
    assert hints(made.plan([hinted(decoding(), range(4, 11))], 0.0)) == [3]


def test_hints_never_reach_past_the_last_token_of_the_answer() -> None:
    choice = decoding(4, max_tokens=6)
    plan = scheduler(cost=cost(0.0)).plan([hinted(choice, range(4, 11))], 0.0)
    assert hints(plan) == [1]


# --- waiting for hints -------------------------------------------------------------------------


def waiting(now: float = 0.0) -> Choice:
    """It has sent hints before, and has none now; its last commit was at `now`."""
    choice = hinted(decoding(), [200], now)
    choice.settle([4], None, now)
    choice.window.seen = 5
    choice.filled += 1
    assert not choice.window.live(5) and choice.window.received
    return choice


def test_free_waits_for_nobody() -> None:
    choice = waiting()
    plan = scheduler(Trigger("free")).plan([choice], 0.0)
    assert choices(plan.works) == [choice]


def test_wait_holds_a_choice_without_hints_for_its_time() -> None:
    choice = waiting(now=1.0)
    made = scheduler(Trigger("wait", 40.0))
    plan = made.plan([choice], 1.01)
    assert plan.works == () and plan.held == (choice,)
    assert plan.until == pytest.approx(1.04)
    assert choices(made.plan([choice], 1.041).works) == [choice]


def test_a_hint_ends_the_wait() -> None:
    choice = waiting(now=1.0)
    hinted(choice, [9, 10], 1.01)
    plan = scheduler(Trigger("wait", 40.0)).plan([choice], 1.01)
    assert choices(plan.works) == [choice]


def test_a_device_that_never_hinted_is_not_waited_for() -> None:
    choice = decoding()
    plan = scheduler(Trigger("wait", 40.0)).plan([choice], 0.0)
    assert choices(plan.works) == [choice]


def test_nobody_is_passed_over_twice() -> None:
    held, busy = waiting(now=1.0), decoding()
    made = scheduler(Trigger("wait", 40.0))
    first = made.plan([held, busy], 1.0)
    assert choices(first.works) == [busy] and first.held == (held,)
    held.passed_over += 1  # what the verifier notes when the pass runs
    second = made.plan([held, busy], 1.0)
    assert set(choices(second.works)) == {held, busy}


def test_auto_waits_only_where_the_lag_is_short_against_the_step() -> None:
    quick, slow = waiting(), waiting()
    for choice, lag_s in ((quick, 0.002), (slow, 5.0)):
        choice.lag_s = lag_s
        for depth in range(7):
            for _ in range(60):
                choice.window.acceptance.note(depth, equal=True)
    made = scheduler(Trigger("auto"), cost=cost(0.1, base=50.0))
    assert made.plan([quick], 0.0).held == (quick,)
    assert choices(made.plan([slow], 0.0).works) == [slow]


def test_auto_knows_no_wait_before_it_knows_the_lag() -> None:
    choice = waiting()
    choice.lag_s = None
    assert choices(scheduler(Trigger("auto")).plan([choice], 0.0).works) == [choice]


def test_a_wait_in_vain_is_not_repeated_until_a_hint_comes() -> None:
    choice = waiting()
    choice.lag_s, choice.waited = 0.002, True
    for _ in range(60):
        choice.window.acceptance.note(0, equal=True)
    made = scheduler(Trigger("auto"), cost=cost(0.1, base=50.0))
    assert choices(made.plan([choice], 0.0).works) == [choice]
    hinted(choice, [5, 6])
    assert choice.waited is False


# --- the wish ----------------------------------------------------------------------------------


def test_the_wish_follows_what_rows_are_worth() -> None:
    choice = decoding()
    assert scheduler(cost=cost(0.0)).wish(choice) == MAX_HINT_ROWS
    assert scheduler(cost=cost(9.9)).wish(choice) == 0


def test_a_drafter_that_never_holds_is_only_probed() -> None:
    choice = decoding()
    made = scheduler(cost=cost(0.0))
    for _ in range(6):
        choice.window.acceptance.note(0, equal=False)
    assert made.wish(choice) == 0, "free rows are no reason to be sent messages"
    for _ in range(6):
        choice.window.acceptance.note(0, equal=True)
    assert made.wish(choice) > 0
