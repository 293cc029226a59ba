"""A device in virtual time: its answers, its one drafter, its link, its battery."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from outrider.partitioner.book import Heard
from outrider.partitioner.power import constants
from outrider.partitioner.power.radio import Tail
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import Energy, Placement, at
from outrider.partitioner.sim.agreement import Bits
from outrider.partitioner.sim.charge import Battery
from outrider.partitioner.sim.cloud import Cloud, Guest, Told
from outrider.partitioner.sim.lane import Hint, Job, Lane
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.result import Served
from outrider.partitioner.sim.setup import Gear, World
from outrider.partitioner.sim.steer import Here, Steer, wants
from outrider.partitioner.sim.trace import Ask, Change, Rider

NOTICE_S = 2.5
"""Silence after which a stream counts as lost, as at the edge."""
RECONNECT_S = 0.5
"""From the link's being back to the next try, on average: the edge's pauses between tries."""
RETRY_S = 1.0
"""An answer that was refused comes again."""
MESSAGE_BYTES = 96
"""Of a hint or commit with its framing (bench `rtt`: 87 bytes a token up, acknowledgements
included)."""


@dataclass(slots=True)
class Link:
    """Messages of one direction keep their order."""

    rtt_ms: float
    jitter_ms: float
    random: np.random.Generator
    down_until: float = 0.0

    def way_s(self, extra_ms: float) -> float:
        spread = self.jitter_ms * self.random.standard_normal() if self.jitter_ms else 0.0
        return max(0.0, self.rtt_ms / 2 + spread / 2 + extra_ms) / 1e3


@dataclass(slots=True)
class Device:
    env: Any
    number: int
    rider: Rider
    gear: Gear
    world: World
    policy: Policy
    route: Callable[[], Cloud]
    """The cloud for a new answer."""
    served: list[Served]
    random: np.random.Generator
    seed: int
    link: Link = field(init=False)
    battery: Battery = field(init=False)
    tail: Tail = field(init=False)
    here: Here = field(init=False)
    lanes: list[Lane] = field(default_factory=list)
    energy: Energy = field(init=False)
    begun: int = 0
    events: int = 0
    _waiting: list[tuple[int, Ask, float]] = field(default_factory=list)
    _running: int = 0
    _wake: Any = None
    _drafting: bool = False
    _up: dict[int, float] = field(default_factory=dict)
    _down: dict[int, float] = field(default_factory=dict)
    """When the last message of an answer arrives: the next arrives later."""
    _at: dict[int, Cloud] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rider, gear = self.rider, self.gear
        self.link = Link(rider.rtt_ms, rider.jitter_ms, self.random)
        self.battery = Battery(gear, rider.battery, rider.supply)
        radio = constants.radio(gear.radio)
        self.tail = Tail(radio)
        self.energy = Energy.over(radio, gear.busy_w)
        self.here = Here(
            clock=lambda: float(self.env.now),
            rtt_ms=lambda: self.link.rtt_ms,
            reachable=lambda: bool(self.env.now >= self.link.down_until),
            power=self._bounds,
            energy=lambda: self.energy,
        )

    # --- what happens to it ----------------------------------------------------------------

    def ask(self, number: int, ask: Ask) -> None:
        """An answer is asked for now."""
        self._waiting.append((number, ask, self.env.now))
        self._begin()

    def change(self, change: Change) -> None:
        if change.rtt_ms is not None:
            self.link.rtt_ms = change.rtt_ms
        if change.supply is not None:
            self.battery.plug(change.supply, self.env.now)
        if change.cut_s is not None:
            self._cut(change.cut_s)

    def _begin(self) -> None:
        while self._waiting and self._running < self.world.running:
            number, ask, _ = self._waiting.pop(0)
            self._running += 1
            self._start(number, ask)

    def _start(self, number: int, ask: Ask) -> None:
        placement = ask.placement or self.policy.placement
        steer = Steer.start(self.here, ask, placement, self._no_drafter())
        rates = self.world.agreement.shifted(ask.skill)
        bits = Bits(rates, np.random.default_rng((self.seed, number)))
        lane = Lane(ask, number, bits, steer)
        self.lanes.append(lane)
        if steer.placement == "edge":
            lane.chain, lane.depth = [], ask.tokens
            self._rouse()
            return
        self._open(lane)

    # --- with a cloud ----------------------------------------------------------------------

    def _open(self, lane: Lane) -> None:
        cloud = self._at[lane.number] = self.route()
        size = lane.ask.prompt * 4 + MESSAGE_BYTES
        self._later(
            self._link_wait() + self.link.way_s(self.world.overheads.open_ms),
            lambda: self._arrive(lane, cloud),
        )
        self._radio(lane, size)

    def _arrive(self, lane: Lane, cloud: Cloud) -> None:
        send = self._sender(lane)
        ask = lane.ask
        if cloud.open(lane.number, ask.prompt, ask.tokens, lane.end, send):
            self._later(self.link.way_s(self.world.overheads.down_ms), lambda: self._opened(lane))
            return
        lane.refused += 1
        self._later(RETRY_S + self.link.rtt_ms / 1e3, lambda: self._open(lane))

    def _opened(self, lane: Lane) -> None:
        lane.reconnect()
        lane.aim(drafts=lane.steer.drafts)
        self._rouse()
        self._send(lane)

    def _sender(self, lane: Lane) -> Callable[[Told], None]:
        """Down a stream of now; what arrives after it broke is lost."""
        epoch = lane.epoch

        def send(told: Told) -> None:
            arrives = self.env.now + self.link.way_s(self.world.overheads.down_ms)
            arrives = max(arrives, self._down.get(lane.number, 0.0))
            self._down[lane.number] = arrives
            self._later(arrives - self.env.now, lambda: self._heard(lane, told, epoch))

        return send

    def _heard(self, lane: Lane, told: Told, epoch: int) -> None:
        if epoch != lane.epoch or lane.over or told.position != lane.end:
            return
        lane.commit(told.tokens, self.env.now)
        lane.wish = told.wish
        self._radio(lane, MESSAGE_BYTES, up=False)
        if told.rows:
            heard = Heard(told.tokens, told.rows, told.hint_rows, told.step_ms, told.wish)
            lane.steer.heard(heard)
        if lane.over:
            self._finish(lane, told.guest)
            return
        self._steer(lane)
        lane.aim(drafts=lane.steer.drafts)
        self._rouse()
        self._send(lane)

    def _steer(self, lane: Lane) -> None:
        if lane.steer.due():
            placement = lane.ask.placement or self.policy.placement
            lane.steer.look(wants(lane.ask, placement, lane.end, self._no_drafter()))

    def _send(self, lane: Lane) -> None:
        """Everything there is to send."""
        if lane.over or self.env.now < self.link.down_until:
            return
        ahead = self.world.cloud.ahead
        while (hint := lane.hint(ahead, drafts=lane.steer.drafts)) is not None:
            arrives = self.env.now + self.link.way_s(self.world.overheads.up_ms)
            arrives = max(arrives, self._up.get(lane.number, 0.0))
            self._up[lane.number] = arrives
            self._radio(lane, MESSAGE_BYTES)
            self._later(arrives - self.env.now, partial(self._reach, lane, hint, lane.epoch))

    def _reach(self, lane: Lane, hint: Hint, epoch: int) -> None:
        """A hint is at the cloud, if its stream still stands."""
        if epoch == lane.epoch and lane.number in self._at:
            self._at[lane.number].hear(lane.number, hint.seen, hint.base, hint.tokens)

    # --- a link that is cut ------------------------------------------------------------------

    def _cut(self, seconds: float) -> None:
        now = self.env.now
        self.link.down_until = max(self.link.down_until, now + seconds)
        for lane in [lane for lane in self.lanes if lane.steer.placement != "edge"]:
            cloud = self._at.get(lane.number)
            if cloud is None or lane.number not in cloud.guests:
                continue
            lane.epoch += 1
            epoch = lane.epoch
            self._later(NOTICE_S, partial(self._miss, cloud, lane, epoch))
            back = max(seconds, NOTICE_S) + RECONNECT_S + self.link.rtt_ms / 1e3
            self._later(back, partial(self._resume, lane, epoch))

    def _miss(self, cloud: Cloud, lane: Lane, epoch: int) -> None:
        if lane.epoch == epoch and not lane.over:
            cloud.detach(lane.number)

    def _resume(self, lane: Lane, epoch: int) -> None:
        if lane.epoch != epoch or lane.over:
            return
        lane.reconnect()
        cloud = self._at[lane.number]
        if cloud.attach(lane.number, lane.end, self._sender(lane)):
            self._opened(lane)
        else:
            self._open(lane)

    def _link_wait(self) -> float:
        return max(0.0, self.link.down_until - float(self.env.now))

    # --- the drafter -----------------------------------------------------------------------

    def _rouse(self) -> None:
        if self._drafting or not self.gear.draft:
            return
        if any(lane.wants() for lane in self.lanes):
            self._drafting = True
            self.env.process(self._draft())

    def _draft(self) -> Generator[Any, Any, None]:
        """Burst after burst for whoever wants."""
        while jobs := [Job.of(lane) for lane in self.lanes if lane.wants()]:
            began = self.env.now
            going, rows = jobs, sum(job.rows for job in jobs)
            yield self.env.timeout(self.gear.burst_ms / 1e3)
            while going:
                yield self.env.timeout(self._pass_s(rows))
                going = [job for job in going if job.step()]
                rows = len(going)
            self._drew(jobs, self.env.now - began)
        self._drafting = False

    def _pass_s(self, rows: int) -> float:
        ms = at(self.gear.draft, rows, 0.0)
        if self.gear.noise:
            ms *= math.exp(self.gear.noise * self.random.standard_normal())
        return ms / 1e3

    def _drew(self, jobs: list[Job], took_s: float) -> None:
        total = sum(job.rows + len(job.drafted) for job in jobs)
        self.battery.draw(took_s * self.gear.busy_w)
        for job in jobs:
            lane = job.lane
            share_s = took_s * (job.rows + len(job.drafted)) / total
            lane.busy_s += share_s
            lane.steer.burst(len(job.drafted), took_s * 1e3, share_s * 1e3)
            job.take()
            if lane.steer.placement == "edge":
                self._say(lane)
            elif job.want:
                self._send(lane)

    def _say(self, lane: Lane) -> None:
        """The small model's own tokens are the answer."""
        count = min(len(lane.chain), lane.ask.tokens - lane.end)
        if not count:
            return
        lane.chain = []
        lane.end += count
        now = self.env.now
        lane.first_s = now if lane.first_s is None else lane.first_s
        lane.last_s, lane.over = now, lane.end >= lane.ask.tokens
        lane.depth = 0 if lane.over else lane.ask.tokens - lane.end
        lane.steer.tokens_at["edge"] = lane.end
        if lane.over:
            self._finish(lane, None)

    # --- the end ---------------------------------------------------------------------------

    def _finish(self, lane: Lane, guest: Guest | None) -> None:
        self.lanes.remove(lane)
        self._running -= 1
        radio_j = self.tail.leave(str(lane.number)) + self.tail.radio.bytes_j(0.0, 0.0)
        self.served.append(_served(lane, guest, self.gear, radio_j, self.number))
        if guest is not None:
            lane.steer.finished(*_waits(guest))
        lane.steer.end()
        for table in (self._up, self._down, self._at):
            table.pop(lane.number, None)
        self._begin()

    # --- helpers ---------------------------------------------------------------------------

    def _bounds(self) -> Bounds:
        return self.battery.bounds(self.env.now) if self.policy.power else Bounds()

    def _no_drafter(self) -> str:
        """Why nothing can be drafted here; empty when it can."""
        return "" if self.gear.draft else "this device has no draft model"

    def _radio(self, lane: Lane, size: float, *, up: bool = True) -> None:
        lane.messages += 1
        self.tail.touch(str(lane.number), self.env.now)
        joules = self.tail.radio.bytes_j(size if up else 0.0, 0.0 if up else size)
        self.tail.owed[str(lane.number)] = self.tail.owed.get(str(lane.number), 0.0) + joules

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        self.events += 1
        event = self.env.timeout(max(0.0, seconds))
        event.callbacks.append(lambda _: work())


def _waits(guest: Guest) -> tuple[float, float]:
    """Milliseconds of queue and of prefill."""
    started = guest.started_s if guest.started_s is not None else guest.opened_s
    decoding = guest.decoding_s if guest.decoding_s is not None else started
    return (started - guest.opened_s) * 1e3, (decoding - started) * 1e3


def _served(lane: Lane, guest: Guest | None, gear: Gear, radio_j: float, device: int) -> Served:
    ask = lane.ask
    placement: Placement = lane.steer.most
    first = lane.first_s if lane.first_s is not None else lane.last_s
    return Served(
        lane.number,
        device,
        ask.at_s,
        placement,
        ask.prompt,
        lane.end,
        first - ask.at_s,
        lane.last_s - ask.at_s,
        _waits(guest)[0] / 1e3 if guest is not None else 0.0,
        guest.passes if guest is not None else 0,
        guest.hint_rows if guest is not None else 0,
        guest.held if guest is not None else 0,
        lane.busy_s * gear.busy_w,
        radio_j,
        guest.joules if guest is not None else 0.0,
        lane.steer.changes,
        lane.refused,
    )
