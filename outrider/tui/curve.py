"""The usual card: a figure, its curve, and a line of what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui.glyphs import Glyphs
from outrider.tui.graph import area
from outrider.tui.look import Line


def titled_curve(
    head: Line,
    values: Sequence[float],
    foot: Line,
    size: tuple[int, int],
    glyphs: Glyphs,
    style: str,
    top: float | None = None,
) -> list[Line]:
    """Lines of a card of `size` cells; the curve gets the rows that are left."""
    width, height = size
    rows = area(list(values), width, max(1, height - 2), glyphs, top)
    return [head, *([(row, style)] for row in rows), foot]
