"""Where a request's time went: spans on six lanes from its hints and commits. Pure.

What the daemon measured stands on its own clock: hints, commits, queue and prefill.
Up and down are each half of the measured round trip; a pass is placed so that it ended
half a round trip before its commit came.
"""

from __future__ import annotations

from collections.abc import Iterable, Reversible
from itertools import takewhile
from typing import Literal, NamedTuple

from outrider.tui.ride import Mark, Ride

Lane = Literal["draft", "uplink", "queue", "prefill", "verify", "downlink"]
LANES: tuple[Lane, ...] = ("draft", "uplink", "queue", "prefill", "verify", "downlink")


class Span(NamedTuple):
    """Milliseconds since the request began."""

    lane: Lane
    start: float
    stop: float


def spans(ride: Ride, rtt_ms: float | None) -> list[Span]:
    """Of the kept marks, in no order."""
    one_way = (rtt_ms or 0.0) / 2
    found = [*_opening(ride, one_way), *_way(ride.marks, ride.began_ms, one_way)]
    return [span for span in found if span.stop > span.start >= -one_way]


def _opening(ride: Ride, one_way: float) -> Iterable[Span]:
    """The way to the first row; queue and prefill are known once the request is over."""
    if ride.placement == "edge" and not ride.passes:
        return
    yield Span("uplink", 0.0, one_way)
    if ride.done is not None:
        queued = one_way + ride.done.queue_ms
        yield Span("queue", one_way, queued)
        yield Span("prefill", queued, queued + ride.done.prefill_ms)


def _way(marks: Iterable[Mark], began: float, one_way: float) -> Iterable[Span]:
    """Draft, up, wait, pass, down; of all requests or of one."""
    arrived: float | None = None
    for mark in marks:
        at = mark.t_ms - began
        if mark.kind == "hint":
            yield Span("draft", at - mark.ms, at)
            yield Span("uplink", at, at + one_way)
            arrived = at + one_way if arrived is None else arrived
        elif mark.kind == "commit":
            end = at - one_way
            begin = end - mark.ms
            if arrived is not None and mark.hint_rows and arrived < begin:
                yield Span("queue", arrived, begin)
            if mark.hint_rows:
                arrived = None
            yield Span("verify", begin, end)
            yield Span("downlink", end, at)


def latest(marks: Reversible[Mark], since: float) -> list[Mark]:
    """Those since a moment, in order; the old ones are not looked at."""
    found = list(takewhile(lambda mark: mark.t_ms >= since, reversed(marks)))
    found.reverse()
    return found


def recent(
    marks: Reversible[Mark], now_ms: float, rtt_ms: float | None, window_ms: float
) -> list[Span]:
    """The same of all requests, relative to `window_ms` ago; what is not there yet is cut."""
    began = now_ms - window_ms
    one_way = (rtt_ms or 0.0) / 2
    since = began - 2 * one_way - 1000.0
    late = latest(marks, since)
    return [span for span in _way(late, began, one_way) if span.stop > 0 and span.stop > span.start]


def totals(found: Iterable[Span]) -> dict[Lane, float]:
    """Milliseconds by lane; what overlaps within a lane counts once."""
    return {lane: _covered(spans) for lane, spans in by_lane(found).items()}


def _covered(found: list[Span]) -> float:
    covered, end = 0.0, float("-inf")
    for span in sorted(found, key=lambda s: s.start):
        start = max(span.start, end)
        if span.stop > start:
            covered += span.stop - start
            end = span.stop
    return covered


def by_lane(found: Iterable[Span]) -> dict[Lane, list[Span]]:
    """All lanes, empty ones too."""
    lanes: dict[Lane, list[Span]] = {lane: [] for lane in LANES}
    for span in found:
        lanes[span.lane].append(span)
    return lanes


def cells(found: Iterable[Span], width: int, until_ms: float) -> bytes:
    """Which of `width` cells of [0, until_ms) the spans cover, 1 for each that is; a short span
    still has one."""
    line = bytearray(max(0, width))
    if until_ms <= 0 or width <= 0:
        return bytes(line)
    scale = width / until_ms
    for _, start, stop in found:
        if stop <= 0 or start >= until_ms:
            continue
        first = max(0, int(start * scale))
        last = min(width, max(first + 1, round(stop * scale)))
        line[first:last] = b"\1" * (last - first)
    return bytes(line)
