"""One answer's steering: every decision has its reason and later what it brought."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields, replace
from typing import Any

from outrider.partitioner.book import Heard
from outrider.partitioner.placement import Objective, Rules, Wants
from outrider.partitioner.power.state import SHALLOW, Bounds
from outrider.partitioner.signals import MAX_DEPTH, Energy
from outrider.partitioner.sim.steer import CLOUD, MODEL, Here
from outrider.partitioner.steering import Steering
from outrider.protocol import events


@dataclass
class World:
    """A device in virtual time whose committer says a token every `step_ms`."""

    now: float = 0.0
    rtt_ms: float = 5.0
    step_ms: float = 50.0
    bounds: Bounds = field(default_factory=Bounds)
    watts: float = 6.0
    holds: float = 1.0
    """P(the next draft token holds)."""
    dice: random.Random = field(default_factory=lambda: random.Random(5))
    told: list[events.Decision] = field(default_factory=list)

    def host(self) -> Here:
        here = Here(
            clock=lambda: self.now,
            rtt_ms=lambda: self.rtt_ms,
            reachable=lambda: True,
            power=lambda: self.bounds,
            energy=lambda: Energy(draft_w=self.watts),
            rules=Rules(probes=False),
        )
        return Telling(**{f.name: getattr(here, f.name) for f in fields(here)}, into=self)

    def ride(self, steering: Steering, tokens: int, ms: float) -> None:
        """Commits of two tokens, drafted ahead."""
        for _ in range(tokens // 2):
            self.now += 2 * ms / 1e3
            steering.burst(4, 8.0, 8.0)
            held = next((n for n in range(4) if self.dice.random() >= self.holds), 4)
            steering.acceptance.follow(held, 0, broke=held < 4)
            drafted = steering.drafts
            steering.heard(Heard(2, 1 + 3 * drafted, 3 * drafted, self.step_ms, 6))
            if steering.due():
                steering.look(Wants(committed=steering.committed, remaining=500))

    def of(self, what: str) -> list[events.Decision]:
        return [decision for decision in self.told if decision.what == what]


@dataclass(slots=True)
class Telling(Here):
    """Keeps what it is told."""

    into: World = field(default_factory=World)

    def tell(self, decision: events.Decision) -> None:
        self.into.told.append(decision)


def begun(world: World, **changes: Any) -> Steering:
    host = world.host()
    host.objective = changes.get("objective", Objective())
    steering = Steering.of(host, "r", MODEL, Wants(), "draft")
    steering.begin()
    steering.opened(CLOUD, "cloud")
    return steering


def test_powers_word_on_depth_tells_what_it_costs_and_then_what_it_cost() -> None:
    world = World()
    steering = begun(world)
    world.ride(steering, 60, 25.0)
    world.bounds = Bounds(draft="shallow", reason="82 °C, near the limit of 85 °C")
    world.ride(steering, 60, 30.0)
    made, after = world.of("hint_depth")
    assert (made.old, made.new) == (str(MAX_DEPTH), str(SHALLOW))
    assert made.reason == made.cause == world.bounds.reason
    assert made.binding == f"hint_depth: {world.bounds.reason}" and made.runner_up == "cloud"
    assert made.predicted_gain is not None and made.predicted_gain <= 0.0
    assert made.margin is not None and made.scores and made.ms_before
    assert (after.phase, after.number) == ("measured", made.number)
    assert after.observed_gain is not None and after.observed_gain < 0.0
    assert after.ms_after is not None and after.ms_after > made.ms_before


def test_joules_that_bound_the_depth_are_told_once_and_not_at_every_look() -> None:
    world = World(watts=30.0, holds=0.6)
    steering = begun(world, objective=Objective(60.0))
    world.ride(steering, 400, 25.0)
    told = [d for d in world.of("hint_depth") if d.phase == "made"]
    assert len(told) == 1
    (made,) = told
    assert made.old == str(MAX_DEPTH) and int(made.new) < MAX_DEPTH
    assert "joules" in made.reason and made.binding == "hint_depth: 60 ms a joule"
    assert made.predicted_gain is not None and made.predicted_gain > 0.0


def test_a_change_of_placement_carries_all_that_was_weighed() -> None:
    world = World()
    steering = begun(world)
    world.ride(steering, 60, 25.0)
    world.bounds = Bounds(draft="off", reason="battery 18 % < floor 20 %")
    world.ride(steering, 60, 50.0)
    made, after = world.of("placement")
    assert (made.old, made.new, made.cause) == ("draft", "cloud", "battery 18 % < floor 20 %")
    assert [score.placement for score in made.scores] and made.number != 0
    assert after.number == made.number and after.observed_gain is not None
    assert after.observed_gain < 0.0 < after.ms_after  # type: ignore[operator]


def test_what_was_pinned_is_not_looked_at() -> None:
    world = World()
    steering = Steering.of(world.host(), "r", MODEL, Wants(pinned="split"), "draft")
    steering.begin()
    steering.opened("house", "split")
    assert steering.drafts and not steering.due() and steering.reason == "split was asked for"
    alone = Wants(pinned="split", drafter="there is no draft model that fits")
    assert not Steering.of(world.host(), "r", MODEL, alone, "draft").drafts
    plain = replace(alone, pinned="cloud", drafter="")
    assert not Steering.of(world.host(), "r", MODEL, plain, "draft").drafts
