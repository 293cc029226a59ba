"""What the daemon decides and does for one request, beside its tokens.

A client asks for these with `trace: "events"`; they come on the same stream, between
the events of `protocol/stream.py`. They are the daemon's own events
(`protocol/events.py`) of that one request, as a client needs them. Times are
milliseconds since the request began, positions count tokens of the choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from outrider.protocol import events
from outrider.protocol.status import ScoreStatus
from outrider.protocol.stream import StreamEvent


class _Base(msgspec.Struct, frozen=True, tag=True, tag_field="type", kw_only=True):
    t_ms: float = 0.0


class Draft(_Base, frozen=True, tag="draft"):
    """A hint went up: nothing in it is verified yet."""

    choice: int
    position: int
    """Of its first token."""
    tokens: int
    draft_ms: float
    """What it cost the device."""


class Commit(_Base, frozen=True, tag="commit"):
    """Committed tokens came down; the `Token` events beside it are these."""

    choice: int
    position: int
    """Of its first token."""
    tokens: int
    from_hints: int
    """Of them, drafts that held."""
    hint_rows: int
    """Drafts that the pass verified."""
    rows: int
    """Rows of the pass, other sessions' too."""
    step_ms: float
    """Of the target's pass."""


class Alternative(msgspec.Struct, frozen=True):
    """Another way it could have gone, as it was scored at that time."""

    placement: str
    peer: str
    ms: float | None
    """Expected milliseconds a token; None where it can not be reckoned."""
    joules: float | None
    """Of the device, a token."""
    total: float | None
    """What is compared: ms with joules and dollars priced in."""
    why: str
    """Why it was not possible; empty when it was."""


class Decision(_Base, frozen=True, tag="decision"):
    """Something was switched, or (`phase` measured) what a switch brought."""

    number: int
    """Of the daemon's decisions; `made` and `measured` share it."""
    what: Literal["placement", "hint_depth", "trigger", "drafting"]
    old: str
    new: str
    reasons: tuple[str, ...]
    """Why; then the measurement that moved, and the constraint that bound, where there are."""
    alternatives: tuple[Alternative, ...]
    """All ways that were weighed, best first; empty where no placement was chosen."""
    runner_up: str
    margin: float | None
    """The runner-up's cost over the chosen one's, minus 1."""
    predicted_gain: float | None
    """Share of the cost per token that it is expected to save."""
    observed_gain: float | None
    """The same, measured."""
    phase: Literal["made", "measured"]
    probe: bool
    """A short try of the other way."""
    position: int
    """Committed tokens of the answer, its shortest choice."""
    ms_before: float | None
    """Measured milliseconds a token."""
    ms_after: float | None


class Energy(_Base, frozen=True, tag="energy"):
    """What the whole request took; once, before `Done`."""

    joules: float | None
    """None when nothing could be measured or estimated."""
    joules_per_token: float | None
    kind: Literal["measured", "estimated", "none"]
    device_j: float | None = None
    """Parts of `joules`: this device, its radio, the cloud's share."""
    radio_j: float | None = None
    cloud_j: float | None = None
    wasted_j: float | None = None
    """Of the device's part: drafts that were sent and not accepted."""


class Fallback(_Base, frozen=True, tag="fallback"):
    """The cloud went away in the middle of the answer, or came back (`to` cloud)."""

    cause: str
    to: Literal["wait", "provisional", "fork", "error", "cloud"]


TraceEvent = Draft | Commit | Decision | Energy | Fallback
Event = StreamEvent | TraceEvent
"""All that a stream may hold."""


def of_events(event: events.Event, began_ms: float) -> Iterator[TraceEvent]:
    """What a client sees of a daemon's event; nothing for those that say nothing to it.

    `began_ms` is the producer's `t_ms` of the request's begin.
    """
    at = max(0.0, round(event.t_ms - began_ms, 3))
    match event:
        case events.HintSent():
            yield Draft(
                t_ms=at,
                choice=event.choice,
                position=event.base,
                tokens=event.tokens,
                draft_ms=event.draft_ms,
            )
        case events.CommitReceived():
            yield _commit(event, at)
        case events.Decision():
            yield _decision(event, at)
        case events.Fallback():
            yield Fallback(t_ms=at, cause=event.cause, to=event.to)
        case events.RequestDone():
            yield _energy(event, at)
        case _:
            pass


def _commit(event: events.CommitReceived, at: float) -> Commit:
    return Commit(
        t_ms=at,
        choice=event.choice,
        position=event.position,
        tokens=event.tokens,
        from_hints=event.from_hints,
        hint_rows=event.hint_rows,
        rows=event.rows,
        step_ms=event.step_ms,
    )


def _decision(event: events.Decision, at: float) -> Decision:
    binds = event.binding not in ("", "none")
    said = (event.reason, event.cause, f"bound by {event.binding}" if binds else "")
    return Decision(
        t_ms=at,
        number=event.number,
        what=event.what,
        old=event.old,
        new=event.new,
        reasons=tuple(dict.fromkeys(text for text in said if text)),
        alternatives=tuple(map(_alternative, event.scores)),
        runner_up=event.runner_up,
        margin=event.margin,
        predicted_gain=event.predicted_gain,
        observed_gain=event.observed_gain,
        phase=event.phase,
        probe=event.probe,
        position=event.position,
        ms_before=event.ms_before,
        ms_after=event.ms_after,
    )


def _alternative(score: ScoreStatus) -> Alternative:
    return Alternative(score.placement, score.peer, score.ms, score.joules, score.total, score.why)


def _energy(event: events.RequestDone, at: float) -> Energy:
    joules, tokens = event.energy_j, event.completion_tokens
    return Energy(
        t_ms=at,
        joules=joules,
        joules_per_token=joules / tokens if joules is not None and tokens else None,
        kind=event.energy_kind if joules is not None else "none",
        device_j=event.device_j,
        radio_j=event.radio_j,
        cloud_j=event.cloud_j,
        wasted_j=event.wasted_j,
    )
