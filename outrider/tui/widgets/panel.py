"""A bordered part of a screen that draws lines from the state, and paints only what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from outrider.tui.ground import Ground
from outrider.tui.look import Line, Look, clip
from outrider.tui.look import width as cells
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
        self._frame: list[Strip] = []
        """Border and padding of all rows, as Textual draws them around nothing."""
        self._framed: tuple[object, ...] = ()
        """What the frame was drawn for."""
        self._sides: tuple[list[Segment], list[Segment]] = ([], [])
        """Of a content row: what stands left and right of its text."""
        self._rows: dict[int, Strip] = {}
        """Content rows as they are painted, until they change."""

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
        same = min(len(lines), len(before))
        changed = [y for y in range(same) if lines[y] != before[y]]
        changed += range(same, max(len(lines), len(before)))
        if changed:
            for y in changed:
                self._rows.pop(y, None)
            screen = self.screen
            if isinstance(screen, Ground):
                screen.changed(self, [y for y in changed if y < height])
            else:
                self.refresh(*(Region(0, y, width, 1) for y in changed))

    def titled(self, title: str, subtitle: str = "") -> None:
        """Change the border's words, if they differ."""
        if self.border_title != title:
            self.border_title = title
        if (self.border_subtitle or "") != subtitle:
            self.border_subtitle = subtitle

    def on_resize(self) -> None:
        self._again()

    # --- painting --------------------------------------------------------------------------

    def notify_style_update(self) -> None:
        self._framed = ()
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        """A row of the content with nothing in it, for the frame."""
        return Strip([], 0)

    def render_lines(self, crop: Region) -> list[Strip]:
        """The frame with the lines set into it. Textual would put every row together anew, one
        step after the other; here a row is made once, when it changed."""
        size = self.outer_size
        self._see_frame(size)
        top = self.gutter.top
        end = top + self.content_size.height
        rows = [
            self._row_at(y - top, size.width) if top <= y < end else self._frame[y]
            for y in range(crop.y, min(crop.bottom, len(self._frame)))
        ]
        left, right = crop.column_span
        return rows if (left, right) == (0, size.width) else [r.crop(left, right) for r in rows]

    def row(self, y: int) -> Strip:
        """A row of the content with the frame's sides, as it stands on the terminal."""
        size = self.outer_size
        self._see_frame(size)
        return self._row_at(y, size.width)

    def _see_frame(self, size: Size) -> None:
        """Drawn anew when its size, its words or its colours are others."""
        now = (size, self.app.theme, self.border_title, self.border_subtitle)
        if now == self._framed:
            return
        self._framed = now
        self._rows.clear()
        self._known.clear()
        self._frame = super().render_lines(Region(0, 0, *size))
        gutter = self.gutter
        if gutter.top < len(self._frame):
            row = self._frame[gutter.top]
            left, right = row.crop(0, gutter.left), row.crop(size.width - gutter.right)
            self._sides = (list(left), list(right))

    def _row_at(self, y: int, width: int) -> Strip:
        known = self._rows.get(y)
        if known is None:
            left, right = self._sides
            known = self._rows[y] = Strip([*left, *self._segments(y), *right], width)
        return known

    def _segments(self, y: int) -> Iterable[Segment]:
        """Text in its styles, filled up to the width; neighbours of one style are one piece."""
        parts = self._lines[y] if y < len(self._lines) else ()
        styles = self._styles_now()
        found: list[tuple[str, Style]] = []
        room = self.content_size.width - cells(parts)
        for text, name in (*parts, (" " * max(0, room), "")):
            style = styles.get(name) or self._named(name, styles)
            if found and (found[-1][1] is style or _joins(text, style, found[-1][1])):
                found[-1] = (found[-1][0] + text, found[-1][1])
            elif text:
                found.append((text, style))
        return [Segment(text, style) for text, style in found]

    def _styles_now(self) -> dict[str, Style]:
        """Known combinations with the panel's own colours, under the present theme."""
        if self._theme != self.app.theme or not self._known:
            self._theme, self._known = self.app.theme, {"": self._filtered(self.rich_style)}
        return self._known

    def _named(self, words: str, known: dict[str, Style]) -> Style:
        named = _style(words, self._theme, self.app.theme_variables)
        known[words] = self._filtered(self.rich_style + named)
        return known[words]

    def _filtered(self, style: Style) -> Style:
        """As the terminal gets it: without colours under NO_COLOR, for one."""
        pieces = [Segment(" ", style)]
        for one in self.get_line_filters():
            pieces = one.apply(pieces, self.background_colors[1])
        return pieces[0].style or style


def _joins(text: str, style: Style, before: Style) -> bool:
    """Blanks need no piece of their own: they show the ground alone."""
    return not text.strip(" ") and style.bgcolor == before.bgcolor and not before.reverse


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
