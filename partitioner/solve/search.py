"""The best chain of stages, exactly: dynamic programming over (cut, last device, used devices).

The states are those of EdgeShard (arXiv 2405.14371) and of PipeDream's partitioner (1806.03377),
with the set of used devices, so that none is used twice. For 16 devices there are far too many
to fill a table, so they are made level by level, by number of stages, and only kept while they
can still lead to something better than the best placement known:

- the *relaxed* problem lets a device be used again at a price per use (Lagrange multipliers,
  begun at the duals of a knapsack of layers into devices and raised as Held and Karp do, 1971);
  its cost to go, by cut and last device, bounds the rest from below;
- the *room* of the devices that are left must suffice for the units that are left;
- of equal devices (twins) only the first unused one is tried;
- of two states with the same cut, device and set, one that is dearer in all figures is dropped.

Levels are first cut to a few states and then run again with more, each time below the best
placement so far, until nothing was cut off: then that placement is proven best. Where that
takes more than `WIDEST` states in a level, the search ends with the bound as proof of how far
from the best it may be at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from outrider.partitioner.solve.tables import Bools, Floats, Ints, Measure, Prefill, Tables, sends

NARROWEST, WIDER, WIDEST = 6, 4, 24576
"""States of a level: at first, how many times more at each run, and at last."""
ASCENTS, EVERY, ONCE, ONCE_MANY = 6, 2, 4, 6
"""Improvements of the multipliers, after how many of them two more devices are used but once,
and how many in all: at first, and where that was not enough."""
SHORT = 0.02
"""Longest step of an ascent, of the bound."""
ROUNDING = 1e-11
"""Relative error of sums."""
GAIN = 1e-9
"""Relative gain that is not worth another placement."""
ALIKE = 2
"""States with the same devices that are kept before others are."""
LONGEST = 3
"""Stages that are moved together when an order is improved."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """Another figure of a placement that must not exceed `most`."""

    measure: Measure
    most: float


@dataclass(frozen=True, slots=True)
class Question:
    """The least `measure` of a chain of stages that keeps all limits."""

    tables: Tables
    measure: Measure
    bounded: tuple[Bounded, ...] = ()
    prefill: Prefill | None = None
    max_ttft_s: float = np.inf
    busiest_s: float = np.inf
    """Most that a decode pass may take any device or direction of a link."""
    below: float = np.inf
    """Only placements with a lower measure are wanted."""
    enough: float = -np.inf
    """A placement with at most this ends the search."""
    widest: int = WIDEST

    @property
    def cap(self) -> float:
        """`busiest_s`, so that equal units sum to equal times wherever they stand."""
        return self.busiest_s * (1 + ROUNDING)


@dataclass(frozen=True, slots=True)
class Answer:
    cost: float
    chain: tuple[tuple[int, int], ...]
    """(option, stop) of each stage."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """None: no placement keeps all limits and is below `Question.below`, unless `bound` is."""

    answer: Answer | None
    bound: float
    """No placement costs less; the answer's own cost where it is proven best."""


@dataclass(frozen=True, slots=True)
class Arena:
    """A question's arrays with everything forbidden at infinity."""

    question: Question
    owner: Ints
    """Device of each option."""
    picks: Ints | None
    """Original option of each [option, start, stop]; None where options are the original ones."""
    stages: tuple[Floats, ...]
    hops: tuple[Floats, ...]
    leaves: tuple[Floats, ...]
    """Of the measure, then of the bounded ones, then of the prefill."""
    most: Floats
    """Of each of these."""
    twin: Ints
    """Devices that must be used before this one, as bits."""
    must: int
    """Devices that must be used, as bits."""
    count: int
    """Most devices."""
    reach: Floats
    """[device]: most units in a stage that is neither first nor last."""
    tail: Floats
    """[device]: most units in a last stage."""
    longest: int
    """Most units in any stage."""

    @property
    def units(self) -> int:
        return self.question.tables.units

    @property
    def devices(self) -> int:
        return len(self.question.tables.devices)


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Least cost to go when devices may be used again at `price` per use, a few of them never.

    Sets number the subsets of `once` that are still unused.
    """

    price: Floats
    """[device]"""
    once: tuple[int, ...]
    """Devices that are used once at most here, too."""
    onward: Floats
    """[cut, set, device]: from the end of a stage of the device at the cut."""
    enter: Floats
    """[cut, set, option]: from the begin of a stage of the option there, its price included."""
    whole: float
    """A lower bound of every placement."""

    def left(self, used: Ints) -> Ints:
        """The set of each state."""
        found = np.zeros(len(used), np.int64)
        for place, device in enumerate(self.once):
            found |= (1 - ((used >> device) & 1)) << place
        return found


@dataclass(frozen=True, slots=True)
class States:
    """Beginnings of placements with equally many stages, one a row."""

    cut: Ints
    device: Ints
    used: Ints
    """A bit per device."""
    cost: tuple[Floats, ...]
    """Of each measure."""
    peak: Floats
    """Slowest prefill chunk so far."""
    first: Ints
    """Option * (units + 1) + stop of home's first range where it may hold a second; else -1."""
    parent: Ints
    option: Ints
    bound: Floats
    """What a placement that begins like this costs at least."""

    def __len__(self) -> int:
        return len(self.cut)

    def take(self, rows: Ints | Bools) -> States:
        return States(
            self.cut[rows], self.device[rows], self.used[rows],
            tuple(cost[rows] for cost in self.cost), self.peak[rows], self.first[rows],
            self.parent[rows], self.option[rows], self.bound[rows],
        )  # fmt: skip


def solve(question: Question) -> Verdict:
    arena = prepare(question)
    zero = np.zeros(arena.devices)
    lead = relax(arena, 0, knapsack(arena))
    others = tuple(relax(arena, k, zero) for k in range(1, len(arena.stages)))
    best, answer, width = question.below, None, NARROWEST
    ascents = [ONCE_MANY, ONCE]
    while True:
        found, whole = run(arena, (lead, *others), best, width)
        if found is not None:
            answer = polished(arena, found)
            best = answer.cost
        if whole or best <= question.enough or lead.whole >= best * (1 - GAIN):
            return Verdict(answer, best)
        if width >= question.widest:
            return Verdict(answer, min(lead.whole, best))
        # A cap leaves few placements, which are found or ruled out without a better bound.
        eager = NARROWEST if np.isinf(question.busiest_s) else NARROWEST * WIDER**2
        if ascents and (width == eager or width > NARROWEST * WIDER):
            lead = ascend(arena, lead, best, ascents.pop())
        width *= WIDER if found is not None or width == NARROWEST else WIDER**2


# --- the arena ---------------------------------------------------------------------------------


def prepare(question: Question) -> Arena:
    tables = question.tables
    extra = [bound.measure for bound in question.bounded]
    most = [np.inf, *(bound.most for bound in question.bounded)]
    if question.prefill is not None:
        extra.append(question.prefill.total)
        most.append(question.max_ttft_s)
    measures = (question.measure, *extra)
    allowed = tables.allowed & (tables.pass_s <= question.cap)
    stages = tuple(np.where(allowed, m.stage, np.inf) for m in measures)
    hops, leaves = _links(question, measures)
    begin, reach, tail = _rooms(tables, allowed)
    alone = tables.units if allowed[:, 0, -1].any() else 1
    owner, picks = tables.owner, None
    if len(measures) == 1 and tables.twice is None:
        owner, picks, stages = _collapse(tables.owner, stages[0])
    limits = tables.problem.constraints
    return Arena(
        question=question,
        owner=owner,
        picks=picks,
        stages=stages,
        hops=hops,
        leaves=leaves,
        most=np.array(most),
        twin=_twins(tables),
        must=_bits(tables, limits.include),
        count=len(tables.devices) if limits.max_devices is None else limits.max_devices,
        reach=reach,
        tail=tail,
        longest=int(max(alone, begin.max(), reach.max(), tail.max())),
    )


def _links(
    question: Question, measures: Sequence[Measure]
) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    hops, leaves = tuple(m.hop for m in measures), tuple(m.leave for m in measures)
    if np.isinf(question.busiest_s):
        return hops, leaves
    taken = sends(question.tables)
    free, home = taken.hop <= question.cap, taken.leave <= question.cap
    return (
        tuple(np.where(free, hop, np.inf) for hop in hops),
        tuple(np.where(home, leave, np.inf) for leave in leaves),
    )


def _collapse(owner: Ints, stage: Floats) -> tuple[Ints, Ints | None, tuple[Floats, ...]]:
    """Without other limits a device's cheapest rate for a stage is the only one that matters."""
    devices, places = np.unique(owner, return_index=True)
    if len(devices) == len(owner):
        return owner, None, (stage,)
    ends = [*places[1:], len(owner)]
    picks = np.stack([a + stage[a:b].argmin(0) for a, b in zip(places, ends, strict=True)])
    return devices, picks, (np.take_along_axis(stage, picks, 0),)


def _rooms(tables: Tables, allowed: Bools) -> tuple[Floats, Floats, Floats]:
    """By device: most units in a stage that is first, in one between, and in one that is last."""
    units = tables.units
    length = np.arange(units + 1)[None, :] - np.arange(units + 1)[:, None]
    longest = np.where(allowed, length, 0)
    found = np.zeros((3, len(tables.devices)))
    np.maximum.at(found[0], tables.owner, longest[:, 0, :-1].max(1))
    np.maximum.at(found[1], tables.owner, longest[:, 1:, :-1].max((1, 2)))
    np.maximum.at(found[2], tables.owner, longest[:, 1:, -1].max(1))
    return found[0], found[1], found[2]


def roomy(question: Question) -> bool:
    """Whether the devices could hold all units if links and order did not matter."""
    tables = question.tables
    allowed = tables.allowed & (tables.pass_s <= question.cap)
    begin, reach, tail = _rooms(tables, allowed)
    alone = bool(allowed[:, 0, -1].any())
    most = reach.sum() + (begin - reach).max() + (tail - reach).max()
    return alone or bool(most >= tables.units)


def _twins(tables: Tables) -> Ints:
    """Equal devices are used in their order; home is nobody's twin."""
    named = set(tables.problem.constraints.include)
    seen: dict[tuple[object, ...], int] = {}
    found = np.zeros(len(tables.devices), np.int64)
    wires = tables.wires
    for place, device in enumerate(tables.devices):
        if place in (tables.home, tables.twice) or device.name in named:
            continue
        rows = np.stack([wires.late, wires.slow, wires.joules])
        around = np.concatenate([rows[:, place, :], rows[:, :, place]])
        key = (replace(device, name=""), np.sort(around, 1).tobytes())
        other = seen.get(key)
        if other is not None and _swappable(rows, place, other):
            found[place] = 1 << other
        seen[key] = place
    return found


def _swappable(rows: Floats, one: int, other: int) -> bool:
    """Whether exchanging two devices leaves all links as they are."""
    order = np.arange(rows.shape[1])
    order[[one, other]] = other, one
    return bool(np.array_equal(rows[:, order][:, :, order], rows))


def _bits(tables: Tables, names: Sequence[str]) -> int:
    places = {device.name: place for place, device in reversed(list(enumerate(tables.devices)))}
    return sum(1 << places[name] for name in set(names))


# --- the relaxed problem -----------------------------------------------------------------------


def relax(arena: Arena, index: int, price: Floats, once: tuple[int, ...] = ()) -> Relaxed:
    """Backward over cuts; every device may follow every other, those of `once` one time."""
    stage, hop, leave = arena.stages[index], arena.hops[index], arena.leaves[index]
    units, owner, sets = arena.units, arena.owner, 1 << len(once)
    onward = np.full((units + 1, sets, arena.devices), np.inf)
    enter = np.full((units + 1, sets, len(owner)), np.inf)
    then, barred = _after(owner, once)
    ends = np.full((sets, len(owner), units + 1), np.inf)
    onward[units] = leave
    ends[:, :, units] = leave[owner] + barred
    into, fee = hop[:, :, owner], price[owner]
    for cut in range(units - 1, -1, -1):
        far = cut + 1 + arena.longest
        enter[cut] = (stage[:, cut, cut + 1 : far] + ends[:, :, cut + 1 : far]).min(2) + fee
        onward[cut] = (into[cut] + enter[cut][:, None, :]).min(2)
        ends[:, :, cut] = onward[cut][then, owner] + barred
    whole = float(onward[0, -1, arena.question.tables.home] - price.sum())
    return Relaxed(price, once, onward, enter, whole)


def _after(owner: Ints, once: tuple[int, ...]) -> tuple[Ints, Floats]:
    """[set, option]: the set after the option, and infinity where it is not in the set."""
    sets = np.arange(1 << len(once))[:, None]
    bits = np.zeros(len(owner), np.int64)
    for place, device in enumerate(once):
        bits[owner == device] = 1 << place
    barred = np.where((bits > 0) & (sets & bits == 0), np.inf, 0.0)
    then: Ints = sets & ~bits
    return then, barred


def uses(arena: Arena, relaxed: Relaxed) -> Floats:
    """How often the relaxed optimum uses each device."""
    found = np.zeros(arena.devices)
    then, _ = _after(arena.owner, relaxed.once)
    cut, device, left = 0, arena.question.tables.home, len(then) - 1
    while cut < arena.units:
        entries = arena.hops[0][cut, device, arena.owner] + relaxed.enter[cut, left]
        option = int(entries.argmin())
        device, left = int(arena.owner[option]), int(then[left, option])
        found[device] += 1
        ends = arena.stages[0][option, cut, cut + 1 :] + relaxed.onward[cut + 1 :, left, device]
        cut += 1 + int(ends.argmin())
    return found


def ascend(arena: Arena, start: Relaxed, best: float, most: int) -> Relaxed:
    """Raise the lower bound towards `best`: by prices on devices that are used too often, and
    by using those that are it most often only once.

    Polyak's step; a device that must be used may have a negative price. `most`: how many devices
    are used once only.
    """
    top, last, scale = start, start, 1.0
    must = ((arena.must >> np.arange(arena.devices)) & 1).astype(bool)
    often = np.zeros(arena.devices)
    for turn in range(ASCENTS):
        if not np.isfinite(last.whole) or top.whole >= best * (1 - GAIN):
            break
        excess = uses(arena, last) - 1
        often += np.maximum(excess, 0)
        once = top.once
        if turn % EVERY == EVERY - 1:
            once = _oftenest(often, once, most)
        excess[(excess < 0) & (last.price <= 0) & ~must] = 0
        if not excess.any():
            break
        step = scale * min(best - last.whole, SHORT * abs(last.whole)) / float(excess @ excess)
        price = last.price + step * excess
        last = relax(arena, 0, np.where(must, price, np.maximum(price, 0)), once)
        if last.whole > top.whole:
            top = last
        else:
            last, scale = top, scale / 3
    return top


def _oftenest(often: Floats, once: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Two more devices, up to `most`, by how often the relaxed optimum used them again."""
    order = [int(device) for device in np.argsort(-often) if often[device] > 0]
    more = [device for device in order if device not in once][:2]
    return (*once, *more)[:most]


def knapsack(arena: Arena) -> Floats:
    """A price per use for each device: the duals of filling devices, best first, with all units.

    A device that holds many units cheaply saves that much against the one that is filled last.
    """
    cost, hop = arena.stages[0], arena.hops[0][arena.units // 2]
    apart = hop + np.where(np.eye(arena.devices, dtype=bool), np.inf, 0.0)
    into = apart.min(0)
    per_unit = np.full(arena.devices, np.inf)
    for option, device in enumerate(arena.owner):
        size = int(arena.reach[device])
        if size and 1 + size <= arena.units:
            full = cost[option, 1, 1 + size]
            per_unit[device] = min(per_unit[device], (full + into[device]) / size)
    known = np.flatnonzero(np.isfinite(per_unit))
    order = known[np.argsort(per_unit[known])]
    if not len(order):
        return np.zeros(arena.devices)
    filled = np.searchsorted(np.cumsum(arena.reach[order]), arena.units)
    last = per_unit[order[min(int(filled), len(order) - 1)]]
    saved = np.where(np.isfinite(per_unit), last - per_unit, 0.0) * arena.reach
    found: Floats = np.maximum(saved, 0.0)
    return found


# --- levels ------------------------------------------------------------------------------------


def run(
    arena: Arena, bounds: Sequence[Relaxed], below: float, width: int
) -> tuple[Answer | None, bool]:
    """The best placement below a cost, and whether no level was cut to `width` on the way."""
    levels = [_root(arena, bounds[0])]
    best, found, whole = below, None, True
    for _ in range(arena.devices):
        after = expand(arena, bounds, levels[-1], best)
        done = after.cut == arena.units
        ended = _best_end(arena, after.take(done))
        if ended is not None and ended[0] < best * (1 - GAIN):
            best = ended[0]
            found = Answer(best, _chain(arena, levels, ended[1]))
        after = after.take(~done & (after.bound < best * (1 - GAIN)))
        if not len(after) or best <= arena.question.enough:
            break
        after = distinct(arena, after)
        if len(after) > width:
            after, whole = _thinned(arena, after, width), False
        levels.append(after)
    return found, whole


def _thinned(arena: Arena, states: States, width: int) -> States:
    """The most promising, but few with the same devices while there are others.

    Under a cap on the busiest device room is what runs out, so what wastes least of it is."""
    merit = states.bound
    if np.isfinite(arena.question.busiest_s):
        merit = -(states.cut + _room(arena, states.used))
    order = np.lexsort((states.bound, merit, states.used))
    used, place = states.used[order], np.arange(len(order))
    opens = np.concatenate([[True], used[1:] != used[:-1]])
    rank = place - np.maximum.accumulate(np.where(opens, place, 0))
    first = np.lexsort((states.bound[order], merit[order], rank >= ALIKE))
    return states.take(order[first[:width]])


def _root(arena: Arena, bound: Relaxed) -> States:
    one = np.zeros(1, np.int64)
    home = one + arena.question.tables.home
    costs = tuple(np.zeros(1) for _ in arena.stages)
    return States(one, home, one, costs, np.zeros(1), one - 1, one, one, np.array([bound.whole]))


def _best_end(arena: Arena, ended: States) -> tuple[float, States] | None:
    """The cheapest whole placement of a level."""
    ended = ended.take((ended.used & arena.must) == arena.must)
    if not len(ended):
        return None
    totals = ended.cost[0] + arena.leaves[0][ended.device]
    at = int(totals.argmin())
    return float(totals[at]), ended.take(np.array([at]))


def _chain(arena: Arena, levels: Sequence[States], last: States) -> tuple[tuple[int, int], ...]:
    """(original option, stop) of each stage, back from the last."""
    found, state = [], last
    for level in reversed(levels):
        before = level.take(state.parent)
        option, start, stop = int(state.option[0]), int(before.cut[0]), int(state.cut[0])
        original = option if arena.picks is None else int(arena.picks[option, start, stop])
        found.append((original, stop))
        state = before
    return tuple(reversed(found))


def expand(arena: Arena, bounds: Sequence[Relaxed], states: States, best: float) -> States:
    """Every stage after every state that can still lead below `best`."""
    rows, options, costs = _entries(arena, bounds, states, best)
    return _stops(arena, bounds, states.take(rows), rows, options, costs, best)


def _entries(
    arena: Arena, bounds: Sequence[Relaxed], states: States, best: float
) -> tuple[Ints, Ints, list[Floats]]:
    """(state, option) pairs, and each measure with the hop to the option's device."""
    owner, bits = arena.owner, np.left_shift(1, arena.owner)
    used = states.used[:, None]
    fine = (used & bits) == 0
    fine &= (used & arena.twin[owner]) == arena.twin[owner]
    if arena.count < arena.devices:
        fine &= (
            _counted(arena, states)[:, None] + (owner != arena.question.tables.twice) <= arena.count
        )
    spared = _spared(bounds[0].price, states.used)
    costs = []
    for k, bound in enumerate(bounds):
        cost = states.cost[k][:, None] + arena.hops[k][states.cut, states.device][:, owner]
        least = cost + bound.enter[states.cut, bound.left(states.used)]
        fine &= (least - spared[:, None] < best) if k == 0 else least <= arena.most[k]
        costs.append(cost)
    rows, options = np.nonzero(fine)
    return rows, options, [cost[rows, options] for cost in costs]


def _counted(arena: Arena, states: States) -> Ints:
    """Devices that states use; home counts once."""
    places = np.arange(arena.devices)
    found: Ints = ((states.used[:, None] >> places) & 1).sum(1)
    return found


def _spared(price: Floats, used: Ints) -> Floats:
    """The prices of the devices that are not used."""
    free = 1 - ((used[:, None] >> np.arange(len(price))) & 1)
    found: Floats = free @ price
    return found


def _stops(
    arena: Arena, bounds: Sequence[Relaxed], states: States, rows: Ints, options: Ints,
    costs: Sequence[Floats], best: float,
) -> States:  # fmt: skip
    device = arena.owner[options]
    used = states.used | np.left_shift(1, device)
    spared = _spared(bounds[0].price, used)
    totals = [c[:, None] + s[options, states.cut] for c, s in zip(costs, arena.stages, strict=True)]
    least = totals[0] + bounds[0].onward[:, bounds[0].left(used), device].T - spared[:, None]
    fine = least < best
    fine &= np.arange(arena.units + 1)[None, :] >= (arena.units - _room(arena, used))[:, None]
    for k in range(1, len(totals)):
        fine &= totals[k] + bounds[k].onward[:, 0, device].T <= arena.most[k]
    at, stop = np.nonzero(fine)
    option, before = options[at], states.take(at)
    peak = before.peak
    if arena.question.prefill is not None:
        peak = np.maximum(peak, _chunk(arena, before, option, stop))
    first = _first(arena, before, option, stop)
    made = States(
        stop, device[at], used[at], tuple(total[at, stop] for total in totals), peak, first,
        rows[at], option, least[at, stop],
    )  # fmt: skip
    if arena.question.prefill is None and arena.question.tables.twice is None:
        return made
    return made.take(_kept(arena, bounds, before, made))


def _room(arena: Arena, used: Ints) -> Floats:
    """Most units that the devices left can take; the last of them holds the model's end."""
    free = 1 - ((used[:, None] >> np.arange(arena.devices)) & 1)
    total = free @ arena.reach
    end = np.where(free == 1, arena.tail - arena.reach, -np.inf).max(1)
    found: Floats = np.where(np.isfinite(end), total + end, 0.0)
    return found


def _chunk(arena: Arena, before: States, option: Ints, stop: Ints) -> Floats:
    """The stage's prefill chunk, or the link's towards it, whichever is slower."""
    assert arena.question.prefill is not None
    slowest, tables = arena.question.prefill.slowest, arena.question.tables
    own = slowest.stage[option, before.cut, stop]
    if tables.twice is not None:
        home, end = np.divmod(np.maximum(before.first, 0), arena.units + 1)
        own = own + np.where(arena.owner[option] == tables.twice, slowest.stage[home, 0, end], 0.0)
    found: Floats = np.maximum(own, slowest.hop[before.cut, before.device, arena.owner[option]])
    return found


def _first(arena: Arena, before: States, option: Ints, stop: Ints) -> Ints:
    tables = arena.question.tables
    if tables.twice is None:
        return before.first
    begins = (before.cut == 0) & (arena.owner[option] == tables.home)
    found: Ints = np.where(begins, option * (arena.units + 1) + stop, before.first)
    return found


def _kept(arena: Arena, bounds: Sequence[Relaxed], before: States, made: States) -> Bools:
    """Limits that depend on more than the stage: home's two ranges, time to the first token."""
    fine = np.ones(len(made), np.bool_)
    tables, question = arena.question.tables, arena.question
    if tables.twice is not None:
        home, end = np.divmod(np.maximum(before.first, 0), arena.units + 1)
        place = (made.option, before.cut, made.cut)
        held = tables.memory[place] + tables.memory[home, 0, end]
        taken = tables.pass_s[place] + tables.pass_s[home, 0, end]
        room = tables.devices[tables.home].memory_bytes
        both = (before.first >= 0) & (held <= room) & (taken <= question.cap)
        fine &= both | (made.device != tables.twice)
    if question.prefill is not None:
        sum_s = made.cost[-1] + bounds[-1].onward[made.cut, 0, made.device]
        fine &= sum_s + (question.prefill.chunks - 1) * made.peak <= question.max_ttft_s
    return fine


def distinct(arena: Arena, states: States) -> States:
    """Without states that another with the same cut, device and set beats in every figure."""
    key = (states.used * arena.devices + states.device) * (arena.units + 1) + states.cut
    if arena.question.tables.twice is not None:
        key = key * (len(arena.owner) * (arena.units + 1) + 1) + states.first + 1
    order = np.lexsort((states.cost[0], key))
    key = key[order]
    opens = np.diff(key, prepend=-1) != 0
    if len(states.cost) == 1:
        return states.take(order[opens])
    leader = order[np.maximum.accumulate(np.where(opens, np.arange(len(key)), 0))]
    figures = (*states.cost[1:], states.peak)
    better = np.logical_or.reduce([figure[order] < figure[leader] for figure in figures])
    return states.take(order[opens | better])


# --- orders ------------------------------------------------------------------------------------


def polished(arena: Arena, answer: Answer) -> Answer:
    """The same devices in a better order, cut anew; only where stages are all that limits."""
    tables, limits = arena.question.tables, arena.question
    if len(arena.stages) > 1 or tables.twice is not None or tables.problem.constraints.stay:
        return answer
    option_of = {int(device): option for option, device in enumerate(arena.owner)}
    devices = [int(tables.owner[option]) for option, _ in answer.chain]
    order = _ordered(arena, devices)
    if order == devices:
        return answer
    again = recut(arena, [option_of[device] for device in order])
    return again if again is not None and again.cost < min(answer.cost, limits.below) else answer


def recut(arena: Arena, options: Sequence[int]) -> Answer | None:
    """The best cuts of a chain of options in this order."""
    cost = np.full(arena.units + 1, np.inf)
    cost[0], before, backs = 0.0, arena.question.tables.home, []
    for option in options:
        device = int(arena.owner[option])
        paths = (cost + arena.hops[0][:, before, device])[:, None] + arena.stages[0][option]
        backs.append(paths.argmin(0))
        cost, before = paths.min(0), device
    total = float(cost[arena.units] + arena.leaves[0][before])
    if not np.isfinite(total):
        return None
    chain, stop = [], arena.units
    for option, back in zip(reversed(options), reversed(backs), strict=True):
        start = int(back[stop])
        original = option if arena.picks is None else int(arena.picks[option, start, stop])
        chain.append((original, stop))
        stop = start
    return Answer(total, tuple(reversed(chain)))


def _ordered(arena: Arena, devices: list[int]) -> list[int]:
    """Shorter ways through the same devices: segments moved, two exchanged, parts reversed."""
    best, order = float(_way(arena, np.array([devices]))[0]), devices
    while True:
        tried = np.array(_moves(order)).reshape(-1, len(order))
        if not len(tried):
            return order
        ways = _way(arena, tried)
        at = int(ways.argmin())
        if not ways[at] < best * (1 - GAIN):
            return order
        best, order = float(ways[at]), [int(device) for device in tried[at]]


def _way(arena: Arena, orders: Ints) -> Floats:
    """Hops of whole orders, between stages as at the middle cut."""
    hop = arena.hops[0]
    start = hop[0, arena.question.tables.home, orders[:, 0]]
    inner = hop[arena.units // 2][orders[:, :-1], orders[:, 1:]].sum(1)
    found: Floats = start + inner + arena.leaves[0][orders[:, -1]]
    return found


def _moves(order: list[int]) -> list[list[int]]:
    found, count = [], len(order)
    for i in range(count):
        for size in range(1, min(LONGEST, count - i) + 1):
            part, rest = order[i : i + size], order[:i] + order[i + size :]
            found += [rest[:j] + part + rest[j:] for j in range(len(rest) + 1) if j != i]
        for j in range(i + 1, count):
            swapped = order.copy()
            swapped[i], swapped[j] = swapped[j], swapped[i]
            found += [swapped, order[:i] + order[i : j + 1][::-1] + order[j + 1 :]]
    return found
