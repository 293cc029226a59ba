"""A bordered part of a screen that draws lines from the state, and paints only what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from outrider.tui.look import Line, Look, clip
from outrider.tui.state import State


class Panel(Widget):
    """Subclasses give `TITLE` and `draw`; `show` is called whenever something may have changed."""

    TITLE = ""
    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Panel {
        border: round $rule;
        border-title-color: $faint;
        border-title-style: none;
        border-subtitle-color: $faint;
        padding: 0 1;
        overflow: hidden;
    }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.border_title = self.TITLE
        self.state = State()
        self.look = Look()
        self._lines: list[Line] = []
        self._theme = ""
        self._known: dict[str, Style] = {}

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """At most `height` lines of at most `width` cells, from `self.state` and `self.look`."""
        return ()

    def show(self, state: State, look: Look) -> None:
        """Take a state and paint what differs from what stands there."""
        self.state, self.look = state, look
        self._again()

    def _again(self) -> None:
        """Lines that are as they were are not painted again."""
        width, height = self.content_size
        lines: list[Line] = [clip(x, width) for x in list(self.draw(width, height))[:height]]
        before, self._lines = self._lines, lines
        changed = [
            Region(0, y, width, 1)
            for y in range(max(len(lines), len(before)))
            if y >= len(lines) or y >= len(before) or lines[y] != before[y]
        ]
        if changed:
            self.refresh(*changed)

    def titled(self, title: str, subtitle: str = "") -> None:
        """Change the border's words, if they differ."""
        if self.border_title != title:
            self.border_title = title
        if (self.border_subtitle or "") != subtitle:
            self.border_subtitle = subtitle

    def on_resize(self) -> None:
        self._again()

    def render_line(self, y: int) -> Strip:
        """One line of the content; styles are looked up once for each theme."""
        line = self._lines[y] if y < len(self._lines) else ()
        styles = self._styles_now()
        parts = [Segment(text, self._named(name, styles)) for text, name in line]
        return Strip(parts).adjust_cell_length(self.content_size.width, styles[""])

    def _styles_now(self) -> dict[str, Style]:
        """Known combinations with the panel's own colours, under the present theme."""
        if self._theme != self.app.theme or not self._known:
            self._theme, self._known = self.app.theme, {"": self.rich_style}
        return self._known

    def _named(self, words: str, known: dict[str, Style]) -> Style:
        found = known.get(words)
        if found is None:
            named = _style(words, self._theme, self.app.theme_variables)
            found = known[words] = known[""] + named
        return found


_STYLES: dict[tuple[str, str], Style] = {}
"""By theme and words; as many as the screens use."""


def _style(words: str, theme: str, variables: Mapping[str, str]) -> Style:
    """Of `$accepted bold on $chosen`: names of the theme's colours in place of colours."""
    known = _STYLES.get((theme, words))
    if known is None:
        spelled = [
            variables[word[1:]].removeprefix("ansi_") if word.startswith("$") else word
            for word in words.split()
        ]
        known = _STYLES[theme, words] = Style.parse(" ".join(spelled))
    return known
