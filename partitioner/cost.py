"""What a stage and a hop cost: the analytical roofline (GenZ, arXiv 2406.01698), calibrated.

Pure; seconds and bytes. Rates come from `outrider profile`, links from live traffic. Times of
units add up: `stage_s` is `(pass_s + sum of unit_s) * slowdown`.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.graph import ModelGraph, Unit

ROUND = 4096
"""Allocation granularity of the memory estimate, bytes."""

BITS: dict[str, float] = {
    "float64": 64,
    "float32": 32,
    "f32": 32,
    "f16": 16,
    "float16": 16,
    "bfloat16": 16,
    "int8": 9,
    "q8_0": 8.5,
    "q6_k": 6.5625,
    "q5_k": 5.5,
    "q5_0": 5.5,
    "q5_1": 6,
    "q4_k": 4.5,
    "q4_0": 4.5,
    "q4_1": 5,
    "q3_k": 3.4375,
    "q2_k": 2.625,
    "iq4_xs": 4.25,
    "iq4_nl": 4.5,
    "mxfp4": 4.25,
    "int4": 5,
}
"""Bits of a weight as stored, scales of its block included (ggml-common.h; `int8` and `int4` of
`MatMulNBits`: one float32 scale for 32)."""


def item_bytes(dtype: str) -> float:
    """Bytes of a stored weight; names that are not known count as two."""
    return BITS.get(dtype, 16) / 8


def suited(graph: ModelGraph, rate: Rate) -> Rate:
    """The rate as it is for one model: what depends on the model's size and storage resolved.

    `unit_s` wants such a rate; `stage_s` and `stage_bytes` take any, and are faster with one.
    """
    if not rate.bytes_per_weight and not rate.cache_bytes:
        return rate
    scale = rate.weight_scale
    if rate.bytes_per_weight:
        scale = rate.bytes_per_weight / item_bytes(graph.dtype)
    streamed = sum(unit.streamed_bytes for unit in graph.units) * scale
    speed = rate.bytes_per_s
    if streamed < rate.cache_bytes and rate.cache_bytes_per_s:
        speed = rate.cache_bytes_per_s
    return replace(
        rate,
        weight_scale=scale,
        bytes_per_weight=0.0,
        bytes_per_s=speed,
        cache_bytes=0.0,
        cache_bytes_per_s=0.0,
    )


def unit_s(unit: Unit, rate: Rate, rows: float, context: float) -> float:
    """One pass of `rows` rows through a unit, each seeing `context` tokens."""
    moved = unit.streamed_bytes * rate.weight_scale
    products = max(rows * unit.flops / rate.flops_per_s, moved / rate.bytes_per_s)
    return products * row_factor(rate, rows) + attention_s(unit, rate, rows, context) + rate.layer_s


def attention_s(unit: Unit, rate: Rate, rows: float, context: float) -> float:
    """Of it, what grows with the context: products with keys and values, and reading them.

    A sum, not the larger: kernels of attention hardly overlap the two. 0 for embedding and head.
    """
    seen = unit.seen(context)
    flops = rows * unit.attention_flops * seen
    moved = unit.kv_bytes * rate.kv_scale * seen
    return flops / (rate.attention_flops_per_s or rate.flops_per_s) + moved / (
        rate.attention_bytes_per_s or rate.bytes_per_s
    )


def stage_s(
    graph: ModelGraph, start: int, stop: int, device: DeviceProfile, rate: Rate, rows: float,
    context: float, head_rows: float | None = None,
) -> float:  # fmt: skip
    """One pass of `rows` rows through units [start, stop) on a device.

    `head_rows`: rows that the head computes, where not all of them: 1 for the last chunk of a
    prompt.
    """
    fit = suited(graph, rate)
    total = fit.pass_s
    for unit in graph.units[start:stop]:
        own = rows if head_rows is None or unit.kind != "head" else head_rows
        total += unit_s(unit, fit, own, context)
    return total * device.slowdown


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
    """Memory of units [start, stop) with KV for `tokens` tokens.

    A stage with both ends of a model with tied embeddings holds their matrix once.
    """
    fit = suited(graph, rate)
    units = graph.units[start:stop]
    whole = start == 0 and stop == len(graph.units)
    weights = sum(unit.weight_bytes for unit in units) - (graph.shared_bytes if whole else 0)
    kv = sum(unit.kv_bytes for unit in units) * fit.kv_scale * tokens
    return -(-int(weights * fit.weight_scale + kv) // ROUND) * ROUND


def hop_s(link: LinkProfile, source: str, size: float) -> float:
    """Bytes from `source` to the link's other end, one way."""
    speed = link.up_bytes_per_s if source == link.a else link.down_bytes_per_s
    return link.rtt_s / 2 + size / speed
