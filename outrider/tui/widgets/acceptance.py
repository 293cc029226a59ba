"""How many drafts hold, and how many of them a pass takes."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.curve import titled_curve
from outrider.tui.graph import spark
from outrider.tui.look import Line, Part
from outrider.tui.widgets.panel import Panel

PLAIN = "no drafts verified yet"


class Acceptance(Panel):
    TITLE = "drafts"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state = self.state
        share = state.acceptance()
        if share is None:
            head: Line = [(PLAIN, "$faint")]
        else:
            length = words.number(state.length())
            head = [
                (words.share(share), "$bonus bold"),
                (" held", "$head"),
                (f"  {length} a pass", "$faint"),
            ]
        size = (width, height)
        curve = state.curves.acceptance
        return titled_curve(head, curve, self._held(), size, self.look.glyphs, "$bonus", top=1.0)

    def _held(self) -> Line:
        """Passes by how many of their drafts held, from none on."""
        found = self.state.histogram()
        parts: list[Part] = [("by pass", "$faint")]
        most = float(max(found, default=0))
        for number, passes in enumerate(found):
            sign = spark([float(passes)], self.look.glyphs, most) if passes else "_"
            parts += [(f" {number}", "$faint"), (sign, "$bonus")]
        return parts
