"""A table with a cursor that stays on its row while others come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events

from outrider.tui.look import Line, Part
from outrider.tui.messages import Chosen
from outrider.tui.widgets.panel import Panel
from outrider.tui.words import fit


@dataclass(frozen=True, slots=True)
class Column:
    """`cells` 0 takes what is left over; of the narrow ones `rank` 0 stays the longest."""

    title: str
    cells: int = 0
    right: bool = False
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    cells: tuple[Part, ...]

    @property
    def text(self) -> str:
        return " ".join(text for text, _ in self.cells)


class Rows(Panel):
    """Subclasses give `COLUMNS` and `rows`."""

    COLUMNS: tuple[Column, ...] = ()
    EMPTY = "nothing yet"
    LEAST = 18
    """Cells that the widest column keeps before others are left out."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.key = ""
        """The row under the cursor; empty: the first."""
        self._shown: list[Row] = []
        self._top = 0

    def rows(self) -> Sequence[Row]:
        return ()

    @property
    def chosen(self) -> str:
        return self._shown[self._place()].key if self._shown else ""

    def _place(self) -> int:
        found = (i for i, row in enumerate(self._shown) if row.key == self.key)
        return next(found, 0)

    # --- moves -----------------------------------------------------------------------------

    def move(self, by: int) -> None:
        """The cursor up or down; it stops at the ends."""
        if not self._shown:
            return
        at = max(0, min(len(self._shown) - 1, self._place() + by))
        # On the first row it stays with what is newest.
        self.key = self._shown[at].key if at else ""
        self._again()
        self.post_message(Chosen(self.chosen))

    def on_click(self, event: events.Click) -> None:
        at = self._top + event.y - 2
        if event.y >= 2 and at < len(self._shown):
            self.key = self._shown[at].key
            self._again()
            self.post_message(Chosen(self.chosen))

    def on_mouse_scroll_down(self) -> None:
        self.move(1)

    def on_mouse_scroll_up(self) -> None:
        self.move(-1)

    # --- drawing ---------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> Sequence[Line]:
        self._shown = [row for row in self.rows() if self.look.matches(row.text)]
        columns = self._columns(width)
        head = [(self._line_of(columns, [(c.title, "") for c in self.COLUMNS]), "$faint")]
        if not self._shown:
            empty = f"nothing matches {self.look.filter!r}" if self.look.filter else self.EMPTY
            return [head, [(empty, "$faint")]]
        at, room = self._place(), max(1, height - 1)
        self._top = max(0, min(self._top, len(self._shown) - room))
        self._top = max(at - room + 1, min(self._top, at))
        window = self._shown[self._top : self._top + room]
        self.titled(self.TITLE, f" {at + 1}/{len(self._shown)} ")
        return [head, *(self._row(columns, row, n + self._top == at) for n, row in _each(window))]

    def _columns(self, width: int) -> list[int]:
        """Cells of each column; those of the highest rank go first where there is no room."""
        kept = set(range(len(self.COLUMNS)))
        while True:
            fixed = sum(self.COLUMNS[i].cells + 2 for i in kept if self.COLUMNS[i].cells)
            least = self.LEAST if any(not self.COLUMNS[i].cells for i in kept) else 0
            worst = max(kept, key=lambda i: (self.COLUMNS[i].rank, i))
            if fixed + least + 2 <= width or not self.COLUMNS[worst].rank:
                break
            kept.discard(worst)
        rest = max(0, width - 2 - fixed)
        return [(c.cells or rest) if i in kept else 0 for i, c in enumerate(self.COLUMNS)]

    def _line_of(self, columns: Sequence[int], cells: Sequence[Part]) -> str:
        return "  " + "  ".join(
            text
            for column, cells_, (words, _) in zip(self.COLUMNS, columns, cells, strict=True)
            if cells_
            for text in [self._fit(words, cells_, column)]
        )

    def _fit(self, text: str, cells: int, column: Column) -> str:
        if column.right and len(text) <= cells:
            return text.rjust(cells)
        return fit(text, cells, self.look.glyphs.ellipsis)

    def _row(self, columns: Sequence[int], row: Row, chosen: bool) -> Line:  # noqa: FBT001
        mark = self.look.glyphs.cursor if chosen else " "
        tint = " on $chosen" if chosen else ""
        line: list[Part] = [(f"{mark} ", f"$head bold{tint}")]
        first = True
        for column, cells, (text, style) in zip(self.COLUMNS, columns, row.cells, strict=True):
            if not cells:
                continue
            gap = "" if first else "  "
            line.append((gap + self._fit(text, cells, column), f"{style}{tint}".strip()))
            first = False
        return line


def _each(window: Sequence[Row]) -> list[tuple[int, Row]]:
    return list(enumerate(window))
