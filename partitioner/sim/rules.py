"""The scheduler's rules over arrays: hint rows, wishes, waiting. Pure.

`cloud/scheduler.py` decides over one choice after another; a fleet of thousands asks the
same questions of numpy. A test holds the two against each other on random states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.partitioner.signals import at
from outrider.partitioner.sim.agreement import DEPTHS
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.setup import CloudSetup

PREFILL_ROWS = 128
MAX_WISH = 15
MAX_HINT_ROWS = 7
LEAST_VALUE = 0.02
LEAST_RATE = 0.1
"""As `cloud/scheduler.py` has them."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def cost_table(setup: CloudSetup) -> Floats:
    """ms of a pass by its wanted rows, from 0 to a little past the most."""
    rows = np.arange(setup.max_rows + MAX_HINT_ROWS + 2)
    least = np.maximum(rows, setup.minimum)
    padded = -(-least // setup.multiple) * setup.multiple
    return np.array([at(setup.step, float(n), 0.0) for n in padded])


def value_table(rates: Sequence[float]) -> Floats:
    """P(the next 1, 2, ... tokens all hold) by how deep the chain already is: [16, 7]."""
    found = np.empty((DEPTHS, MAX_HINT_ROWS))
    for depth in range(DEPTHS):
        chances = [rates[min(depth + i, DEPTHS - 1)] for i in range(MAX_HINT_ROWS)]
        found[depth] = np.cumprod(chances)
    return found


def grants(values: Floats, allowed: Ints, rows: int, most: int, cost: Floats) -> Ints:
    """Hint rows by answer: the next row goes where it brings most, while it pays.

    `values` [answers, 7] falls along its rows; `allowed` are live hints, and what is left to
    say; `rows` is the pass without hints.
    """
    depth = np.arange(values.shape[1])
    owner, place = np.nonzero(depth[None, :] < allowed[:, None])
    if not len(owner):
        return np.zeros(len(allowed), dtype=np.int64)
    flat = values[owner, place]
    order = np.lexsort((place, -flat))[: max(0, most - rows)]
    ranked = flat[order]
    tokens = len(allowed) + np.cumsum(ranked) - ranked
    now = cost[rows : rows + len(ranked)]
    more = cost[rows + 1 : rows + 1 + len(ranked)]
    pays = (ranked >= LEAST_VALUE) & (ranked * now > (more - now) * tokens)
    count = int(np.argmin(pays)) if not pays.all() else len(pays)
    return np.bincount(owner[order[:count]], minlength=len(allowed)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Habits:
    """What a committer does with an answer of these rates and this lag."""

    wish: int
    waits_alone: bool
    """Whether it waits for hints when nobody else is served."""


def habits(rates: Sequence[float], lag_ms: float, cost: Floats, policy: Policy) -> Habits:
    """As `Scheduler.wish` and `Scheduler._worthwhile_s`."""
    waits = policy.trigger == "auto" and _waiting_ms(rates, lag_ms, cost) < _free_ms(
        rates, lag_ms, cost
    )
    if rates[0] < LEAST_RATE:
        return Habits(0, waits)
    reach, depth, expected = 1.0, 0, 0.0
    while depth < MAX_HINT_ROWS:
        reach *= rates[depth]
        added = cost[2 + depth] - cost[1 + depth]
        if reach < LEAST_VALUE or reach * cost[1 + depth] <= added * (1.0 + expected):
            break
        expected += reach
        depth += 1
    lead = 0 if waits or policy.trigger == "wait" else math.ceil(lag_ms / cost[1])
    return Habits(min(depth + lead, MAX_WISH) if depth else 0, waits)


def _expected(rates: Sequence[float], rows: int) -> float:
    return float(np.cumprod(rates[:rows]).sum())


def _waiting_ms(rates: Sequence[float], lag_ms: float, cost: Floats) -> float:
    return min(
        (lag_ms + float(cost[1 + rows])) / (1.0 + _expected(rates, rows))
        for rows in range(1, MAX_HINT_ROWS + 1)
    )


def _free_ms(rates: Sequence[float], lag_ms: float, cost: Floats) -> float:
    single = float(cost[1])
    plain = max(1, math.ceil(lag_ms / single))
    alive = math.prod(rates[min(depth, DEPTHS - 1)] for depth in range(plain))
    best = single
    for rows in range(1, MAX_HINT_ROWS + 1):
        gain = 1.0 + _expected(rates, rows)
        best = min(best, (plain * single + alive * float(cost[1 + rows])) / (plain + alive * gain))
    return best


def patience_s(
    policy: Policy, lag_s: Floats, waits_alone: NDArray[np.bool_], sharing: int, step_s: float
) -> Floats:
    """How long an answer whose device was heard of may be held for its next hint."""
    if policy.trigger == "free":
        return np.zeros(len(lag_s))
    if policy.trigger == "wait":
        return np.full(len(lag_s), policy.wait_ms / 1e3)
    if sharing > 1:
        return np.where(lag_s < step_s, np.minimum(1.5 * lag_s, step_s), 0.0)
    return np.where(waits_alone, 1.5 * lag_s + 0.002, 0.0)
