"""A request's waterfall: draft, up, queue, prefill, verify, down, over its time."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.look import Line, Part
from outrider.tui.ride import Ride
from outrider.tui.waterfall import LANES, Lane, Span, by_lane, cells, spans, totals
from outrider.tui.widgets.panel import Panel
from outrider.tui.widgets.timeline import bars

LABEL, SUM = 10, 9
UNKNOWN = ("queue", "prefill")
"""Lanes whose first part the cloud tells at the end."""


class Cascade(Panel):
    TITLE = "waterfall"
    request = ""

    def draw(self, width: int, height: int) -> Sequence[Line]:
        ride = self.state.rides.get(self.request)
        if ride is None:
            return [[("no request is chosen", "$faint")]]
        link = self.state.link
        found = spans(ride, link.now.rtt_ms if link is not None else None)
        room = max(10, width - LABEL - SUM)
        until = max(1.0, ride.last_ms - ride.began_ms)
        sums, lanes = totals(found), by_lane(found)
        self.titled(f"waterfall of {ride.id[:8]}", f" {words.ms(until)} in all ")
        shown = [self._lane(lane, lanes[lane], sums[lane], room, until, ride) for lane in LANES]
        return [*shown, self._axis(room, until)]

    def _lane(
        self,
        lane: Lane,
        found: Sequence[Span],
        total: float,
        room: int,
        until: float,
        ride: Ride,
    ) -> Line:
        line: list[Part] = [(lane.ljust(LABEL), f"${lane}")]
        if lane == "prefill" and ride.done is None and ride.placement != "edge":
            line.append((words.fit("told at the end", room), "$faint"))
        else:
            line.append((bars(cells(found, room, until), self.look.glyphs), f"${lane}"))
        return [*line, (words.ms(total).rjust(SUM), "$head")]

    def _axis(self, room: int, until: float) -> Line:
        marks = 4
        step = room // marks
        text = "".join(
            f"|{words.ms(until * at / marks)}".ljust(step) for at in range(marks)
        )  # the last stretch ends at the border
        return [
            ("".ljust(LABEL), ""),
            (words.fit(text, room), "$faint"),
            ("in all".rjust(SUM), "$faint"),
        ]
