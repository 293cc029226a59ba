"""A stream of typed events, which ends the work upstream when it is left."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType

import httpx2

from outrider.errors import DaemonUnreachable, NotFound, OutriderError, TimedOut
from outrider.protocol.trace import Event
from outrider.sdk import wire
from outrider.sdk._async import pause
from outrider.sdk._async.caller import AsyncCaller
from outrider.sdk.answer import Answer, Fold
from outrider.sdk.errors import APIError, mirrored
from outrider.sdk.limits import Timeouts, Watch
from outrider.sdk.question import Trace

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
"""Between two tries to come back to an answer; it doubles."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a stream is read."""

    timeouts: Timeouts
    choices: int = 1
    trace: Trace = "tokens"
    clock: Callable[[], float] = time.monotonic


class AsyncStream:
    """Iterate it once. Leaving the loop or the context cancels the answer at the daemon.

    Yields `Started` per choice, then `Token` (committed, with its source), with
    `retract=True` also `Provisional` and `Retract`, `Forked`, `Waiting`, and last
    `Done` per choice; with `trace="events"` between them `Draft`, `Commit`,
    `Decision`, `Energy`, `Fallback`. A connection that is cut is made again, and the
    answer goes on at the next token, none lost and none twice, for as long as
    `Timeouts.resume_s`. Raises errors of `outrider.errors`: those of the daemon,
    `TimedOut`, and `DaemonUnreachable`. Nothing is sent before the first step.
    """

    def __init__(self, caller: AsyncCaller, request: httpx2.Request, terms: Terms) -> None:
        self._caller = caller
        self._request = request
        self._terms = terms
        self._response: httpx2.Response | None = None
        self._fold = Fold()
        self._read_before = False
        self._over = False

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        # The loop alone holds the generator, so that leaving the loop closes it.
        return self._read()

    @property
    def request(self) -> str:
        """The answer's name in `status`, logs and `resume`; empty before `Started`."""
        return self._fold.request

    @property
    def shown(self) -> str:
        """The first choice's text as it stands: committed, and the provisional tail."""
        return self._fold.shown()

    async def answer(self) -> Answer:
        """Read what is left, and return the whole answer. Raises the error that ended it."""
        async for _ in self:
            pass
        return self._fold.answer()

    async def close(self) -> None:
        """Hang up, and cancel the answer unless it is done."""
        response, self._response = self._response, None
        if response is None:
            return
        await response.aclose()
        if self.request and not self._over and self._terms.timeouts.resume_s:
            await self._caller.quietly("DELETE", f"/outrider/v1/requests/{self.request}")

    async def _read(self) -> AsyncIterator[Event]:
        if self._read_before:
            return
        self._read_before = True
        watch = Watch(self._terms.timeouts, self._terms.clock)
        try:
            self._response = await self._caller.send(self._request)
            while not self._over:
                try:
                    async for event in self._events(watch):
                        if self._fold.take(event):
                            yield event
                    self._over = True
                except httpx2.TransportError as error:
                    cut = self._lost(watch, error)
                    await self._come_back(cut)
                    for gone in self._fold.retractions():
                        self._fold.take(gone)
                        yield gone
        finally:
            await self.close()

    async def _events(self, watch: Watch) -> AsyncIterator[Event]:
        """What comes on this connection; after a cut some of it was there before."""
        assert self._response is not None
        lines = wire.Lines()
        async for piece in self._response.aiter_bytes():
            for line in lines.feed(piece):
                event = self._event(line) if line else None
                self._check(watch, event)
                if event is not None:
                    yield event
        for line in lines.end():
            # Nothing of ours ends without a line feed: this raises, and says so.
            yield self._event(line)

    def _event(self, line: bytes) -> Event:
        try:
            return wire.event(line)
        except OutriderError:
            self._over = True
            raise

    def _check(self, watch: Watch, event: Event | None) -> None:
        try:
            watch.heard(event)
        except TimedOut as error:
            raise mirrored(error) from None

    def _lost(self, watch: Watch, error: httpx2.TransportError) -> APIError:
        """The error if the answer can not be taken up again. Raises TimedOut when it is late."""
        self._check(watch, None)
        cut = mirrored(wire.lost(error, self._caller.place))
        if not self.request or not self._terms.timeouts.resume_s:
            raise cut from None
        return cut

    async def _come_back(self, cut: APIError) -> None:
        """Another connection to the same answer, from the next token on. Raises `cut`."""
        assert self._response is not None
        await self._response.aclose()
        ends = self._terms.clock() + self._terms.timeouts.resume_s
        wait = _FIRST_PAUSE_S
        while True:
            try:
                self._response = await self._caller.once(self._rest())
                return
            except NotFound:
                # It is not known any more: the daemon is another one.
                self._over = True
                raise cut from None
            except DaemonUnreachable:
                if self._terms.clock() + wait > ends:
                    raise cut from None
            await pause.pause(wait)
            wait = min(2 * wait, _LONGEST_PAUSE_S)

    def _rest(self) -> httpx2.Request:
        positions = self._fold.positions(self._terms.choices)
        return rest(self._caller.http, self.request, positions, self._terms)


def rest(
    http: httpx2.AsyncClient, request: str, positions: tuple[int, ...], terms: Terms
) -> httpx2.Request:
    """The question for what is left of an answer."""
    query = {"position": ",".join(map(str, positions)), "trace": terms.trace}
    if (ping_s := terms.timeouts.ping_s()) is not None:
        query["ping_s"] = f"{ping_s:g}"
    return http.build_request(
        "GET",
        f"/outrider/v1/requests/{request}",
        params=query,
        timeout=wire.timeouts(terms.timeouts, stream=True),
    )
