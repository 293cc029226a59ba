"""The simulator's constants from what a run of the real runtime showed. Pure; milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

import numpy as np

from outrider.partitioner.signals import Knots, at
from outrider.partitioner.sim.agreement import DEPTHS, Agreement
from outrider.partitioner.sim.setup import World

LEAST = 4
"""Passes of a row count that make a knot; rarer counts are pooled with their neighbours."""
PRIOR_TRIES = 4.0
"""A depth's rate leans on the shallower one's with so much weight."""


@dataclass(slots=True)
class Observed:
    """One calibration run."""

    passes: list[tuple[int, float]] = field(default_factory=list)
    """(Rows, ms) of target passes, each once."""
    gaps: list[float] = field(default_factory=list)
    """Between two passes that held the same answer."""
    drafts: list[tuple[int, float]] = field(default_factory=list)
    """(Rows, ms) of passes of a drafter."""
    bursts: list[float] = field(default_factory=list)
    """What a visit to the drafter took beyond its passes."""
    chains: dict[int, list[tuple[int, bool]]] = field(default_factory=dict)
    """By answer: (depth of a draft in its chain, whether it held), each compared once."""
    openings: list[float] = field(default_factory=list)
    """From an ask to its first token, without link, queue and the passes of its prompt."""
    rtts: list[float] = field(default_factory=list)
    """Round trips of heartbeats, beyond the link's own."""


def fit(observed: Observed, base: World) -> World:
    """`base` with its measured constants replaced; its one kind of device is the calibrated one."""
    step = knots_of(observed.passes)
    draft = knots_of(observed.drafts) if observed.drafts else ()
    (gear,) = base.gears
    beyond = median(observed.rtts) if observed.rtts else 0.0
    return replace(
        base,
        cloud=replace(
            base.cloud,
            step=step,
            noise=noise_of(observed.passes, step),
            gap_ms=max(0.0, median(observed.gaps)) if observed.gaps else base.cloud.gap_ms,
        ),
        gears=(
            replace(
                gear,
                draft=draft,
                burst_ms=max(0.0, fmean(observed.bursts)) if observed.bursts else 0.0,
                noise=noise_of(observed.drafts, draft),
            ),
        ),
        agreement=agreement_of(observed.chains.values(), base.agreement),
        overheads=replace(
            base.overheads,
            open_ms=max(0.0, median(observed.openings)) if observed.openings else 0.0,
            up_ms=beyond / 2.0,
            down_ms=beyond / 2.0,
        ),
    )


def knots_of(points: Sequence[tuple[int, float]]) -> Knots:
    """Mean ms by rows, never falling with rows (pool adjacent violators); rare counts pooled."""
    pools = _pools(points)
    found: list[tuple[float, float, int]] = []
    for rows, ms, count in pools:
        found.append((rows, ms, count))
        while len(found) > 1 and found[-2][1] > found[-1][1]:
            (a, x, n), (b, y, m) = found[-2:]
            total = n + m
            found[-2:] = [((a * n + b * m) / total, (x * n + y * m) / total, total)]
    return tuple((rows, ms) for rows, ms, _ in found)


def _pools(points: Sequence[tuple[int, float]]) -> list[tuple[float, float, int]]:
    """(Mean rows, mean ms, how many), by rising rows, each with at least `LEAST` passes."""
    pools: list[tuple[float, float, int]] = []
    kept: list[tuple[int, float]] = []
    ordered = sorted(points)
    for place, (rows, ms) in enumerate(ordered):
        kept.append((rows, ms))
        last = place + 1 == len(ordered)
        if last or (len(kept) >= LEAST and ordered[place + 1][0] != rows):
            pools.append((fmean(r for r, _ in kept), fmean(v for _, v in kept), len(kept)))
            kept = []
    return pools


def noise_of(points: Sequence[tuple[int, float]], knots: Knots) -> float:
    """Standard deviation of the logarithm around the knots."""
    off = [math.log(ms / at(knots, rows, 0.0)) for rows, ms in points if ms > 0]
    return float(np.std(off)) if len(off) > 1 else 0.0


def agreement_of(chains: Iterable[Sequence[tuple[int, bool]]], base: Agreement) -> Agreement:
    """Acceptance by depth, and how far answers differ in it beyond chance."""
    kept = [chain for chain in chains if chain]
    if not kept:
        return base
    tried, held = np.zeros(DEPTHS), np.zeros(DEPTHS)
    for chain in kept:
        for depth, equal in chain:
            tried[min(depth, DEPTHS - 1)] += 1
            held[min(depth, DEPTHS - 1)] += equal
    rates: list[float] = []
    for depth in range(DEPTHS):
        prior = rates[-1] if rates else held.sum() / tried.sum()
        rates.append(float((held[depth] + prior * PRIOR_TRIES) / (tried[depth] + PRIOR_TRIES)))
    return Agreement(tuple(rates), _spread(kept, rates))


def _spread(chains: Sequence[Sequence[tuple[int, bool]]], rates: Sequence[float]) -> float:
    """Method of moments on the log-odds: held minus expected, beyond binomial variance."""
    off = variance = slope = 0.0
    for chain in chains:
        chances = [rates[min(depth, DEPTHS - 1)] for depth, _ in chain]
        own = sum(rate * (1.0 - rate) for rate in chances)
        off += (sum(equal for _, equal in chain) - sum(chances)) ** 2
        variance += own
        slope += own * own
    return math.sqrt(max(0.0, off - variance) / slope) if slope else 0.0
