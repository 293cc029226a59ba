"""The events of one request: written once, read by as many readers as there are, at their pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from outrider.errors import OutriderError
from outrider.protocol.stream import Done, StreamEvent, Token


class Transcript:
    """Append-only. Memory is bounded by the answer's length; readers hold an index each."""

    def __init__(self) -> None:
        self.events: list[StreamEvent] = []
        self.error: OutriderError | None = None
        self.complete = False
        self._more = asyncio.Event()

    def add(self, event: StreamEvent) -> None:
        self.events.append(event)
        self._ring()

    def end(self, error: OutriderError | None = None) -> None:
        """Nothing more comes; readers raise `error` after what there is."""
        self.complete, self.error = True, error
        self._ring()

    def _ring(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def read(
        self, wanted: Callable[[StreamEvent], bool] = lambda event: True
    ) -> AsyncIterator[StreamEvent]:
        """All events so far and to come. Raises the error the request ended with."""
        at = 0
        while True:
            more = self._more
            while at < len(self.events):
                event = self.events[at]
                at += 1
                if wanted(event):
                    yield event
            if self.complete:
                if self.error is not None:
                    raise self.error
                return
            if more is self._more:
                await more.wait()

    def committed(self, choice: int) -> int:
        """Final tokens of a choice."""
        return sum(1 for e in self.events if isinstance(e, Token) and e.choice == choice)

    def done(self, choice: int) -> Done | None:
        found = (e for e in self.events if isinstance(e, Done) and e.choice == choice)
        return next(found, None)
