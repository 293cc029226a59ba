"""One round: draft, link, verify, link; what each part takes now, in ms and bytes."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.look import Line, Part
from outrider.tui.ride import Mark
from outrider.tui.state import State
from outrider.tui.widgets.panel import Panel

RECENT = 40
"""Hints and commits that the figures are means of."""
Station = tuple[str, str, str, str]
"""Title, colour, figure, words."""


class Round(Panel):
    TITLE = "one round"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        stations = self._stations()
        gap = 3
        cells = max(8, (width - gap * (len(stations) - 1)) // len(stations))
        arrow = self.look.glyphs.arrow.center(gap)
        found: list[Line] = []
        for row in range(4):
            line: list[Part] = []
            for number, station in enumerate(stations):
                text, style = _cell(station, row)
                line.append((words.fit(text, cells, self.look.glyphs.ellipsis), style))
                if number < len(stations) - 1:
                    line.append((arrow if row == 0 else " " * gap, "$faint"))
            found.append(line)
        return [*found[:3], *([found[3]] if height > 3 else [])]

    def _stations(self) -> list[Station]:
        state = self.state
        hints = _recent(state, "hint")
        commits = _recent(state, "commit")
        link = state.link
        rtt = link.now.rtt_ms if link is not None else None
        one_way = None if rtt is None else rtt / 2
        up = words.rate(link.up_per_s) if link is not None else words.NOTHING
        down = words.rate(link.down_per_s) if link is not None else words.NOTHING
        drafted = _mean([m.tokens for m in hints])
        rows = _mean([m.rows for m in commits])
        tokens = _mean([m.tokens for m in commits])
        return [
            ("draft", "$draft", words.ms(_mean([m.ms for m in hints])),
             f"{words.number(drafted)} tokens"),
            ("hint up", "$uplink", words.ms(one_way), up),
            ("verify", "$verify", words.ms(_mean([m.ms for m in commits])),
             f"{words.number(rows)} rows"),
            ("commit down", "$downlink", words.ms(one_way), down),
            ("text", "$accepted", words.number(tokens), "tokens a pass"),
        ]  # fmt: skip


def _cell(station: Station, row: int) -> Part:
    title, style, figure, said = station
    if row == 0:
        return title, f"{style} bold"
    if row == 1:
        return figure, "$head bold"
    return (said, "$faint") if row == 2 else ("", "")


def _recent(state: State, kind: str) -> list[Mark]:
    """The latest first; all requests."""
    found: list[Mark] = []
    for mark in reversed(state.marks):
        if mark.kind == kind:
            found.append(mark)
            if len(found) == RECENT:
                break
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
