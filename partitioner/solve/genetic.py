"""A seeded genetic search: HexGen's way (arXiv 2311.11514), the plain rival of the others.

An individual is an order of all options with a number of units for each; options with none have
no part, so that groups of any size and shape arise. It proves nothing, but takes any number of
devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from outrider.errors import Unplannable
from outrider.partitioner import price
from outrider.partitioner.check import check
from outrider.partitioner.plan import Plan, Problem
from outrider.partitioner.solve import answers, tables
from outrider.partitioner.solve.tables import Floats, Ints, Tables

SEED = 20
PEOPLE, GENERATIONS = 64, 120
ELITE = 16
"""Survivors of a generation; the others are their children."""
CROSSED = 0.2
"""Chance that a child has two parents."""
WILD = 0.4
"""Chance that a child is changed once more."""
WRONG = 1e12
"""Cost of a broken constraint."""


def solve(problem: Problem, seed: int = SEED) -> Plan:
    """The best plan found; equal seeds give equal plans. Raises Unplannable when none is."""
    check(problem)
    found = best(problem, seed)
    if found is None:
        raise Unplannable(
            "the genetic search met no placement that keeps all constraints",
            constraint="all constraints together",
            nearest="the solver dp proves whether there is one, and names the nearest",
        )
    return answers.make(problem, "genetic", found, None)


def best(
    problem: Problem, seed: int = SEED, generations: int = GENERATIONS
) -> tuple[price.Part, ...] | None:
    """The best parts found for a checked problem."""
    herd = Herd(tables.build(problem), np.random.default_rng(seed))
    return herd.evolve(generations)


@dataclass(frozen=True, slots=True)
class People:
    order: Ints
    """[individual, place]: every option once."""
    size: Ints
    """[individual, place]: units of the option there; each row sums to all units."""

    def __len__(self) -> int:
        return len(self.order)

    def take(self, rows: Ints) -> People:
        return People(self.order[rows], self.size[rows])


class Herd:
    """A population over one problem's tables; all of it is valued at once."""

    def __init__(self, arrays: Tables, random: np.random.Generator) -> None:
        self.arrays, self.random, self.options = arrays, random, len(arrays.owner)
        length = np.arange(arrays.units + 1)[None, :] - np.arange(arrays.units + 1)[:, None]
        held = np.where(arrays.allowed, length, 0).reshape(self.options, -1)
        self.room = held.max(1, initial=0)
        measure = tables.objective(arrays, arrays.problem.objective)
        self.measure, self.sends = measure, tables.sends(arrays)
        self.free = np.isfinite(arrays.wires.late) | np.eye(len(arrays.devices), dtype=bool)

    def evolve(self, generations: int) -> tuple[price.Part, ...] | None:
        if not self.options:
            return None
        people = self._beginners()
        values = self._values(people)
        for _ in range(generations):
            children = self._children(people)
            people = _joined(people, children)
            values = np.concatenate([values, self._values(children)])
            keep = np.argsort(values, kind="stable")[:ELITE]
            people, values = people.take(keep), values[keep]
        found = (self._parts(people, row) for row in range(len(people)))
        problem = self.arrays.problem
        return next((parts for parts in found if _fine(problem, parts)), None)

    def _beginners(self) -> People:
        """Random groups in random order, filled by their room; and each option alone."""
        order = np.argsort(self.random.random((PEOPLE, self.options)), 1)
        chosen = self.random.random(order.shape) < self.random.random((PEOPLE, 1))
        weight = np.where(chosen, self.room[order] + 1e-3, 1e-6)
        edges = np.cumsum(weight, 1) / weight.sum(1, keepdims=True) * self.arrays.units
        size = np.diff(np.rint(edges).astype(np.int64), axis=1, prepend=0)
        alone = np.stack([np.roll(np.arange(self.options), shift) for shift in range(self.options)])
        whole = np.zeros_like(alone)
        whole[:, 0] = self.arrays.units
        return _joined(People(order, size), People(alone, whole))

    def _children(self, parents: People) -> People:
        one, two = self.random.integers(0, len(parents), (2, PEOPLE))
        order, size = parents.order[one].copy(), parents.size[one].copy()
        for row in range(PEOPLE):
            if self.random.random() < CROSSED:
                size[row] = self._crossed(order[row], parents, int(two[row]))
            while True:
                self._change(order[row], size[row])
                if self.random.random() > WILD:
                    break
        return People(order, size)

    def _crossed(self, order: Ints, parents: People, other: int) -> Ints:
        """One's order with the other's sizes."""
        by_option = np.zeros(self.options, np.int64)
        by_option[parents.order[other]] = parents.size[other]
        found: Ints = by_option[order]
        return found

    def _change(self, order: Ints, size: Ints) -> None:
        """Units from one place to another, two options exchanged, or one moved elsewhere."""
        a, b = self.random.integers(0, self.options, 2)
        kind = self.random.random()
        if kind < 0.5:
            held = np.flatnonzero(size)
            a = int(self.random.choice(held))
            moved = int(self.random.integers(1, size[a] + 1))
            moved = moved if self.random.random() < 0.3 else min(moved, 2)
            size[a] -= moved
            size[b] += moved
        elif kind < 0.8:
            order[[a, b]] = order[[b, a]]
            if self.random.random() < 0.5:
                size[[a, b]] = size[[b, a]]
        else:
            for row in (order, size):
                row[:] = np.insert(np.delete(row, a), b, row[a])

    def _values(self, people: People) -> Floats:
        """The measure of each; what is not allowed costs far more, by how much is wrong."""
        arrays, count = self.arrays, len(people)
        stop = np.cumsum(people.size, 1)
        start, rows = stop - people.size, np.arange(count)
        total, wrong = np.zeros(count), np.zeros(count)
        before, used = np.full(count, arrays.home), np.zeros((count, len(arrays.devices)), np.int64)
        taken = np.zeros(used.shape)
        sends = np.zeros(count)
        for place in range(self.options):
            option, active = people.order[:, place], people.size[:, place] > 0
            at = (option, start[:, place], stop[:, place])
            device = arrays.owner[option]
            hop = (start[:, place], before, device)
            linked = self.free[before, device]
            usable = active & linked
            total[usable] += (self.measure.stage[at] + self.measure.hop[hop])[usable]
            sends = np.where(usable, np.maximum(sends, self.sends.hop[hop]), sends)
            taken[rows, device] += np.where(active, arrays.pass_s[at], 0.0)
            over = np.maximum(people.size[:, place] - self.room[option], 0)
            wrong += active * (~linked + (used[rows, device] > 0) + (~arrays.allowed[at]) + over)
            used[rows, device] += active
            before = np.where(active, device, before)
        away = ~self.free[before, arrays.home]
        total = np.where(away, total, total + np.where(away, 0.0, self.measure.leave[before]))
        if arrays.problem.objective == "throughput":
            load = arrays.problem.workload
            share = total * load.batch / load.sequences
            total = np.maximum(np.maximum(share, taken.max(1)), sends)
        found: Floats = np.where(wrong + away > 0, (wrong + away) * WRONG, total)
        return found

    def _parts(self, people: People, row: int) -> tuple[price.Part, ...]:
        found, start = [], 0
        for option, size in zip(people.order[row], people.size[row], strict=True):
            if size:
                rate, device = self.arrays.rates[option], self.arrays.owner[option]
                name, stop = self.arrays.devices[device].name, start + int(size)
                found.append(price.Part(name, start, stop, rate.engine, rate.dtype))
                start = stop
        return tuple(found)


def _joined(one: People, two: People) -> People:
    return People(np.concatenate([one.order, two.order]), np.concatenate([one.size, two.size]))


def _fine(problem: Problem, parts: tuple[price.Part, ...]) -> bool:
    try:
        return not price.violations(problem, parts)
    except Unplannable:
        return False
