"""A line for what a person or a demo's script just did; gone when nothing was."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui.look import Line
from outrider.tui.widgets.panel import Panel


class Story(Panel):
    DEFAULT_CSS = """
    Story { border: none; height: 1; padding: 0 1; }
    """

    def draw(self, width: int, height: int) -> Sequence[Line]:
        text = self.state.story()
        return [[(f"{self.look.glyphs.play} ", "$power bold"), (text, "$power")]] if text else []
