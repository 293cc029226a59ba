"""Watts, joules, battery, heat: and what they leave for drafting."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.protocol import events
from outrider.tui import words
from outrider.tui.graph import bar
from outrider.tui.look import Line, Part
from outrider.tui.widgets.panel import Panel

UNSEEN = "no sensor tells"


class Power(Panel):
    TITLE = "power"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        gauge = self.state.gauge
        if gauge is None:
            return [[("waiting", "$faint")]]
        lines = [
            self._watts(gauge),
            self._battery(gauge, width),
            self._heat(gauge),
            self._left(gauge),
        ]
        return lines

    def _watts(self, gauge: events.Gauge) -> Line:
        cost = words.number(gauge.joules_per_token, "J/tok", 2)
        kind = {"estimated": " est."}.get(gauge.joules_kind, "")
        if gauge.watts is None:
            return [("watts ", "$faint"), (UNSEEN, "$faint"), (f"  {cost}{kind}", "$head")]
        return [
            (words.number(gauge.watts, "W"), "$power bold"),
            (f"  {cost}", "$head"),
            (kind, "$faint"),
        ]

    def _battery(self, gauge: events.Gauge, width: int) -> Line:
        if gauge.battery is None:
            supply = {"ac": "on mains", "unknown": ""}.get(gauge.supply, gauge.supply)
            return [("battery ", "$faint"), (supply or "none", "$faint")]
        low = gauge.battery < gauge.battery_floor and not gauge.charging
        style = "$bad" if low else "$good"
        on, off = bar(gauge.battery, min(12, max(6, width - 20)), self.look.glyphs)
        said = "charging" if gauge.charging else self._remaining(gauge)
        return [
            (on, style), (off, "$rule"), (f" {words.share(gauge.battery)}", f"{style} bold"),
            (f" {said}", "$faint"),
        ]  # fmt: skip

    def _remaining(self, gauge: events.Gauge) -> str:
        left = self.state.minutes_left()
        if left is not None:
            return f"{words.span(left * 60)} left"
        return "on battery" if gauge.supply == "battery" else "full"

    def _heat(self, gauge: events.Gauge) -> Line:
        if gauge.temperature_c is None:
            return [("heat ", "$faint"), (UNSEEN, "$faint")]
        near = gauge.limit_c is not None and gauge.temperature_c > gauge.limit_c - 5
        unit = self.look.glyphs.degree
        parts: list[Part] = [
            (f"{gauge.temperature_c:.0f} {unit}", "$bad bold" if near else "$head")
        ]
        if gauge.limit_c is not None:
            parts.append((f"  throttles at {gauge.limit_c:.0f}", "$faint"))
        return parts

    def _left(self, gauge: events.Gauge) -> Line:
        """What the policy leaves for drafts."""
        style = {"free": "$good", "shallow": "$warn"}.get(gauge.power_draft, "$bad")
        sign = self.look.glyphs.good if gauge.power_draft == "free" else self.look.glyphs.bad
        reason = f"  {gauge.power_reason}" if gauge.power_reason else ""
        return [(f"{sign} drafts {gauge.power_draft}", style), (reason, "$faint")]
