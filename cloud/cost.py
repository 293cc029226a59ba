"""What a target pass costs by its rows, learnt from every pass. No I/O, no clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

from outrider.engine import RowRule


class StepCost:
    """Milliseconds of a pass as a function of the rows really computed.

    Knots at the row counts seen, each a fading mean; between knots linear, never
    falling with rows. `rule` turns wanted rows into computed ones, so a row that
    only fills padding costs nothing.
    """

    def __init__(self, rule: RowRule, fade: float = 0.9) -> None:
        self._rule = rule
        self._fade = fade
        self._knots: dict[int, float] = {}
        self._points: list[tuple[int, float]] = []
        """Knots in order, never falling; made anew at the first question after a note. A pass
        asks dozens of times, and there may be hundreds of knots."""

    def note(self, rows: int, ms: float) -> None:
        at = self._rule.padded(rows)
        old = self._knots.get(at)
        self._knots[at] = ms if old is None else old * self._fade + ms * (1 - self._fade)
        self._points = []

    def ms(self, rows: int) -> float:
        """Estimate for a pass that is asked for `rows` rows; 0 when nothing was seen yet."""
        at = self._rule.padded(rows)
        points = self._points = self._points or list(_rising(sorted(self._knots.items())))
        if not points:
            return 0.0
        place = bisect_left(points, (at, -1.0))
        if place == len(points):
            return _beyond(points, at)
        high_at, high = points[place]
        if place == 0 or high_at == at:
            return high
        low_at, low = points[place - 1]
        return low + (high - low) * (at - low_at) / (high_at - low_at)

    def padding(self, rows: int) -> int:
        """Rows that could be added to `rows` at no cost."""
        return self._rule.padded(rows) - rows


def _rising(points: Iterable[tuple[int, float]]) -> Iterable[tuple[int, float]]:
    best = 0.0
    for at, ms in points:
        best = max(best, ms)
        yield at, best


def _beyond(points: list[tuple[int, float]], at: int) -> float:
    """Past the last knot: the steepest slope seen, so that the unknown is not taken for cheap."""
    slopes = [(b - a) / (m - n) for (n, a), (m, b) in pairwise(points)]
    last_at, last = points[-1]
    slope = max(slopes) if slopes else last / max(last_at, 1) * 0.25
    return last + slope * (at - last_at)
