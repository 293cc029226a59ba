"""Screen 1: all that matters on one page."""

from __future__ import annotations

from textual.app import ComposeResult

from outrider.tui.widgets.acceptance import Acceptance
from outrider.tui.widgets.load import Load
from outrider.tui.widgets.page import Page
from outrider.tui.widgets.power import Power
from outrider.tui.widgets.speed import Speed
from outrider.tui.widgets.timeline import Timeline
from outrider.tui.widgets.verdict import Verdict
from outrider.tui.widgets.way import Way


class Overview(Page):
    DEFAULT_CSS = """
    Overview {
        layout: grid; grid-size: 3 3; grid-rows: 7 1fr 6; grid-columns: 1fr 1fr 1fr;
    }
    Overview Timeline { column-span: 3; }
    """

    def compose(self) -> ComposeResult:
        yield Speed()
        yield Acceptance()
        yield Way()
        yield Timeline()
        yield Power()
        yield Load()
        yield Verdict()
