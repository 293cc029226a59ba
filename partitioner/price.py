"""What a placement does: pure arithmetic over the cost model, one for all who need it.

Solvers, the re-planning of a split engine and the simulator ask here, so that they agree.

Decode. A pass carries `rows * batch` rows, from home through all stages and back:

    cycle = sum of stages + sum of hops        ids go to the first stage, hidden states
    tpot  = cycle / tokens_per_pass            between stages, one id per row goes back

A device that holds the whole model does not wait for home: it goes on by itself and streams
what it commits, so its cycle has no hops (unless `Workload.alone` says that it asks).

Several answers. `sequences / batch` passes are under way at a time, and no device and no
direction of a link does two things at once, so a pass completes every

    interval = max(cycle * batch / sequences, busiest device, busiest direction of a link)

Prefill. The prompt's ids are sent ahead; its K chunks run through the stages as a pipeline
that fills and drains (PipeDream, GPipe; arXiv 1806.03377):

    ttft = sum of a chunk's stages and hops + (K - 1) * slowest of them + the head's one row

A device alone takes the prompt as one chunk. Energy is that of a pass: a stage is charged
what its device draws while it computes, idle draw included, and every byte what its link's
radio draws for it. A device that waits is charged nothing: it idles with or without the plan.
Dollars are charged the same way. Sources: EdgeShard (arXiv 2405.14371), Helix (2406.01566).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from outrider.errors import InvalidProfile, Unplannable
from outrider.partitioner.cost import hop_s, stage_bytes, stage_s, suited
from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.plan import Constraints, Estimate, Problem, StagePlan, Workload

ID_BYTES = 4
HOUR_S = 3600.0
MILLION = 1e6
SLACK = 1e-9
"""Relative rounding that a constraint forgives."""


class Placed(Protocol):
    """Units [start, stop) on a device, by one of its rates. `StagePlan` is one."""

    @property
    def device(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def engine(self) -> str: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Part:
    """The least that is `Placed`."""

    device: str
    start: int
    stop: int
    engine: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Hop:
    """What goes from one device to the next; None within a device."""

    link: LinkProfile | None
    source: str
    pass_bytes: float
    """Of a decode pass."""
    chunk_bytes: float
    """Of a prefill chunk; 0 where chunks do not go this way."""


# --- sizes -------------------------------------------------------------------------------------


def pass_rows(load: Workload) -> float:
    """Rows of a decode pass."""
    return load.rows * load.batch


def mean_context(load: Workload) -> float:
    """Tokens that a decode row sees, averaged over an answer."""
    return load.prompt_tokens + load.new_tokens / 2


def kept_tokens(load: Workload) -> int:
    """Tokens whose KV every stage keeps when all answers are at their end."""
    return load.sequences * (load.prompt_tokens + load.new_tokens)


def chunks(load: Workload, stages: int) -> int:
    """Prefill micro-batches; a single stage has nothing to overlap."""
    return 1 if stages == 1 else max(1, math.ceil(load.prompt_tokens / load.prefill_chunk))


def cut_numbers(graph: ModelGraph, cut: int) -> int:
    """Numbers of one row that cross from units [0, cut) to the rest."""
    crossing = {a for a, b in graph.edges if a < cut <= b}
    return sum(graph.units[unit].output for unit in crossing)


# --- devices under their caps ------------------------------------------------------------------


def prepared(problem: Problem) -> Problem:
    """The problem with rates resolved for its model and watt caps turned into slowdowns.

    A device under a cap is slowed until its average draw while it computes is the cap; one
    whose idle draw is at its cap is infinitely slow. Applying this twice changes nothing.
    """
    caps = dict(problem.constraints.max_watts)
    devices = tuple(
        _suited(capped(device, caps.get(device.name)), problem.graph) for device in problem.devices
    )
    return replace(problem, devices=devices)


def _suited(device: DeviceProfile, graph: ModelGraph) -> DeviceProfile:
    return replace(device, rates=tuple(suited(graph, rate) for rate in device.rates))


def capped(device: DeviceProfile, watts: float | None) -> DeviceProfile:
    """The device as it computes under a cap of its average draw."""
    if watts is None or device.busy_w <= 0 or device.idle_w + device.busy_w <= watts:
        return device
    left = watts - device.idle_w
    if left <= 0:
        return replace(device, slowdown=math.inf)
    return replace(device, slowdown=device.slowdown * device.busy_w / left, busy_w=left)


def device_of(problem: Problem, name: str) -> DeviceProfile:
    """Raises InvalidProfile for a name that the problem does not hold."""
    for device in problem.devices:
        if device.name == name:
            return device
    raise InvalidProfile(
        f"there is no device {name!r} in this problem",
        why=f"it holds {', '.join(device.name for device in problem.devices)}",
        effect="nothing was priced",
        todo="profile the device, or name one of these",
    )


def rate_of(problem: Problem, part: Placed) -> Rate:
    """Raises InvalidProfile where the device has no such engine and precision."""
    device = device_of(problem, part.device)
    for rate in device.rates:
        if (rate.engine, rate.dtype) == (part.engine, part.dtype):
            return rate
    raise InvalidProfile(
        f"{part.device} has no rate for {part.engine} at {part.dtype}",
        why="it was not measured there",
        effect="the stage can not be priced",
        todo="outrider profile measures it",
    )


# --- stages ------------------------------------------------------------------------------------


def decode_s(problem: Problem, part: Placed) -> float:
    """One decode pass through a stage, seconds."""
    return _run_s(problem, part, part.stop, pass_rows(problem.workload), None)


def _run_s(
    problem: Problem, part: Placed, stop: int, rows: float, prompt: float | None
) -> float:  # fmt: skip
    """A pass through [part.start, stop); in a prompt a row sees half of it, the head runs once."""
    device, rate = device_of(problem, part.device), rate_of(problem, part)
    context = mean_context(problem.workload) if prompt is None else prompt / 2
    head_rows = None if prompt is None else 1.0
    return stage_s(
        problem.graph, part.start, stop, device, rate, rows, context, head_rows=head_rows
    )


def chunk_s(problem: Problem, part: Placed, count: int) -> tuple[float, float]:
    """(one of `count` prefill chunks through a stage, what the last one takes beyond it)."""
    prompt = problem.workload.prompt_tokens
    rows = prompt / count
    body = part.stop - (problem.graph.units[part.stop - 1].kind == "head")
    whole = _run_s(problem, part, part.stop, rows, prompt)
    each = _run_s(problem, part, body, rows, prompt) if body > part.start else 0.0
    return each, whole - each


def memory_bytes(problem: Problem, part: Placed) -> int:
    """Weights and KV of a stage when all answers are at their end."""
    tokens = kept_tokens(problem.workload)
    return stage_bytes(problem.graph, part.start, part.stop, rate_of(problem, part), tokens)


def stage_plans(problem: Problem, parts: Sequence[Placed]) -> tuple[StagePlan, ...]:
    """The parts with their times and memory."""
    ready = prepared(problem)
    return tuple(
        StagePlan(
            device=part.device,
            start=part.start,
            stop=part.stop,
            engine=part.engine,
            dtype=part.dtype,
            decode_s=decode_s(ready, part),
            prefill_s=sum(chunk_s(ready, part, 1)),
            memory_bytes=memory_bytes(ready, part),
        )
        for part in parts
    )


# --- hops --------------------------------------------------------------------------------------


def hops(problem: Problem, parts: Sequence[Placed]) -> tuple[Hop, ...]:
    """From home through the stages and back. Raises Unplannable where a link is missing."""
    load, links = problem.workload, link_map(problem)
    rows, chunk = pass_rows(load), load.prompt_tokens / chunks(load, len(parts))
    found = [_hop(links, problem.home, parts[0].device, rows * ID_BYTES, 0.0)]
    for before, after in zip(parts, parts[1:], strict=False):
        size = cut_numbers(problem.graph, after.start) * load.activation_bytes
        found.append(_hop(links, before.device, after.device, rows * size, chunk * size))
    return (*found, _hop(links, parts[-1].device, problem.home, rows * ID_BYTES, 0.0))


def link_map(problem: Problem) -> dict[tuple[str, str], LinkProfile]:
    """Each link under both orders of its ends."""
    both = [((link.a, link.b), link) for link in problem.links]
    return dict(both + [((b, a), link) for (a, b), link in both])


def _hop(
    links: dict[tuple[str, str], LinkProfile], source: str, sink: str, size: float, chunk: float
) -> Hop:
    if source == sink:
        return Hop(None, source, 0.0, 0.0)
    if (source, sink) not in links:
        raise Unplannable(
            f"{source} and {sink} are neighbours in this placement and have no link",
            constraint=f"a link between {source} and {sink}",
            nearest="devices that are linked as neighbours",
        )
    return Hop(links[source, sink], source, size, chunk)


def _transit_s(hop: Hop, size: float) -> float:
    """Until the last byte is there."""
    return 0.0 if hop.link is None else hop_s(hop.link, hop.source, size)


def _send_s(hop: Hop, size: float) -> float:
    """How long the direction of the link is taken."""
    return 0.0 if hop.link is None else hop_s(hop.link, hop.source, size) - hop.link.rtt_s / 2


# --- the whole ---------------------------------------------------------------------------------


def price(problem: Problem, parts: Sequence[Placed]) -> Estimate:
    """What the parts, in order and covering all units, are expected to do.

    Constraints are not looked at, see `violations`. Raises Unplannable for a missing link or
    units that are not covered, InvalidProfile for unknown devices and rates.
    """
    check_cover(problem, parts)
    ready = prepared(problem)
    load = ready.workload
    stages = [decode_s(ready, part) for part in parts]
    between = hops(ready, parts)
    waits = len(parts) > 1 or load.alone == "asks"
    hop_time = sum(_transit_s(hop, hop.pass_bytes) for hop in between) if waits else 0.0
    cycle = sum(stages) + hop_time
    tokens = load.tokens_per_pass * load.batch
    return Estimate(
        ttft_s=_ttft_s(ready, parts, between),
        tpot_s=cycle / load.tokens_per_pass,
        tokens_per_s=tokens / _interval_s(load, parts, stages, between, cycle),
        joules_per_token=_joules(ready, parts, stages, between) / tokens,
        dollars_per_mtoken=MILLION * _dollars(ready, parts, stages) / tokens,
        hop_s=hop_time,
    )


def check_cover(problem: Problem, parts: Sequence[Placed]) -> None:
    """Raises Unplannable unless the parts are all units, in order, each once."""
    ends = [0, *(part.stop for part in parts)]
    starts = [*(part.start for part in parts), len(problem.graph.units)]
    if ends != starts or any(part.stop <= part.start for part in parts):
        ranges = ", ".join(f"[{part.start}, {part.stop})" for part in parts) or "nothing"
        raise Unplannable(
            f"the stages hold {ranges} of {len(problem.graph.units)} units",
            constraint="every unit on exactly one device, in order",
            nearest="ranges that join end to end",
        )


def _interval_s(
    load: Workload, parts: Sequence[Placed], stages: Sequence[float], between: Sequence[Hop],
    cycle: float,
) -> float:  # fmt: skip
    """Time from one completed pass to the next, the pipeline full."""
    sends = [_send_s(hop, hop.pass_bytes) for hop in between]
    return max(cycle * load.batch / load.sequences, *by_device(parts, stages), *sends)


def by_device(parts: Sequence[Placed], values: Sequence[float]) -> list[float]:
    """Sums per device; home may hold both ends of the model."""
    totals: dict[str, float] = {}
    for part, value in zip(parts, values, strict=True):
        totals[part.device] = totals.get(part.device, 0.0) + value
    return list(totals.values())


def _ttft_s(problem: Problem, parts: Sequence[Placed], between: Sequence[Hop]) -> float:
    load = problem.workload
    count = chunks(load, len(parts))
    each, last = zip(*(chunk_s(problem, part, count) for part in parts), strict=True)
    first = _transit_s(between[0], load.prompt_tokens * ID_BYTES)
    inner = sum(_transit_s(hop, hop.chunk_bytes) for hop in between[1:-1])
    back = _transit_s(between[-1], ID_BYTES)
    sends = [_send_s(hop, hop.chunk_bytes) for hop in between[1:-1]]
    slowest = max(*by_device(parts, each), *sends, 0.0)
    return float(first + sum(each) + inner + (count - 1) * slowest + sum(last) + back)


def _joules(
    problem: Problem, parts: Sequence[Placed], stages: Sequence[float], between: Sequence[Hop]
) -> float:
    computed = sum(
        seconds * stage_watts(device_of(problem, part.device))
        for part, seconds in zip(parts, stages, strict=True)
    )
    return computed + sum(hop.pass_bytes * hop.link.joules_per_byte for hop in between if hop.link)


def stage_watts(device: DeviceProfile) -> float:
    """Charged to a stage while it computes."""
    return device.busy_w + device.idle_w


def _dollars(problem: Problem, parts: Sequence[Placed], stages: Sequence[float]) -> float:
    return sum(
        seconds * device_of(problem, part.device).dollars_per_hour / HOUR_S
        for part, seconds in zip(parts, stages, strict=True)
    )


def value(problem: Problem, estimate: Estimate) -> float:
    """What the objective minimises."""
    if problem.objective == "throughput":
        return 1 / estimate.tokens_per_s if estimate.tokens_per_s > 0 else math.inf
    return {
        "latency": estimate.tpot_s,
        "energy": estimate.joules_per_token,
        "cost": estimate.dollars_per_mtoken,
    }[problem.objective]


# --- constraints -------------------------------------------------------------------------------


def violations(problem: Problem, parts: Sequence[Placed]) -> tuple[str, ...]:
    """The constraints that a placement breaks, in words; empty when it keeps all."""
    ready = prepared(problem)
    limits, estimate = ready.constraints, price(ready, parts)
    broken = [*_over_memory(ready, parts), *_misplaced(ready, parts), *_repeated(ready, parts)]
    used = {part.device for part in parts}
    if limits.max_devices is not None and len(used) > limits.max_devices:
        broken.append(f"max_devices: {len(used)} above {limits.max_devices}")
    if limits.max_loss is not None and over(loss(limits, parts), limits.max_loss):
        broken.append(f"max_loss: {loss(limits, parts):.4g} above {limits.max_loss:.4g}")
    for name, found, most in _limited(limits, estimate):
        if most is not None and over(found, most):
            broken.append(f"{name}: {found:.4g} above {most:.4g}")
    return tuple(broken)


def over(found: float, most: float) -> bool:
    return found > most * (1 + SLACK)


def _limited(limits: Constraints, found: Estimate) -> tuple[tuple[str, float, float | None], ...]:
    return (
        ("max_tpot_s", found.tpot_s, limits.max_tpot_s),
        ("max_ttft_s", found.ttft_s, limits.max_ttft_s),
        ("max_joules_per_token", found.joules_per_token, limits.max_joules_per_token),
    )


def loss(limits: Constraints, parts: Sequence[Placed]) -> float:
    """Quality that precisions cost, summed over units (LLM-PQ, arXiv 2403.01136)."""
    per_unit = dict(limits.dtype_loss)
    return sum(per_unit.get(part.dtype, 0.0) * (part.stop - part.start) for part in parts)


def _over_memory(problem: Problem, parts: Sequence[Placed]) -> list[str]:
    held: dict[str, int] = {}
    for part in parts:
        held[part.device] = held.get(part.device, 0) + memory_bytes(problem, part)
    most = {device.name: device.memory_bytes for device in problem.devices}
    return [f"memory of {d}: {n} bytes of {most[d]}" for d, n in held.items() if n > most[d]]


def _misplaced(problem: Problem, parts: Sequence[Placed]) -> list[str]:
    limits = problem.constraints
    used = {part.device for part in parts}
    broken = [f"exclude: {name}" for name in limits.exclude if name in used]
    broken += [f"include: {name}" for name in limits.include if name not in used]
    if limits.dtype is not None:
        broken += [f"dtype: {p.device} at {p.dtype}" for p in parts if p.dtype != limits.dtype]
    away = [part for part in parts if part.device != problem.home]
    gone = [u for part in away for u in limits.stay if part.start <= u < part.stop]
    return broken + [f"stay: unit {unit}" for unit in gone]


def _repeated(problem: Problem, parts: Sequence[Placed]) -> list[str]:
    """A device holds one range; home may hold one at each end where both must stay."""
    order = [part.device for part in parts]
    twice = sorted({name for name in order if order.count(name) > 1})
    ends = order[0] == order[-1] == problem.home and order.count(problem.home) == 2
    allowed = ends and len(order) > 2 and both_ends_stay(problem)
    return [f"one range per device: {d}" for d in twice if not (allowed and d == problem.home)]


def both_ends_stay(problem: Problem) -> bool:
    """The U-shape: first and last unit are pinned to home, so home may hold two ranges."""
    stay = set(problem.constraints.stay)
    return 0 in stay and len(problem.graph.units) - 1 in stay
