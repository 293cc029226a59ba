"""The first line: is it well, what answers, where, how far; and what time it is there."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.protocol import events
from outrider.tui import words
from outrider.tui.look import Line, Part, spread
from outrider.tui.widgets.panel import Panel


class Banner(Panel):
    DEFAULT_CSS = """
    Banner { border: none; height: 1; padding: 0 1; background: $panel; }
    """
    silent_s = 0.0
    """Seconds without a word from the daemon; set by the app."""
    note = ""
    """Paused, recording or replaying, in words."""

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state, g = self.state, self.look.glyphs
        left: list[Part] = [(f"{g.logo} outrider", "$cloud bold"), ("  ", "")]
        left += self._health()
        gauge = state.gauge
        if gauge is not None:
            left += [("  ", ""), (_answers(gauge, self._placement()), "$head")]
            if gauge.pinned:
                left.append((" pinned", "$warn bold"))
        clock = words.clock(state.at, self.look.zone) if state.at else "--:--:--"
        right: list[Part] = [(f"{self.note}  ", "$warn bold")] if self.note else []
        return [spread(left, [("  ", ""), *right, (clock, "$faint")], width)]

    def _placement(self) -> str:
        """Where answers run now: of those under way, else by the last plan."""
        state = self.state
        running = state.running
        if running:
            return running[-1].placement
        assert state.gauge is not None
        if state.gauge.placement != "auto":
            return state.gauge.placement
        return state.plan.placement if state.plan is not None else "auto"

    def _health(self) -> list[Part]:
        state, g = self.state, self.look.glyphs
        if state.ended:
            return [(f"{g.bad} the daemon ended: {state.ended}", "$bad bold")]
        if self.silent_s >= 4:
            return [(f"{g.bad} no word for {words.span(self.silent_s)}", "$bad bold")]
        link = state.link
        if state.gauge is None or link is None:
            return [(f"{g.waiting} waiting for the daemon", "$warn")]
        if link.now.state == "connected":
            return [(f"{g.good} connected", "$good bold")]
        if link.now.state == "connecting":
            return [(f"{g.waiting} connecting", "$warn bold")]
        away = state.t_ms - link.away_since if link.away_since is not None else 0.0
        return [(f"{g.bad} cloud away {words.span(away / 1e3)}", "$bad bold")]


def _answers(gauge: events.Gauge, placement: str) -> str:
    if placement == "edge":
        return f"edge: {gauge.drafter or 'no model'} alone"
    return f"{placement}: {gauge.model or 'no target'}"
