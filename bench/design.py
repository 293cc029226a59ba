"""Which combinations of factors a bench runs: all pairs first, then the rest. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice, product
from random import Random

Row = tuple[str, ...]
"""One level of each factor, in the factors' order."""

Pair = tuple[int, str, int, str]
"""Factor, level, factor, level."""


def pairs_of(row: Row) -> set[Pair]:
    """Every two factors' levels in a row."""
    return {(i, row[i], j, row[j]) for i, j in combinations(range(len(row)), 2)}


def every_pair(factors: Sequence[Sequence[str]]) -> set[Pair]:
    """What a pairwise design has to cover."""
    return {
        (i, a, j, b)
        for i, j in combinations(range(len(factors)), 2)
        for a, b in product(factors[i], factors[j])
    }


def uncovered(factors: Sequence[Sequence[str]], rows: Iterable[Row]) -> set[Pair]:
    """Pairs that stand in none of the rows."""
    return every_pair(factors) - {pair for row in rows for pair in pairs_of(row)}


def covering(factors: Sequence[Sequence[str]], seed: int) -> list[Row]:
    """The whole grid in an order whose beginning covers all pairs with few rows.

    Greedy: each next row brings the most pairs that are new; once all are covered they count as
    new again, so that any long enough beginning is balanced. Ties fall by the seed.
    """
    left = list(product(*factors))
    Random(seed).shuffle(left)
    wanted, rows = every_pair(factors), list[Row]()
    missing = set(wanted)
    while left:
        best = max(left, key=lambda row: len(pairs_of(row) & missing))
        left.remove(best)
        rows.append(best)
        missing -= pairs_of(best)
        missing = missing or set(wanted)
    return rows


def batches(
    rows: Sequence[Row], within: Sequence[Row], size: int, least: int
) -> list[tuple[Row, tuple[Row, ...]]]:
    """Each row with `size` of the combinations that vary within it, until there are `least` cases.

    The inner combinations go on from batch to batch; each pass over the rows begins one
    later than the last, so that rows meet other ones. Rows are repeated when they run out.
    """
    found: list[tuple[Row, tuple[Row, ...]]] = []
    at = 0
    while len(found) * size < least:
        row = rows[len(found) % len(rows)]
        found.append((row, tuple(within[(at + i) % len(within)] for i in range(size))))
        at += size + (len(found) % len(rows) == 0)
    return found


def first_covering(factors: Sequence[Sequence[str]], rows: Sequence[Row]) -> list[Row]:
    """The shortest beginning of the rows that covers all pairs."""
    count = next(n for n in range(len(rows) + 1) if not uncovered(factors, islice(rows, n)))
    return list(rows[:count])


def named(names: Sequence[str], row: Row) -> Mapping[str, str]:
    """A row by its factors' names."""
    return dict(zip(names, row, strict=True))
