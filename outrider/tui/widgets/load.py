"""What the daemon has to do, and how it bears it."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.look import Line
from outrider.tui.widgets.panel import Panel

FRESH_MS = 3000.0
"""How long a cloud's last word on its passes stands."""


class Load(Panel):
    TITLE = "load"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state = self.state
        gauge = state.gauge
        if gauge is None:
            return [[("waiting", "$faint")]]
        late = "$bad bold" if gauge.lag_p99_ms > 20 else "$head"
        lines: list[Line] = [
            [
                (f"{gauge.running}", "$head bold"), (" running  ", "$faint"),
                (f"{gauge.queued}", "$warn bold" if gauge.queued else "$head"),
                (" queued", "$faint"),
            ],
            [
                (words.count(gauge.requests), "$head"), (" asked  ", "$faint"),
                (words.count(gauge.tokens), "$head"), (" tokens", "$faint"),
            ],
            [
                ("lag ", "$faint"), (words.ms(gauge.lag_p99_ms), late),
                ("  mem ", "$faint"), (words.number(gauge.rss_mb, "MB", 0), "$head"),
            ],
            self._cloud(),
        ]  # fmt: skip
        return lines

    def _cloud(self) -> Line:
        """Of the cloud, where its own events can be heard; else how long the daemon has been up."""
        stepped, gauge = self.state.stepped, self.state.gauge
        if stepped is not None and self.state.t_ms - stepped.t_ms < FRESH_MS:
            return [
                ("cloud ", "$faint"), (f"{stepped.rows} rows", "$head"), (" in ", "$faint"),
                (words.ms(stepped.step_ms), "$head"), (f", {stepped.sessions} sessions", "$faint"),
            ]  # fmt: skip
        assert gauge is not None
        return [("up ", "$faint"), (words.span(gauge.uptime_s), "$head")]
