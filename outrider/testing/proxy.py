"""A shaping TCP proxy: an emulated link in front of a real server, on real sockets.

    async with ShapingProxy("127.0.0.1", 50051, Link.of_rtt(40)) as proxy:
        ...connect to proxy.host, proxy.port...
        proxy.black_hole()
        await proxy.restore()

`python -m outrider.testing.proxy` runs it as a process of its own (see `proxy_process`).

What is real: the sockets, their buffers and back-pressure, resets, refused connections, and the
waiting. What is emulated: each direction's delay, bandwidth, jitter and retransmissions follow
the schedule in `link`. The kernel completes a client's handshake at once; the proxy makes up for
it by letting the first bytes in only after a round trip. Lost segments are late, not missing,
as TCP shows them. Bytes count as TCP payload, when the proxy receives them.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Final, Self

from outrider.errors import ConfigError, PortInUse
from outrider.testing.flow import Connection, ConnectionStatistics, End
from outrider.testing.link import Direction, Lane, Link, Pipe
from outrider.testing.mangle import ManglerFactory

CLOSE_S: Final = 2.0
"""How long closed connections get to end."""
REMEMBERED_CONNECTIONS: Final = 1000
REMEMBERED_LATENESS: Final = 65536

_SHARED = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """Counts since the start; lateness (actual less scheduled delivery) since the last `mark`."""

    connections: int
    open_connections: int
    bytes_up: int
    bytes_down: int
    chunks_up: int
    chunks_down: int
    queued_bytes: int
    deliveries: int
    """How many deliveries the lateness is over: the last 65536 at most."""
    lateness_p50_ms: float
    lateness_p99_ms: float
    lateness_max_ms: float
    per_connection: tuple[ConnectionStatistics, ...]
    """The last thousand, oldest first."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; 0 if there are none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class ShapingProxy:
    """Listens at `host:port`, forwards to `to_host:to_port` through a `Link` that may change.

    Raises PortInUse from `start` if it can not listen. Not safe to use from other threads.
    """

    def __init__(
        self,
        to_host: str,
        to_port: int,
        link: Link | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        up: Sequence[ManglerFactory] = (),
        down: Sequence[ManglerFactory] = (),
    ) -> None:
        self.to_host: Final = to_host
        self.to_port: Final = to_port
        self.host: Final = host
        self.port = port
        self.is_black_hole = False
        self._link = link or Link()
        self._manglers: dict[Direction, Sequence[ManglerFactory]] = {"up": up, "down": down}
        self._pipes: dict[Direction, Pipe] = {"up": Pipe(), "down": Pipe()}
        self._open: dict[int, Connection] = {}
        self._closed: deque[ConnectionStatistics] = deque(maxlen=REMEMBERED_CONNECTIONS)
        self._forgotten = ConnectionStatistics(0, 0, 0, 0, 0)
        self._lateness: deque[float] = deque(maxlen=REMEMBERED_LATENESS)
        self._connections = 0
        self._place: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self) -> None:
        """Begins to listen; with port 0 the system chooses, and `port` then says which."""
        self.loop = asyncio.get_running_loop()
        if self.port:
            self._bind(self.port, socket.SO_REUSEADDR).close()  # Refused if anyone listens there.
        self._place = self._bind(self.port, *_SHARED)
        self.port = self._place.getsockname()[1]
        await self._listen()

    async def aclose(self) -> None:
        """Ends all connections and stops listening."""
        self.cut()
        # What asyncio had accepted, but not handed over yet, comes now; it ends too.
        await asyncio.sleep(0)
        self.cut()
        if self._place is not None:
            self._place.close()
            self._place = None
        # A connection whose sides broke at the same moment may never say that it has ended.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._empty.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def link(self) -> Link:
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        """What is under way keeps its schedule; new bytes follow the new link, in order."""
        reseed = link.seed != self._link.seed
        self._link = link
        for connection in self._open.values():
            for flow in connection.flows():
                if reseed:
                    flow.reseed(_random(link.seed, connection.number, flow.direction))
                flow.refresh()

    def black_hole(self) -> None:
        """From now on no byte passes and none is read; sockets stay open, new ones are taken."""
        self.is_black_hole = True
        for connection in self._open.values():
            for flow in connection.flows():
                flow.hold()

    async def restore(self) -> None:
        """Undoes `black_hole` and `cut`; bytes held back arrive now, as TCP would resend them."""
        self.is_black_hole = False
        for connection in list(self._open.values()):
            connection.dial()
            for flow in connection.flows():
                flow.release()
        if self._server is None:
            await self._listen()

    def reset(self) -> None:
        """Sends RST on every open connection, to both sides; new ones are welcome."""
        for connection in list(self._open.values()):
            connection.abort("reset")

    def cut(self) -> None:
        """Closes every connection and refuses new ones, keeping the port."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._open.values()):
            connection.abort("cut")

    def mark(self) -> None:
        """Begins a new window of lateness."""
        self._lateness.clear()

    def statistics(self) -> ProxyStatistics:
        """Counts and lateness up to now."""
        live = [connection.statistics() for connection in self._open.values()]
        each = sorted([*self._closed, *live], key=lambda c: c.number)
        every = [self._forgotten, *each]
        late = sorted(self._lateness)
        return ProxyStatistics(
            connections=self._connections,
            open_connections=len(self._open),
            bytes_up=sum(c.bytes_up for c in every),
            bytes_down=sum(c.bytes_down for c in every),
            chunks_up=sum(c.chunks_up for c in every),
            chunks_down=sum(c.chunks_down for c in every),
            queued_bytes=sum(f.queued_bytes for c in self._open.values() for f in c.flows()),
            deliveries=len(late),
            lateness_p50_ms=percentile(late, 0.5) * 1e3,
            lateness_p99_ms=percentile(late, 0.99) * 1e3,
            lateness_max_ms=max(late, default=0.0) * 1e3,
            per_connection=tuple(each[-REMEMBERED_CONNECTIONS:]),
        )

    # The rest of what connections ask of their house (`flow.House`).

    def manglers(self, direction: Direction) -> Sequence[ManglerFactory]:
        return self._manglers[direction]

    def note_lateness(self, seconds: float) -> None:
        self._lateness.append(max(0.0, seconds))

    def forget(self, connection: Connection) -> None:
        """Both sockets are gone: keeps the counts, drops the rest."""
        if self._open.pop(connection.number, None) is None:
            return
        if len(self._closed) == REMEMBERED_CONNECTIONS:
            self._forgotten = _sum(self._forgotten, self._closed[0])
        self._closed.append(connection.statistics())
        if not self._open:
            self._empty.set()

    def _accept(self) -> End:
        number = self._connections
        self._connections += 1
        opens_at = self.loop.time() + self._link.rtt_ms / 1e3
        connection = Connection(
            self, number, (self._lane("up", number, opens_at), self._lane("down", number, opens_at))
        )
        self._open[number] = connection
        self._empty.clear()
        return End(connection, connection.up, connection.down, connection.accepted)

    def _lane(self, direction: Direction, number: int, opens_at: float) -> Lane:
        random = _random(self._link.seed, number, direction)
        return Lane(self._pipes[direction], random, opens_at)

    async def _listen(self) -> None:
        """A second socket at the place listens; the first keeps the port through a cut."""
        sock = self._bind(self.port, *_SHARED)
        self._server = await self.loop.create_server(self._accept, sock=sock, backlog=512)

    def _bind(self, port: int, *options: int) -> socket.socket:
        family, kind, proto, _, address = socket.getaddrinfo(
            self.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        try:
            for option in options:
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            sock.bind(address)
        except OSError as error:
            sock.close()
            raise PortInUse(
                f"the proxy can not listen at {self.host}:{port}",
                why=error.strerror or "the system refused",
                todo="choose another port; 0 lets the system choose",
            ) from error
        return sock


def _random(seed: int, number: int, direction: Direction) -> Random:
    return Random(f"{seed}/{number}/{direction}")


def _sum(left: ConnectionStatistics, right: ConnectionStatistics) -> ConnectionStatistics:
    return ConnectionStatistics(
        number=left.number,
        bytes_up=left.bytes_up + right.bytes_up,
        bytes_down=left.bytes_down + right.bytes_down,
        chunks_up=left.chunks_up + right.chunks_up,
        chunks_down=left.chunks_down + right.chunks_down,
    )


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` in two; a numeric IPv6 host stands in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"{text!r} is no address", why="it must be HOST:PORT", todo="as 127.0.0.1:8080"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


if __name__ == "__main__":
    from outrider.testing import proxy_process

    proxy_process.main()
