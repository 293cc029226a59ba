"""Screen 4: what was switched, why, and what it brought."""

from __future__ import annotations

from textual.app import ComposeResult

from outrider.tui.look import Look
from outrider.tui.messages import Chosen
from outrider.tui.state import State
from outrider.tui.widgets.decision_card import DecisionCard
from outrider.tui.widgets.decision_table import DecisionTable
from outrider.tui.widgets.page import Page


class Decisions(Page):
    DEFAULT_CSS = """
    Decisions DecisionTable { height: 1fr; }
    Decisions DecisionCard { height: 7; }
    """

    def compose(self) -> ComposeResult:
        yield DecisionTable()
        yield DecisionCard()

    def show(self, state: State, look: Look) -> None:
        table = self.query_one(DecisionTable)
        table.show(state, look)
        self.query_one(DecisionCard).key = table.chosen
        super().show(state, look)

    def on_chosen(self, message: Chosen) -> None:
        message.stop()
        table = self.query_one(DecisionTable)
        self.show(table.state, table.look)
