"""What is on its way between device and cloud: hints up, passes, commits down, live."""

from __future__ import annotations

import re
from collections.abc import Sequence

from outrider.tui.glyphs import Glyphs
from outrider.tui.look import Line, Part
from outrider.tui.ride import Mark
from outrider.tui.waterfall import Lane, Span, by_lane, cells, latest, recent
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


DIGITS = bytes.maketrans(b"\0\1", b"01")
LAST = re.compile(r"(?<=1)1(?!1)")
"""Of a run of two cells and more."""


class Timeline(Panel):
    TITLE = "in flight"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state, g = self.state, self.look.glyphs
        room = max(10, width - LABEL)
        window = room * MS_PER_CELL
        link = state.link
        rtt = link.now.rtt_ms if link is not None else None
        found = recent(state.marks, state.t_ms, rtt, window)
        lanes = by_lane(found)
        late = latest(state.marks, state.t_ms - window)
        tall = height >= 2 * len(SHOWN) + 2
        lines: list[Line] = []
        for lane, name in SHOWN:
            lines.append(self._lane(lane, name, lanes[lane], room, window))
            if tall:
                lines.append([])
        began = state.t_ms - window
        lines.append([("tokens".ljust(LABEL), "$faint"), *_counts(late, room, began, window, g)])
        self.titled(self.TITLE, f" last {window / 1e3:.1f} s, newest right ")
        return [*lines, *([self._legend()] if height > len(lines) else [])]

    def _lane(self, lane: Lane, name: str, found: Sequence[Span], room: int, window: float) -> Line:
        covered = cells(found, room, window)
        return [(name.ljust(LABEL), f"${lane}"), (bars(covered, self.look.glyphs), f"${lane}")]

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


def bars(covered: bytes, glyphs: Glyphs) -> str:
    """Runs of covered cells, with the empty ones between; a run ends in a narrower sign."""
    shown = LAST.sub("2", covered.translate(DIGITS).decode())
    return shown.translate({0x30: " ", 0x31: glyphs.middle, 0x32: glyphs.right})


def _counts(
    late: Sequence[Mark], room: int, began: float, window: float, glyphs: Glyphs
) -> list[Part]:
    """Per cell the tokens that were committed then, in the colour of the last one's source."""
    sums: dict[int, int] = {}
    signs: dict[int, Part] = {}
    for mark in late:
        at = min(room - 1, max(0, int((mark.t_ms - began) / window * room)))
        if mark.kind in ("commit", "local"):
            sums[at] = sums.get(at, 0) + mark.tokens
            count = str(sums[at]) if sums[at] < 10 else "+"
            signs[at] = (count, f"${_source(mark)} bold")
        elif mark.kind in ("cut", "back"):
            sign = glyphs.bad if mark.kind == "cut" else glyphs.good
            signs[at] = (sign, "$bad bold" if mark.kind == "cut" else "$good bold")
    line: list[Part] = []
    end = 0
    for at in sorted(signs):
        line += [(" " * (at - end), ""), signs[at]]
        end = at + 1
    return line


def _source(mark: Mark) -> str:
    if mark.kind == "local":
        return "edge"
    if not mark.hint_rows:
        return "cloud"
    return "accepted" if mark.from_hints == mark.hint_rows else "corrected"
