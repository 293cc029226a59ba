"""A trigger that changes is told: why, what is expected of it, and what it brought."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from outrider.cloud.cost import StepCost
from outrider.cloud.scheduler import Scheduler, Trigger
from outrider.cloud.trigger import AGREE, TriggerWatch, Weighed
from outrider.engine import RowRule
from outrider.protocol import events
from tests.cloud.making import session
from tests.support import ask, cloud, edge, expected, run

NEAR = Weighed("wait", 20.0, 50.0, 10.0, 50.0, 0.8, 1)
FAR = Weighed("free", 90.0, 50.0, 300.0, 50.0, 0.8, 1)


@dataclass
class Told:
    """Commits of one token each, and looks as they are due, on a clock of its own."""

    watch: TriggerWatch = field(default_factory=TriggerWatch)
    now: float = 0.0

    def __call__(self, weighed: Weighed, ms: float, tokens: int) -> list[events.Decision]:
        watch, found = self.watch, []
        for _ in range(tokens):
            self.now += ms / 1e3
            found += [watch.committed(1, self.now)]
            if watch.due():
                found += [watch.look(weighed, "s", watch.commits, 7, self.now)]
        return [decision for decision in found if decision is not None]


def test_a_change_that_lasts_is_told_with_all_that_was_weighed_and_then_what_it_brought() -> None:
    told = Told()
    assert told(FAR, 50.0, 40) == [], "it was free from the start"
    made, after = told(NEAR, 20.0, 60)
    assert (made.what, made.old, made.new, made.phase) == ("trigger", "free", "wait", "made")
    assert made.predicted_gain == pytest.approx(0.6) and made.margin == pytest.approx(1.5)
    assert made.runner_up == "free" and made.binding == "none"
    assert made.cause == "hints after 300 -> 10 ms"
    assert "20.0 ms a token with waiting, 50.0 without" in made.reason
    assert made.ms_before is not None and made.observed_gain is None
    assert (after.phase, after.number) == ("measured", made.number)
    assert after.ms_after == pytest.approx(20.0) and after.observed_gain is not None
    assert 0.4 < after.observed_gain <= 0.6, "some of what went before was already fast"


def test_what_does_not_last_is_not_told() -> None:
    told = Told()
    for _ in range(10):
        assert told(NEAR, 30.0, 4 * (AGREE - 1)) == []
        assert told(FAR, 30.0, 4) == []


def test_in_company_the_bound_is_named_and_no_gain_is_made_up() -> None:
    made = Told()(replace(NEAR, sharing=3), 20.0, 16)[0]
    assert made.predicted_gain is None and made.margin is None
    assert made.binding.startswith("wait:") and "3 answers share" in made.reason


def test_only_auto_is_weighed_and_only_with_a_device_that_hints() -> None:
    cost = StepCost(RowRule())
    for rows, ms in ((1, 50.0), (8, 60.0)):
        cost.note(rows, ms)
    choice = session().choices[0]
    assert Scheduler(cost).weighed(choice, 1) is None
    choice.lag_s = 0.005
    weighed = Scheduler(cost).weighed(choice, 1)
    assert weighed is not None and weighed.mode == "wait" and weighed.wait_ms < weighed.free_ms
    choice.lag_s = 5.0
    far = Scheduler(cost).weighed(choice, 1)
    assert far is not None and far.mode == "free"
    assert Scheduler(cost, Trigger("free")).weighed(choice, 1) is None


def test_a_cloud_tells_that_it_waits_for_a_good_drafter(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            cost = c.verifier.scheduler.cost
            for rows in range(1, 9):
                for _ in range(200):
                    cost.note(rows, 40.0 + rows)
            request = ask(max_tokens=160, placement="draft")
            c.verifier.scheduler.cost = Frozen(cost)  # type: ignore[assignment]
            found = await e.answer(request)
            assert found.ids() == expected(request)
            decisions = [d for d in c.published if isinstance(d, events.Decision)]
            made = next(d for d in decisions if d.what == "trigger")
            assert (made.old, made.new) == ("free", "wait") and made.request
            assert any(d.phase == "measured" and d.number == made.number for d in decisions)

    run(main())


class Frozen:
    """A target that is slow by what it is believed to cost."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost

    def note(self, rows: int, ms: float) -> None:
        pass

    def ms(self, rows: int) -> float:
        return self._cost.ms(rows)
