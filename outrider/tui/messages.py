"""What the parts of the screen say to each other."""

from __future__ import annotations

from textual.message import Message


class Chosen(Message):
    """The cursor of a table moved to another row."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Chosen)


class Typed(Message):
    """The line at the bottom changed: a filter is applied as it is written."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__()
        self.kind = kind
        """`/` or `:`."""
        self.text = text

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, Typed)


class Entered(Message):
    """The line at the bottom was sent off with enter, or left with esc."""

    def __init__(self, kind: str, text: str | None) -> None:
        super().__init__()
        self.kind = kind
        self.text = text
        """None: left."""


class PageWanted(Message):
    """A tab was clicked."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page


class TextCame(Message):
    """More of the text of a request that the user asked to see."""

    def __init__(self, request: str, parts: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        self.request = request
        self.parts = parts
        """(Text, who made it), in order."""


class TextFailed(Message):
    """It can not be had, and why."""

    def __init__(self, request: str, why: str) -> None:
        super().__init__()
        self.request = request
        self.why = why
