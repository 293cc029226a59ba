"""Requests, the latest first."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.look import Part
from outrider.tui.ride import Ride
from outrider.tui.widgets.rows import Column, Row, Rows

PHASES = {
    "running": ("running", "$good"),
    "waiting": ("waiting", "$warn"),
    "provisional": ("alone", "$provisional"),
    "done": ("done", "$faint"),
}


class RequestTable(Rows):
    TITLE = "requests"
    EMPTY = 'no request yet: outrider run "def main():" makes one'
    COLUMNS = (
        Column("id", 8),
        Column("state", 8),
        Column("runs", 6),
        Column("tokens", 6, right=True),
        Column("tok/s", 6, right=True),
        Column("first", 7, right=True),
        Column("held", 6, right=True),
        Column("energy", 8, right=True, rank=2),
        Column("bytes up", 9, right=True, rank=3),
        Column("began", 8, rank=4),
        Column("end", 0, rank=1),
    )
    LEAST = 7

    def rows(self) -> Sequence[Row]:
        return [Row(ride.id, self._cells(ride)) for ride in self.state.newest]

    def _cells(self, ride: Ride) -> tuple[Part, ...]:
        phase, style = PHASES[ride.phase]
        done = ride.done
        energy = words.number(done.energy_j if done else None, "J", 2)
        sign = {"running": self.look.glyphs.play, "done": " "}.get(ride.phase, "!")
        return (
            (ride.id[:8], "$head"),
            (f"{sign[:1]}{phase}", style),
            (ride.placement, "$cloud"),
            (str(ride.tokens), "$head"),
            (words.number(ride.rate), "$accepted"),
            (words.ms(ride.first_ms), "$head"),
            (words.share(ride.acceptance), "$bonus"),
            (energy, "$power"),
            (words.size(done.bytes_up) if done else words.NOTHING, "$faint"),
            (words.clock(ride.began_at, self.look.zone), "$faint"),
            (_end(ride), "$warn" if done and done.mixed else "$faint"),
        )


def _end(ride: Ride) -> str:
    if ride.done is None:
        return ""
    mixed = ", mixed" if ride.done.mixed else ""
    return f"{ride.done.finish_reason}{mixed}"
