"""The limits and rules in force, in a box."""

from __future__ import annotations

from outrider.tui import words
from outrider.tui.look import Line
from outrider.tui.state import State

LABEL = 16


def content(state: State) -> list[Line]:
    gauge, plan = state.gauge, state.plan
    if gauge is None:
        return [[("the daemon has not said yet", "$warn")]]
    pinned = " (pinned; a takes it back)" if gauge.pinned else ""
    rows = [
        ("placement", f"{gauge.placement}{pinned}"),
        ("power", f"{gauge.power_policy}: drafts {gauge.power_draft}"),
        ("", gauge.power_reason or "nothing limits drafting"),
        ("battery floor", words.share(gauge.battery_floor)),
        ("supply", _supply(state)),
        ("", ""),
    ]
    if plan is not None:
        rows += [
            ("last verdict", f"{plan.placement}, runner-up {plan.runner_up}"),
            ("margin", words.signed(plan.margin)),
            ("draft depth", str(plan.depth) if plan.depth else words.NOTHING),
            ("kept out", plan.binding),
        ]
    rows += [("", ""), ("e c a", "pin edge, cloud, or back to auto")]
    return [
        [(name.ljust(LABEL), "$faint"), (words.fit(text, 52).rstrip(), "$head")]
        for name, text in rows
    ]


def _supply(state: State) -> str:
    gauge = state.gauge
    assert gauge is not None
    battery = "" if gauge.battery is None else f", battery {words.share(gauge.battery)}"
    return f"{gauge.supply}{battery}"
