"""Screen 2: which layers run where, one round in figures, and why."""

from __future__ import annotations

from textual.app import ComposeResult

from outrider.tui.widgets.page import Page
from outrider.tui.widgets.round import Round
from outrider.tui.widgets.strip import Strip
from outrider.tui.widgets.timeline import Timeline
from outrider.tui.widgets.ways import Ways


class Split(Page):
    DEFAULT_CSS = """
    Split Strip { height: 7; }
    Split Round { height: 5; }
    Split Ways { height: 1fr; }
    Split Timeline { display: none; }
    """

    def compose(self) -> ComposeResult:
        yield Strip()
        yield Round()
        yield Timeline()
        yield Ways()
