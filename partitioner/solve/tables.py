"""A problem as arrays, for solvers that compare many placements at a time.

An *option* is a device with one of its rates. Stages are indexed [option, start, stop], hops
[cut, from, to]. The figures are those of `outrider.partitioner.price`; a test holds the two
together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from outrider.partitioner import price
from outrider.partitioner.cost import ROUND, unit_s
from outrider.partitioner.device import DeviceProfile, Rate
from outrider.partitioner.graph import Unit
from outrider.partitioner.plan import Objective, Problem

TIE = 1e-9
"""Dollars of a million passes that a second of each counts for, so that ties are decided."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Measure:
    """One additive figure of a placement: that of its stages and that of its hops."""

    stage: Floats
    """[option, start, stop]; without meaning where stop <= start."""
    hop: Floats
    """[cut, from, to]; cut 0 is from home to the first stage. Infinite without a link."""
    leave: Floats
    """[device]: from the last stage to home."""


@dataclass(frozen=True, slots=True)
class Wires:
    """Between devices, [from, to]."""

    late: Floats
    """Half a round trip, seconds; infinite without a link."""
    slow: Floats
    """Seconds per byte."""
    joules: Floats
    """Per byte."""


@dataclass(frozen=True, slots=True)
class Tables:
    problem: Problem
    """Prepared: rates resolved, caps turned into slowdowns."""
    devices: tuple[DeviceProfile, ...]
    """Where home may hold both ends of the model, the last one is home again, for the second."""
    home: int
    twice: int | None
    """The device that is home's second range, or None."""
    owner: Ints
    """Device of each option."""
    rates: tuple[Rate, ...]
    """Of each option."""
    wires: Wires
    memory: Floats
    """Bytes, [option, start, stop]."""
    allowed: Bools
    """[option, start, stop]: what a single stage can break is kept."""
    pass_s: Floats
    """Seconds of a decode pass, [option, start, stop]."""

    @property
    def units(self) -> int:
        return len(self.problem.graph.units)


def build(problem: Problem) -> Tables:
    """Arrays of a checked problem; options that constraints forbid are left out."""
    ready = price.prepared(problem)
    names = [device.name for device in ready.devices]
    home = names.index(ready.home)
    twice = len(names) if price.both_ends_stay(ready) else None
    devices = ready.devices + (() if twice is None else (ready.devices[home],))
    pairs = [(d, rate) for d, device in enumerate(devices) for rate in _usable(ready, device)]
    owner = np.array([d for d, _ in pairs], np.int64)
    rates = tuple(rate for _, rate in pairs)
    memory = _memory(ready, rates)
    load = ready.workload
    return Tables(
        problem=ready,
        devices=devices,
        home=home,
        twice=twice,
        owner=owner,
        rates=rates,
        wires=_wires(ready, devices),
        memory=memory,
        allowed=_allowed(ready, devices, owner, memory, twice),
        pass_s=_stage_s(
            ready, devices, pairs, price.pass_rows(load), price.mean_context(load)
        ),
    )  # fmt: skip


def _usable(problem: Problem, device: DeviceProfile) -> tuple[Rate, ...]:
    limits = problem.constraints
    if device.name in limits.exclude or not math.isfinite(device.slowdown):
        return ()
    return tuple(r for r in device.rates if limits.dtype is None or r.dtype == limits.dtype)


# --- stages ------------------------------------------------------------------------------------


def _spans(values: Floats) -> Floats:
    """Sums over [start, stop) of values [option, unit]."""
    before = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, 1)], 1)
    found: Floats = before[:, None, :] - before[:, :, None]
    return found


def _unit_times(
    problem: Problem, rates: list[Rate], rows: float, context: float, head_rows: float | None
) -> Floats:
    """[option, unit]; equal units are computed once."""
    kinds: dict[Unit, int] = {}
    samples: list[Unit] = []
    which = []
    for unit in problem.graph.units:
        key = replace(unit, name="")
        if key not in kinds:
            kinds[key] = len(samples)
            samples.append(unit)
        which.append(kinds[key])
    own = [rows if head_rows is None or u.kind != "head" else head_rows for u in samples]
    times = [
        [unit_s(unit, rate, each, context) for unit, each in zip(samples, own, strict=True)]
        for rate in rates
    ]
    found: Floats = np.array(times).reshape(-1, len(samples))[:, which]
    return found


def _stage_s(
    problem: Problem, devices: tuple[DeviceProfile, ...], pairs: list[tuple[int, Rate]],
    rows: float, context: float, head_rows: float | None = None,
) -> Floats:  # fmt: skip
    times = _unit_times(problem, [rate for _, rate in pairs], rows, context, head_rows)
    slow = np.array([devices[d].slowdown for d, _ in pairs])
    start = np.array([rate.pass_s for _, rate in pairs])
    found: Floats = (_spans(times) + start[:, None, None]) * slow[:, None, None]
    return found


def _memory(problem: Problem, rates: tuple[Rate, ...]) -> Floats:
    graph, tokens = problem.graph, price.kept_tokens(problem.workload)
    weights = _spans(np.array([[unit.weight_bytes for unit in graph.units]], np.float64))
    weights[:, 0, -1] -= graph.shared_bytes
    kv = _spans(np.array([[unit.kv_bytes for unit in graph.units]], np.float64))
    scale = np.array([rate.weight_scale for rate in rates]).reshape(-1, 1, 1)
    kv_scale = np.array([rate.kv_scale for rate in rates]).reshape(-1, 1, 1)
    exact = np.floor(weights * scale + kv * kv_scale * tokens)
    found: Floats = np.ceil(exact / ROUND) * ROUND
    return found


def _allowed(
    problem: Problem, devices: tuple[DeviceProfile, ...], owner: Ints, memory: Floats,
    twice: int | None,
) -> Bools:  # fmt: skip
    size = len(problem.graph.units) + 1
    room = np.array([device.memory_bytes for device in devices], np.float64)[owner]
    found: Bools = (memory <= room[:, None, None]) & np.triu(np.ones((size, size), np.bool_), 1)
    at_home = np.array([devices[d].name == problem.home for d in owner], np.bool_)
    pinned = _pinned(problem)
    found[~at_home] &= pinned == 0
    if twice is None:
        found[at_home] &= pinned == len(set(problem.constraints.stay))
    else:
        found[owner == twice, :, :-1] = False
    return found


def _pinned(problem: Problem) -> Ints:
    """How many units in [start, stop) must stay at home."""
    marks = np.zeros(len(problem.graph.units) + 1, np.int64)
    marks[[unit + 1 for unit in problem.constraints.stay]] = 1
    before = np.cumsum(marks)
    found: Ints = before[None, :] - before[:, None]
    return found


# --- hops --------------------------------------------------------------------------------------


def _wires(problem: Problem, devices: tuple[DeviceProfile, ...]) -> Wires:
    shape = (len(devices), len(devices))
    late, slow, joules = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
    links = price.link_map(problem)
    for i, a in enumerate(devices):
        for j, b in enumerate(devices):
            link = links.get((a.name, b.name))
            if link is not None:
                speed = link.up_bytes_per_s if a.name == link.a else link.down_bytes_per_s
                late[i, j], slow[i, j] = link.rtt_s / 2, 1 / speed
                joules[i, j] = link.joules_per_byte
    return Wires(late, slow, joules)


def cut_bytes(problem: Problem, rows: float) -> Floats:
    """Bytes that `rows` rows send over each cut, [cut]; 0 at both ends."""
    graph = problem.graph
    last: dict[int, int] = {}
    for a, b in graph.edges:
        last[a] = max(b, last.get(a, b))
    marks = np.zeros(len(graph.units) + 2)
    for unit, reader in last.items():
        marks[unit + 1] += graph.units[unit].output
        marks[reader + 1] -= graph.units[unit].output
    found: Floats = np.cumsum(marks)[:-1] * problem.workload.activation_bytes * rows
    return found


def _hops(
    tables: Tables, fixed: Floats, per_byte: Floats, sizes: tuple[float, Floats, float]
) -> tuple[Floats, Floats]:
    """(hop, leave) for bytes (to the first stage, over each cut, back home)."""
    first, inner, back = sizes
    cut, home, twice = inner.copy(), tables.home, tables.twice
    cut[0] = first
    linked = np.where(np.isinf(tables.wires.late), np.inf, 0.0) + fixed
    hop: Floats = linked + cut[:, None, None] * per_byte
    hop[0, home, home] = 0.0
    leave: Floats = linked[:, home] + back * per_byte[:, home]
    leave[home] = 0.0
    if twice is not None:
        leave[twice] = 0.0
        hop[:, home, twice] = hop[:, twice, :] = hop[0, :, twice] = np.inf
    return hop, leave


def decode(tables: Tables) -> Measure:
    """Seconds of a decode pass."""
    rows = price.pass_rows(tables.problem.workload)
    ids = rows * price.ID_BYTES
    sizes = (ids, cut_bytes(tables.problem, rows), ids)
    wires = tables.wires
    hop, leave = _hops(tables, wires.late, wires.slow, sizes)
    if tables.problem.workload.alone == "asks":
        return Measure(tables.pass_s, hop, leave)
    # A device with the whole model does not wait for home: what its hops add is taken off.
    stage, away = tables.pass_s.copy(), (hop[0, tables.home] + leave)[tables.owner]
    stage[:, 0, -1] -= np.where(np.isfinite(away), away, 0.0)
    return Measure(stage, hop, leave)


def sends(tables: Tables) -> Measure:
    """Seconds that a decode pass takes directions of links; its stages are those of `decode`."""
    rows = price.pass_rows(tables.problem.workload)
    ids = rows * price.ID_BYTES
    sizes = (ids, cut_bytes(tables.problem, rows), ids)
    nothing = np.zeros_like(tables.wires.slow)
    return Measure(tables.pass_s, *_hops(tables, nothing, tables.wires.slow, sizes))


def joules(tables: Tables) -> Measure:
    """Of a decode pass."""
    watts = np.array([price.stage_watts(device) for device in tables.devices])[tables.owner]
    rows = price.pass_rows(tables.problem.workload)
    ids = rows * price.ID_BYTES
    sizes = (ids, cut_bytes(tables.problem, rows), ids)
    nothing = np.zeros_like(tables.wires.slow)
    hop, leave = _hops(tables, nothing, tables.wires.joules, sizes)
    return Measure(tables.pass_s * watts[:, None, None], hop, leave)


def dollars(tables: Tables) -> Measure:
    """Of a million decode passes."""
    hourly = np.array([device.dollars_per_hour for device in tables.devices])[tables.owner]
    per_s = hourly * price.MILLION / price.HOUR_S
    nothing = np.zeros_like(tables.wires.slow)
    none = (0.0, np.zeros(tables.units + 1), 0.0)
    hop, leave = _hops(tables, nothing, nothing, none)
    return Measure(tables.pass_s * per_s[:, None, None], hop, leave)


def losses(tables: Tables) -> Measure:
    """Quality that precisions cost."""
    per_unit = dict(tables.problem.constraints.dtype_loss)
    each = np.array([per_unit.get(rate.dtype, 0.0) for rate in tables.rates])
    size = np.arange(tables.units + 1)
    stage: Floats = each[:, None, None] * (size[None, :] - size[:, None]).astype(np.float64)
    nothing = np.zeros_like(tables.wires.slow)
    none = (0.0, np.zeros(tables.units + 1), 0.0)
    return Measure(stage, *_hops(tables, nothing, nothing, none))


@dataclass(frozen=True, slots=True)
class Prefill:
    """TTFT is the sum of `total` plus `(chunks - 1)` times the largest of `slowest`."""

    total: Measure
    slowest: Measure
    chunks: int


def prefill(tables: Tables) -> Prefill:
    """Seconds. A device alone takes the prompt as one chunk, so its `slowest` is 0."""
    load = tables.problem.workload
    count = price.chunks(load, 2)
    each, whole = _chunk_s(tables, load.prompt_tokens / count)
    _, alone = _chunk_s(tables, float(load.prompt_tokens))
    whole[:, 0, -1] = alone[:, 0, -1]
    each[:, 0, -1] = 0.0
    inner = cut_bytes(tables.problem, load.prompt_tokens / count)
    wires, nothing = tables.wires, np.zeros_like(tables.wires.slow)
    sizes = (float(load.prompt_tokens * price.ID_BYTES), inner, float(price.ID_BYTES))
    total = Measure(whole, *_hops(tables, wires.late, wires.slow, sizes))
    slowest = Measure(each, *_hops(tables, nothing, wires.slow, (0.0, inner, 0.0)))
    return Prefill(total, slowest, count)


def _chunk_s(tables: Tables, rows: float) -> tuple[Floats, Floats]:
    """(a chunk without the head, one with the head's one row), [option, start, stop]."""
    problem = tables.problem
    pairs = list(zip(tables.owner.tolist(), tables.rates, strict=True))
    context = problem.workload.prompt_tokens / 2
    whole = _stage_s(problem, tables.devices, pairs, rows, context, head_rows=1.0)
    each = whole.copy()
    if problem.graph.units[-1].kind == "head":
        each[:, :, -1] = each[:, :, -2]
        each[:, -2, -1] = 0.0
    return each, whole


def objective(tables: Tables, name: Objective) -> Measure:
    """What is minimised, of a pass; for throughput, its seconds."""
    if name == "energy":
        return joules(tables)
    return _priced(dollars(tables), decode(tables)) if name == "cost" else decode(tables)


def _priced(cost: Measure, time: Measure) -> Measure:
    """Of placements that cost the same, as free devices do, the faster one is the better."""
    return Measure(
        cost.stage + TIE * time.stage, cost.hop + TIE * time.hop, cost.leave + TIE * time.leave
    )
