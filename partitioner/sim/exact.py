"""The exact mode: every pass, every message and every drafted token is an event.

Decisions are those of the runtime's own code: the cloud's scheduler and hint windows (behind
`Committer`), and the device's placement policy, meters and power policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outrider.partitioner.sim import setup as setups
from outrider.partitioner.sim import trace as traces
from outrider.partitioner.sim.cloud import Cloud
from outrider.partitioner.sim.committer import Committer
from outrider.partitioner.sim.device import Device
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.result import Outcome, Served
from outrider.partitioner.sim.setup import CloudSetup, World
from outrider.partitioner.sim.trace import Ask, Change, Trace

LONGEST = 4.0
"""A run ends after so many times the trace's length, plus `LEAST_S`, with whatever is unserved."""
LEAST_S = 600.0

Make = Callable[[CloudSetup, Policy], Committer]


@dataclass(slots=True)
class Fleet:
    """All that lives in one run."""

    env: Any
    clouds: list[Cloud]
    devices: list[Device]
    served: list[Served]


def simulate(trace: Trace, world: World, policy: Policy, make: Make, *, seed: int = 0) -> Outcome:
    """Run a trace to the end of its last answer. Raises ConfigError, InvalidProfile."""
    traces.check(trace)
    setups.check(world)
    fleet = _fleet(trace, world, policy, make, seed)
    fleet.env.process(_happen(fleet, _moments(trace)))
    limit = trace.seconds * LONGEST + LEAST_S
    while len(fleet.served) < len(trace.asks) and fleet.env.peek() <= limit:
        fleet.env.step()
    return Outcome(
        trace.name,
        policy.name,
        "exact",
        len(trace.devices),
        max((one.at_s + one.latency_s for one in fleet.served), default=0.0),
        sorted(fleet.served, key=lambda one: one.ask),
        len(trace.asks) - len(fleet.served),
        [cloud.use for cloud in fleet.clouds],
        world.cloud.dollars_per_hour,
        sum(device.events for device in fleet.devices),
    )


def _fleet(trace: Trace, world: World, policy: Policy, make: Make, seed: int) -> Fleet:
    import simpy

    env: Any = simpy.Environment()
    clouds = [
        Cloud(env, world.cloud, make(world.cloud, policy), np.random.default_rng((seed, 1, i)))
        for i in range(world.clouds)
    ]
    for cloud in clouds:
        cloud.start()
    served: list[Served] = []

    def route() -> Cloud:
        return min(clouds, key=lambda cloud: len(cloud.guests))

    devices = [
        Device(
            env, number, rider, world.gear(rider.gear), world, policy, route, served,
            np.random.default_rng((seed, 2, number)), seed,
        )
        for number, rider in enumerate(trace.devices)
    ]  # fmt: skip
    return Fleet(env, clouds, devices, served)


Moment = tuple[float, int, Ask | Change]


def _moments(trace: Trace) -> list[Moment]:
    """Asks with their numbers and changes, in order of time; a change comes first."""
    changes: list[Moment] = [(change.at_s, -1, change) for change in trace.changes]
    asks: list[Moment] = [(ask.at_s, number, ask) for number, ask in enumerate(trace.asks)]
    return sorted([*changes, *asks], key=lambda moment: moment[:2])


def _happen(fleet: Fleet, moments: Sequence[Moment]) -> Any:
    for at_s, number, what in moments:
        if at_s > fleet.env.now:
            yield fleet.env.timeout(at_s - fleet.env.now)
        if isinstance(what, Ask):
            fleet.devices[what.device].ask(number, what)
        else:
            for device in fleet.devices if what.device < 0 else [fleet.devices[what.device]]:
                device.change(what)
