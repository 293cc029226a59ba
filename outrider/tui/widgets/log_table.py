"""Every event but the gauges, the latest first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from outrider.protocol import events
from outrider.tui import words
from outrider.tui.look import Part
from outrider.tui.says import says
from outrider.tui.widgets.rows import Column, Row, Rows

TINTS = {
    "trouble": "$bad", "fallback": "$warn", "shed": "$warn", "down": "$warn", "decision": "$bonus",
    "link": "$cloud", "remark": "$power", "request_started": "$good", "request_done": "$good",
}  # fmt: skip


class LogTable(Rows):
    TITLE = "events"
    COLUMNS = (
        Column("time", 12),
        Column("from", 6, rank=1),
        Column("event", 15),
        Column("says", 0),
    )

    def rows(self) -> Sequence[Row]:
        zone = self.look.zone
        return [
            Row(f"{event.source} {event.t_ms}", _cells(event, zone))
            for event in reversed(self.state.logs)
        ]


@lru_cache(maxsize=4096)
def _cells(event: events.Event, zone: object) -> tuple[Part, ...]:
    kind = type(event).__struct_config__.tag
    moment = f"{words.clock(event.at, zone)}.{int(event.at * 1e3) % 1000:03d}"  # type: ignore[arg-type]
    return (
        (moment, "$faint"),
        (event.source.partition("-")[0], "$faint"),
        (str(kind), TINTS.get(str(kind), "$head")),
        (says(event), "$foreground"),
    )
