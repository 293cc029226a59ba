"""Which decodes a pass becomes.

llama.cpp cuts a batch into sub-batches wherever slots differ in their number of
rows or a sequence id is left out, and reads all weights once for each. So a pass
is planned as decodes whose slots all have one number of rows: short spans are
padded, and gaps between slots filled with rows that are thrown away, where that
costs less than reading the weights again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from outrider.engine import RowRule

MOST_PADDING = 32
"""Rows added to a slot at most, beyond those that the rule itself asks for."""
SPARE = MOST_PADDING + 16
"""Cells that every sequence has beyond its context, for rows that are thrown away."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a sub-batch costs: `base` plus `row` for each row, in any one unit."""

    base: float
    row: float


@dataclass(frozen=True, slots=True)
class Decode:
    """One call: `rows` rows for every slot of `slots`, ascending; `fillers` are not wanted."""

    rows: int
    slots: tuple[int, ...]
    fillers: frozenset[int]

    def runs(self) -> Iterator[tuple[int, ...]]:
        """Slots without a gap between: what llama.cpp computes at once."""
        start = 0
        for i, (left, right) in enumerate(pairwise(self.slots)):
            if right != left + 1:
                yield self.slots[start : i + 1]
                start = i + 1
        yield self.slots[start:]

    def cost(self, cost: Cost) -> float:
        return sum(cost.base + cost.row * self.rows * len(run) for run in self.runs())


@lru_cache(maxsize=4096)
def plan(
    lengths: tuple[tuple[int, int], ...], rule: RowRule, cost: Cost, limit: int
) -> tuple[Decode, ...]:
    """The cheapest decodes for (slot, rows) pairs, at most `limit` rows in each.

    Groups hold neighbours in the order of lengths, which is optimal without gaps
    and near it with them.
    """
    wanted = sorted((rule.padded(rows), slot) for slot, rows in lengths)
    starts = [i for i in range(len(wanted)) if i == 0 or wanted[i][0] != wanted[i - 1][0]]
    ends = [*starts[1:], len(wanted)]
    best: list[tuple[float, tuple[Decode, ...]]] = [(0.0, ())]
    for j, end in enumerate(ends):
        options = []
        for i in range(j + 1):
            decodes = _group(wanted[starts[i] : end], cost, limit)
            if decodes and (i == j or wanted[end - 1][0] - wanted[starts[i]][0] <= MOST_PADDING):
                price = best[i][0] + sum(decode.cost(cost) for decode in decodes)
                options.append((price, best[i][1] + decodes))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def _group(wanted: Sequence[tuple[int, int]], cost: Cost, limit: int) -> tuple[Decode, ...]:
    """One decode for all, or as many as the limit asks for."""
    rows = wanted[-1][0]
    slots = sorted(slot for _, slot in wanted)
    per = max(limit // rows, 1)
    parts = [slots[i : i + per] for i in range(0, len(slots), per)]
    return tuple(_filled(part, rows, cost, limit) for part in parts)


def _filled(slots: Sequence[int], rows: int, cost: Cost, limit: int) -> Decode:
    fillers: list[int] = []
    for left, right in pairwise(slots):
        gap = range(left + 1, right)
        total = rows * (len(slots) + len(fillers) + len(gap))
        cheap = len(gap) * rows * cost.row < cost.base
        if rows <= MOST_PADDING and total <= limit and cheap:
            fillers.extend(gap)
    return Decode(rows, tuple(sorted([*slots, *fillers])), frozenset(fillers))
