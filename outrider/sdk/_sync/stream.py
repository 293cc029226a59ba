# Made from ../_async by scripts/sdk; change it there.
"""A stream of typed events, which ends the work upstream when it is left."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import httpx2

from outrider.protocol.stream import StreamEvent
from outrider.sdk import wire
from outrider.sdk.answer import Answer, Fold
from outrider.sdk.find import Place


class Stream:
    """Iterate it once. Leaving the loop or the context cancels the answer at the daemon.

    Yields `Started` per choice, then `Token` (committed, with its source), with
    `retract=True` also `Provisional` and `Retract`, `Forked`, `Waiting`, and last
    `Done` per choice. Raises errors of `outrider.errors`: those of the daemon, and
    `DaemonUnreachable`. Nothing is sent before the first step.
    """

    def __init__(self, http: httpx2.Client, request: httpx2.Request, place: Place) -> None:
        self._http = http
        self._request = request
        self._place = place
        self._response: httpx2.Response | None = None
        self._fold = Fold()
        self._read_before = False

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        # The loop alone holds the generator, so that leaving the loop closes it.
        return self._read()

    @property
    def shown(self) -> str:
        """The first choice's text as it stands: committed, and the provisional tail."""
        return self._fold.shown()

    def answer(self) -> Answer:
        """Read what is left, and return the whole answer. Raises the error that ended it."""
        for _ in self:
            pass
        return self._fold.answer()

    def close(self) -> None:
        """Hang up; the daemon cancels the answer unless it is done."""
        if self._response is not None:
            self._response.close()

    def _read(self) -> Iterator[StreamEvent]:
        if self._read_before:
            return
        self._read_before = True
        try:
            response = self._open()
            for line in response.iter_lines():
                if line:
                    event = wire.event(line)
                    self._fold.take(event)
                    yield event
        except httpx2.TransportError as error:
            raise wire.lost(error, self._place) from None
        finally:
            self.close()

    def _open(self) -> httpx2.Response:
        self._response = self._http.send(self._request, stream=True)
        if not self._response.is_success:
            self._response.read()
            wire.check(self._response)
        return self._response
