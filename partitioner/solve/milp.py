"""Placement as a mixed-integer linear program for HiGHS, after Helix (arXiv 2406.01566).

Equal units in a row are one *run*, and a device takes a whole number of units of each run. A
path over devices gives their order; a hop is labelled with the run that its cut follows, labels
never fall along the path, and that makes ranges contiguous. Throughput is what flows through
the narrowest device or link (the value of the maximum flow through the chosen path), latency
the length of the path.

Beside HiGHS's own bound stands one of counting: how little the busiest device can have to do
when every device takes whole units. What is between the best plan and the better bound is the
`gap`. It stops after `LIMIT_S` seconds; what `genetic` finds quickly is its start.

One range per device: where home must hold both ends of a model, `dp` is the solver.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from outrider.errors import ConfigError, Unplannable
from outrider.partitioner import price
from outrider.partitioner.check import check
from outrider.partitioner.cost import ROUND
from outrider.partitioner.plan import Plan, Problem
from outrider.partitioner.solve import answers, genetic, tables
from outrider.partitioner.solve.tables import Floats, Ints, Measure, Tables

LIMIT_S = 4.0
"""Of HiGHS; what comes before takes another second at 80 layers and 16 devices."""
BEGIN = 30
"""Generations of the start."""
GAP = 1e-4
"""Relative distance from the bound at which HiGHS may stop."""


@dataclass(slots=True)
class Program:
    """Columns and rows as they are gathered."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    rows: list[tuple[float, float, dict[int, float]]] = field(default_factory=list)

    def column(self, low: float, high: float, kind: str = "real") -> int:
        self.low.append(low)
        self.high.append(high)
        self.whole.append(kind == "whole")
        return len(self.low) - 1

    def columns(self, shape: tuple[int, ...], high: float, kind: str) -> Ints:
        size = int(np.prod(shape))
        found = np.array([self.column(0.0, high, kind) for _ in range(size)], np.int64)
        return found.reshape(shape)

    def row(self, low: float, high: float, terms: dict[int, float]) -> None:
        self.rows.append((low, high, terms))


@dataclass(frozen=True, slots=True)
class Runs:
    """Equal units in a row."""

    sizes: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    taken: Ints
    """[option, run]: units."""
    used: Ints
    """[option]"""
    hop: Ints
    """[run, from, to]"""
    begin: Ints
    """[device]: whether it is first."""
    end: Ints
    """[device]: whether it is last."""
    place: Ints
    """[device]: units up to its end."""
    busiest: int


def solve(problem: Problem, limit_s: float = LIMIT_S) -> Plan:
    """The best plan found, with its gap. Raises InvalidProfile, Unplannable, and ConfigError
    where HiGHS is missing."""
    check(problem)
    highs = _highs()
    if price.both_ends_stay(problem):
        raise Unplannable(
            "home must hold both ends of the model",
            constraint="one range per device",
            nearest="the solver dp, which lets home hold two",
        )
    arrays = tables.build(problem)
    if not len(arrays.owner):
        raise _nothing()
    start = genetic.best(problem, generations=BEGIN)
    found = _run(highs, arrays, start, limit_s)
    single = [parts for parts in _alone(arrays) if _fine(problem, parts)]
    known = [*single, *(parts for parts in (start, found.parts) if parts)]
    fine = [parts for parts in known if _fine(problem, parts)]
    if not fine:
        raise _nothing()
    parts = min(fine, key=lambda parts: _value(problem, parts))
    value = _value(problem, parts)
    gap = max(0.0, 1 - found.bound / value) if value > 0 else 0.0
    return answers.make(problem, "milp", parts, gap)


def _highs() -> Any:
    try:
        import highspy
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the solver milp needs HiGHS",
            why=f"{error.name} is not installed",
            effect="nothing was planned",
            todo='pip install "outrider[plan]", or --solver dp',
        ) from None
    return highspy


def _nothing() -> Unplannable:
    return Unplannable(
        "no placement was found that keeps all constraints",
        constraint="all constraints together",
        nearest="the solver dp names which, and the nearest that can be met",
    )


def _value(problem: Problem, parts: tuple[price.Part, ...]) -> float:
    return price.value(problem, price.price(problem, parts))


# --- the program -------------------------------------------------------------------------------


def runs_of(arrays: Tables) -> Runs:
    """Units join a run when all tables treat them alike and cuts after them cost the same."""
    cut = tables.cut_bytes(arrays.problem, 1.0)[1:]
    units = np.arange(arrays.units)
    single = np.concatenate(
        [arrays.pass_s[:, units, units + 1], _unit_memory(arrays), cut[None, :]]
    )
    stay = np.isin(units, arrays.problem.constraints.stay)
    fresh = np.ones(arrays.units, np.bool_)
    fresh[1:] = ~np.isclose(single[:, 1:], single[:, :-1], rtol=1e-9).all(0)
    fresh[1:] |= stay[1:] != stay[:-1]
    starts = np.flatnonzero(fresh)
    sizes = np.diff(starts, append=arrays.units)
    return Runs(tuple(int(size) for size in sizes), tuple(int(start) for start in starts))


def _unit_memory(arrays: Tables) -> Floats:
    """Bytes of each unit, not rounded, [option, unit]."""
    graph, kept = arrays.problem.graph, price.kept_tokens(arrays.problem.workload)
    weights = np.array([unit.weight_bytes for unit in graph.units], np.float64)
    kv = np.array([unit.kv_bytes for unit in graph.units], np.float64) * kept
    scale = np.array([[rate.weight_scale] for rate in arrays.rates])
    kv_scale = np.array([[rate.kv_scale] for rate in arrays.rates])
    found: Floats = weights * scale + kv * kv_scale
    return found


@dataclass(frozen=True, slots=True)
class _Model:
    arrays: Tables
    runs: Runs
    program: Program
    columns: Columns

    @property
    def devices(self) -> int:
        return len(self.arrays.devices)

    def amount(self, measure: Measure) -> dict[int, float]:
        """A measure of the whole placement as terms."""
        terms: dict[int, float] = {}
        for option in range(len(self.arrays.owner)):
            terms.update(self.stage(measure, option))
        home, c = self.arrays.home, self.columns
        for device in range(self.devices):
            terms[int(c.begin[device])] = _finite(measure.hop[0, home, device])
            terms[int(c.end[device])] = _finite(measure.leave[device])
        for run, cut in enumerate(self._cuts()):
            for a, b in np.argwhere(np.isfinite(measure.hop[cut])):
                terms[int(c.hop[run, a, b])] = float(measure.hop[cut, a, b])
        return terms

    def _cuts(self) -> list[int]:
        """A cut after each run; after the last run there is none, and none is taken."""
        last = self.arrays.units - 1
        return [min(start + 1, last) for start in self.runs.starts]

    def stage(self, measure: Measure, option: int) -> dict[int, float]:
        """An option's part: a fee for its use and a price per unit."""
        stage, units = measure.stage[option], self.arrays.units
        each = [float(stage[start, start + 1]) for start in self.runs.starts]
        fee = 0.0
        if units > 1:
            fee = each[0] + float(stage[1, 2]) - float(stage[0, 2])
        terms = {int(self.columns.used[option]): fee}
        for run, single in enumerate(each):
            terms[int(self.columns.taken[option, run])] = single - fee
        return terms


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _model(arrays: Tables) -> _Model:
    runs, program = runs_of(arrays), Program()
    devices, options = len(arrays.devices), len(arrays.owner)
    many = len(runs.sizes)
    columns = Columns(
        taken=program.columns((options, many), float(arrays.units), "whole"),
        used=program.columns((options,), 1.0, "whole"),
        hop=program.columns((many, devices, devices), 1.0, "whole"),
        begin=program.columns((devices,), 1.0, "whole"),
        end=program.columns((devices,), 1.0, "whole"),
        place=program.columns((devices,), float(arrays.units), "real"),
        busiest=program.column(0.0, math.inf),
    )
    model = _Model(arrays, runs, program, columns)
    _path(model)
    _loads(model)
    _order(model)
    _limits(model)
    return model


def _path(model: _Model) -> None:
    """One path over devices from home's hand and back to it, over links that exist."""
    c, p, arrays = model.columns, model.program, model.arrays
    p.row(1, 1, {int(column): 1.0 for column in c.begin})
    p.row(1, 1, {int(column): 1.0 for column in c.end})
    measure = tables.decode(arrays)
    for device in range(model.devices):
        for ends, cost in ((c.begin, measure.hop[0, arrays.home]), (c.end, measure.leave)):
            if not math.isfinite(cost[device]):
                p.high[int(ends[device])] = 0.0
        uses = {int(c.used[o]): -1.0 for o in np.flatnonzero(arrays.owner == device)}
        into = {int(column): 1.0 for column in c.hop[:, :, device].ravel()}
        out = {int(column): 1.0 for column in c.hop[:, device, :].ravel()}
        p.row(0, 0, {int(c.begin[device]): 1.0, **into, **uses})
        p.row(0, 0, {int(c.end[device]): 1.0, **out, **uses})
        p.row(0, 1, {column: 1.0 for column in uses})
    inner = measure.hop[1] if arrays.units > 1 else measure.hop[0]
    for column in c.hop[:, ~np.isfinite(inner)].ravel():
        p.high[int(column)] = 0.0
    for column in c.hop[-1].ravel() if model.runs.sizes[-1] == 1 else ():
        p.high[int(column)] = 0.0


def _loads(model: _Model) -> None:
    """Every unit once, memory kept, only units that an option may hold."""
    c, p, arrays, sizes = model.columns, model.program, model.arrays, model.runs.sizes
    memory = _unit_memory(arrays)[:, list(model.runs.starts)]
    for run, size in enumerate(sizes):
        p.row(size, size, {int(column): 1.0 for column in c.taken[:, run]})
    for option, device in enumerate(arrays.owner.tolist()):
        for run, size in enumerate(sizes):
            p.row(-math.inf, 0, {int(c.taken[option, run]): 1.0, int(c.used[option]): -size})
            if not arrays.allowed[option, model.runs.starts[run]].any():
                p.high[int(c.taken[option, run])] = 0.0
        room = float(arrays.devices[device].memory_bytes // ROUND * ROUND)
        held = {int(c.taken[option, run]): float(memory[option, run]) for run in range(len(sizes))}
        p.row(-math.inf, 0, {**held, int(c.used[option]): -room})
        everything = {int(column): -1.0 for column in c.taken[option]}
        p.row(-math.inf, 0, {int(c.used[option]): 1.0, **everything})
    for unit in arrays.problem.constraints.stay:
        run = int(np.searchsorted(model.runs.starts, unit, side="right")) - 1
        for other in np.flatnonzero(arrays.owner != arrays.home):
            p.high[int(c.taken[other, run])] = 0.0


def _order(model: _Model) -> None:
    """Ranges are contiguous: a device takes units of a run between the labels of its hops."""
    c, p, arrays, sizes = model.columns, model.program, model.arrays, model.runs.sizes
    for device in range(model.devices):
        own = np.flatnonzero(arrays.owner == device)
        for run, size in enumerate(sizes):
            taken = {int(c.taken[option, run]): 1.0 for option in own}
            before = {int(x): -float(size) for x in c.hop[: run + 1, :, device].ravel()}
            after = {int(x): -float(size) for x in c.hop[run:, device, :].ravel()}
            p.row(-math.inf, 0, {**taken, **before, int(c.begin[device]): -float(size)})
            p.row(-math.inf, 0, {**taken, **after, int(c.end[device]): -float(size)})
            leaves = {int(x): 1.0 for x in c.hop[run, device, :]}
            p.row(-math.inf, 0, {**leaves, **{column: -1.0 for column in taken}})
            fallen = {int(x): 1.0 for x in c.hop[: run + 1, device, :].ravel()}
            begun = {int(x): -1.0 for x in c.hop[: run + 1, :, device].ravel()}
            p.row(-math.inf, 0, {**fallen, **begun, int(c.begin[device]): -1.0})
    _positions(model)


def _positions(model: _Model) -> None:
    """Units up to a device's end grow along the path, so that it has no loops beside it."""
    c, p, units = model.columns, model.program, float(model.arrays.units)
    for b in range(model.devices):
        own = np.flatnonzero(model.arrays.owner == b)
        load = {int(column): 1.0 for option in own for column in c.taken[option]}
        p.row(-math.inf, 0, {**load, int(c.place[b]): -1.0})
        for a in range(model.devices):
            if a != b:
                hops = {int(column): units for column in c.hop[:, a, b]}
                place = {int(c.place[a]): 1.0, int(c.place[b]): -1.0}
                p.row(-math.inf, units, {**load, **hops, **place})


def _limits(model: _Model) -> None:
    p, arrays, limits = model.program, model.arrays, model.arrays.problem.constraints
    load, used = arrays.problem.workload, model.columns.used
    caps = [(limits.max_tpot_s, tables.decode, load.tokens_per_pass)]
    caps += [(limits.max_joules_per_token, tables.joules, load.tokens_per_pass * load.batch)]
    caps += [(limits.max_loss, tables.losses, 1.0)]
    for most, measure, scale in caps:
        if most is not None:
            p.row(-math.inf, most * scale, model.amount(measure(arrays)))
    if limits.max_devices is not None:
        p.row(-math.inf, limits.max_devices, {int(column): 1.0 for column in used})
    for name in set(limits.include):
        own = [o for o, d in enumerate(arrays.owner) if arrays.devices[d].name == name]
        p.row(1, math.inf, {int(used[option]): 1.0 for option in own})


def _objective(model: _Model) -> tuple[dict[int, float], float, float]:
    """(terms to minimise, what they are divided by to be a plan's value, a bound of counting)."""
    arrays, load = model.arrays, model.arrays.problem.workload
    tokens = load.tokens_per_pass * load.batch
    kind = arrays.problem.objective
    if kind != "throughput":
        scale = load.tokens_per_pass if kind == "latency" else tokens
        return model.amount(tables.objective(arrays, kind)), scale, 0.0
    c, p, sends = model.columns, model.program, tables.sends(arrays)
    decode, busiest = tables.decode(arrays), {model.columns.busiest: -1.0}
    for device in range(model.devices):
        terms: dict[int, float] = {}
        for option in np.flatnonzero(arrays.owner == device):
            terms.update(model.stage(decode, int(option)))
        p.row(-math.inf, 0, {**terms, **busiest})
    share = load.batch / load.sequences
    cycle = {column: cost * share for column, cost in model.amount(decode).items()}
    p.row(-math.inf, 0, {**cycle, **busiest})
    for column, cost in model.amount(Measure(0 * decode.stage, sends.hop, sends.leave)).items():
        if cost > 0:
            p.row(-math.inf, 0, {column: cost, **busiest})
    floor = least_busiest(arrays)
    p.low[c.busiest] = floor
    return {c.busiest: 1.0}, tokens, floor


def least_busiest(arrays: Tables) -> float:
    """Below this, devices that take whole units within their memory can not hold all of them."""
    from outrider.partitioner.solve.search import Question, roomy

    values = np.unique(arrays.pass_s[arrays.allowed])
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        asked = Question(arrays, tables.decode(arrays), busiest_s=float(values[middle]))
        low, high = (low, middle) if roomy(asked) else (middle + 1, high)
    return float(values[low]) if len(values) else 0.0


# --- HiGHS -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Solved:
    parts: tuple[price.Part, ...] | None
    bound: float
    """No plan has a lower value."""


def _run(
    highs: Any, arrays: Tables, start: tuple[price.Part, ...] | None, limit_s: float
) -> Solved:
    model = _model(arrays)
    terms, scale, floor = _objective(model)
    solver = _loaded(highs, model.program, terms, limit_s)
    if start is not None:
        _begin(highs, solver, model, start)
    solver.run()
    info = solver.getInfo()
    bound = max(float(info.mip_dual_bound), floor)
    if info.primal_solution_status != 2:
        return Solved(None, max(0.0, bound) / scale)
    values = np.array(solver.getSolution().col_value)
    return Solved(_parts(model, values), max(0.0, bound) / scale)


def _alone(arrays: Tables) -> list[tuple[price.Part, ...]]:
    """Each device for all: such plans save hops, and tied weights, that counting does not see."""
    found: list[tuple[price.Part, ...]] = []
    for option in np.flatnonzero(arrays.allowed[:, 0, arrays.units]):
        device, rate = arrays.devices[arrays.owner[option]], arrays.rates[option]
        found.append((price.Part(device.name, 0, arrays.units, rate.engine, rate.dtype),))
    return found


def _fine(problem: Problem, parts: tuple[price.Part, ...]) -> bool:
    try:
        return not price.violations(problem, parts)
    except Unplannable:
        return False


def _loaded(highs: Any, program: Program, terms: dict[int, float], limit_s: float) -> Any:
    solver = highs.Highs()
    for name, value in (("output_flag", False), ("time_limit", limit_s), ("mip_rel_gap", GAP)):
        solver.setOptionValue(name, value)
    solver.setOptionValue("threads", 1)
    for low, high in zip(program.low, program.high, strict=True):
        solver.addVar(low, high)
    for column, cost in terms.items():
        solver.changeColCost(column, cost)
    for column, whole in enumerate(program.whole):
        if whole:
            solver.changeColIntegrality(column, highs.HighsVarType.kInteger)
    for low, high, row in program.rows:
        solver.addRow(
            low, high, len(row), np.array(list(row), np.int32), np.array(list(row.values()))
        )
    return solver


def _begin(highs: Any, solver: Any, model: _Model, parts: tuple[price.Part, ...]) -> None:
    """A known placement to begin with."""
    arrays, c = model.arrays, model.columns
    keys = [
        (arrays.devices[d].name, rate.engine, rate.dtype)
        for d, rate in zip(arrays.owner, arrays.rates, strict=True)
    ]
    values = np.zeros(len(model.program.low))
    chain = [keys.index((part.device, part.engine, part.dtype)) for part in parts]
    edges = np.array([*model.runs.starts, arrays.units])
    for option, part in zip(chain, parts, strict=True):
        values[c.used[option]] = 1
        inside = np.minimum(part.stop, edges[1:]) - np.maximum(part.start, edges[:-1])
        values[c.taken[option]] = np.maximum(inside, 0)
        values[c.place[arrays.owner[option]]] = part.stop
    values[c.begin[arrays.owner[chain[0]]]] = values[c.end[arrays.owner[chain[-1]]]] = 1
    for (a, b), part in zip(zip(chain, chain[1:], strict=False), parts, strict=False):
        run = int(np.searchsorted(edges, part.stop - 1, side="right")) - 1
        values[c.hop[run, arrays.owner[a], arrays.owner[b]]] = 1
    if arrays.problem.objective == "throughput":
        load = arrays.problem.workload
        scale = load.tokens_per_pass * load.batch
        values[c.busiest] = _value(arrays.problem, parts) * scale * (1 + 1e-9)
    solution = highs.HighsSolution()
    solution.col_value = values.tolist()
    solver.setSolution(solution)


def _parts(model: _Model, values: Floats) -> tuple[price.Part, ...]:
    """The path and its loads, as placed ranges."""
    arrays, c = model.arrays, model.columns
    device, found, start = int(values[c.begin].argmax()), [], 0
    for _ in range(model.devices):
        own = np.flatnonzero(arrays.owner == device)
        option = int(own[values[c.used[own]].argmax()])
        stop = start + int(round(float(values[c.taken[option]].sum())))
        rate = arrays.rates[option]
        name = arrays.devices[device].name
        found.append(price.Part(name, start, stop, rate.engine, rate.dtype))
        start = stop
        onward = values[c.hop[:, device, :]].sum(0)
        if onward.max() < 0.5:
            break
        device = int(onward.argmax())
    return tuple(found)
