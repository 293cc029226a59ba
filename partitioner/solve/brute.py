"""Every placement there is, priced one by one: what the other solvers are measured against.

Takes every order of devices, every choice of their rates and every set of cuts. Nothing is
pruned and no table of `dp` is used; stages are priced once each by `outrider.partitioner.price`.
For up to about 12 layers and 5 devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from outrider.errors import Unplannable
from outrider.partitioner import price
from outrider.partitioner.check import check
from outrider.partitioner.plan import Plan, Problem
from outrider.partitioner.solve import answers

MOST = 3_000_000
"""Placements; beyond, the wait would be long."""

Options = tuple[tuple[str, str, str], ...]
"""(device, engine, dtype) of each stage."""
Floats = NDArray[np.float64]


def solve(problem: Problem) -> Plan:
    """The best of all placements. Raises Unplannable, ValueError beyond `MOST` placements."""
    check(problem)
    found = best(problem)
    if found is None:
        raise Unplannable(
            "none of all placements keeps all constraints",
            constraint="all constraints together",
            nearest="outrider plan --solver dp names it",
        )
    return answers.make(problem, "brute", found, 0.0)


def best(problem: Problem) -> tuple[price.Part, ...] | None:
    """The best parts, or None where no placement keeps all constraints."""
    ready = price.prepared(problem)
    top, winner = math.inf, None
    count = 0
    book = _Book(ready)
    for order in _orders(ready):
        cuts = _cuts(len(ready.graph.units), len(order))
        count += len(cuts)
        if not len(cuts):
            continue
        if count > MOST:
            raise ValueError(f"more than {MOST} placements; use dp")
        values = book.values(order, cuts)
        at = int(values.argmin())
        if values[at] < top:
            top, winner = float(values[at]), (order, cuts[at])
    return None if winner is None else _parts(*winner)


def _orders(problem: Problem) -> Iterator[Options]:
    """Devices in every order with each of their rates; home at both ends where it may be."""
    names = [device.name for device in problem.devices]
    rates = {d.name: [(d.name, r.engine, r.dtype) for r in d.rates] for d in problem.devices}
    for size in range(1, len(names) + 1):
        for chosen in permutations(names, size):
            yield from product(*(rates[name] for name in chosen))
            if size > 1 and chosen[0] == problem.home and price.both_ends_stay(problem):
                yield from product(*(rates[name] for name in (*chosen, problem.home)))


def _cuts(units: int, stages: int) -> NDArray[np.int64]:
    """All ways to cut units into stages, [way, stages + 1]."""
    inner = list(combinations(range(1, units), stages - 1))
    middle = np.array(inner, np.int64).reshape(len(inner), stages - 1)
    ends = np.zeros((len(inner), 1), np.int64)
    return np.concatenate([ends, middle, ends + units], 1)


def _parts(order: Options, cuts: NDArray[np.int64]) -> tuple[price.Part, ...]:
    spans = zip(order, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
    return tuple(
        price.Part(device, start, stop, engine, dtype)
        for (device, engine, dtype), start, stop in spans
    )


class _Book:
    """Every stage's figures, looked up while placements are added up as `price` does."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.size = len(problem.graph.units) + 1
        self.seen: dict[tuple[str, str, str], dict[str, Floats]] = {}
        self.links = price.link_map(problem)

    def stage(self, option: tuple[str, str, str]) -> dict[str, Floats]:
        """[start, stop] of each figure."""
        if option not in self.seen:
            self.seen[option] = self._priced(option)
        return self.seen[option]

    def _priced(self, option: tuple[str, str, str]) -> dict[str, Floats]:
        names = ("decode", "memory", "each", "last", "whole")
        found = {name: np.zeros((self.size, self.size)) for name in names}
        device, engine, dtype = option
        count = price.chunks(self.problem.workload, 2)
        for start, stop in combinations(range(self.size), 2):
            part = price.Part(device, start, stop, engine, dtype)
            found["decode"][start, stop] = price.decode_s(self.problem, part)
            found["memory"][start, stop] = price.memory_bytes(self.problem, part)
            each, last = price.chunk_s(self.problem, part, count)
            found["each"][start, stop], found["last"][start, stop] = each, last
        part = price.Part(device, 0, self.size - 1, engine, dtype)
        found["whole"][0, -1] = sum(price.chunk_s(self.problem, part, 1))
        return found

    def values(self, order: Options, cuts: NDArray[np.int64]) -> Floats:
        """The objective of each way to cut, infinite where a constraint is broken."""
        problem, load = self.problem, self.problem.workload
        spans = list(zip(cuts[:, :-1].T, cuts[:, 1:].T, strict=True))
        figures = [self.stage(option) for option in order]
        decode = np.stack([f["decode"][span] for f, span in zip(figures, spans, strict=True)], 1)
        hops = self._hops(order, cuts, price.pass_rows(load))
        if hops is None:
            return np.full(len(cuts), np.inf)
        transit, send, wireless = hops
        waits = len(order) > 1 or load.alone == "asks"
        cycle = decode.sum(1) + (transit if waits else 0.0)
        interval = np.maximum(cycle * load.batch / load.sequences, send)
        interval = np.maximum(interval, self._grouped(order, decode).max(1))
        devices = [price.device_of(problem, option[0]) for option in order]
        watts = np.array([price.stage_watts(device) for device in devices])
        hourly = np.array([device.dollars_per_hour for device in devices])
        tokens = load.tokens_per_pass * load.batch
        joules = (decode @ watts + wireless) / tokens
        objective = {
            "latency": cycle / load.tokens_per_pass,
            "throughput": interval / tokens,
            "energy": joules,
            "cost": decode @ hourly / price.HOUR_S * price.MILLION / tokens,
        }[problem.objective]
        fine = self._keeps(order, cuts, spans, figures, cycle / load.tokens_per_pass, joules)
        kept: Floats = np.where(fine, objective, np.inf)
        return kept

    def _grouped(self, order: Options, values: Floats) -> Floats:
        """Sums by device."""
        names = list(dict.fromkeys(option[0] for option in order))
        groups = [[i for i, option in enumerate(order) if option[0] == name] for name in names]
        return np.stack([values[:, group].sum(1) for group in groups], 1)

    def _hops(
        self, order: Options, cuts: NDArray[np.int64], rows: float
    ) -> tuple[Floats, Floats, Floats] | None:
        """Of each way to cut: time on links, the longest a direction is taken, joules."""
        problem = self.problem
        names = [problem.home, *(option[0] for option in order), problem.home]
        transit, joules = np.zeros(len(cuts)), np.zeros(len(cuts))
        send = np.zeros(len(cuts))
        for place, (a, b) in enumerate(zip(names, names[1:], strict=False)):
            if a == b:
                continue
            if (a, b) not in self.links:
                return None
            link = self.links[a, b]
            size = self._bytes(cuts[:, place], rows)
            speed = link.up_bytes_per_s if a == link.a else link.down_bytes_per_s
            transit += link.rtt_s / 2 + size / speed
            send = np.maximum(send, size / speed)
            joules += size * link.joules_per_byte
        return transit, send, joules

    def _bytes(self, cuts: NDArray[np.int64], rows: float) -> Floats:
        """Over each cut; ids at the ends."""
        graph = self.problem.graph
        numbers = np.array([price.cut_numbers(graph, cut) for cut in range(self.size)], np.float64)
        sizes = numbers * self.problem.workload.activation_bytes * rows
        sizes[[0, -1]] = price.ID_BYTES * rows
        found: Floats = sizes[cuts]
        return found

    def _keeps(
        self, order: Options, cuts: NDArray[np.int64],
        spans: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        figures: Sequence[dict[str, Floats]], tpot: Floats, joules: Floats,
    ) -> NDArray[np.bool_]:  # fmt: skip
        limits = self.problem.constraints
        fine = np.ones(len(cuts), np.bool_)
        memory = np.stack([f["memory"][span] for f, span in zip(figures, spans, strict=True)], 1)
        names = list(dict.fromkeys(option[0] for option in order))
        room = [price.device_of(self.problem, name).memory_bytes for name in names]
        fine &= (self._grouped(order, memory) <= np.array(room)).all(1)
        if limits.max_tpot_s is not None:
            fine &= tpot <= limits.max_tpot_s * (1 + price.SLACK)
        if limits.max_joules_per_token is not None:
            fine &= joules <= limits.max_joules_per_token * (1 + price.SLACK)
        if limits.max_ttft_s is not None:
            found = self._ttft(order, cuts, spans, figures)
            fine &= found <= limits.max_ttft_s * (1 + price.SLACK)
        if limits.max_loss is not None:
            per = dict(limits.dtype_loss)
            each = np.array([per.get(option[2], 0.0) for option in order])
            fine &= np.diff(cuts, axis=1) @ each <= limits.max_loss * (1 + price.SLACK)
        return fine & self._placed(order, cuts)

    def _placed(self, order: Options, cuts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Constraints on which devices and precisions, and which units stay."""
        limits, names = self.problem.constraints, {option[0] for option in order}
        if names & set(limits.exclude) or not names >= set(limits.include):
            return np.zeros(len(cuts), np.bool_)
        if limits.max_devices is not None and len(names) > limits.max_devices:
            return np.zeros(len(cuts), np.bool_)
        if limits.dtype is not None and any(option[2] != limits.dtype for option in order):
            return np.zeros(len(cuts), np.bool_)
        fine = np.ones(len(cuts), np.bool_)
        for unit in limits.stay:
            for place, option in enumerate(order):
                inside = (cuts[:, place] <= unit) & (unit < cuts[:, place + 1])
                fine &= ~inside | (option[0] == self.problem.home)
        return fine

    def _ttft(
        self, order: Options, cuts: NDArray[np.int64],
        spans: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        figures: Sequence[dict[str, Floats]],
    ) -> Floats:  # fmt: skip
        load, home = self.problem.workload, self.problem.home
        count = price.chunks(load, len(order))
        ways = [(home, order[0][0], load.prompt_tokens), (order[-1][0], home, 1)]
        ends = sum(self._ids_s(*way) for way in ways)
        if len(order) == 1:
            return np.full(len(cuts), ends + figures[0]["whole"][0, -1])
        each = np.stack([f["each"][span] for f, span in zip(figures, spans, strict=True)], 1)
        last = np.stack([f["last"][span] for f, span in zip(figures, spans, strict=True)], 1)
        slowest = self._grouped(order, each).max(1)
        total = each.sum(1) + last.sum(1) + ends
        for place, (a, b) in enumerate(zip(order, order[1:], strict=False), 1):
            link = self.links[a[0], b[0]]
            speed = link.up_bytes_per_s if a[0] == link.a else link.down_bytes_per_s
            send = self._bytes(cuts[:, place], load.prompt_tokens / count) / speed
            total += link.rtt_s / 2 + send
            slowest = np.maximum(slowest, send)
        found: Floats = total + (count - 1) * slowest
        return found

    def _ids_s(self, source: str, sink: str, tokens: int) -> float:
        if source == sink:
            return 0.0
        link = self.links[source, sink]
        speed = link.up_bytes_per_s if source == link.a else link.down_bytes_per_s
        return link.rtt_s / 2 + tokens * price.ID_BYTES / speed
