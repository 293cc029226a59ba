"""Placements change in the middle of real answers: one text, with reasons, and nothing left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outrider.edge.api.metrics import Metrics
from outrider.edge.placement import EVERY, Governor, Steering
from outrider.options import NamedModel
from outrider.partitioner.placement import Pilot, Verdict, Wants, _Probe
from outrider.partitioner.power.state import SHALLOW, Bounds
from outrider.partitioner.signals import MAX_DEPTH, Signals
from outrider.protocol import events
from outrider.protocol.stream import Done, Started, Token
from tests.support import (
    GREEDY,
    SAMPLED,
    Answered,
    EdgeUnderTest,
    ask,
    cloud,
    edge,
    expected,
    run,
    until,
)

LOW = Bounds(draft="off", compute="avoid", reason="battery 18 % < floor 20 %")


class Scripted(Pilot):
    """Takes the placements it is told, look by look, whatever was measured."""

    __slots__ = ("script",)
    script: Callable[[int], tuple[str, str]]

    def decide(self, signals: Signals, wants: Wants) -> Verdict:
        found = Pilot.decide(self, signals, replace(wants, pinned=self.placement))
        self.wants = wants
        if not wants.committed:
            return found
        placement, peer = self.script(wants.committed)
        changed = (placement, peer) != (self.placement, self.peer)
        self.placement, self.peer = placement, peer  # type: ignore[assignment]
        depth = 0 if placement == "cloud" else 8
        return replace(
            found, placement=self.placement, peer=peer, depth=depth, changed=changed, reason="told"
        )


def told(e: EdgeUnderTest, script: Callable[[int], tuple[str, str]]) -> None:
    """Answers of this daemon go where the script says."""
    governor = e.daemon.governor
    steer = Governor.steer

    def scripted(*arguments: Any) -> Steering:
        steering = steer(governor, *arguments)
        old = steering.pilot
        steering.pilot = Scripted(old.wants, old.placement, old.peer, old.budget)
        steering.pilot.script = script
        return steering

    e.daemon.governor = Steered(governor, scripted)  # type: ignore[assignment]


class Steered:
    """A governor whose answers have another pilot."""

    def __init__(self, governor: Governor, steer: Callable[..., Steering]) -> None:
        self._governor, self.steer = governor, steer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._governor, name)


def at_token(e: EdgeUnderTest, request: Any, count: int, change: Callable[[], None]) -> Any:
    """Answer, and change something once so many tokens were committed."""

    async def answer() -> Answered:
        found = Answered()
        async for event in e.daemon.generate(request):
            found.events.append(event)
            if isinstance(event, Token) and event.position == count:
                change()
        return found

    return answer()


def decisions(e: EdgeUnderTest, what: str = "placement") -> list[events.Decision]:
    return [d for d in e.kinds(events.Decision) if d.what == what and d.phase == "made"]


# --- one text ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_switches_at_random_commits_change_no_token(tmp_path: Path, sampling: Any) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            dice = random.Random(4)
            peer = e.daemon.link.peers[0].address
            told(e, lambda committed: (dice.choice(["cloud", "draft"]), peer))
            for seed in range(3):
                request = ask(sampling=sampling, n=2, max_tokens=100, seed=seed)
                found = await e.answer(request)
                found.check()
                for choice in range(2):
                    assert found.ids(choice) == expected(request, choice)
                    assert found.done(choice).exact and not found.done(choice).class_changed_at
            assert len(decisions(e)) >= 6
            assert len(c.opened()) == 3, "drafting goes on and off without a new stream"
            drafts = [hint for hint in e.kinds(events.HintSent)]
            assert drafts

    run(main())


def test_moves_between_committers_of_one_class_change_no_token(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path / "a") as a,
            cloud(tmp_path / "b") as b,
            edge(a.address, b.address) as e,
        ):
            far, house = e.daemon.link.peers
            house.kind = "split"
            dice = random.Random(5)

            def script(committed: int) -> tuple[str, str]:
                if dice.random() < 0.5:
                    return "split", house.address
                return dice.choice(["cloud", "draft"]), far.address

            told(e, script)
            await e.daemon.link.check(house)
            request = ask(n=2, max_tokens=150)
            found = await e.answer(request)
            found.check()
            for choice in range(2):
                assert found.ids(choice) == expected(request, choice)
                assert found.done(choice).exact and not found.done(choice).class_changed_at
            assert a.opened() and b.opened(), "both had it"
            assert {d.new for d in decisions(e)} >= {"split"}

    run(main())


def test_a_move_to_another_class_is_labelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path / "a") as a,
            cloud(tmp_path / "b", models=(NamedModel("t", "other"),)) as b,
            edge(a.address, b.address) as e,
        ):
            house = e.daemon.link.peers[1]
            house.kind = "split"
            await e.daemon.link.check(house)
            told(e, lambda committed: ("split", house.address))
            found = await e.answer(ask(max_tokens=80))
            found.check()
            done = found.done()
            assert done.completion_tokens == 80 and len(done.class_changed_at) == 1
            assert 0 < done.class_changed_at[0] < 80 and not done.exact
            assert b.opened() and done.placement == "split"

    run(main())


def test_a_committer_of_another_class_is_refused_where_it_must_be_exact(tmp_path: Path) -> None:
    """The policy knows it and does not go; told to go all the same, the answer stays whole."""

    async def main() -> None:
        async with (
            cloud(tmp_path / "a") as a,
            cloud(tmp_path / "b", models=(NamedModel("t", "other"),)) as b,
            edge(a.address, b.address) as e,
        ):
            house = e.daemon.link.peers[1]
            house.kind = "split"
            await e.daemon.link.check(house)
            told(e, lambda committed: ("split", house.address))
            request = ask(max_tokens=80, exact_required=True)
            found = await e.answer(request)
            found.check()
            assert found.ids() == expected(request)
            assert found.done().exact and not found.done().class_changed_at
            assert not b.opened()

    run(main())


# --- power and heat ----------------------------------------------------------------------------


def test_unplugging_the_charger_ends_drafting_at_the_next_commit(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            bounds = Bounds()
            e.daemon.governor.power = lambda: bounds

            def unplug() -> None:
                nonlocal bounds
                bounds = LOW

            request = ask(max_tokens=120)
            e.daemon.governor.rules = replace(e.daemon.governor.rules, dwell_tokens=1000)
            found = await at_token(e, request, 30, unplug)
            found.check()
            assert found.ids() == expected(request) and found.done().exact
            (made,) = decisions(e)
            assert (made.old, made.new) == ("draft", "cloud")
            assert made.reason == made.cause == "battery 18 % < floor 20 %"
            assert made.binding == "draft: battery 18 % < floor 20 %"
            later = [h for h in e.published[e.published.index(made) :] if _drafted(h)]
            # One may have been under way when it was decided.
            assert len(later) <= 1, "no draft goes up after the decision"
            # 30 was seen when the reader looked; the commit after that may be the next.
            assert made.position >= 30
            assert found.of(Started)[0].placement == "draft"
            done = found.done()
            assert (done.placement, done.decisions) == ("cloud", 1)
            assert "battery 18 % < floor 20 %" in done.placement_reason
            await until(lambda: not e.daemon.running)

    run(main())


def _drafted(event: events.Event) -> bool:
    return isinstance(event, events.HintSent) and event.tokens > 0


def test_heat_in_the_middle_keeps_drafts_shallow_from_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            bounds = Bounds()
            e.daemon.governor.power = lambda: bounds
            e.daemon.governor.rules = replace(e.daemon.governor.rules, dwell_tokens=1000)

            def heat() -> None:
                nonlocal bounds
                bounds = Bounds(draft="shallow", reason="82 °C, near the limit of 85 °C")

            request = ask(max_tokens=100)
            found = await at_token(e, request, 30, heat)
            assert found.ids() == expected(request) and found.done().exact
            heated = [d for d in decisions(e, "hint_depth") if "82 °C" in d.reason]
            (made,) = heated
            assert (made.new, made.reason) == (str(SHALLOW), "82 °C, near the limit of 85 °C")
            assert made.cause == made.reason and made.binding == f"hint_depth: {made.reason}"
            assert made.predicted_gain is not None and made.runner_up and made.margin is not None
            rest = e.published[e.published.index(made) :]
            # What was drafted before may go up yet, as far as a chain ever reaches.
            reach = made.position + MAX_DEPTH + 1
            later = [h for h in rest if isinstance(h, events.HintSent) and h.base > reach]
            assert later and max(hint.tokens for hint in later) <= SHALLOW
            assert found.done().placement == "draft"

    run(main())


def test_a_pinned_placement_stays_whatever_power_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            e.daemon.governor.power = lambda: LOW
            found = await e.answer(ask(max_tokens=40, placement="draft"))
            assert found.done().placement == "draft" and not decisions(e)
            assert found.done().placement_reason == "draft was asked for"
            assert any(map(_drafted, e.published))

    run(main())


# --- what is told ------------------------------------------------------------------------------


def test_a_change_is_followed_by_what_it_brought(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            peer = e.daemon.link.peers[0].address
            told(e, lambda committed: ("cloud" if committed > 40 else "draft", peer))
            await e.answer(ask(max_tokens=120))
            (made,) = decisions(e)
            told_after = [d for d in e.kinds(events.Decision) if d.phase == "measured"]
            (after,) = [d for d in told_after if d.what == "placement"]
            assert after.number == made.number > 0 and after.reason == made.reason
            assert made.observed_gain is None and after.observed_gain is not None
            assert after.ms_before is not None and after.ms_after is not None
            assert after.position > made.position >= 40

    run(main())


def test_status_and_metrics_show_scores_and_decisions(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            bounds = Bounds()
            e.daemon.governor.power = lambda: bounds
            assert e.daemon.status().placements == ()

            def unplug() -> None:
                nonlocal bounds
                bounds = LOW

            await at_token(e, ask(max_tokens=60), 10, unplug)
            status = e.daemon.status()
            (shown,) = status.placements
            assert (shown.model, shown.placement) == ("t", "cloud")
            by = {score.placement: score for score in shown.scores}
            assert set(by) == {"edge", "cloud", "draft", "handoff"}
            assert by["cloud"].ms is not None and by["cloud"].why == ""
            assert by["draft"].why == LOW.reason and by["handoff"].why
            assert status.decisions["placement"] >= 1
            page = Metrics().text(e.daemon).decode()
            made = status.decisions["placement"]
            assert f'outrider_decisions_total{{what="placement"}} {made}.0' in page

    run(main())


def test_metrics_count_each_decision_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            metrics = Metrics()
            e.daemon.governor.counts["placement"] = 3
            metrics.text(e.daemon)
            e.daemon.governor.counts["placement"] = 5
            page = metrics.text(e.daemon).decode()
            assert 'outrider_decisions_total{what="placement"} 5.0' in page
            assert c.verifier is not None

    run(main())


def test_a_new_request_starts_with_what_was_learnt(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            await e.answer(ask(max_tokens=60, placement="draft"))
            book = e.daemon.governor.book
            assert book.drafter("t").acceptance.tried[0] > 5.0
            meter = book.meter(str(c.address), "t")
            assert meter.step.knots() and meter.prefill.weight
            begun = e.daemon.governor.steer("r", "t", Wants(), "draft")
            assert begun.acceptance.rate(0) == pytest.approx(book.drafter("t").acceptance.rate(0))

    run(main())


def test_an_answer_without_a_drafter_runs_in_the_cloud_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, draft=None) as e:
            request = ask(max_tokens=EVERY * 6)
            found = await e.answer(request)
            assert found.ids() == expected(request)
            assert found.of(Started)[0].placement == "cloud"
            (shown,) = e.daemon.status().placements
            draft = next(score for score in shown.scores if score.placement == "draft")
            assert draft.why == "there is no draft model that fits"

    run(main())


def test_a_probe_under_way_is_over_with_its_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            budget = e.daemon.governor.book.budget
            steering = e.daemon.governor.steer("r", "t", Wants(), "draft")
            budget.begin()
            steering.pilot.probe = _Probe(0.0, 0, "cloud")
            steering.end()
            assert not budget.busy
            async with asyncio.timeout(20):
                found = await e.answer(ask(max_tokens=30))
            assert isinstance(found.events[-1], Done) and c.opened()

    run(main())


def test_a_probe_that_stays_is_told_as_a_change_of_placement(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            steering = e.daemon.governor.steer("r", "t", Wants(), "cloud")
            pilot = steering.pilot
            pilot.placement, pilot.peer = "draft", str(c.address)
            pilot.probe = _Probe(0.0, 0, "cloud")
            verdicts = iter(["draft"])

            class Ends(Pilot):
                __slots__ = ()

                def decide(self, signals: Signals, wants: Wants) -> Verdict:
                    found = Pilot.decide(self, signals, replace(wants, pinned=self.placement))
                    self.probe, self.wants = None, wants
                    return replace(found, changed=next(verdicts) == "draft", gain=0.3)

            steering.pilot = Ends(Wants(), "draft", pilot.peer, probe=pilot.probe)
            steering.look(Wants(committed=50))
            (made,) = decisions(e)
            assert (made.old, made.new, made.predicted_gain) == ("cloud", "draft", 0.3)
            assert steering.changes == 1

    run(main())
