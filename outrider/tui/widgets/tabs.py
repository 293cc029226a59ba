"""The second line: the six screens by number; the present one stands in brackets."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events

from outrider.tui.look import PAGES, TITLES, Line, Part, spread
from outrider.tui.messages import PageWanted
from outrider.tui.widgets.panel import Panel


class Tabs(Panel):
    DEFAULT_CSS = """
    Tabs { border: none; height: 1; padding: 0 1; background: $panel; }
    """
    page = PAGES[0]

    def draw(self, width: int, height: int) -> Sequence[Line]:
        parts: list[Part] = []
        for number, (page, title) in enumerate(zip(PAGES, TITLES, strict=True), 1):
            here = page == self.page
            left, right = ("[", "]") if here else (" ", " ")
            parts += [
                (left, "$cloud bold"),
                (f"{number} ", "$cloud bold" if here else "$faint"),
                (title, "$head bold" if here else "$faint"),
                (right, "$cloud bold"),
            ]
        note = f"filter: {self.look.filter}" if self.look.filter else ""
        return [spread(parts, [(note, "$warn")], width)]

    def on_click(self, event: events.Click) -> None:
        at = 1
        for number, (page, title) in enumerate(zip(PAGES, TITLES, strict=True), 1):
            end = at + len(f"[{number} {title}]")
            if at <= event.x < end:
                self.post_message(PageWanted(page))
            at = end
