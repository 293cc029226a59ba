"""Where a request's time went: spans on six lanes from its hints and commits. Pure.

What the daemon measured stands on its own clock: hints, commits, queue and prefill.
Up and down are each half of the measured round trip; a pass is placed so that it ended
half a round trip before its commit came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from outrider.tui.ride import Mark, Ride

Lane = Literal["draft", "uplink", "queue", "prefill", "verify", "downlink"]
LANES: tuple[Lane, ...] = ("draft", "uplink", "queue", "prefill", "verify", "downlink")


@dataclass(frozen=True, slots=True)
class Span:
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


def recent(
    marks: Iterable[Mark], now_ms: float, rtt_ms: float | None, window_ms: float
) -> list[Span]:
    """The same of all requests, relative to `window_ms` ago; what is not there yet is cut."""
    began = now_ms - window_ms
    one_way = (rtt_ms or 0.0) / 2
    late = [mark for mark in marks if mark.t_ms >= began - 2 * one_way - 1000.0]
    return [span for span in _way(late, began, one_way) if span.stop > 0 and span.stop > span.start]


def totals(found: Iterable[Span]) -> dict[Lane, float]:
    """Milliseconds by lane; what overlaps within a lane counts once."""
    by_lane: dict[Lane, list[Span]] = {lane: [] for lane in LANES}
    for span in found:
        by_lane[span.lane].append(span)
    return {lane: _covered(spans) for lane, spans in by_lane.items()}


def _covered(found: list[Span]) -> float:
    covered, end = 0.0, float("-inf")
    for span in sorted(found, key=lambda s: s.start):
        start = max(span.start, end)
        if span.stop > start:
            covered += span.stop - start
            end = span.stop
    return covered


def cells(found: Iterable[Span], lane: Lane, width: int, until_ms: float) -> list[bool]:
    """Which of `width` cells of [0, until_ms) a lane covers; a short span still has one."""
    line = [False] * width
    if until_ms <= 0 or width <= 0:
        return line
    for span in found:
        if span.lane != lane or span.stop <= 0 or span.start >= until_ms:
            continue
        first = max(0, int(span.start / until_ms * width))
        last = max(first + 1, min(width, round(span.stop / until_ms * width)))
        for cell in range(first, min(width, last)):
            line[cell] = True
    return line
