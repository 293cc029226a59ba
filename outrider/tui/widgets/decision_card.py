"""One decision in full."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.protocol import events
from outrider.tui import words
from outrider.tui.look import Line
from outrider.tui.widgets.decision_table import key_of
from outrider.tui.widgets.panel import Panel


class DecisionCard(Panel):
    TITLE = "why"
    key = ""

    def draw(self, width: int, height: int) -> Sequence[Line]:
        one = next((d for d in self.state.decisions if key_of(d) == self.key), None)
        if one is None:
            return [[("no decision is chosen", "$faint")]]
        g = self.look.glyphs
        reason = words.wrap(one.reason, width, max(1, height - 3), g.ellipsis)
        return [
            [
                (f"{one.old} {g.arrow} {one.new}", "$head bold"),
                (f"  after {one.position} tokens", "$faint"),
                *([(f" of {one.request[:8]}", "$faint")] if one.request else []),
            ],
            *([(text, "$foreground")] for text in reason),
            self._effect(one),
            self._second(one, width),
        ]

    def _effect(self, one: events.Decision) -> Line:
        before, after = words.ms(one.ms_before), words.ms(one.ms_after)
        arrow = self.look.glyphs.arrow
        measured: Line = [("not measured yet", "$faint")]
        if one.phase == "measured":
            good = "$good" if (one.observed_gain or 0.0) >= 0 else "$bad"
            measured = [
                (words.signed(one.observed_gain), f"{good} bold"),
                (f" measured, {before} {arrow} {after} a token", "$faint"),
            ]
        predicted = words.signed(one.predicted_gain)
        if one.predicted_gain is None:
            predicted = "nothing"
        return [(predicted, "$head bold"), (" predicted, ", "$faint"), *measured]

    def _second(self, one: events.Decision, width: int) -> Line:
        parts = []
        if one.runner_up not in ("", "none"):
            parts.append(f"runner-up {one.runner_up} {words.signed(one.margin)}")
        if one.binding not in ("", "none"):
            parts.append(f"bound by {one.binding}")
        said = "; ".join(parts) or "no other way was near"
        return [(words.fit(said, width, self.look.glyphs.ellipsis), "$warn")]
