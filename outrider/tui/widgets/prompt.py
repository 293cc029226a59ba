"""The line at the bottom where a filter or a command is written."""

from __future__ import annotations

from textual import events
from textual.suggester import SuggestFromList
from textual.widgets import Input

from outrider.tui.commands import WORDS
from outrider.tui.messages import Entered, Typed


class Prompt(Input):
    """Hidden until `ask`; enter and esc hide it again."""

    DEFAULT_CSS = """
    Prompt {
        height: 1; border: none; padding: 0 1; background: $panel; display: none;
    }
    Prompt:focus { border: none; }
    """

    def __init__(self) -> None:
        super().__init__(id="prompt", compact=True)
        self.kind = ""

    def ask(self, kind: str, text: str = "") -> None:
        """Show it for a filter `/` or a command `:`."""
        self.kind = kind
        self.placeholder = "filter rows" if kind == "/" else "command, such as: split, pin cloud"
        self.suggester = SuggestFromList(WORDS) if kind == ":" else None
        self.value = text
        self.display = True
        self.focus()

    def _leave(self, text: str | None) -> None:
        self.display = False
        self.screen.set_focus(None)
        self.post_message(Entered(self.kind, text))

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.display:
            self.post_message(Typed(self.kind, self.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._leave(self.value)

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape":
            event.stop()
            event.prevent_default()
            self._leave(None)
