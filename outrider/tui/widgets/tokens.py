"""A request's tokens in order, each a sign of who made it; with its text once it was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui.glyphs import SOURCES
from outrider.tui.look import Line, Part
from outrider.tui.ride import Ride
from outrider.tui.widgets.panel import Panel

NAMES = {
    "accepted": "draft, verified",
    "bonus": "target after all held",
    "corrected": "target against a draft",
    "cloud": "target alone",
    "edge": "small model",
    "provisional": "not final",
}
NUMBER = 6
"""Cells of the position before a line."""
SHORT = {**NAMES, "bonus": "bonus", "corrected": "corrected"}


class Tokens(Panel):
    TITLE = "tokens by who made them"
    request = ""
    """Which to show; empty shows none."""
    text: tuple[tuple[str, str], ...] = ()
    """(Text, source) of this request, when it was read."""
    note = ""

    def draw(self, width: int, height: int) -> Sequence[Line]:
        ride = self.state.rides.get(self.request)
        if ride is None:
            return [[("no request is chosen", "$faint")]]
        legend = self._legend(ride, width)
        room = max(1, height - len(legend))
        if self.note:
            return [*legend, [(self.note, "$warn")]]
        body = _flow(self.text, width) if self.text else self._signs(ride, width)
        return [*legend, *body[-room:]]

    def _legend(self, ride: Ride, width: int) -> list[Line]:
        """Counts of those that occur."""
        g = self.look.glyphs
        lines: list[list[Part]] = [[]]
        used = 0
        names = NAMES if width > 100 else SHORT
        for name, count in ride.sources().items():
            if not count:
                continue
            said = f" {count} {names[name]}   "
            if used + len(said) + 1 > width and lines[-1]:
                lines.append([])
                used = 0
            lines[-1] += [(g.source(name), f"${name} bold"), (said, "$faint")]
            used += len(said) + 1
        return list(lines) if lines[0] else [[("no token yet", "$faint")]]

    def _signs(self, ride: Ride, width: int) -> list[Line]:
        g = self.look.glyphs
        lines: list[Line] = []
        per_line = max(10, (width - NUMBER) // 10 * 10)
        for choice, codes in enumerate(ride.choices):
            if len(ride.choices) > 1:
                lines.append([(f"answer {choice}", "$faint")])
            for at in range(0, len(codes), per_line):
                line: list[Part] = [(f"{at:>5} ", "$faint")]
                for name, run in _runs(codes[at : at + per_line]):
                    line.append((g.source(name) * run, f"${name}"))
                lines.append(line)
        return lines


def _runs(codes: bytearray) -> list[tuple[str, int]]:
    """Equal neighbours together."""
    found: list[tuple[str, int]] = []
    for code in codes:
        name = SOURCES[code]
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1] + 1)
        else:
            found.append((name, 1))
    return found


def _flow(text: Sequence[tuple[str, str]], width: int) -> list[Line]:
    """Pieces of text, broken where a line is full or ends."""
    lines: list[list[Part]] = [[]]
    used = 0
    for piece, source in text:
        for number, part in enumerate(piece.replace("\t", "    ").split("\n")):
            if number:
                lines.append([])
                used = 0
            while part:
                fits = part[: width - used]
                lines[-1].append((fits, f"${source}" if source in SOURCES else ""))
                used += len(fits)
                part = part[len(fits) :]
                if used >= width and part:
                    lines.append([])
                    used = 0
    return [list(line) for line in lines]
