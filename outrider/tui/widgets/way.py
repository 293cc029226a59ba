"""The link that is in use: its round trip now and over time."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.curve import titled_curve
from outrider.tui.look import Line
from outrider.tui.widgets.panel import Panel


class Way(Panel):
    TITLE = "link"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state, g = self.state, self.look.glyphs
        link = state.link
        if link is None:
            return [[("no cloud is known yet", "$faint")]]
        there = link.now.state == "connected"
        head: Line = [
            (words.ms(link.now.rtt_ms) if there else link.now.state, _tint(link.now.state)),
            (" RTT" if there else "", "$head"),
            (f"  p95 {words.ms(state.rtt(0.95))}", "$faint"),
        ]
        foot: Line = [
            (f"{g.up} ", "$uplink"), (words.rate(link.up_per_s), "$head"),
            (f"  {g.down} ", "$downlink"), (words.rate(link.down_per_s), "$head"),
        ]  # fmt: skip
        return titled_curve(head, state.curves.rtt, foot, (width, height), g, "$cloud")


def _tint(state: str) -> str:
    return {"connected": "$cloud bold", "connecting": "$warn bold"}.get(state, "$bad bold")
