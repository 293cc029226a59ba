"""One request's answers, and between them what the daemon says of that request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, TypeVar, cast

from outrider.protocol import events
from outrider.protocol.stream import Done, Started, StreamEvent
from outrider.protocol.trace import TraceEvent, of_events

T = TypeVar("T")

EARLY = 256
"""Events kept while the request's name is not known yet: its own are among the last."""
GRACE_S = 0.25
"""How long the end of an answer waits for its bill, which is told in the same breath."""


async def traced(
    answers: AsyncIterator[StreamEvent], said: AsyncIterator[Any], thread: Thread
) -> AsyncGenerator[StreamEvent | TraceEvent, None]:
    """Both as they come. `Done` comes last, after the bill. Raises what the answers raise."""
    ears, mouth = asyncio.create_task(_next(said)), asyncio.create_task(_next(answers))
    try:
        while True:
            await asyncio.wait((ears, mouth), return_when=asyncio.FIRST_COMPLETED)
            if ears.done():
                for told in thread.heard(ears.result()):
                    yield told
                ears = asyncio.create_task(_after(ears.result(), said))
            if mouth.done():
                event = mouth.result()
                if event is None:
                    break
                for shown in thread.answered(event):
                    yield shown
                mouth = asyncio.create_task(_next(answers))
        while not thread.billed and (await asyncio.wait((ears,), timeout=GRACE_S))[0]:
            for told in thread.heard(ears.result()):
                yield told
            ears = asyncio.create_task(_after(ears.result(), said))
        for done in thread.dones:
            yield done
    finally:
        await _end(ears, said)
        await _end(mouth, answers)


async def _next(source: AsyncIterator[T]) -> T | None:
    """The next of a source; None at its end."""
    return await anext(source, None)


async def _after(last: Any, source: AsyncIterator[T]) -> T | None:
    """The next; a source that has ended says so once, and then nothing for ever."""
    if last is None:
        await asyncio.Event().wait()
    return await _next(source)


async def _end(task: asyncio.Task[Any], source: AsyncIterator[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with aclosing(cast(AsyncGenerator[Any, None], source)):
        pass


class Thread:
    """Which of the daemon's events belong to the request, and when it began."""

    def __init__(self, request: str = "", began_ms: float | None = None) -> None:
        self._request = request
        self._began_ms = began_ms
        self._early: list[events.Event] = []
        self.billed = False
        self.dones: list[Done] = []

    def heard(self, event: events.Event | None) -> Iterator[TraceEvent]:
        """What the client sees of a daemon's event."""
        if event is None:
            self.billed = True
        elif not self._request:
            self._early = [*self._early[-EARLY + 1 :], event]
        elif getattr(event, "request", "") == self._request:
            yield from self._ours(event)

    def answered(self, event: StreamEvent) -> Iterator[StreamEvent | TraceEvent]:
        """What the client sees of the answer, and what had waited for the request's name."""
        if isinstance(event, Started) and not self._request:
            self._request = event.request
            for early in self._early:
                yield from self.heard(early)
            self._early = []
        if isinstance(event, Done):
            self.dones.append(event)
        else:
            yield event

    def _ours(self, event: events.Event) -> Iterator[TraceEvent]:
        if self._began_ms is None:
            self._began_ms = event.t_ms
        self.billed = self.billed or isinstance(event, events.RequestDone)
        yield from of_events(event, self._began_ms)
