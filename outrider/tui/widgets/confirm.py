"""Asks before something is done to the daemon."""

from __future__ import annotations

from textual.binding import Binding

from outrider.tui.look import Line
from outrider.tui.widgets.box import Box


class Confirm(Box):
    """`y` or enter says yes, everything else no."""

    BINDINGS = [
        Binding("y,enter", "yes", "Yes", id="yes", priority=True),
        Binding("n,escape,q", "close", "No", id="no", priority=True),
    ]

    def __init__(self, question: str, effect: str, classes: str = "") -> None:
        lines: list[Line] = [
            [(question, "$head bold")],
            [(effect, "$foreground")],
            [],
            [("y", "$cloud bold"), (" yes   ", "$faint"), ("n", "$cloud bold"), (" no", "$faint")],
        ]
        super().__init__("please confirm", lines, classes)

    def action_yes(self) -> None:
        self.dismiss("yes")
