"""A box over the screen with lines to read; subclasses say what stands in it."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen

from outrider.tui.look import Line, Look
from outrider.tui.look import width as cells
from outrider.tui.state import State
from outrider.tui.widgets.panel import Panel


class Lines(Panel):
    """As large as what it holds."""

    DEFAULT_CSS = """
    Lines { border: round $cloud; background: $panel; border-title-color: $head; padding: 1 2; }
    """
    content: Sequence[Line] = ()

    def draw(self, width: int, height: int) -> Sequence[Line]:
        return self.content


class Box(ModalScreen[str]):
    """Any of its keys closes it."""

    DEFAULT_CSS = "Box { align: center middle; background: $background 60%; }"
    BINDINGS = [
        Binding("escape,q,enter,space,f1,question_mark,p", "close", "Close", id="close"),
    ]

    def __init__(self, title: str, content: Sequence[Line], classes: str = "") -> None:
        super().__init__(classes=classes)
        self._title, self._content = title, content

    def compose(self) -> ComposeResult:
        yield Lines()

    def on_mount(self) -> None:
        lines = self.query_one(Lines)
        lines.content = self._content
        lines.border_title = self._title
        lines.styles.width = min(self.app.size.width, max(map(cells, self._content)) + 6)
        lines.styles.height = min(self.app.size.height, len(self._content) + 4)
        lines.show(State(), Look())

    def action_close(self) -> None:
        self.dismiss("no")
