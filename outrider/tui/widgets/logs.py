"""Screen 6: every event; `/` filters."""

from __future__ import annotations

from textual.app import ComposeResult

from outrider.tui.widgets.log_table import LogTable
from outrider.tui.widgets.page import Page


class Logs(Page):
    DEFAULT_CSS = "Logs LogTable { height: 1fr; }"

    def compose(self) -> ComposeResult:
        yield LogTable()
