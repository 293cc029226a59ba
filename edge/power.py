"""The watcher: polls the machine's readers off the event loop, and holds what follows from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from outrider.options import EdgeOptions
from outrider.partitioner.power import constants
from outrider.partitioner.power.account import Accountant, Costs
from outrider.partitioner.power.machine import Machine, here
from outrider.partitioner.power.meter import Meter, Poll
from outrider.partitioner.power.policy import Governor, Policy
from outrider.partitioner.power.radio import Radio
from outrider.partitioner.power.reading import SensorError
from outrider.partitioner.power.share import Share, ticks
from outrider.partitioner.power.state import Bounds, PowerState
from outrider.protocol import events
from outrider.protocol.energy import (
    AbsentStatus,
    DrawStatus,
    HeatStatus,
    PlacementEnergy,
    PowerStatus,
)

BUSY_S = 1.0
"""Between two looks while requests run."""
IDLE_S = 5.0
RADIO_S = 30.0
"""Between two looks at what the default route goes over."""


def accountant(options: EdgeOptions, machine: Machine | None = None) -> Accountant:
    """With the estimates that fit this machine, until its counters say better."""
    found = machine or here()
    return Accountant(Costs(constants.busy_w(found.kind()), radio=_radio(options, found)))


def policy_of(options: EdgeOptions) -> Policy:
    return Policy(options.power, options.battery_floor, options.watt_cap)


def _radio(options: EdgeOptions, machine: Machine) -> Radio:
    """None to a cloud on this very machine."""
    local = all(cloud.loopback for cloud in options.clouds)
    return constants.radio("none" if local else machine.radio())


@dataclass(slots=True)
class PowerWatch:
    """`state` and `bounds` are the latest; reading them costs nothing."""

    options: EdgeOptions
    energy: Accountant
    publish: Callable[[events.Event], None]
    clock: Callable[[], float]
    busy: Callable[[], bool] = lambda: True
    """Whether requests run, so that it looks more often."""
    machine: Machine = field(default_factory=here)
    governor: Governor = field(init=False)
    poll: Poll = field(default_factory=lambda: Poll(PowerState(at_s=0.0)))
    troubles: list[str] = field(default_factory=list)
    _meter: Meter | None = None
    _share: Share = field(init=False)
    _radio_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.governor = Governor(policy_of(self.options))
        self._share = Share(self.machine.tree, per_second=ticks())

    @property
    def state(self) -> PowerState:
        return self.poll.state

    @property
    def bounds(self) -> Bounds:
        return self.governor.bounds

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(BUSY_S if self.busy() else IDLE_S)

    async def look(self) -> None:
        """Read everything once, and draw the conclusions."""
        now = self.clock()
        poll, own, radio = await asyncio.to_thread(self._read, now)
        self.poll = poll
        for problem in poll.problems:
            self._tell(problem)
        if radio is not None and radio != self.energy.costs.radio:
            self.energy.over(radio)
        if (counted := poll.counted) is not None:
            self.energy.counter(now, counted.joules, counted.kind, own, counted.source)
        self._govern(poll.state)

    def _read(self, now: float) -> tuple[Poll, float, Radio | None]:
        """In a thread: readers may block."""
        if self._meter is None:
            on_gpu = self.options.draft_device.startswith("cuda")
            self._meter = self.machine.meter("gpu" if on_gpu else "cpu")
        radio = None
        if now - self._radio_at >= RADIO_S:
            self._radio_at, radio = now, _radio(self.options, self.machine)
        return self._meter.poll(now), self._share.since_last(), radio

    def _tell(self, problem: SensorError) -> None:
        """Once for each sensor; the meter sees to that."""
        self.troubles.append(problem.what)
        self.publish(events.Trouble(code=problem.code, what=f"{problem.what}: {problem.why}"))

    def _govern(self, state: PowerState) -> None:
        old = self.bounds
        new = self.governor.step(state)
        if new.draft == old.draft and new.compute == old.compute:
            return
        self.publish(
            events.Decision(
                request="",
                what="drafting",
                old=old.draft,
                new=new.draft,
                reason=new.reason or "power and heat leave room again",
                cause=new.reason or "power and heat leave room again",
                binding="power",
            )
        )

    # --- for people -------------------------------------------------------------------------

    def status(self) -> PowerStatus:
        state, bounds, policy = self.state, self.bounds, self.governor.policy
        counted = self.poll.counted
        return PowerStatus(
            supply=state.supply,
            battery=state.battery,
            charging=state.charging,
            profile=state.profile,
            watts=state.watts,
            watts_kind=state.watts_kind,
            watts_source=state.watts_source,
            idle_watts=self.energy.idle_w,
            accounted_by=counted.source if counted is not None else "",
            temperature_c=state.temperature_c,
            limit_c=state.limit_c,
            zone=state.zone,
            throttled=state.throttled,
            radio=self.energy.costs.radio.name,
            policy=policy.choice,
            battery_floor=policy.battery_floor,
            watt_cap=policy.watt_cap,
            draft=bounds.draft,
            compute=bounds.compute,
            reason=bounds.reason,
            draws=tuple(DrawStatus(d.source, w, d.kind, d.scope) for d, w in self.poll.watts),
            heats=tuple(HeatStatus(h.source, h.celsius, h.limit_c) for h in self.poll.heats),
            absent=self._absent(),
            troubles=tuple(self.troubles),
            placements=per_placement(self.energy),
        )

    def _absent(self) -> tuple[AbsentStatus, ...]:
        absent = self._meter.absent if self._meter is not None else ()
        return tuple(AbsentStatus(one.name, one.looked, one.why) for one in absent)


def per_placement(energy: Accountant) -> tuple[PlacementEnergy, ...]:
    return tuple(
        PlacementEnergy(
            placement=placement,
            joules_per_token=found.joules_per_token,
            device=found.parts.device_j,
            radio=found.parts.radio_j,
            cloud=found.parts.cloud_j,
            kind=found.kind,
            tokens=found.tokens,
            joules=found.joules,
            wasted_j=found.wasted_j,
        )
        for placement, found in sorted(energy.per_token().items())
    )
