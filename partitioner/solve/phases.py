"""Prefill on some devices, decode on others (HexGen-2, arXiv 2502.07903; DistServe, 2401.09670).

Prefill computes, decode reads memory, so unlike devices suit them; the KV of the prompt then
has to travel, and that is priced. Devices are parted into two groups, by trying all partings
of a few devices, and of many those that follow from the order of operations per byte. Each
group's stages are those of `dp`. One group for both phases stays the answer where it is better.

Here an answer counts as a whole, so values are seconds per token of it, prefill included:

    latency:     (ttft + kv + (new_tokens - 1) * tpot) / new_tokens
    throughput:  max(busiest device, busiest link, one answer's time / sequences) / new_tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from outrider.errors import ConfigError
from outrider.partitioner import price
from outrider.partitioner.check import check
from outrider.partitioner.device import DeviceProfile
from outrider.partitioner.plan import Alternative, Estimate, Plan, Problem, Workload
from outrider.partitioner.solve import answers, dp, nearest
from outrider.partitioner.solve.limits import bounded

FEW = 6
"""Devices of which every parting is tried."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Where both phases run."""

    prefill: tuple[price.Part, ...]
    decode: tuple[price.Part, ...]
    value: float
    """Seconds per token of whole answers."""


def solve(problem: Problem) -> Plan:
    """The best placement of both phases; `Plan.prefill` is empty where parting does not pay.

    Raises InvalidProfile, Unplannable, and ConfigError for another objective than time.
    """
    check(problem)
    if problem.objective not in ("latency", "throughput"):
        raise ConfigError(
            f"phases are not parted for {problem.objective}",
            why="prefill and decode are weighed by time",
            effect="nothing was planned",
            todo="--objective latency or throughput, or another solver",
        )
    together = _together(problem)
    apart = min(_apart(problem), key=lambda pair: pair.value, default=None)
    if together is None and apart is None:
        raise nearest.explain(problem, dp.best)
    known = [pair for pair in (together, apart) if pair is not None]
    best = min(known, key=lambda pair: pair.value)
    return _plan(problem, best, [pair for pair in known if pair is not best])


def _plan(problem: Problem, best: Pair, others: Sequence[Pair]) -> Plan:
    plan = answers.make(problem, "phases", best.decode, None)
    plan = replace(plan, value=best.value)
    for other in others:
        runner_up = Alternative(_said(problem, other), other.value)
        plan = replace(plan, runner_up=runner_up, margin=other.value / best.value - 1)
    if best.prefill == best.decode:
        said = "Prefill and decode stay on the same devices: parting them gains nothing."
        return replace(plan, reasons=(said,))
    kv = kv_s(problem, best.prefill, best.decode)
    estimate = _estimate(problem, best, kv)
    used = {part.device for part in (*best.prefill, *best.decode)}
    return replace(
        plan,
        prefill=price.stage_plans(problem, best.prefill),
        estimate=estimate,
        verdict="split" if len(used) > 1 else "one device",
        reasons=(f"{_said(problem, best)}; KV travels {1e3 * kv:.3g} ms per answer.",),
    )


def _said(problem: Problem, pair: Pair) -> str:
    decode = answers.summary(problem, pair.decode)
    if pair.prefill == pair.decode:
        return f"both phases on {decode}"
    return f"prefill on {answers.summary(problem, pair.prefill)}; decode on {decode}"


def _estimate(problem: Problem, pair: Pair, kv: float) -> Estimate:
    decode, prefill = price.price(problem, pair.decode), price.price(problem, pair.prefill)
    rate = decode.tokens_per_s
    if problem.objective == "throughput":
        rate = 1 / pair.value
    return replace(decode, ttft_s=prefill.ttft_s + kv, kv_s=kv, tokens_per_s=rate)


# --- placements --------------------------------------------------------------------------------


def _together(problem: Problem) -> Pair | None:
    found = dp.best(problem)
    return None if found is None else _pair(problem, found.parts, found.parts)


def _apart(problem: Problem) -> Iterator[Pair]:
    for names in _groups(problem):
        others = tuple(d.name for d in problem.devices if d.name not in names)
        decode = dp.best(_only(problem, others))
        prefill = dp.best(_only(_prefill(problem), names))
        if decode is None or prefill is None:
            continue
        pair = _pair(problem, prefill.parts, decode.parts)
        if math.isfinite(pair.value):
            yield pair


def _groups(problem: Problem) -> Iterator[tuple[str, ...]]:
    """Devices for the prefill, each parting once."""
    names = [device.name for device in sorted(problem.devices, key=_intensity, reverse=True)]
    if len(names) > FEW:
        yield from (tuple(names[:count]) for count in range(1, len(names)))
        return
    for code in range(1, (1 << len(names)) - 1):
        yield tuple(name for place, name in enumerate(names) if code >> place & 1)


def _intensity(device: DeviceProfile) -> float:
    """Operations per byte at the best rate: high ones suit the prefill."""
    return max(rate.flops_per_s / rate.bytes_per_s for rate in device.rates)


def _only(problem: Problem, names: Sequence[str]) -> Problem:
    rest = tuple(device.name for device in problem.devices if device.name not in names)
    return bounded(problem, "exclude", tuple({*problem.constraints.exclude, *rest}))


def _prefill(problem: Problem) -> Problem:
    """Chunks of prompts as if they were decode passes, one token of result each."""
    load = problem.workload
    chunk = load.prompt_tokens / price.chunks(load, 2)
    passes = Workload(
        prompt_tokens=max(1, load.prompt_tokens // 2),
        new_tokens=0,
        sequences=2 * load.sequences,
        rows=chunk,
        activation_bytes=load.activation_bytes,
        prefill_chunk=load.prefill_chunk,
    )
    return replace(problem, workload=passes)


# --- prices ------------------------------------------------------------------------------------


def _pair(
    problem: Problem, prefill: tuple[price.Part, ...], decode: tuple[price.Part, ...]
) -> Pair:
    load = problem.workload
    first, steady = price.price(problem, prefill), price.price(problem, decode)
    kv = kv_s(problem, prefill, decode)
    whole = first.ttft_s + kv + (load.new_tokens - 1) * steady.tpot_s
    tokens = max(1, load.new_tokens)
    if problem.objective == "latency":
        return Pair(prefill, decode, whole / tokens)
    busiest = max(*busy_s(problem, prefill, decode).values(), kv)
    return Pair(prefill, decode, max(busiest, whole / load.sequences) / tokens)


def busy_s(
    problem: Problem, prefill: Sequence[price.Part], decode: Sequence[price.Part]
) -> dict[str, float]:
    """Seconds that each device computes for one answer."""
    ready, load = price.prepared(problem), problem.workload
    found: dict[str, float] = {}
    count = price.chunks(load, len(prefill))
    for part in prefill:
        each, last = price.chunk_s(ready, part, count)
        found[part.device] = found.get(part.device, 0.0) + count * each + last
    passes = load.new_tokens / (load.tokens_per_pass * load.batch)
    for part in decode:
        own = found.get(part.device, 0.0)
        found[part.device] = own + passes * price.decode_s(ready, part)
    return found


def kv_s(problem: Problem, prefill: Sequence[price.Part], decode: Sequence[price.Part]) -> float:
    """The prompt's KV from where it was computed to where it is used; links work side by side.

    Infinite where two devices have no link.
    """
    ready, links = price.prepared(problem), price.link_map(problem)
    times: dict[tuple[str, str], float] = {}
    late = 0.0
    for a in prefill:
        scale = price.rate_of(ready, a).kv_scale
        for b in decode:
            units = ready.graph.units[max(a.start, b.start) : min(a.stop, b.stop)]
            size = problem.workload.prompt_tokens * scale * sum(unit.kv_bytes for unit in units)
            if a.device == b.device or not size:
                continue
            link = links.get((a.device, b.device))
            if link is None:
                return math.inf
            speed = link.up_bytes_per_s if a.device == link.a else link.down_bytes_per_s
            way = (a.device, b.device)
            times[way] = times.get(way, 0.0) + size / speed
            late = max(late, link.rtt_s / 2)
    return late + max(times.values(), default=0.0)
