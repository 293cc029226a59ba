"""An event in a line for people. Pure."""

from __future__ import annotations

import msgspec

from outrider.protocol import events
from outrider.tui import words

HIDDEN = ("v", "at", "t_ms", "type", "source")


def says(event: events.Event) -> str:
    """What happened; fields of kinds that have no words of their own."""
    match event:
        case events.HintSent():
            return (
                f"{event.request[:8]} sent {event.tokens} drafts from {event.base},"
                f" drafted in {words.ms(event.draft_ms)}"
            )
        case events.CommitReceived():
            held = f", {event.from_hints} of {event.hint_rows} drafts held"
            return (
                f"{event.request[:8]} got {event.tokens} at {event.position}"
                f"{held if event.hint_rows else ''}, pass {words.ms(event.step_ms)}"
            )
        case events.Decision():
            return _decision(event)
        case events.LinkChanged():
            detail = f": {event.detail}" if event.detail else ""
            return f"{event.cloud} {event.state}, RTT {words.ms(event.rtt_ms)}{detail}"
        case events.Remark():
            return event.said
        case events.Fallback():
            return f"{event.request[:8]} {event.to}: {event.cause}"
        case events.RequestDone():
            return (
                f"{event.request[:8]} {event.finish_reason}: {event.completion_tokens} tokens in"
                f" {words.ms(event.total_ms)}, first {words.ms(event.ttft_ms)}"
            )
        case events.PlanMade():
            return f"{event.model}: {event.placement}, {event.reason}"
        case _:
            return _fields(event)


def _decision(event: events.Decision) -> str:
    got = f", got {words.signed(event.observed_gain)}" if event.phase == "measured" else ""
    gain = words.signed(event.predicted_gain)
    return f"{event.what} {event.old} to {event.new} ({gain}{got}): {event.reason}"


def _fields(event: events.Event) -> str:
    said = msgspec.to_builtins(event)
    return " ".join(f"{k}={v}" for k, v in said.items() if k not in HIDDEN and v not in (None, ""))
