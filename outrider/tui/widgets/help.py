"""All keys on one page, and what the signs mean."""

from __future__ import annotations

from outrider.tui.glyphs import SOURCES, Glyphs
from outrider.tui.keys import GROUPS, by_id, shown
from outrider.tui.look import Line, Part
from outrider.tui.look import width as cells
from outrider.tui.widgets.tokens import NAMES

KEY, COLUMN = 10, 36


def content(glyphs: Glyphs) -> list[Line]:
    """Two columns of keys, then the legend; fits 80x24."""
    lines: list[Line] = []
    left = [*_group(0), [], *_group(1)]
    right = [*_group(2), [], *_group(3)]
    for number in range(max(len(left), len(right))):
        one = left[number] if number < len(left) else []
        other = right[number] if number < len(right) else []
        gap = " " * max(0, COLUMN - cells(one))
        lines.append([*one, (gap, ""), *other])
    signs: list[Part] = []
    for name in SOURCES[:3]:
        signs += [(f"{glyphs.source(name)} ", f"${name}"), (f"{NAMES[name]}   ", "$faint")]
    more: list[Part] = []
    for name in SOURCES[3:]:
        more += [(f"{glyphs.source(name)} ", f"${name}"), (f"{NAMES[name]}   ", "$faint")]
    return [*lines, [("who made a token: ", "$head")], signs, more]


def _group(number: int) -> list[Line]:
    title, wanted = GROUPS[number]
    lines: list[Line] = [[(title, "$cloud bold")]]
    for name in wanted:
        binding = by_id(name)
        lines.append(
            [
                (shown(binding).ljust(KEY), "$head bold"),
                (binding.tooltip[: COLUMN - KEY - 1], "$faint"),
            ]
        )
    return lines
