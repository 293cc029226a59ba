"""Screen 5: the ways to the clouds."""

from __future__ import annotations

from textual.app import ComposeResult

from outrider.tui.look import Look
from outrider.tui.messages import Chosen
from outrider.tui.state import State
from outrider.tui.widgets.link_card import LinkCard
from outrider.tui.widgets.link_table import LinkTable
from outrider.tui.widgets.page import Page


class Links(Page):
    DEFAULT_CSS = """
    Links LinkTable { height: 9; }
    Links LinkCard { height: 1fr; }
    """

    def compose(self) -> ComposeResult:
        yield LinkTable()
        yield LinkCard()

    def show(self, state: State, look: Look) -> None:
        table = self.query_one(LinkTable)
        table.show(state, look)
        self.query_one(LinkCard).key = table.chosen
        super().show(state, look)

    def on_chosen(self, message: Chosen) -> None:
        message.stop()
        table = self.query_one(LinkTable)
        self.show(table.state, table.look)
