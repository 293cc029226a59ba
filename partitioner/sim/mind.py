"""A device's decisions in a fleet: one look at the placement an answer, by the runtime's policy.

What a device of the fleet knows is what all of its kind have learnt: the cloud's true costs,
the pair's true acceptance. Its own are the habit (where the last answer ran, how settled that
is), how far each way to answer was off what was expected, the battery and the power policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from outrider.partitioner.bandit import Budget
from outrider.partitioner.book import WINDOW, Habit
from outrider.partitioner.pace import drafted, plain_ms
from outrider.partitioner.placement import Objective, Pilot, Rules, Wants
from outrider.partitioner.power import constants
from outrider.partitioner.power.state import SHALLOW, Bounds
from outrider.partitioner.signals import (
    MAX_DEPTH,
    Bias,
    Energy,
    Knots,
    Pace,
    PeerSignals,
    Placement,
    Signals,
    at,
)
from outrider.partitioner.sim.charge import Battery
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.setup import Gear, World
from outrider.partitioner.sim.steer import CLOUD, wants
from outrider.partitioner.sim.trace import Ask, Rider

RULES = Rules(probes=False)
TRIES = 100.0
DOUBT = 0.02
"""Of an acceptance that a whole kind of devices has measured."""


@dataclass(frozen=True, slots=True)
class Load:
    """A cloud as its answers see it: fading means."""

    rows: float = 1.0
    queue_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for an answer."""

    placement: Placement
    depth: int
    changed: bool
    expected_ms: float = 0.0
    """A token, as the cost model has it; 0 where nobody asked."""


@dataclass(slots=True)
class Mind:
    rider: Rider
    gear: Gear
    rtt_ms: float
    battery: Battery = field(init=False)
    habit: Habit | None = None
    plain: Pace = field(default_factory=Pace)
    drafted: Pace = field(default_factory=Pace)
    """Measured over expected, of its own answers."""
    busy_until: float = 0.0
    """Of its own answers."""
    down_until: float = 0.0

    def __post_init__(self) -> None:
        self.battery = Battery(self.gear, self.rider.battery, self.rider.supply)

    def choose(self, ask: Ask, world: World, policy: Policy, load: Load, now: float) -> Choice:
        placement = ask.placement or policy.placement
        bounds = self.battery.bounds(now) if policy.power else Bounds()
        if placement is not None:
            return Choice(placement, MAX_DEPTH, changed=False)
        drafter = "" if self.gear.draft else "this device has no draft model"
        asked = wants(ask, None, 0, drafter)
        return self._decide(asked, self._signals(world, load, bounds, drafter, now))

    def _decide(self, asked: Wants, signals: Signals) -> Choice:
        habit = self.habit or Habit("cloud" if asked.drafter else "draft")
        pilot = Pilot.of(habit, asked, Budget(), Objective(), RULES)
        verdict = pilot.decide(signals, asked)
        self.habit = pilot.habit()
        cap = SHALLOW if signals.bounds.draft == "shallow" else MAX_DEPTH
        depth = min(cap, verdict.depth or 0)
        (peer,) = signals.peers
        expected = _expected(replace(peer, plain=NONE, drafted=NONE), signals.rates, signals.draft)
        drafts = verdict.placement == "draft"
        return Choice(verdict.placement, depth, verdict.changed, expected[drafts])

    def learn(self, chosen: Choice, tokens: int, tpot_ms: float, now: float) -> None:
        """An answer is over."""
        if chosen.expected_ms > 0.0 and tokens >= WINDOW:
            pace = self.drafted if chosen.placement == "draft" else self.plain
            pace.note(tpot_ms / chosen.expected_ms, now, tokens / WINDOW)

    def _signals(
        self, world: World, load: Load, bounds: Bounds, drafter: str, now: float
    ) -> Signals:
        rates = world.agreement.shifted(0.0)
        # A load that wavers is no news to a decision, and equal questions are asked once.
        peer = PeerSignals(
            CLOUD,
            step=world.cloud.step,
            rows=max(1.0, round(load.rows * 2.0) / 2.0),
            wait_ms=world.cloud.gap_ms,
            queue_ms=round(load.queue_ms, -1),
            prefill_ms=at(world.cloud.step, 128.0, 0.0) / 128.0,
            rtt_ms=round(self.rtt_ms),
            plain=self.plain.bias(now),
            drafted=self.drafted.bias(now),
        )
        return Signals(
            now,
            rates,
            tuple(max(0.0, rate - DOUBT) for rate in rates),
            tuple(min(0.999, rate + DOUBT) for rate in rates),
            TRIES,
            burst_knots(self.gear),
            drafter,
            (peer,),
            bounds,
            energy_of(self.gear),
        )


NONE = Bias()


@lru_cache(maxsize=8192)
def _expected(peer: PeerSignals, rates: tuple[float, ...], draft: Knots) -> tuple[float, float]:
    """ms a token without drafts, and with."""
    plain = plain_ms(peer)
    return plain, drafted(peer, rates, draft, MAX_DEPTH).ms if draft else plain


@lru_cache(maxsize=256)
def burst_knots(gear: Gear) -> Knots:
    """ms of a burst by its tokens: one pass each."""
    each = at(gear.draft, 1.0, 0.0)
    return tuple((float(n), gear.burst_ms + n * each) for n in (1, 2, 4, 8))


@lru_cache(maxsize=256)
def energy_of(gear: Gear) -> Energy:
    return Energy.over(constants.radio(gear.radio), gear.busy_w)
