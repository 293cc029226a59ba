"""From devices that answered to a layout: the planner's question, and its answer in layers.

What is known of a device is what it says (memory, an emulated speed), how far it is, and,
once stages ran there, how long they took; the rest is a usual processor's, so that equal
devices are planned as equal. A device's slowness is relative to that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from types import MappingProxyType

from outrider.engine import LayerRange
from outrider.errors import PlanError
from outrider.partitioner import price
from outrider.partitioner.cost import stage_s
from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.plan import Plan, Problem, Workload
from outrider.partitioner.solve import choose as planner
from outrider.stages.chain import StageTimes
from outrider.stages.replan import Chosen, Layout, Placed

HOME = "this device"
"""It commits, and holds no layers."""
FLOPS_PER_S, BYTES_PER_S, PASS_S = 5e10, 1e10, 1e-3
"""Of a usual processor."""
LINK_BYTES_PER_S = 12.5e6
"""100 Mbit/s: wireless at home, while nothing else is known."""
CONTEXT = 512.0
UNBOUNDED = 1 << 50
NOTHING = 1
"""Bytes that stages may take of the device that only commits."""


@dataclass(frozen=True, slots=True)
class Member:
    """A device that answered."""

    name: str
    memory_bytes: int | None = None
    """What stages may claim; None bounds nothing."""
    rtt_s: float = 0.0
    slowdown: float = 1.0
    """Seconds that it takes for a usual processor's one."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of devices."""

    graph: ModelGraph
    tokens: int
    """Of all slots together, for which KV is kept."""
    item: float
    """Bytes of a number, of weights and KV alike."""
    activation_bytes: float = 4.0

    @property
    def rate(self) -> Rate:
        return Rate(
            engine="auto",
            dtype="auto",
            flops_per_s=FLOPS_PER_S,
            bytes_per_s=BYTES_PER_S,
            pass_s=PASS_S,
            bytes_per_weight=self.item,
            kv_scale=self.item / 2,
            source="estimated",
        )


Ways = Mapping[tuple[str, str], LinkProfile | None]
"""Links between devices that were measured, by both names; None where there is no direct way."""
UNMEASURED: Ways = MappingProxyType({})


def choose(demand: Demand, members: Sequence[Member], ways: Ways = UNMEASURED) -> Chosen:
    """Where the layers lie best for the time of a token. Raises PlanError, naming what is missing
    where they do not fit."""
    if not members:
        raise PlanError("no device answers", effect="no stage was loaded")
    plan = planner.solve(problem(demand, members, ways))
    other = plan.runner_up.summary if plan.runner_up is not None else ""
    links = tuple(link for link in plan.links if HOME not in (link.a, link.b))
    return Chosen(layout(plan, demand.graph.decoders), plan.binding, other, links)


def neighbours(placed: Layout) -> tuple[tuple[str, str], ...]:
    """Pairs of devices between which a layout sends, each once."""
    pairs = ((a.device, b.device) for a, b in pairwise(placed) if a.device != b.device)
    return tuple(dict.fromkeys((min(pair), max(pair)) for pair in pairs))


def token_s(demand: Demand, members: Sequence[Member], ways: Ways, placed: Layout) -> float | None:
    """What a token takes with the layers as they lie, by the same prices as a plan; None where
    one of its devices has gone."""
    asked = problem(demand, members, ways)
    if not {each.device for each in placed} <= {member.name for member in members}:
        return None
    last = demand.graph.decoders + 2
    parts = [
        price.Part(each.device, *_units(each.layers, last), demand.rate.engine, demand.rate.dtype)
        for each in placed
    ]
    return price.value(asked, price.price(asked, parts))


def _units(layers: LayerRange, last: int) -> tuple[int, int]:
    start = 0 if layers.embedding else layers.start + 1
    return start, last if layers.head else layers.stop + 1


def problem(demand: Demand, members: Sequence[Member], ways: Ways = UNMEASURED) -> Problem:
    home = DeviceProfile(HOME, "laptop", NOTHING, (demand.rate,))
    devices = tuple(
        DeviceProfile(
            member.name,
            "laptop",
            UNBOUNDED if member.memory_bytes is None else max(1, member.memory_bytes),
            (demand.rate,),
            slowdown=member.slowdown,
        )
        for member in members
    )
    return Problem(
        demand.graph,
        (home, *devices),
        tuple(_links(members, ways)),
        HOME,
        _workload(demand),
    )


def _workload(demand: Demand) -> Workload:
    """Half of a slot's tokens are the prompt; memory is that of all slots."""
    prompt = max(1, min(int(CONTEXT), demand.graph.context // 2))
    new = max(1, min(prompt, demand.graph.context - prompt))
    return Workload(
        prompt_tokens=prompt,
        new_tokens=new,
        sequences=max(1, math.ceil(demand.tokens / (prompt + new))),
        activation_bytes=demand.activation_bytes,
        # Even one worker is a stage of a chain: the coordinator asks for every pass.
        alone="asks",
    )


def _links(members: Sequence[Member], ways: Ways) -> list[LinkProfile]:
    """Ways between devices as these measured them. Where they did not, half of both ways to them
    from here; where they do not reach one another, all of both, since what they send comes here."""
    own = [(HOME, member.name, member.rtt_s) for member in members]
    found = [_estimated(*each) for each in own]
    for a, b in combinations(members, 2):
        through = a.rtt_s + b.rtt_s
        if (a.name, b.name) not in ways:
            found.append(_estimated(a.name, b.name, through / 2))
        else:
            way = ways[a.name, b.name]
            found.append(way if way is not None else _estimated(a.name, b.name, through))
    return found


def _estimated(a: str, b: str, rtt_s: float) -> LinkProfile:
    return LinkProfile(a, b, rtt_s, LINK_BYTES_PER_S, LINK_BYTES_PER_S, source="estimated")


def layout(plan: Plan, decoders: int) -> Layout:
    """Units of the plan as layers: unit 0 is the embedding, the last one the head."""
    last = decoders + 2
    return tuple(
        Placed(
            stage.device,
            LayerRange(
                max(stage.start - 1, 0),
                min(stage.stop - 1, decoders),
                embedding=stage.start == 0,
                head=stage.stop == last,
            ),
        )
        for stage in plan.stages
    )


def slowdowns(demand: Demand, placed: Layout, times: Sequence[StageTimes]) -> Mapping[str, float]:
    """How slow devices were, measured: seconds of their stages over a usual processor's."""
    took: dict[str, tuple[float, float]] = {}
    usual = DeviceProfile("", "laptop", UNBOUNDED, (demand.rate,))
    last = len(demand.graph.units)
    for where, time in zip(placed, times, strict=True):
        if time.passes == 0 or time.compute_s <= 0:
            continue
        start, stop = _units(where.layers, last)
        rows = time.rows / time.passes
        each = stage_s(demand.graph, start, stop, usual, demand.rate, rows, CONTEXT)
        spent, expected = took.get(where.device, (0.0, 0.0))
        took[where.device] = (spent + time.compute_s, expected + each * time.passes)
    return {device: spent / expected for device, (spent, expected) in took.items()}
