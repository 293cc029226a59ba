"""A screen: shows its panels, and knows which of them has a cursor."""

from __future__ import annotations

from textual.containers import Container

from outrider.tui.look import Look
from outrider.tui.state import State
from outrider.tui.widgets.panel import Panel
from outrider.tui.widgets.rows import Rows


class Page(Container):
    BLANK = True
    DEFAULT_CSS = "Page { height: 1fr; overflow: hidden; }"
    KEYS: tuple[tuple[str, str], ...] = ()
    """Beside those that every screen has."""

    def show(self, state: State, look: Look) -> None:
        for panel in self.query(Panel):
            if panel.display:
                panel.show(state, look)

    @property
    def table(self) -> Rows | None:
        """What j and k move in."""
        return next((rows for rows in self.query(Rows) if rows.display), None)

    def enter(self) -> None:
        """The enter key."""

    def leave(self) -> bool:
        """The esc key; whether there was something to leave."""
        return False
