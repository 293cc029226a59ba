"""The simulator's constants from what a run of the real runtime showed. Pure; milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

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
    """Acceptance by depth, and how far answers differ in it.

    Both at once, by the likelihood: a poor answer has more first drafts than a good one, and
    only good ones reach great depths, so that plain shares by depth would be off both ways.
    An answer's own log-odds are normal; they are summed over by Gauss-Hermite quadrature,
    and the rates at each spread found by expectation maximisation.
    """
    tried, held = _tallies(chains)
    if not tried.sum():
        return base
    found = [_rates_at(spread, tried, held) for spread in SPREADS]
    likelihood = [_posterior(s, r, tried, held)[1] for s, r in zip(SPREADS, found, strict=True)]
    best = int(np.argmax(likelihood))
    return Agreement(tuple(float(rate) for rate in _odds(found[best])), float(SPREADS[best]))


SPREADS = np.arange(0.0, 1.6, 0.1)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
ROUNDS = 25
Floats = NDArray[np.float64]


def _tallies(chains: Iterable[Sequence[tuple[int, bool]]]) -> tuple[Floats, Floats]:
    """[answers, depths]: drafts compared, and those of them that held."""
    kept = [chain for chain in chains if chain]
    tried, held = (np.zeros((max(1, len(kept)), DEPTHS)) for _ in range(2))
    for row, chain in enumerate(kept):
        for depth, equal in chain:
            tried[row, min(depth, DEPTHS - 1)] += 1
            held[row, min(depth, DEPTHS - 1)] += equal
    return tried, held


def _odds(logits: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)), dtype=np.float64)


def _rates_at(spread: float, tried: Floats, held: Floats) -> Floats:
    """Log-odds by depth of an average answer, when answers differ so much."""
    logits = np.zeros(DEPTHS)
    total = held.sum(axis=0)
    for _ in range(ROUNDS):
        posterior, _ = _posterior(spread, logits, tried, held)
        leaning = np.concatenate([logits[:1], logits[:-1]])
        logits = _solve(spread, tried.T @ posterior, total, leaning)
    return logits


def _posterior(spread: float, logits: Floats, tried: Floats, held: Floats) -> tuple[Floats, float]:
    """(P(node | answer), log likelihood of everything)."""
    chance = np.clip(_odds(logits[:, None] + spread * NODES[None, :]), 1e-9, 1 - 1e-9)
    log = held @ np.log(chance) + (tried - held) @ np.log(1.0 - chance)
    log += np.log(WEIGHTS / WEIGHTS.sum())
    top = log.max(axis=1, keepdims=True)
    weight = np.exp(log - top)
    whole = weight.sum(axis=1, keepdims=True)
    return weight / whole, float((top + np.log(whole)).sum())


def _solve(spread: float, tried: Floats, held: Floats, leaning: Floats) -> Floats:
    """Log-odds by depth at which as many hold as did, leaning on the shallower depth's.

    `tried` [depths, nodes], `held` [depths]; by bisection.
    """
    low, high = np.full(DEPTHS, -6.0), np.full(DEPTHS, 6.0)
    wanted = held + PRIOR_TRIES * _odds(leaning)
    for _ in range(30):
        middle = (low + high) / 2.0
        expected = (tried * _odds(middle[:, None] + spread * NODES[None, :])).sum(axis=1)
        under = expected + PRIOR_TRIES * _odds(middle) < wanted
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return np.asarray((low + high) / 2.0)
