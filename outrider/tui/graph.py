"""Curves from blocks and braille dots: lines of text from numbers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat

from outrider.tui.glyphs import Glyphs

DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
"""Bits of a braille cell, left column and right, each from the bottom up."""
BRAILLE = 0x2800
CELLS = tuple(
    tuple(
        chr(BRAILLE + sum(DOTS[0][:left]) + sum(DOTS[1][:right])) if left or right else " "
        for right in range(5)
    )
    for left in range(5)
)
"""By the dots of the left column and of the right one."""


def area(
    values: Sequence[float], width: int, height: int, glyphs: Glyphs, top: float | None = None
) -> list[str]:
    """The latest values as a filled curve, newest at the right; one line is one row of cells.

    `top` is the value of a full column; by default the highest that is shown.
    """
    if width <= 0 or height <= 0:
        return []
    per_cell = 2 if glyphs.braille else 1
    # The curve moves by whole cells, every second value: what does not move is not painted.
    odd = len(values) % per_cell
    shown = list(values[-width * per_cell + odd :])
    highest = top if top is not None else max(shown, default=0.0)
    steps = (4 if glyphs.braille else len(glyphs.bars) - 1) * height
    levels = [_level(value, highest, steps) for value in shown]
    levels = [0] * (width * per_cell - len(levels) - odd) + levels + [0] * odd
    if glyphs.braille:
        columns = map(_column, levels[::2], levels[1::2], repeat(height))
        return ["".join(row) for row in zip(*columns, strict=True)]
    return [_bars(levels, row, glyphs.bars) for row in reversed(range(height))]


def _level(value: float, highest: float, steps: int) -> int:
    """Anything above nothing shows at least a dot."""
    if value <= 0 or highest <= 0:
        return 0
    return max(1, min(steps, round(value / highest * steps)))


@lru_cache(maxsize=8192)
def _column(left: int, right: int, height: int) -> str:
    """A pair of columns of dots, from the top down."""
    lows = range(4 * (height - 1), -1, -4)
    return "".join(CELLS[min(4, max(0, left - low))][min(4, max(0, right - low))] for low in lows)


def _bars(levels: Sequence[int], row: int, bars: str) -> str:
    full = len(bars) - 1
    return "".join(bars[max(0, min(full, level - full * row))] for level in levels)


def spark(values: Sequence[float], glyphs: Glyphs, top: float | None = None) -> str:
    """One character a value."""
    highest = top if top is not None else max(values, default=0.0)
    steps = len(glyphs.bars) - 1
    return "".join(glyphs.bars[_level(value, highest, steps)] for value in values)


def bar(share: float, width: int, glyphs: Glyphs) -> tuple[str, str]:
    """A gauge: its filled part and its rest."""
    filled = max(0, min(width, round(share * width)))
    return glyphs.block * filled, glyphs.empty * (width - filled)


def quantile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
