"""Events over ZeroMQ: PUB on an ipc socket in a 0700 directory, SUB by any reader of the user."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from outrider.protocol import events

HIGH_WATER = 10_000
"""Messages a slow reader may be behind before it loses some; the producer never waits."""


def stamp(event: events.Event, source: str) -> events.Event:
    """The event with who says it and when, as readers get it."""
    return msgspec.structs.replace(
        event,
        source=source,
        at=time.clock_gettime(time.CLOCK_REALTIME),
        t_ms=time.monotonic() * 1e3,
    )


class Bus:
    """A publisher. `publish` never blocks and never raises for a reader's sake."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(directory, 0o700)
        self._path = directory / f"{name}.events"
        self._path.unlink(missing_ok=True)
        self.address = f"ipc://{self._path}"
        self.source = name
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.set(zmq.SNDHWM, HIGH_WATER)
        self._socket.set(zmq.LINGER, 200)
        self._socket.bind(self.address)

    def publish(self, event: events.Event) -> None:
        stamped = event if event.at else stamp(event, self.source)
        try:
            self._socket.send(events.encode(stamped), zmq.NOBLOCK)
        except zmq.Again:
            return

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


class NoBus:
    """The plain twin: nobody listens."""

    address = ""
    source = ""

    def publish(self, event: events.Event) -> None:
        """Dropped."""

    def close(self) -> None:
        """Nothing to close."""


async def subscribe(address: str) -> AsyncIterator[events.Event]:
    """Events from now on, until the reader closes the iterator."""
    socket = zmq.asyncio.Context.instance().socket(zmq.SUB)
    socket.subscribe(b"")
    socket.connect(address)
    try:
        while True:
            yield events.decode(await socket.recv())
    finally:
        socket.close(linger=0)
