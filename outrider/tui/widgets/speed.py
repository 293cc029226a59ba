"""Tokens a second, and how soon the first one comes."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from outrider.tui import words
from outrider.tui.curve import titled_curve
from outrider.tui.graph import quantile
from outrider.tui.look import Line
from outrider.tui.widgets.panel import Panel


class Speed(Panel):
    TITLE = "speed"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state = self.state
        now = state.speed()
        peak = max(state.curves.speed, default=0.0)
        head: Line = [
            (words.number(now), "$accepted bold"),
            (" tok/s", "$head"),
            (f"  peak {peak:.0f}", "$faint"),
        ]
        first = words.ms(quantile(state.firsts, 0.5))
        gap = words.ms(quantile(state.gaps, 0.5))
        foot: Line = [
            ("first ", "$faint"), (first, "$head"), (", each ", "$faint"), (gap, "$head"),
        ]  # fmt: skip
        curve = list(state.curves.speed)
        size = (width, height)
        return titled_curve(head, curve, foot, size, self.look.glyphs, "$accepted", usual(curve))


def usual(values: Sequence[float]) -> float:
    """The height of the curve: a burst after an outage may be cut, so that the rest is seen."""
    busy = [value for value in values if value > 0]
    return 5.0 * ceil((quantile(busy, 0.97) or 1.0) / 4.0)
