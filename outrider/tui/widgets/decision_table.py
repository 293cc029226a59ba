"""What was switched: the latest first."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.protocol import events
from outrider.tui import words
from outrider.tui.look import Part
from outrider.tui.widgets.rows import Column, Row, Rows

WHAT = {
    "placement": "place",
    "hint_depth": "depth",
    "drafting": "drafts",
    "trigger": "trigger",
}


class DecisionTable(Rows):
    TITLE = "decisions"
    EMPTY = "nothing was switched yet"
    COLUMNS = (
        Column("time", 8),
        Column("what", 7),
        Column("change", 15),
        Column("cause", 0),
        Column("gain", 6, right=True),
        Column("got", 6, right=True),
        Column("next", 6, rank=1),
        Column("request", 8, rank=2),
    )

    def rows(self) -> Sequence[Row]:
        return [Row(key_of(one), self._cells(one)) for one in reversed(self.state.decisions)]

    def _cells(self, one: events.Decision) -> tuple[Part, ...]:
        arrow = self.look.glyphs.arrow
        what = "try" if one.probe else WHAT.get(one.what, one.what)
        gain = one.observed_gain
        tint = "$faint" if gain is None else "$good" if gain >= 0 else "$bad"
        return (
            (words.clock(one.at, self.look.zone), "$faint"),
            (what, "$edge" if one.probe else "$cloud"),
            (f"{one.old} {arrow} {one.new}", "$head bold"),
            (one.cause or one.reason, "$foreground"),
            (words.signed(one.predicted_gain), "$head"),
            (words.signed(gain), tint),
            (one.runner_up if one.runner_up != "none" else "", "$faint"),
            (one.request[:8] or one.source.partition("-")[0], "$faint"),
        )


def key_of(one: events.Decision) -> str:
    """Stays when its effect is told."""
    return f"{one.source} {one.number}" if one.number else f"{one.source} at {one.t_ms}"
