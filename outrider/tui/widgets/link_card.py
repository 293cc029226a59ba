"""One link over time, and what can not be known of it."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.graph import area, quantile
from outrider.tui.look import Line
from outrider.tui.state import LinkView
from outrider.tui.widgets.link_table import certificate
from outrider.tui.widgets.panel import Panel


class LinkCard(Panel):
    TITLE = "round trip"
    key = ""

    def draw(self, width: int, height: int) -> Sequence[Line]:
        view = self.state.links.get(self.key)
        if view is None:
            return [[("no link is chosen", "$faint")]]
        self.titled(f"round trip to {view.now.cloud}")
        told = self._told(view)
        rows = max(1, height - len(told))
        return [*self._curve(view, width, rows), *told]

    def _curve(self, view: LinkView, width: int, rows: int) -> list[Line]:
        label = 8
        values = list(view.rtt)
        top = max(values, default=0.0)
        found = area(values, max(4, width - label), rows, self.look.glyphs, top)
        lines: list[Line] = []
        for number, row in enumerate(found):
            name = words.ms(top) if number == 0 else "0 ms" if number == rows - 1 else ""
            lines.append([(name.rjust(label - 1) + " ", "$faint"), (row, "$cloud")])
        return lines

    def _told(self, view: LinkView) -> list[Line]:
        now = view.now
        there = [v for v in view.rtt if v > 0]
        half, most = words.ms(quantile(there, 0.5)), words.ms(quantile(there, 0.95))
        cert, style = certificate(view, self.state.at)
        sums = f"{words.size(now.bytes_up)} up, {words.size(now.bytes_down)} down"
        lines: list[Line] = [
            [
                ("p50 ", "$faint"), (half, "$head"), ("  p95 ", "$faint"), (most, "$head"),
                ("  jitter ", "$faint"), (words.ms(now.jitter_ms), "$head"),
                ("  sessions ", "$faint"), (sums, "$head"),
            ],
            [
                ("bandwidth ", "$faint"),
                (f"{words.rate(now.up_bytes_per_s)} up, {words.rate(now.down_bytes_per_s)} down",
                 "$head"),
                ("  loss ", "$faint"), (words.percent(now.loss), "$head"),
                ("  busiest ", "$faint"), (words.rate(view.most_per_s or None), "$head"),
            ],
            [
                ("certificate ", "$faint"), (cert, style),
                ("  computes ", "$faint"), (now.device or words.NOTHING, "$head"),
                (f"  {now.detail}", "$bad"),
            ],
        ]  # fmt: skip
        return lines
