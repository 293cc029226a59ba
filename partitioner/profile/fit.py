"""The cost model fitted to measurements: a roofline, corrected by regression.

Analytical part: GenZ (arXiv 2406.01698). Correction by regression on measured latencies:
"Roofline-driven ML" (seed list, row 36). A pass is linear in what is fitted: seconds per
pass, per unit, per row and token of attention, and the row curve, whose knots multiply the
roofline of the products. Non-negative least squares of relative errors, with Huber's weights
so that a disturbed measurement has little to say. No I/O, no clock.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from outrider.errors import InvalidProfile
from outrider.partitioner.cost import item_bytes, stage_s, suited, unit_s
from outrider.partitioner.device import DeviceProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.profile.cells import Cell

Floats = NDArray[np.float64]

HUBER = 1.5
"""Residuals beyond this many of their median weigh less."""
REWEIGHTED = 4
ROUNDS = 4
"""How often rooflines and knots are fitted in turn."""
GAINS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2, 0.15, 0.1)
"""Time of bytes from the cache over time of bytes from memory, as tried."""
FREE = 1e18
"""Per second: what costs nothing, and can still stand in JSON."""
TOLD_APART = 3
"""With fewer models a cost per pass and a cache can not be told from a cost per layer, which
then stands for all three: engines do their work by layers."""
BEYOND = 1.1
"""A cache is believed to hold this much more than the largest model that was seen in it."""
WORTH = 0.9
"""A cache is believed in when it brings the error below this share of that without."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured pass of a whole model."""

    graph: ModelGraph
    cell: Cell
    seconds: float


@dataclass(frozen=True, slots=True)
class Precision:
    """What is fitted for: names as in `EngineSpec`."""

    engine: str
    dtype: str
    numerics: str = "exact"

    @property
    def bytes_per_weight(self) -> float:
        return item_bytes(self.dtype)

    @property
    def kv_scale(self) -> float:
        """Bytes of a number of its KV over two: llama.cpp keeps float16, onnxruntime float32."""
        if self.engine == "llama":
            return 1.0
        return 2.0 if self.engine == "onnx" else item_bytes(self.dtype) / 2

    def rate(self) -> Rate:
        """Without figures yet."""
        return Rate(
            self.engine,
            self.dtype,
            flops_per_s=1.0,
            bytes_per_s=1.0,
            bytes_per_weight=self.bytes_per_weight,
            kv_scale=self.kv_scale,
            numerics=self.numerics,
        )


# --- prediction --------------------------------------------------------------------------------


def predicted(rate: Rate, graph: ModelGraph, cell: Cell, slowdown: float = 1.0) -> float:
    """Seconds of a pass through the whole model."""
    device = DeviceProfile("device", "laptop", 0, (rate,), slowdown=slowdown)
    return stage_s(
        graph, 0, len(graph.units), device, rate, cell.rows, cell.seen, cell.head_rows
    )  # fmt: skip


def ratios(rate: Rate, observed: Sequence[Observation]) -> list[float]:
    """Predicted over measured, one of each."""
    return [predicted(rate, o.graph, o.cell) / o.seconds for o in observed]


def geomean_error(found: Sequence[float]) -> float:
    """Geometric mean of max(r, 1 / r), less 1."""
    return math.exp(sum(abs(math.log(r)) for r in found) / len(found)) - 1.0


def quantile_error(found: Sequence[float], share: float) -> float:
    """The error that this share of the ratios keeps below."""
    errors = sorted(math.exp(abs(math.log(r))) - 1.0 for r in found)
    return errors[min(len(errors) - 1, int(share * len(errors)))]


# --- the analytical model alone ----------------------------------------------------------------


def analytic(kind: Precision, observed: Sequence[Observation]) -> Rate:
    """The roofline without corrections: the best product and byte rates that were seen."""
    _check(kind, observed)
    flops = max(_products(o.graph, o.cell) / o.seconds for o in observed)
    moved = max(_streamed(o.graph, kind) / o.seconds for o in observed)
    return replace(kind.rate(), flops_per_s=flops, bytes_per_s=moved)


def _products(graph: ModelGraph, cell: Cell) -> float:
    layers, head = _flops(graph)
    return layers * cell.rows + head * cell.head_rows


def _flops(graph: ModelGraph) -> tuple[float, float]:
    """Of a row through the layers, and through the head."""
    head = sum(unit.flops for unit in graph.units if unit.kind == "head")
    return sum(unit.flops for unit in graph.units) - head, head


def _streamed(graph: ModelGraph, kind: Precision) -> float:
    scale = kind.bytes_per_weight / item_bytes(graph.dtype)
    return sum(unit.streamed_bytes for unit in graph.units) * scale


# --- regression --------------------------------------------------------------------------------


def fit(kind: Precision, observed: Sequence[Observation]) -> Rate:
    """The rate under which the observations are best explained.

    They need decoding passes, passes of many rows and two contexts, of two models or more.
    Raises InvalidProfile for times that are no times, and too few of them.
    """
    _check(kind, observed)
    plain, error = _fit(kind, observed, math.inf, 1.0)
    best, least = plain, error * WORTH
    sizes = sorted({_streamed(o.graph, kind) for o in observed})
    if len(sizes) < TOLD_APART:
        return plain
    for low in sizes[:-1]:
        for gain in GAINS[1:]:
            found, error = _fit(kind, observed, low * BEYOND, gain)
            if error < least:
                best, least = found, error
    return best


def _check(kind: Precision, observed: Sequence[Observation]) -> None:
    what = f"measurements of {kind.engine} {kind.dtype}"
    for one in observed:
        if not (math.isfinite(one.seconds) and one.seconds > 0):
            raise InvalidProfile(f"{what} hold a time of {one.seconds} s", effect="nothing fitted")
    knots = {one.cell.rows for one in observed}
    contexts = {one.cell.context for one in observed}
    if len(observed) < 8 or len(knots) < 2 or len(contexts) < 2:
        raise InvalidProfile(
            f"{what} are too few",
            why=f"{len(observed)} of {len(knots)} row counts and {len(contexts)} contexts",
            effect="nothing was fitted",
            todo="measure at least 8 passes of 2 row counts and 2 contexts",
        )


def _fit(
    kind: Precision, observed: Sequence[Observation], cache: float, gain: float
) -> tuple[Rate, float]:
    """With models that stream less than `cache` bytes at `gain` of the time; and the error."""
    rate = analytic(kind, observed)
    if math.isfinite(cache):
        speed = rate.bytes_per_s / gain
        rate = replace(rate, cache_bytes=cache, cache_bytes_per_s=speed)
    knots = _knots(observed)
    seconds = np.array([o.seconds for o in observed])
    models = len({o.graph.name for o in observed})
    for _ in range(ROUNDS):
        table = np.array([list(_features(o, rate, knots)) for o in observed])
        if models < TOLD_APART:
            table[:, 0] = 0.0
        found = robust(table / seconds[:, None], np.ones(len(observed)))
        rate = _applied(rate, knots, found)
    return rate, geomean_error(ratios(rate, observed))


def _knots(observed: Sequence[Observation]) -> tuple[int, ...]:
    """Row counts that at least two models were measured at."""
    models: dict[int, set[str]] = {}
    for one in observed:
        models.setdefault(one.cell.rows, set()).add(one.graph.name)
    most = max(len(names) for names in models.values())
    return tuple(sorted(rows for rows, names in models.items() if len(names) >= min(2, most)))


def _features(one: Observation, rate: Rate, knots: Sequence[int]) -> Iterator[float]:
    """Seconds if each fitted number were 1: per pass, unit, attention flop, byte, knots."""
    graph, cell = one.graph, one.cell
    yield 1.0
    yield float(len(graph.units))
    yield sum(u.attention_flops * u.seen(cell.seen) for u in graph.units) * cell.rows
    yield sum(u.kv_bytes * u.seen(cell.seen) for u in graph.units) * rate.kv_scale
    # At a context of nothing attention is free.
    bare = suited(graph, replace(rate, layer_s=0.0, rows=()))
    layers = sum(unit_s(u, bare, cell.rows, 0) for u in graph.units if u.kind != "head")
    head = sum(unit_s(u, bare, cell.head_rows, 0) for u in graph.units if u.kind == "head")
    near, near_head = _nearness(knots, cell.rows), _nearness(knots, cell.head_rows)
    yield from (a * layers + b * head for a, b in zip(near, near_head, strict=True))


def _nearness(knots: Sequence[int], rows: int) -> list[float]:
    """How much each knot says of a row count: the curve is linear between them."""
    high = bisect_left(knots, rows)
    if high == 0 or high == len(knots):
        nearest = min(high, len(knots) - 1)
        return [float(i == nearest) for i in range(len(knots))]
    share = (rows - knots[high - 1]) / (knots[high] - knots[high - 1])
    parts = {high - 1: 1.0 - share, high: share}
    return [parts.get(i, 0.0) for i in range(len(knots))]


def _applied(rate: Rate, knots: Sequence[int], found: Floats) -> Rate:
    """The rate with what was fitted, its roofline through the first and the last knot."""
    pass_s, layer_s, attention, keys, *factors = (float(value) for value in found)
    first, last = factors[0] or 1.0, factors[-1] or 1.0
    moved = replace(
        rate,
        pass_s=pass_s,
        layer_s=layer_s,
        attention_flops_per_s=_inverse(attention),
        attention_bytes_per_s=_inverse(keys),
        rows=tuple(zip(knots, factors, strict=True)),
    )
    return _rooted(moved, first, last)


def _inverse(value: float) -> float:
    return min(1.0 / max(value, 1e-30), FREE)


def _rooted(rate: Rate, first: float, last: float) -> Rate:
    """The same seconds at the knots, with factors of 1 at both ends of the curve."""
    flops, moved = rate.flops_per_s / last, rate.bytes_per_s / first
    old = rate.bytes_per_weight / rate.bytes_per_s
    new = rate.bytes_per_weight / moved

    def factor(rows: float, value: float) -> float:
        before = max(2 * rows / rate.flops_per_s, old)
        return value * before / max(2 * rows / flops, new)

    return replace(
        rate,
        flops_per_s=flops,
        bytes_per_s=moved,
        cache_bytes_per_s=rate.cache_bytes_per_s / first,
        rows=tuple((rows, factor(rows, value)) for rows, value in rate.rows),
    )


def robust(table: Floats, wanted: Floats) -> Floats:
    """Non-negative x for `table @ x = wanted`, with Huber's weights."""
    weights = np.ones(len(wanted))
    found = np.zeros(table.shape[1])
    for _ in range(REWEIGHTED):
        root = np.sqrt(weights)
        found = non_negative(table * root[:, None], wanted * root)
        residual = np.abs(table @ found - wanted)
        scale = HUBER * max(float(np.median(residual)), 1e-3)
        weights = np.minimum(1.0, scale / np.maximum(residual, 1e-12))
    return found


def non_negative(table: Floats, wanted: Floats) -> Floats:
    """Least squares with x >= 0 (Lawson and Hanson, 1974); columns may differ widely in size."""
    size = np.linalg.norm(table, axis=0)
    size[size == 0] = 1.0
    scaled = table / size
    x = np.zeros(table.shape[1])
    free = np.zeros(table.shape[1], dtype=bool)
    for _ in range(3 * len(x)):
        slope = scaled.T @ (wanted - scaled @ x)
        slope[free] = -np.inf
        if slope.max(initial=-np.inf) <= 1e-9:
            break
        free[int(slope.argmax())] = True
        x, free = _inner(scaled, wanted, x, free)
    found: Floats = x / size
    return found


def _inner(
    table: Floats, wanted: Floats, x: Floats, free: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """Solve for the free ones; those that would turn negative are bound again."""
    while free.any():
        trial = np.zeros_like(x)
        trial[free] = np.linalg.lstsq(table[:, free], wanted, rcond=None)[0]
        if trial[free].min() > 0:
            return trial, free
        falling = free & (trial <= 0)
        step = float((x[falling] / np.maximum(x[falling] - trial[falling], 1e-300)).min())
        x = x + step * (trial - x)
        free = free & (x > 1e-12)
        x[~free] = 0.0
    return x, free


# --- throttled devices -------------------------------------------------------------------------


def slowdown(before: Sequence[float], now: Sequence[float]) -> float:
    """Geometric mean of seconds now over seconds when profiled, of the same reference passes.

    Never below 1 / 2: a device that seems faster than that was profiled while it was busy.
    """
    if len(before) != len(now) or not now:
        raise InvalidProfile(
            f"{len(now)} probes stand against {len(before)} of the profile",
            effect="the slowdown is not known",
            todo="measure the profile again: outrider profile",
        )
    if not all(math.isfinite(t) and t > 0 for t in (*before, *now)):
        raise InvalidProfile("a probe took no time", effect="the slowdown is not known")
    logs = [math.log(b / a) for a, b in zip(before, now, strict=True)]
    return max(math.exp(sum(logs) / len(logs)), 0.5)
