"""A proxied connection: two sockets and, between them, a flow of bytes each way.

A flow reads from one socket, asks the link's schedule when the bytes are due, and writes them to
the other socket at that moment. It holds a bounded number of bytes; when it is full, its sender
feels it. What flows need of the proxy they belong to is written down as `House`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, Protocol

from outrider.testing.link import Direction, Lane, Link
from outrider.testing.mangle import Mangler, ManglerFactory, mangle

LEAST_BUFFER_BYTES: Final = 256 * 1024
MOST_BUFFER_BYTES: Final = 8 * 1024 * 1024
"""Bounds of what one direction of one connection may hold; a full one stops its sender."""

Ending = Literal["reset", "cut", "close"]
"""How a socket ends: at once with RST; at once; or after all that was written is sent."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class House(Protocol):
    """What a connection asks of its proxy."""

    loop: asyncio.AbstractEventLoop
    is_black_hole: bool

    @property
    def to_host(self) -> str: ...
    @property
    def to_port(self) -> int: ...
    @property
    def link(self) -> Link: ...
    def manglers(self, direction: Direction) -> Sequence[ManglerFactory]: ...
    def note_lateness(self, seconds: float) -> None: ...
    def forget(self, connection: Connection) -> None: ...


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """One client connection; a chunk is what one read from a socket gave."""

    number: int
    bytes_up: int
    bytes_down: int
    chunks_up: int
    chunks_down: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """Bytes on their way, or how the sender ended: `close` its stream, `reset` everything."""

    due: float
    data: bytes | Ending

    @property
    def size(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else 0


class Flow:
    """One direction of one connection: reads from `source`, delivers to `sink` when due."""

    def __init__(self, house: House, direction: Direction, lane: Lane) -> None:
        self.direction: Final = direction
        self.source: End | None = None
        self.sink: End | None = None
        self.bytes = 0
        self.chunks = 0
        self.queued_bytes = 0
        self.finished = False
        self._house = house
        self._lane = lane
        self._manglers: list[Mangler] = [make() for make in house.manglers(direction)]
        self._queue: deque[Parcel] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._ready_at = 0.0  # When an obstacle was last removed; earlier dues are not lateness.
        self._stuck = False

    def reseed(self, random: Random) -> None:
        self._lane.random = random

    def take(self, data: bytes) -> None:
        self.bytes += len(data)
        self.chunks += 1
        self.queued_bytes += len(data)
        now, way = self._house.loop.time(), self._house.link.way(self.direction)
        start = 0
        for size in way.pieces(len(data)):
            due = self._lane.due(now, size, way)
            self._queue.append(Parcel(due, data[start : start + size]))
            start += size
        self._go_on()

    def end(self, how: Ending) -> None:
        due = self._lane.due(self._house.loop.time(), 0, self._house.link.way(self.direction))
        self._queue.append(Parcel(due, how))
        self._go_on()

    def hold(self) -> None:
        """Delivers and reads nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._steer_source()

    def release(self) -> None:
        """Goes on after a hold, a new sink or a new link."""
        self.hold()
        self._ready_at = self._house.loop.time()
        self._go_on()

    def sink_full(self) -> None:
        self._stuck = True

    def sink_ready(self) -> None:
        self._stuck = False
        self.release()

    def refresh(self) -> None:
        """Heeds a link that has changed."""
        self._go_on()

    def clear(self) -> None:
        self.hold()
        self._queue.clear()
        self.queued_bytes = 0
        self.finished = True

    @property
    def _may_deliver(self) -> bool:
        return self.sink is not None and not self._stuck and not self._house.is_black_hole

    def _go_on(self) -> None:
        if self._timer is None and self._queue and self._may_deliver:
            self._timer = self._house.loop.call_at(self._queue[0].due, self._deliver)
        self._steer_source()

    def _deliver(self) -> None:
        """Hands over all that is due, joined, with ends of stream in their place."""
        self._timer = None
        now, batch = self._house.loop.time(), bytearray()
        while self._queue and self._queue[0].due <= now:
            parcel = self._queue.popleft()
            self._house.note_lateness(now - max(parcel.due, self._ready_at))
            self.queued_bytes -= parcel.size
            if isinstance(parcel.data, bytes):
                batch += parcel.data
            else:
                self._write(batch)
                batch.clear()
                self._end_sink(parcel.data)
        self._write(batch)
        self._go_on()

    def _write(self, batch: bytearray) -> None:
        if batch and self.sink is not None and not self.sink.transport.is_closing():
            for piece in mangle(bytes(batch), self._manglers):
                self.sink.transport.write(piece)

    def _end_sink(self, how: Ending) -> None:
        self.finished = True
        if self.sink is not None:
            self.sink.end(how)

    def _steer_source(self) -> None:
        """Reads while there is room."""
        if self.source is not None:
            way = self._house.link.way(self.direction)
            limit = way.buffer_bytes(LEAST_BUFFER_BYTES, MOST_BUFFER_BYTES)
            full = self.queued_bytes >= limit
            self.source.read("stop" if full or self._house.is_black_hole else "go")


class Connection:
    """A client's connection and the proxy's own one to the server."""

    def __init__(self, house: House, number: int, lanes: tuple[Lane, Lane]) -> None:
        self.number: Final = number
        self.house: Final = house
        self.up = Flow(house, "up", lanes[0])
        self.down = Flow(house, "down", lanes[1])
        self.ends: list[End] = []
        self.dialling: asyncio.Task[None] | None = None
        self.over: Ending | None = None

    def flows(self) -> tuple[Flow, Flow]:
        return self.up, self.down

    def accepted(self, client: End) -> None:
        self.up.source, self.down.sink = client, client
        self.up.release()
        if not self.house.is_black_hole:
            self.dial()

    def dialled(self, server: End) -> None:
        self.down.source, self.up.sink = server, server
        self.up.release()
        self.down.release()

    def dial(self) -> None:
        """Connects to the server, once."""
        if self.dialling is None:
            self.dialling = self.house.loop.create_task(self._dial())

    async def _dial(self) -> None:
        house = self.house
        try:
            await house.loop.create_connection(
                lambda: End(self, self.down, self.up, self.dialled), house.to_host, house.to_port
            )
        except OSError:
            self.abort("reset")

    def settle(self) -> None:
        """Closes both sides once both have said all and it was delivered."""
        if self.up.finished and self.down.finished:
            self.abort("close")

    def abort(self, how: Ending) -> None:
        """Ends both sides; what is under way is lost. A socket that comes later ends too."""
        self.over = how
        for flow in self.flows():
            flow.clear()
        if self.dialling is not None:
            self.dialling.cancel()
        for end in list(self.ends):
            end.drop(how)

    def gone(self, end: End) -> None:
        self.ends.remove(end)
        if not self.ends:
            self.abort("cut")
            self.house.forget(self)

    def statistics(self) -> ConnectionStatistics:
        up, down = self.flows()
        return ConnectionStatistics(self.number, up.bytes, down.bytes, up.chunks, down.chunks)


class End(asyncio.Protocol):
    """One socket of a connection: what it reads goes to `out`, what `into` delivers it writes."""

    transport: asyncio.Transport

    def __init__(
        self,
        connection: Connection,
        out: Flow,
        into: Flow,
        made: Callable[[End], None],
    ) -> None:
        self._connection = connection
        self._out = out
        self._into = into
        self._made = made
        self._reading: Literal["go", "stop"] = "go"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.ends.append(self)
        if self._connection.over is None:
            self._made(self)
        else:
            self.drop(self._connection.over)

    def data_received(self, data: bytes) -> None:
        self._out.take(data)

    def eof_received(self) -> bool:
        self._out.end("close")
        return True  # The other direction may still have to say something.

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._out.end("reset")
            self._into.clear()
        self._connection.gone(self)

    def pause_writing(self) -> None:
        self._into.sink_full()

    def resume_writing(self) -> None:
        self._into.sink_ready()

    def read(self, go: Literal["go", "stop"]) -> None:
        """Starts or stops reading; says so to the transport only when it changes."""
        if go != self._reading and not self.transport.is_closing():
            self._reading = go
            if go == "go":
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def end(self, how: Ending) -> None:
        """The far side has ended its stream, or reset it."""
        if how == "reset":
            self._connection.abort("reset")
        else:
            if not self.transport.is_closing():
                with suppress(OSError):  # Reset by its far side, which the loop has yet to hear.
                    self.transport.write_eof()
            self._connection.settle()

    def drop(self, how: Ending) -> None:
        if how == "reset" and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if how == "close":
            self.transport.close()
        else:
            self.transport.abort()
