"""One stage of one coordinator's chain in a worker: orders in, results out, both in order.

Lives on the worker's event loop; the stage itself computes in its own thread.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from outrider import transport
from outrider.errors import AccessDenied, LinkLost, OutriderError, RemoteProtocolError
from outrider.options import Address
from outrider.protocol import stage_codec
from outrider.protocol.stages import (
    Attach,
    Broken,
    Failed,
    Forward,
    NextStage,
    Pass,
    Passed,
    StageDown,
    StageOp,
)
from outrider.stages.channel import (
    CHANNEL_OPTIONS,
    INDEX_KEY,
    PIPELINE_KEY,
    RELAY,
    TICKET_KEY,
    reason,
)
from outrider.stages.post import Given, Orders
from outrider.stages.shelf import Held

MOST_UNDER_WAY = 256
"""Passes that wait in one stage; coordinators keep far fewer on the way."""
REACH_S = 2.0
"""How long the next stage may take to answer before the coordinator passes everything on."""

SeatKey = tuple[bytes, int]


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A worker's own certificate, PEM, for workers that ask for one."""

    certificate: bytes = b""
    private_key: bytes = b""


@dataclass(slots=True, eq=False)
class Seat:
    """`tenant` loaded it; whoever shows `ticket` may send to it."""

    key: SeatKey
    tenant: str
    ticket: bytes
    held: Held
    loop: asyncio.AbstractEventLoop
    outbox: asyncio.Queue[StageDown | bytes] = field(default_factory=asyncio.Queue)
    attached: bool = False
    relayed: asyncio.Task[None] | None = None
    """Reads what comes in."""
    claim: asyncio.TimerHandle | None = None
    """Ends a seat that nobody attaches to."""
    free: asyncio.Future[None] | None = None
    """Done when the stage is another's; there is one once the seat has ended."""
    _orders: Orders | None = None
    _next: NextStage | None = None
    _way: Way | None = None
    _under_way: int = 0

    def check_ticket(self, shown: bytes | str) -> None:
        """Raises AccessDenied."""
        if not isinstance(shown, bytes) or not hmac.compare_digest(shown, self.ticket):
            raise AccessDenied(
                "the worker does not know this ticket",
                why="the stage was loaded with another one",
                effect="nothing was done",
            )

    async def attach(self, message: Attach, identity: Identity) -> tuple[bool, str]:
        """Whether it sends to the next stage itself, or why not."""
        self._orders = self.held.post.orders(message.codec)
        self._next = message.next
        if message.next is None:
            return self._last()
        try:
            self._way = await Way.open(message, message.next, identity, self._broke)
        except OutriderError as error:
            return False, error.what
        return True, ""

    def _last(self) -> tuple[bool, str]:
        if not self.held.info.layers.head:
            raise RemoteProtocolError("the last stage of a chain must have the head")
        return True, ""

    def put(self, op: StageOp) -> None:
        """To the stage's thread. Raises RemoteProtocolError."""
        if self._orders is None:
            raise RemoteProtocolError("something came for a stage that nobody has attached to")
        if isinstance(op, Pass):
            self._under_way += 1
            if self._under_way > MOST_UNDER_WAY:
                raise RemoteProtocolError(f"more than {MOST_UNDER_WAY} passes wait in a stage")
        self.held.post.put(self._orders, op, self._emit)

    def leave(self) -> Any:
        """Stop; the returned future is done when the stage has nothing of this chain left."""
        if self.claim is not None:
            self.claim.cancel()
        if self.relayed is not None:
            self.relayed.cancel()
        if self._way is not None:
            self._way.close()
        return None if self._orders is None else self.held.post.release(self._orders)

    # --- what the stage gives ------------------------------------------------------------------

    def _emit(self, given: Given) -> None:
        """In the stage's thread, which also turns it into bytes."""
        try:
            data = self._encoded(given)
        except OutriderError as error:
            given = Failed(getattr(given, "number", 0), error)
            data = stage_codec.encode_down(given)
        # The loop is closed when the worker ends while a pass is under way.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._deliver, given, data)

    def _encoded(self, given: Given) -> bytes:
        if isinstance(given, Passed | Failed):
            return stage_codec.encode_down(given)
        return stage_codec.encode_op(given)

    def _deliver(self, given: Given, data: bytes) -> None:
        if isinstance(given, Pass | Passed | Failed):
            self._under_way -= 1
        if isinstance(given, Passed | Failed):
            self.outbox.put_nowait(data)
        elif self._way is not None:
            self._way.send(data)
        elif self._next is not None:
            self.outbox.put_nowait(Forward(data))

    def _broke(self, error: OutriderError) -> None:
        self.outbox.put_nowait(Broken(error))


@dataclass(slots=True, eq=False)
class Way:
    """The stream to the next stage, and the tasks that keep it."""

    channel: grpc.aio.Channel
    call: Any
    broke: Callable[[OutriderError], None]
    queue: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    closed: bool = False

    @classmethod
    async def open(
        cls,
        message: Attach,
        after: NextStage,
        identity: Identity,
        broke: Callable[[OutriderError], None],
    ) -> Way:
        """Raises LinkLost, AccessDenied, ... when the next stage can not be reached."""
        channel = _channel(after, identity)
        metadata = (
            (PIPELINE_KEY, message.pipeline),
            (TICKET_KEY, after.ticket),
            (INDEX_KEY, str(message.index + 1)),
        )
        method: Any = channel.stream_stream(RELAY)
        way = cls(channel, method(metadata=metadata, wait_for_ready=False), broke)
        try:
            await way._greet(message.index + 1)
        except BaseException:
            way.close()
            raise
        way.tasks = [asyncio.create_task(way._write()), asyncio.create_task(way._watch())]
        return way

    async def _greet(self, index: int) -> None:
        try:
            async with asyncio.timeout(REACH_S):
                data = await self.call.read()
        except TimeoutError:
            raise LinkLost(
                "the next stage did not answer", why=f"nothing came within {REACH_S} s"
            ) from None
        except grpc.aio.AioRpcError:
            raise await reason(self.call, "the next stage can not be reached") from None
        if data is grpc.aio.EOF or stage_codec.decode_reached(data) != index:
            raise LinkLost("another stage answered in the next one's place")

    def send(self, data: bytes) -> None:
        self.queue.put_nowait(data)

    async def _write(self) -> None:
        try:
            while True:
                await self.call.write(await self.queue.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            # How the stream ended is told by the one who reads it.
            return

    async def _watch(self) -> None:
        """The next stage says nothing more; that the stream ends is news."""
        try:
            await self.call.read()
            error: OutriderError = LinkLost("the next stage ended the stream")
        except grpc.aio.AioRpcError:
            error = await reason(self.call, "the link to the next stage broke")
        if not self.closed:
            self.broke(error)

    def close(self) -> None:
        self.closed = True
        self.call.cancel()
        for task in self.tasks:
            task.cancel()
        self.tasks.append(asyncio.create_task(self.channel.close()))


def _channel(after: NextStage, identity: Identity) -> grpc.aio.Channel:
    """Raises LinkLost, and ConfigError where nothing may be sent in the clear."""
    if not after.address:
        raise LinkLost("the coordinator passes everything on")
    tls = transport.channel_tls(after.authority, identity.certificate, identity.private_key)
    return transport.channel(Address.parse(after.address, 0), tls, CHANNEL_OPTIONS)
