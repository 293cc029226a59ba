"""A bordered part of a screen that draws lines from the state, and paints only what changed."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widget import Widget

from outrider.tui.look import Line, Look, clip
from outrider.tui.state import State


class Panel(Widget):
    """Subclasses give `TITLE` and `draw`; `show` is called whenever something may have changed."""

    TITLE = ""
    DEFAULT_CSS = """
    Panel {
        border: round $rule;
        border-title-color: $faint;
        border-title-style: none;
        border-subtitle-color: $faint;
        padding: 0 1;
        text-wrap: nowrap;
        text-overflow: clip;
        overflow: hidden;
    }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.border_title = self.TITLE
        self.state = State()
        self.look = Look()
        self._lines: list[Line] = []

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """At most `height` lines of at most `width` cells, from `self.state` and `self.look`."""
        return ()

    def show(self, state: State, look: Look) -> None:
        """Take a state and paint what differs from what stands there."""
        self.state, self.look = state, look
        self._again()

    def _again(self) -> None:
        width, height = self.content_size
        lines: list[Line] = [clip(x, width) for x in list(self.draw(width, height))[:height]]
        if lines != self._lines:
            self._lines = lines
            self.refresh()

    def titled(self, title: str, subtitle: str = "") -> None:
        """Change the border's words, if they differ."""
        if self.border_title != title:
            self.border_title = title
        if (self.border_subtitle or "") != subtitle:
            self.border_subtitle = subtitle

    def on_resize(self) -> None:
        self._again()

    def render(self) -> Content:
        parts: list[tuple[str, str]] = []
        for number, line in enumerate(self._lines):
            if number:
                parts.append(("\n", ""))
            parts.extend(line)
        return Content.assemble(*parts)
