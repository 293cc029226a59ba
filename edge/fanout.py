"""Events of this process to the bus and to readers inside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from outrider.protocol import events
from outrider.protocol.bus import Bus, NoBus, stamp

BEHIND = 1000
"""Events a reader may be behind; then it loses the oldest."""


class Fanout:
    """`publish` never waits; the API's event stream reads here, everybody else on the bus."""

    def __init__(self, bus: Bus | NoBus) -> None:
        self._bus = bus
        self._readers: set[asyncio.Queue[events.Event]] = set()

    @property
    def address(self) -> str:
        return self._bus.address

    def publish(self, event: events.Event) -> None:
        event = stamp(event, self._bus.source)
        self._bus.publish(event)
        for reader in self._readers:
            if reader.full():
                reader.get_nowait()
            reader.put_nowait(event)

    async def subscribe(self) -> AsyncIterator[events.Event]:
        """From now on, until the reader closes the iterator."""
        queue: asyncio.Queue[events.Event] = asyncio.Queue(BEHIND)
        self._readers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._readers.discard(queue)

    def close(self) -> None:
        self._bus.close()
