"""Passes under way and what came of them; thread-safe."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from outrider.engine import Picked, StageSpan
from outrider.errors import LocalProtocolError, OutriderError
from outrider.protocol.stages import Hop, Passed
from outrider.stages.chain import StageTimes


@dataclass(frozen=True, slots=True)
class _Pass:
    rows: int
    spans: int
    future: Future[list[Picked]]


def check_spans(spans: Sequence[StageSpan]) -> None:
    """Raises LocalProtocolError for what a chain does not take."""
    if not spans or any(
        span.hidden is not None or not span.rows == len(span.tokens) > 0 for span in spans
    ):
        raise LocalProtocolError("spans of a chain carry a token for each row, and nothing else")
    if len({span.slot for span in spans}) != len(spans):
        raise LocalProtocolError("a slot stands twice in a pass")


@dataclass(slots=True)
class Ledger:
    """Numbers passes, settles their futures, and adds up what the stages did for them."""

    names: Sequence[str]
    _under_way: dict[int, _Pass] = field(default_factory=dict)
    _last: int = 0
    _times: list[StageTimes] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._times = [StageTimes(name, 0, 0, 0.0, 0, 0) for name in self.names]

    def begin(self, rows: int, spans: int) -> tuple[int, Future[list[Picked]]]:
        """A number and a future for a pass."""
        with self._lock:
            self._last += 1
            future: Future[list[Picked]] = Future()
            # It is under way at once: nobody cancels what the stages work on.
            future.set_running_or_notify_cancel()
            self._under_way[self._last] = _Pass(rows, spans, future)
            return self._last, future

    @property
    def under_way(self) -> int:
        with self._lock:
            return len(self._under_way)

    def passed(self, result: Passed) -> bool:
        """Whether it is the result of a pass under way; if not, nothing changed."""
        with self._lock:
            found = self._under_way.get(result.number)
            if found is None or len(result.trail) != len(self.names):
                return False
            if found.spans != len(result.picked):
                return False
            del self._under_way[result.number]
            self._count(found.rows, result.trail)
        found.future.set_result(list(result.picked))
        return True

    def failed(self, number: int, error: OutriderError) -> bool:
        """One pass failed. Whether it was under way."""
        with self._lock:
            found = self._under_way.pop(number, None)
        if found is not None:
            found.future.set_exception(error)
        return found is not None

    def fail(self, error: OutriderError) -> None:
        """All that are under way."""
        with self._lock:
            found, self._under_way = self._under_way, {}
        for each in found.values():
            each.future.set_exception(error)

    def times(self) -> tuple[StageTimes, ...]:
        with self._lock:
            return tuple(self._times)

    def _count(self, rows: int, trail: Sequence[Hop]) -> None:
        for number, hop in enumerate(trail):
            before = self._times[number]
            self._times[number] = replace(
                before,
                passes=before.passes + 1,
                rows=before.rows + rows,
                compute_s=before.compute_s + hop.compute_us / 1e6,
                bytes_in=before.bytes_in + hop.bytes_in,
                bytes_out=before.bytes_out + hop.bytes_out,
            )
