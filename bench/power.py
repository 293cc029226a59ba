"""`bench power`: joules of a battery day, placed by the runtime's own code, over two fixed rivals.

Virtual time on the runtime's parts: `Accountant` and `Tail` count joules, `pass_shares` parts the
cloud's passes, `Governor` sets the bounds from battery and heat, and `placement.scores` chooses,
with the cloud's watts in its price (`Energy.cloud_w`), so that the joules of the whole system
count. Emulated: the clock, the link (a round trip), passes (a time by rows), the drafter (a
time a token, right with the request's own probability; after a wrong token its chain is wrong).
Placement is chosen when a request begins.

Arms, over the same day (`battery_day.py`, constructed, not recorded):
  outrider      small answers where they are allowed, cloud or drafts for the target's
  always-cloud  every answer is the target's, streamed from the cloud
  always-edge   the same texts as outrider on the device alone: the small model where it is
                allowed, else the target itself on the device (it fits, in four bits)
  two-model cloud, drafting cloud (printed, no bar)  the cloud answers with the small model where
                it is allowed, or drafts for the target beside it

System joules = device above idle + radio with tail + the cloud's share with host and cooling.
Joules of placement's own estimates never enter the figures: those come from what happened.

The scenario stands for a target of 70 billion parameters (FP8) on two H100 and a draft of one
billion (4 bits) on a laptop with 64 GB of unified memory; the sources are with the constants
below. Targets of 32 and 8 billion are printed beside it: there drafts earn little or nothing. Over
draws, every constant is multiplied by its own uniform factor from 0.5 to 1.5. Times, rows and the
device's watts are what a runtime measures, so placement knows the drawn ones; the cloud's watts
and the radio it can not measure: it goes on believing the undrawn ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from bench import harness
from bench.battery_day import Ask, Day, Segment, load
from outrider.partitioner.pace import drafted
from outrider.partitioner.placement import Objective, Score, Wants, busy_price, scores
from outrider.partitioner.power import constants
from outrider.partitioner.power.account import Accountant, Bill, Costs, Traffic, pass_shares
from outrider.partitioner.power.policy import Governor
from outrider.partitioner.power.radio import NONE, Radio
from outrider.partitioner.power.state import SHALLOW, Bounds, PowerState
from outrider.partitioner.signals import MAX_DEPTH, Energy, Knots, Pace, PeerSignals, Signals

DRAWS = 200
QUICK_DRAWS = 24
SPREAD = 0.5
BAR = 0.8
DEADLINES = 0.95
HINT_BYTES, COMMIT_BYTES = 160, 200
"""A message of eight slots with gRPC, TLS and TCP around it, and one that comes down."""
TOKEN_BYTES = 4
ACK_EVERY = 16
WINDOW_S = 30.0
"""A link that is away is looked for this often at the least."""
Where = Literal["edge", "cloud", "draft", "target", "small-cloud", "cloud-drafts"]


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is drawn. Milliseconds, watts, joules, bytes."""

    step_ms: float = 26.0
    """Of a pass with one row for each answer: 70 GB of weights at 2 x 3.35 TB/s (NVIDIA, H100
    data sheet), 60 % of it reached, with collectives and launches."""
    row_ms: float = 0.14
    """Each row: 140 GFLOP at half of 2 x 990 TFLOP/s (same source)."""
    prefill_ms: float = 0.14
    """A prompt token at the cloud: the same arithmetic."""
    small_step_ms: float = 3.0
    """Of a small model at the cloud, launches above all."""
    draft_ms: float = 7.0
    """0.75 GB at 200 GB/s (Apple, M2 Pro), half of it reached."""
    draft_prefill_ms: float = 0.6
    """A prompt token: 2 GFLOP at 3.5 TFLOP/s."""
    target_ms: float = 270.0
    """A token of the target on the device: 40 GB at 200 GB/s, three quarters of it reached."""
    target_prefill_ms: float = 40.0
    """140 GFLOP at 3.5 TFLOP/s."""
    others: float = 1.0
    """Times the day's number of other answers in a pass."""
    device_w: float = field(default_factory=lambda: constants.busy_w("laptop"))
    cloud_w: float = field(default_factory=lambda: 2 * constants.cloud_w("cuda"))
    """Of all accelerators of a pass."""
    cellular: Radio = field(default_factory=lambda: constants.radio("cellular"))
    wifi: Radio = field(default_factory=lambda: constants.radio("wifi"))

    def radio(self, kind: str) -> Radio:
        return {"cellular": self.cellular, "wifi": self.wifi}.get(kind, NONE)

    def pass_ms(self, rows: float) -> float:
        return self.step_ms + self.row_ms * rows


OTHERS: Mapping[str, World] = {
    "32b": World(
        step_ms=14.0, row_ms=0.12, prefill_ms=0.12, target_ms=120.0, target_prefill_ms=18.0,
        cloud_w=constants.cloud_w("cuda"),
    ),
    "8b": World(
        step_ms=7.0, row_ms=0.03, prefill_ms=0.03, target_ms=32.0, target_prefill_ms=4.6,
        cloud_w=constants.cloud_w("cuda"),
    ),
}  # fmt: skip
"""Smaller targets on one H100, by the same arithmetic."""
CLOUD_DRAFTS = 4
"""Depth at which a cloud with its own draft model drafts."""
THIN_S = 0.1
"""Messages closer than this keep the radio awake as one; shorter than any tail that is drawn."""

DRAWN = (
    "step_ms", "row_ms", "prefill_ms", "small_step_ms", "draft_ms", "draft_prefill_ms",
    "target_ms", "target_prefill_ms", "others", "device_w", "cloud_w",
)  # fmt: skip
DRAWN_RADIO = ("up_j_per_byte", "down_j_per_byte", "tail_w", "tail_s", "wake_j")


def draw(rng: np.random.Generator) -> World:
    """One world within the spread."""

    def times(value: float) -> float:
        return value * float(rng.uniform(1 - SPREAD, 1 + SPREAD))

    def drawn(radio: Radio) -> Radio:
        return Radio(radio.name, *(times(getattr(radio, name)) for name in DRAWN_RADIO))

    base = World()
    changed = {name: times(getattr(base, name)) for name in DRAWN}
    return replace(base, **changed, cellular=drawn(base.cellular), wifi=drawn(base.wifi))


# --- what a request does -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Happened:
    """One request under one placement: what is told to the accountant, and when."""

    ask: Ask
    where: Where
    finish: float
    busy_s: float = 0.0
    drafted: int = 0
    accepted: int = 0
    touches: tuple[float, ...] = ()
    """When a message passed, and so woke or held the radio."""
    up: int = 0
    down: int = 0
    cloud_s: float = 0.0
    """Seconds of the cloud's accelerator that are its share."""

    @property
    def in_time(self) -> bool:
        return self.finish <= self.ask.at + self.ask.due_s


def on_device(world: World, ask: Ask, begin: float, where: Where) -> Happened:
    """The small model alone, or the target on the device."""
    token, prompt = world.draft_ms, world.draft_prefill_ms
    if where == "target":
        token, prompt = world.target_ms, world.target_prefill_ms
    busy_s = (prompt * ask.prompt + token * ask.tokens) / 1e3
    return Happened(ask, where, begin + busy_s, busy_s)


def plain(world: World, ask: Ask, begin: float, part: Segment, where: Where) -> Happened:
    """Streamed from the cloud, a token a pass."""
    others = _others(world, part)
    step_ms = world.pass_ms(1 + others) if where == "cloud" else world.small_step_ms
    common_ms = step_ms
    half_s = part.rtt_ms / 2e3
    prompt_ms = world.prefill_ms * ask.prompt * (1.0 if where == "cloud" else 1 / 32)
    start = begin + half_s + prompt_ms / 1e3
    touches = [begin, *(start + half_s + n * step_ms / 1e3 for n in range(1, ask.tokens + 1))]
    share = pass_shares(step_ms, common_ms, [1] * (1 + others))[0]
    return Happened(
        ask,
        where,
        touches[-1],
        touches=_thin(touches),
        up=ask.prompt * TOKEN_BYTES + HINT_BYTES * (1 + ask.tokens // ACK_EVERY),
        down=COMMIT_BYTES * ask.tokens,
        cloud_s=(prompt_ms + share * ask.tokens) / 1e3,
    )


def _thin(touches: Sequence[float]) -> tuple[float, ...]:
    """The first, the last, and enough between that no gap grows beyond `THIN_S` by leaving off."""
    kept = [touches[0]]
    for before, at in zip(touches, touches[1:], strict=False):
        if at - kept[-1] > THIN_S and before > kept[-1]:
            kept.append(before)
    return tuple([*kept, touches[-1]])


def cloud_drafts(world: World, ask: Ask, begin: float, part: Segment) -> Happened:
    """A cloud that hosts the draft model too, and drafts for all of its answers."""
    base = plain(world, ask, begin, part, "cloud")
    answers = 1 + _others(world, part)
    tokens = 1.0 + sum(ask.holds**depth for depth in range(1, CLOUD_DRAFTS + 1))
    rows = answers * (1 + CLOUD_DRAFTS)
    pass_ms = world.pass_ms(rows) + CLOUD_DRAFTS * world.small_step_ms
    passes = math.ceil(ask.tokens / tokens)
    start = begin + part.rtt_ms / 1e3 + world.prefill_ms * ask.prompt / 1e3
    touches = [begin, *(start + n * pass_ms / 1e3 for n in range(1, passes + 1))]
    return replace(
        base,
        finish=touches[-1],
        touches=_thin(touches),
        down=COMMIT_BYTES * passes,
        cloud_s=(world.prefill_ms * ask.prompt + pass_ms / answers * passes) / 1e3,
    )


def _others(world: World, part: Segment) -> int:
    return max(0, round(part.others * world.others))


@dataclass(slots=True)
class _Chain:
    """What the device has drafted since the last divergence, and when it arrives at the cloud.

    Tokens from `base` on; a token waits for the one before it, and for the committed tokens
    `depth` behind it to be seen. After a token that is not the target's the rest is stale.
    """

    wrong: Sequence[int]
    """At each position the next one, itself included, at which the drafter errs."""
    each_s: float
    half_s: float
    depth: int
    base: int = 0
    free_at: float = 0.0
    """When the drafter is done with the last one."""
    arrived: list[float] = field(default_factory=list)

    def restart(self, base: int, now: float) -> None:
        self.base, self.free_at = base, max(now, self.free_at)
        self.arrived.clear()

    def grow(self, seen: int, until: float, begin: float) -> int:
        """Draft what fits by `until` with `seen` tokens known since `begin`; how many."""
        count = 0
        while self.base + len(self.arrived) < seen + self.depth:
            done = max(self.free_at, begin) + self.each_s
            if done > until:
                break
            self.free_at = done
            self.arrived.append(done + self.half_s)
            count += 1
        return count

    def broken(self, end: int) -> bool:
        """Whether committed tokens up to `end` differ from it, or it is behind them."""
        stop = self.base + len(self.arrived)
        return stop <= end or self.wrong[self.base] < end

    def waiting(self, at: int, now: float, most: int) -> int:
        """Hint rows from position `at` that are at the cloud."""
        offset = at - self.base
        if offset < 0 or self.wrong[self.base] < at:
            return 0
        return sum(1 for when in self.arrived[offset : offset + most] if when <= now)


def _next_wrong(right: Sequence[bool]) -> list[int]:
    found, last = [0] * len(right), len(right)
    for place in range(len(right) - 1, -1, -1):
        last = last if right[place] else place
        found[place] = last
    return found


def with_drafts(
    world: World, ask: Ask, begin: float, part: Segment, depth: int, most: int
) -> Happened:
    """The cloud goes on by itself; hints that are there in time go along in its passes."""
    rng = np.random.default_rng(int(ask.at * 1e3))
    right = (rng.random(ask.tokens + 64) < ask.holds).tolist()
    others, half_s = _others(world, part), part.rtt_ms / 2e3
    prompt_ms = world.prefill_ms * ask.prompt
    now = begin + half_s + prompt_ms / 1e3
    own_prefill_s = world.draft_prefill_ms * ask.prompt / 1e3
    wrong = _next_wrong(right)
    chain = _Chain(wrong, world.draft_ms / 1e3, half_s, depth, free_at=begin + own_prefill_s)
    touches, at, seen, known = [begin], 0, 0, begin
    drafts = accepted = sent = passes = 0
    cloud_ms = prompt_ms
    news: list[tuple[float, int]] = []
    """(when the device learns it, committed tokens then)."""
    while at < ask.tokens:
        while news and news[0][0] <= now:
            when, end = news.pop(0)
            drafts += chain.grow(seen, when, known)
            seen, known = end, when
            if chain.broken(end):
                chain.restart(end, when)
        drafts += chain.grow(seen, now, known)
        hints = chain.waiting(at, now, min(most, ask.tokens - at - 1))
        step_ms = world.pass_ms(1 + others + hints)
        shares = pass_shares(step_ms, world.pass_ms(1 + others), [1 + hints, *([1] * others)])
        cloud_ms += shares[0]
        held = min(hints, wrong[at] - at)
        accepted += held
        at += held + 1
        now += step_ms / 1e3
        passes += 1
        news.append((now + half_s, at))
        touches += [now + half_s] + ([now] if hints else [])
        sent += 1 if hints else 0
    busy_s = drafts * world.draft_ms / 1e3 + own_prefill_s
    return Happened(
        ask,
        "draft",
        now + half_s,
        busy_s,
        drafts,
        accepted,
        _thin(sorted(touches)),
        up=ask.prompt * TOKEN_BYTES + HINT_BYTES * (sent + 1 + ask.tokens // ACK_EVERY),
        down=COMMIT_BYTES * passes,
        cloud_s=cloud_ms / 1e3,
    )


# --- policies ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Laptop:
    """Battery and heat over the day, by what the runtime's own requests draw on top of the rest."""

    at: float
    wh: float = 66.0
    celsius: float = 40.0
    busy_until: float = 0.0
    governor: Governor = field(default_factory=Governor)
    lowest: float = 1.0
    CAPACITY_WH = 66.0
    BASE_W = 7.0
    """Screen and all else, at light use."""
    CHARGE_W = 50.0
    LIMIT_C = 95.0
    RISE_C_PER_W = 2.2
    SINK_S = 60.0
    """Time constant of the heat sink."""

    def advance(self, to: float, part: Segment, watts: float) -> None:
        """Time passes with so many watts of requests."""
        span = max(0.0, to - self.at)
        drawn = (self.BASE_W + watts) * span / 3600.0
        gained = self.CHARGE_W * span / 3600.0 if part.charger else 0.0
        self.wh = min(self.CAPACITY_WH, max(0.0, self.wh - drawn + gained))
        goal = part.air_c + 15.0 + self.RISE_C_PER_W * watts
        self.celsius += (goal - self.celsius) * (1 - math.exp(-span / self.SINK_S))
        self.at = max(self.at, to)
        self.lowest = min(self.lowest, self.wh / self.CAPACITY_WH)

    def bounds(self, part: Segment) -> Bounds:
        level = self.wh / self.CAPACITY_WH
        return self.governor.step(
            PowerState(
                self.at,
                "ac" if part.charger else "battery",
                level,
                part.charger and level < 0.99,
                temperature_c=self.celsius,
                limit_c=self.LIMIT_C,
                zone="cpu",
            )
        )


Policy = Callable[[World, "Laptop", Ask, Segment, float], tuple[Where, int, int]]
"""(where, depth, hint rows of a pass at most) for a request that begins now."""


def always(where: Where, small: Where | None = None) -> Policy:
    def choose(
        world: World, laptop: Laptop, ask: Ask, part: Segment, begin: float
    ) -> tuple[Where, int, int]:
        return (small if small is not None and ask.small_allowed else where), 0, 0

    return choose


@dataclass(slots=True)
class Chooser:
    """The runtime's scores; `believed` holds what it can not measure. It learns how far off its
    prediction of a drafted token's time was, as the runtime does (`signals.Pace`)."""

    believed: World = field(default_factory=World)
    objective: Objective = field(default_factory=Objective)
    pace: Pace = field(default_factory=Pace)
    predicted_ms: float = 0.0
    """Of the answer that was drafted last."""

    def __call__(
        self, world: World, laptop: Laptop, ask: Ask, part: Segment, begin: float
    ) -> tuple[Where, int, int]:
        bounds = laptop.bounds(part)
        signals = self._signals(world, laptop, ask, part, bounds, begin)
        wants = Wants(small_allowed=ask.small_allowed, prompt=ask.prompt, remaining=ask.tokens)
        best = self._best(scores(signals, wants, self.objective), bounds, part, ask)
        where: Where = "cloud"
        if best is not None and best.placement in ("edge", "draft"):
            where = "edge" if best.placement == "edge" else "draft"
        depth, most = self._depth(signals, bounds) if where == "draft" else (0, 0)
        return where, depth, most

    def learn(self, world: World, happened: Happened, begin: float) -> None:
        """An answer that was drafted has ended."""
        if happened.where != "draft":
            return
        prompt_s = (world.prefill_ms * happened.ask.prompt) / 1e3
        took_ms = (happened.finish - begin - prompt_s) * 1e3 / happened.ask.tokens
        weight = happened.ask.tokens / 32
        self.pace.note(took_ms / self.predicted_ms, happened.finish, weight)

    def _best(
        self, found: Sequence[Score], bounds: Bounds, part: Segment, ask: Ask
    ) -> Score | None:
        possible = [s for s in found if s.possible]
        if bounds.compute == "avoid" and part.reachable:
            possible = [s for s in possible if s.placement != "edge"]
        return min(possible, key=lambda s: s.total, default=None)

    def _depth(self, signals: Signals, bounds: Bounds) -> tuple[int, int]:
        """As placement prices it."""
        cap = SHALLOW if bounds.draft == "shallow" else MAX_DEPTH
        peer = signals.peers[0]
        price = busy_price(signals.energy, peer, self.objective)
        found = drafted(peer, signals.rates, signals.draft, cap, price)
        self.predicted_ms = found.ms
        return found.depth, max(1, min(7, found.depth))

    def _signals(
        self, world: World, laptop: Laptop, ask: Ask, part: Segment, bounds: Bounds, begin: float
    ) -> Signals:
        others = _others(world, part)
        knots: Knots = tuple(
            (float(1 + others + hints), world.pass_ms(1 + others + hints)) for hints in range(8)
        )
        cloud = PeerSignals(
            "cloud",
            reachable=part.reachable,
            why="" if part.reachable else "no link",
            step=knots,
            rows=1.0 + others,
            prefill_ms=world.prefill_ms,
            rtt_ms=part.rtt_ms,
            drafted=self.pace.bias(begin),
        )
        energy = Energy(
            draft_w=world.device_w,
            stream_w=self.believed.radio(part.radio).tail_w,
            cloud_w=self.believed.cloud_w,
        )
        rates = (ask.holds,) * 16
        bursts = ((1.0, world.draft_ms), (8.0, 8 * world.draft_ms))
        return Signals(begin, rates, rates, rates, 64.0, bursts, "", (cloud,), bounds, energy)


# --- a day -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    """One arm's day."""

    joules: float = 0.0
    device_j: float = 0.0
    radio_j: float = 0.0
    cloud_j: float = 0.0
    wasted_j: float = 0.0
    met: int = 0
    asked: int = 0
    tokens: int = 0
    lowest: float = 1.0
    where: dict[str, int] = field(default_factory=dict)

    @property
    def deadlines(self) -> float:
        return self.met / self.asked

    @property
    def own_j(self) -> float:
        """What the laptop itself pays."""
        return self.device_j + self.radio_j

    def take(self, bill: Bill, happened: Happened) -> None:
        self.joules += bill.joules or 0.0
        self.device_j += bill.parts.device_j
        self.radio_j += bill.parts.radio_j
        self.cloud_j += bill.parts.cloud_j
        self.wasted_j += bill.wasted_j
        self.met += happened.in_time
        self.asked += 1
        self.tokens += happened.ask.tokens
        self.where[happened.where] = self.where.get(happened.where, 0) + 1


def live(day: Day, world: World, policy: Policy, hold: Callable[[Ask], float]) -> Result:
    """The whole day under one policy."""
    laptop = Laptop(day.segments[0].start)
    done: list[Happened] = []
    watts_s = 0.0
    for ask in day.asks:
        part = day.segment(ask.at)
        span = max(1.0, ask.at - laptop.at)
        laptop.advance(ask.at, part, watts_s / span)
        happened = _one(day, world, laptop, policy, ask, hold(ask))
        if isinstance(policy, Chooser):
            policy.learn(world, happened, hold(ask))
        watts_s = happened.busy_s * world.device_w
        done.append(happened)
    result = _settle(day, world, done)
    result.lowest = laptop.lowest
    return result


def _one(
    day: Day, world: World, laptop: Laptop, policy: Policy, ask: Ask, begin: float
) -> Happened:
    part = day.segment(begin)
    where, depth, most = policy(world, laptop, ask, part, begin)
    if where in ("edge", "target"):
        # The device answers one request after the other.
        happened = on_device(world, ask, max(begin, laptop.busy_until), where)
        laptop.busy_until = happened.finish
        return happened
    while not part.reachable:
        begin = part.stop
        part = day.segment(begin)
    if where == "draft":
        return with_drafts(world, ask, begin, part, depth, most)
    if where == "cloud-drafts":
        return cloud_drafts(world, ask, begin, part)
    return plain(world, ask, begin, part, where)


def _settle(day: Day, world: World, done: Sequence[Happened]) -> Result:
    """All events of the day in order of time, through the runtime's accountant."""
    energy = Accountant(Costs(world.device_w, lambda device: world.cloud_w, NONE))
    events: list[tuple[float, int, int, Happened]] = []
    for number, happened in enumerate(done):
        events += [(at, 0, number, happened) for at in happened.touches]
        events.append((happened.finish, 1, number, happened))
    for number, happened in enumerate(done):
        energy.begin(str(number), happened.where)
        energy.worked(str(number), happened.busy_s, happened.drafted)
        if happened.cloud_s:
            energy.told(str(number), happened.cloud_s * world.cloud_w, "estimated")
    result = Result()
    for at, kind, number, happened in sorted(events, key=lambda event: event[:3]):
        radio = world.radio(day.segment(at).radio)
        if radio is not energy.costs.radio:
            energy.over(radio)
        if kind == 0:
            energy.sent(str(number), at)
            continue
        traffic = Traffic(
            happened.ask.tokens, happened.up, happened.down, happened.drafted, happened.accepted
        )
        result.take(energy.finish(str(number), traffic), happened)
    return result


def at_once(ask: Ask) -> float:
    return ask.at


def later(day: Day) -> Callable[[Ask], float]:
    """The sabotage: every request waits for the next Wi-Fi with a charger, due or not."""
    good = [part for part in day.segments if part.charger and part.radio == "wifi"]

    def hold(ask: Ask) -> float:
        return next((max(ask.at, p.start) for p in good if p.stop > ask.at), ask.at)

    return hold


# --- figures -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ratios:
    cloud: float
    edge: float
    deadlines: float
    edge_deadlines: float
    """Of always-edge itself."""

    @property
    def ok(self) -> bool:
        return self.cloud <= BAR and self.edge <= BAR and self.deadlines >= DEADLINES


RIVALS: Mapping[str, Policy] = {
    "always-cloud": always("cloud"),
    "always-edge": always("target", "edge"),
}
PRINTED: Mapping[str, Policy] = {
    "two-model cloud": always("cloud", "small-cloud"),
    "drafting cloud": always("cloud-drafts"),
}


def compare(day: Day, world: World, believed: World) -> tuple[Ratios, dict[str, Result]]:
    """Ours and the rivals in one world."""
    ours = live(day, world, Chooser(believed), at_once)
    found = {name: live(day, world, policy, at_once) for name, policy in RIVALS.items()}
    ratios = Ratios(
        ours.joules / found["always-cloud"].joules,
        ours.joules / found["always-edge"].joules,
        ours.deadlines,
        found["always-edge"].deadlines,
    )
    return ratios, {"outrider": ours, **found}


def cell(name: str, found: Result) -> dict[str, Any]:
    return {
        "arm": name,
        "joules": round(found.joules, 1),
        "device": round(found.device_j, 1),
        "radio": round(found.radio_j, 1),
        "cloud": round(found.cloud_j, 1),
        "wasted": round(found.wasted_j, 1),
        "j_per_token": round(found.joules / found.tokens, 4),
        "deadlines": round(found.deadlines, 4),
        "lowest_battery": round(found.lowest, 3),
        "edge": found.where.get("edge", 0),
        "cloud_n": found.where.get("cloud", 0) + found.where.get("small-cloud", 0),
        "draft": found.where.get("draft", 0),
        "target": found.where.get("target", 0),
    }


def run(*, quick: bool, seed: int) -> Mapping[str, Any]:
    """Joules of a battery day over always-cloud and always-edge, and over draws of constants."""
    day, world = load(), World()
    ratios, arms = compare(day, world, world)
    arms |= {name: live(day, world, policy, at_once) for name, policy in PRINTED.items()}
    rng = np.random.default_rng(seed)
    count = QUICK_DRAWS if quick else DRAWS
    draws = [compare(day, draw(rng), world)[0] for _ in range(count)]
    smaller = {name: compare(day, other, other)[0] for name, other in OTHERS.items()}
    ours = arms["outrider"]
    figures = {
        "joules_over_cloud": ratios.cloud,
        "joules_over_edge": ratios.edge,
        "deadlines_met": ratios.deadlines,
        "share_of_draws_ok": _share(draws, lambda r: r.ok),
        "draws": float(count),
        "share_of_draws_under_cloud": _share(draws, lambda r: r.cloud <= BAR),
        "share_of_draws_under_edge": _share(draws, lambda r: r.edge <= BAR),
        "share_of_draws_in_time": _share(draws, lambda r: r.deadlines >= DEADLINES),
        "share_of_draws_edge_in_time": _share(draws, lambda r: r.edge_deadlines >= DEADLINES),
        **_quantiles("joules_over_cloud", [r.cloud for r in draws]),
        **_quantiles("joules_over_edge", [r.edge for r in draws]),
        "deadlines_always_cloud": arms["always-cloud"].deadlines,
        "deadlines_always_edge": arms["always-edge"].deadlines,
        "wasted_joules_share": ours.wasted_j / ours.joules,
        "battery_joules_over_cloud": ours.own_j / arms["always-cloud"].own_j,
        "battery_joules_over_edge": ours.own_j / arms["always-edge"].own_j,
        **{f"joules_over_{n.replace(' ', '_').replace('-', '_')}": ours.joules / arms[n].joules
           for n in PRINTED},
        **{f"joules_over_cloud_{name}": found.cloud for name, found in smaller.items()},
        **{f"joules_over_edge_{name}": found.edge for name, found in smaller.items()},
    }  # fmt: skip
    return {
        "cases": len(day.asks) * (len(arms) + 3 * (len(draws) + len(smaller))),
        "figures": figures,
        "controls": controls(day, world, ours),
        "cells": [cell(name, found) for name, found in arms.items()],
        "losing": _losing(arms, smaller),
        "trace": {"made": day.made, "seed": day.seed, "requests": len(day.asks)},
        "constants": {n: [c.value, c.unit, c.source] for n, c in constants.table().items()},
        "seed": seed,
    }


def _share(draws: Sequence[Ratios], holds: Callable[[Ratios], bool]) -> float:
    return sum(map(holds, draws)) / len(draws)


def _quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    low, high = np.quantile(values, (0.05, 0.95))
    return {f"{name}_p05": float(low), f"{name}_p95": float(high)}


def _losing(arms: Mapping[str, Result], smaller: Mapping[str, Ratios]) -> list[dict[str, Any]]:
    """Rivals and targets against which the bar is not reached."""
    ours = arms["outrider"].joules
    found = [(name, ours / rival.joules) for name, rival in arms.items() if name != "outrider"]
    found += [(f"always-cloud, {name} target", ratios.cloud) for name, ratios in smaller.items()]
    found += [(f"always-edge, {name} target", ratios.edge) for name, ratios in smaller.items()]
    return [{"over": name, "ratio": round(ratio, 4)} for name, ratio in found if ratio > BAR]


def _by_cellular(day: Day, world: World) -> float:
    """What the battery pays for short answers on the train: from the cloud / by itself."""
    short = [ask for ask in day.asks if ask.kind == "complete"]
    away = [ask for ask in short if day.segment(ask.at).radio == "cellular"]
    part = Day(day.made, day.seed, day.segments, away)
    cloud = live(part, world, always("cloud"), at_once)
    return cloud.own_j / live(part, world, always("edge"), at_once).own_j


def controls(day: Day, world: World, ours: Result) -> dict[str, float]:
    """Each must move what it is meant to move."""
    free = replace(world, cellular=NONE, wifi=NONE)
    freed = live(day, free, Chooser(free), at_once)
    cloud = live(day, free, RIVALS["always-cloud"], at_once)
    patient = live(day, world, Chooser(), later(day))
    unpriced = live(day, world, Chooser(objective=Objective(ms_per_joule=0.0)), at_once)
    moved = sum(abs(freed.where.get(where, 0) - count) for where, count in ours.where.items())
    return {
        "radio_joules": ours.radio_j,
        "radio_joules_when_free": freed.radio_j,
        "joules_when_radio_is_free_over_ours": freed.joules / ours.joules,
        "joules_over_cloud_when_radio_is_free": freed.joules / cloud.joules,
        "requests_moved_by_a_free_radio": float(moved),
        "battery_cloud_over_edge_by_cellular": _by_cellular(day, world),
        "battery_cloud_over_edge_by_cellular_when_radio_is_free": _by_cellular(day, free),
        "deadlines_when_deferred": patient.deadlines,
        "joules_when_deferred_over_ours": patient.joules / ours.joules,
        "joules_without_a_price_over_ours": unpriced.joules / ours.joules,
    }


if __name__ == "__main__":
    sys.exit(harness.main("power", run))
