"""What a stage and a hop cost: the analytical roofline (GenZ, arXiv 2406.01698), calibrated.

Pure; seconds and bytes. Rates come from `outrider profile`, links from live traffic.
"""

from __future__ import annotations

from bisect import bisect_left

from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.graph import ModelGraph, Unit

ROUND = 4096
"""Allocation granularity of the memory estimate, bytes."""


def unit_s(unit: Unit, rate: Rate, rows: float, context: float) -> float:
    """One pass of `rows` rows through a unit, each seeing `context` tokens."""
    flops = rows * (unit.flops + unit.attention_flops * context)
    moved = unit.weight_bytes * rate.weight_scale + unit.kv_bytes * context
    return max(flops / rate.flops_per_s, moved / rate.bytes_per_s) + rate.layer_s


def stage_s(
    graph: ModelGraph, start: int, stop: int, device: DeviceProfile, rate: Rate, rows: float,
    context: float,
) -> float:  # fmt: skip
    """One pass of `rows` rows through units [start, stop) on a device."""
    units = graph.units[start:stop]
    ideal = sum(unit_s(unit, rate, rows, context) for unit in units)
    return (rate.pass_s + ideal * row_factor(rate, rows)) * device.slowdown


def row_factor(rate: Rate, rows: float) -> float:
    """The measured correction at a row count; linear between knots, flat beyond them."""
    if not rate.rows:
        return 1.0
    place = bisect_left(rate.rows, (rows, float("-inf")))
    if place == 0 or place == len(rate.rows):
        return rate.rows[min(place, len(rate.rows) - 1)][1]
    (low, a), (high, b) = rate.rows[place - 1], rate.rows[place]
    return a + (b - a) * (rows - low) / (high - low)


def stage_bytes(graph: ModelGraph, start: int, stop: int, rate: Rate, tokens: float) -> int:
    """Memory of units [start, stop) with KV for `tokens` tokens."""
    units = graph.units[start:stop]
    exact = sum(u.weight_bytes * rate.weight_scale + u.kv_bytes * tokens for u in units)
    return -(-int(exact) // ROUND) * ROUND


def hop_s(link: LinkProfile, source: str, size: float) -> float:
    """Bytes from `source` to the link's other end, one way."""
    speed = link.up_bytes_per_s if source == link.a else link.down_bytes_per_s
    return link.rtt_s / 2 + size / speed
