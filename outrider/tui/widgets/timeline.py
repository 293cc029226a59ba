"""What is on its way between device and cloud: hints up, passes, commits down, live."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui.glyphs import Glyphs
from outrider.tui.look import Line, Part
from outrider.tui.ride import Mark
from outrider.tui.waterfall import Lane, Span, cells, recent
from outrider.tui.widgets.panel import Panel

LABEL = 10
MS_PER_CELL = 50.0
SHOWN: tuple[tuple[Lane, str], ...] = (
    ("draft", "device"),
    ("uplink", "hints"),
    ("verify", "target"),
    ("downlink", "commits"),
)
"""Lanes from the device to the cloud and back, and their words."""


class Timeline(Panel):
    TITLE = "in flight"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state, g = self.state, self.look.glyphs
        room = max(10, width - LABEL)
        window = room * MS_PER_CELL
        link = state.link
        rtt = link.now.rtt_ms if link is not None else None
        found = recent(state.marks, state.t_ms, rtt, window)
        late = [m for m in state.marks if m.t_ms > state.t_ms - window]
        tall = height >= 2 * len(SHOWN) + 2
        lines: list[Line] = []
        for lane, name in SHOWN:
            lines.append(self._lane(lane, name, found, room, window))
            if tall:
                lines.append([])
        began = state.t_ms - window
        lines.append([("tokens".ljust(LABEL), "$faint"), *_counts(late, room, began, window, g)])
        self.titled(self.TITLE, f" last {window / 1e3:.1f} s, newest right ")
        return [*lines, *([self._legend()] if height > len(lines) else [])]

    def _lane(self, lane: Lane, name: str, found: Sequence[Span], room: int, window: float) -> Line:
        covered = cells(found, lane, room, window)
        return [(name.ljust(LABEL), f"${lane}"), *bars(covered, self.look.glyphs, f"${lane}")]

    def _legend(self) -> Line:
        """Tokens committed at a moment: how many, and whose."""
        g = self.look.glyphs
        parts: list[Part] = [("".ljust(LABEL), "")]
        for name, said in (
            ("accepted", "drafts held"),
            ("corrected", "one did not"),
            ("cloud", "no drafts"),
            ("edge", "small model alone"),
        ):
            parts += [(f"{g.source(name)} ", f"${name}"), (f"{said}  ", "$faint")]
        return parts


def bars(covered: Sequence[bool], glyphs: Glyphs, style: str) -> list[Part]:
    """Runs of covered cells, with the empty ones between."""
    parts: list[Part] = []
    at = 0
    while at < len(covered):
        end = at
        while end < len(covered) and covered[end] == covered[at]:
            end += 1
        run = end - at
        if covered[at]:
            text = glyphs.middle if run == 1 else glyphs.middle * (run - 1) + glyphs.right
            parts.append((text, style))
        else:
            parts.append((" " * run, ""))
        at = end
    return parts


def _counts(
    late: Sequence[Mark], room: int, began: float, window: float, glyphs: Glyphs
) -> list[Part]:
    """Per cell the tokens that were committed then, in the colour of the last one's source."""
    line: list[Part] = [(" ", "")] * room
    sums = [0] * room
    for mark in late:
        at = min(room - 1, max(0, int((mark.t_ms - began) / window * room)))
        if mark.kind in ("commit", "local"):
            sums[at] += mark.tokens
            count = str(sums[at]) if sums[at] < 10 else "+"
            line[at] = (count, f"${_source(mark)} bold")
        elif mark.kind in ("cut", "back"):
            sign = glyphs.bad if mark.kind == "cut" else glyphs.good
            line[at] = (sign, "$bad bold" if mark.kind == "cut" else "$good bold")
    return line


def _source(mark: Mark) -> str:
    if mark.kind == "local":
        return "edge"
    if not mark.hint_rows:
        return "cloud"
    return "accepted" if mark.from_hints == mark.hint_rows else "corrected"
