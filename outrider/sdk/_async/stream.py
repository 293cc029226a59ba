"""A stream of typed events, which ends the work upstream when it is left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType

import httpx2

from outrider.protocol.stream import StreamEvent
from outrider.sdk import wire
from outrider.sdk.answer import Answer, Fold
from outrider.sdk.find import Place


class AsyncStream:
    """Iterate it once. Leaving the loop or the context cancels the answer at the daemon.

    Yields `Started` per choice, then `Token` (committed, with its source), with
    `retract=True` also `Provisional` and `Retract`, `Forked`, `Waiting`, and last
    `Done` per choice. Raises errors of `outrider.errors`: those of the daemon, and
    `DaemonUnreachable`. Nothing is sent before the first step.
    """

    def __init__(self, http: httpx2.AsyncClient, request: httpx2.Request, place: Place) -> None:
        self._http = http
        self._request = request
        self._place = place
        self._response: httpx2.Response | None = None
        self._fold = Fold()
        self._read_before = False

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        # The loop alone holds the generator, so that leaving the loop closes it.
        return self._read()

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
        """Hang up; the daemon cancels the answer unless it is done."""
        if self._response is not None:
            await self._response.aclose()

    async def _read(self) -> AsyncIterator[StreamEvent]:
        if self._read_before:
            return
        self._read_before = True
        try:
            response = await self._open()
            async for line in response.aiter_lines():
                if line:
                    event = wire.event(line)
                    self._fold.take(event)
                    yield event
        except httpx2.TransportError as error:
            raise wire.lost(error, self._place) from None
        finally:
            await self.close()

    async def _open(self) -> httpx2.Response:
        self._response = await self._http.send(self._request, stream=True)
        if not self._response.is_success:
            await self._response.aread()
            wire.check(self._response)
        return self._response
