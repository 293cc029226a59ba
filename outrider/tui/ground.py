"""The screen under all panels, and the short way by which a look's changes reach the terminal.

Textual would wake every changed panel, the screen, and a timer, and then cut all rows of all
widgets into pieces to see which of them are new. Panels know which rows are new, nothing lies
over them, and so those rows are written as they are; whenever that does not hold (a layout is
due, a note is shown), Textual's own way is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from textual._compositor import CompositorUpdate
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip

if TYPE_CHECKING:
    from outrider.tui.widgets.panel import Panel

Row = tuple[int, int, Strip]
"""Column and line of the terminal, and what stands there."""


class Rows(CompositorUpdate):
    """Rows to write, each at its place."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def render_segments(self, console: Console) -> str:
        """In the escape codes of terminals."""
        return "".join(
            Control.move_to(x, y).segment.text + strip.render(console) for x, y, strip in self._rows
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for x, y, strip in self._rows:
            yield Control.move_to(x, y)
            yield from strip


class Ground(Screen[None]):
    """Panels cover it, so that nothing but its colour is needed."""

    BLANK = True

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._changed: dict[Panel, list[int]] | None = None
        """Content rows by panel, while a look is drawn; else None."""

    def begin(self) -> None:
        self._changed = {}

    def changed(self, panel: Panel, rows: list[int]) -> None:
        """Rows of a panel's content are others."""
        if self._changed is None:
            panel.refresh(*(Region(0, y, panel.content_size.width, 1) for y in rows))
        else:
            self._changed.setdefault(panel, []).extend(rows)

    def end(self) -> None:
        """Bring what changed since `begin` to the terminal."""
        changed, self._changed = self._changed or {}, None
        if not changed:
            return
        rows = self._rows(changed)
        if rows is not None:
            self.app._display(self, Rows(rows))
            return
        for panel, lines in changed.items():
            self.changed(panel, lines)

    def _rows(self, changed: dict[Panel, list[int]]) -> list[Row] | None:
        """None where something may lie over a panel, or a panel elsewhere than it was."""
        if self._layout_required or self._dirty_widgets or len(self.app._notifications):
            return None
        found: list[Row] = []
        seen = self._compositor.visible_widgets
        for panel, lines in changed.items():
            region, clip = seen.get(panel, (Region(), Region()))
            if region.size != panel.outer_size or not region or not clip.contains_region(region):
                return None
            left, top = region.x, region.y + panel.gutter.top
            found += [(left, top + y, panel.row(y)) for y in lines]
        return found
