"""Screen 3: all requests, and with enter one of them in full."""

from __future__ import annotations

from textual.app import ComposeResult

from outrider.tui.look import Look
from outrider.tui.messages import Chosen
from outrider.tui.state import State
from outrider.tui.widgets.cascade import Cascade
from outrider.tui.widgets.page import Page
from outrider.tui.widgets.request_table import RequestTable
from outrider.tui.widgets.tokens import Tokens


class Requests(Page):
    DEFAULT_CSS = """
    Requests RequestTable { height: 1fr; }
    Requests Cascade { height: 9; display: none; }
    Requests Tokens { height: 6; }
    Requests.detail RequestTable { display: none; }
    Requests.detail Cascade { display: block; }
    Requests.detail Tokens { height: 1fr; }
    """
    KEYS = (("enter", "waterfall"),)

    def compose(self) -> ComposeResult:
        yield RequestTable()
        yield Cascade()
        yield Tokens()

    @property
    def request(self) -> str:
        """The one that is looked at."""
        if self.has_class("detail"):
            return self.query_one(Cascade).request
        return self.query_one(RequestTable).chosen

    def show(self, state: State, look: Look) -> None:
        if not self.has_class("detail"):
            self.query_one(RequestTable).show(state, look)
        self._point()
        super().show(state, look)

    def _point(self) -> None:
        tokens = self.query_one(Tokens)
        if tokens.request != self.request:
            tokens.request = self.request
            tokens.text, tokens.note = (), ""

    def on_chosen(self, message: Chosen) -> None:
        message.stop()
        table = self.query_one(RequestTable)
        self.show(table.state, table.look)

    def enter(self) -> None:
        if (chosen := self.query_one(RequestTable).chosen) and not self.has_class("detail"):
            self.query_one(Cascade).request = chosen
            self.add_class("detail")
            self._refreshed()

    def leave(self) -> bool:
        if not self.has_class("detail"):
            return False
        self.remove_class("detail")
        self._refreshed()
        return True

    def _refreshed(self) -> None:
        table = self.query_one(RequestTable)
        self.call_after_refresh(lambda: self.show(table.state, table.look))
