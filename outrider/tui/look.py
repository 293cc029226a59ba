"""How screens are drawn now: signs, time zone, filter. Nothing of the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo

from outrider.tui.glyphs import UNICODE, Glyphs

Part = tuple[str, str]
"""A text and its style: names of the theme's colours, as `$good`, and `bold`, `dim`, `reverse`."""
Line = Sequence[Part]
PAGES = ("overview", "split", "requests", "decisions", "links", "logs")
TITLES = ("Overview", "Split map", "Requests", "Decisions", "Links", "Logs")


@dataclass(frozen=True, slots=True)
class Look:
    glyphs: Glyphs = UNICODE
    zone: tzinfo | None = None
    """None for this machine's."""
    readonly: bool = False
    filter: str = ""
    """Rows without it are left out; case does not matter."""

    def matches(self, text: str) -> bool:
        return self.filter.casefold() in text.casefold()


def width(line: Line) -> int:
    return sum(len(text) for text, _ in line)


def clip(line: Line, cells: int) -> list[Part]:
    """The part of a line that fits."""
    found: list[Part] = []
    for text, style in line:
        if cells <= 0:
            break
        found.append((text[:cells], style))
        cells -= len(text)
    return found


def spread(left: Line, right: Line, cells: int) -> list[Part]:
    """Two ends of one line; the left one gives way."""
    room = cells - width(right)
    kept = clip(left, room)
    return [*kept, (" " * max(0, room - width(kept)), ""), *right]
