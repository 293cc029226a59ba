"""A worker's gRPC service: what it is, stages loaded, and streams to and from them.

Who holds what: `Load` makes a *seat*, a stage that waits for its coordinator; `Run`
attaches to it, and the seat ends with that stream. `Relay` brings the seat its orders.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from outrider.errors import (
    CloudUnreachable,
    ConfigError,
    LinkLost,
    NotFound,
    OutriderError,
    RemoteProtocolError,
)
from outrider.protocol import fleet_codec, stage_codec
from outrider.protocol.fleet import MeasuredLink
from outrider.protocol.stages import Attach, Attached, Beat, Detach, StageDown, StageLoad
from outrider.stages.channel import (
    BEAT_S,
    INDEX_KEY,
    PATIENCE_S,
    PIPELINE_KEY,
    SERVICE,
    TICKET_KEY,
    guarded,
    metadata_of,
)
from outrider.stages.probe import Guests, echo, probed
from outrider.stages.receive import receive
from outrider.stages.seat import Identity, Seat, SeatKey
from outrider.stages.shelf import Held, Shelf

CLAIM_S = 30.0
"""How long a loaded stage waits for its coordinator's stream."""
MOST_SEATS = 64

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, eq=False)
class Worker:
    """`who` gives the tenant of an `authorization` value, or raises AccessDenied."""

    shelf: Shelf
    who: Callable[[str], str]
    identity: Identity = field(default_factory=Identity)
    draining: bool = False
    seats: dict[SeatKey, Seat] = field(default_factory=dict)
    guests: Guests = field(default_factory=Guests)
    """Who may measure the way here."""
    _loads: set[asyncio.Future[Held]] = field(default_factory=set)
    _ends: set[asyncio.Future[None]] = field(default_factory=set)
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(4, thread_name_prefix="load")
    )

    def handlers(self) -> grpc.GenericRpcHandler:
        streams = {
            "Run": self.run,
            "Relay": self.relay,
            "Push": self.push,
            "Probe": self.probe,
        }
        calls = {"Describe": self.describe, "Load": self.load, "Measure": self.measure}
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()}
            | {name: grpc.stream_stream_rpc_method_handler(s) for name, s in streams.items()},
        )

    async def end(self) -> None:
        """All seats end, and every stage is freed."""
        for seat in list(self.seats.values()):
            self._leave(seat)
        await asyncio.gather(*self._ends, *self._loads, return_exceptions=True)
        await self._blocking(self.shelf.shutdown)
        self._pool.shutdown(wait=False)

    # --- describe and load ---------------------------------------------------------------------

    async def describe(self, data: bytes, context: Context) -> bytes:
        answer: bytes = await guarded(context, self._describe(data, context))
        return answer

    async def _describe(self, data: bytes, context: Context) -> bytes:
        self._tenant(context)
        stage_codec.decode_query(data)
        return stage_codec.encode_host(replace(self.shelf.describe(), draining=self.draining))

    async def load(self, data: bytes, context: Context) -> bytes:
        answer: bytes = await guarded(context, self._load(data, context))
        return answer

    async def _load(self, data: bytes, context: Context) -> bytes:
        tenant = self._tenant(context)
        message = stage_codec.decode_load(data)
        self._check_room(message)
        held = await self._take(message, tenant)
        key = (message.pipeline, message.index)
        if key in self.seats:
            await self._blocking(lambda: self.shelf.give_back(held))
            raise RemoteProtocolError("this stage of the pipeline was loaded already")
        seat = Seat(key, tenant, message.ticket, held, asyncio.get_running_loop())
        seat.claim = seat.loop.call_later(CLAIM_S, self._leave, seat)
        self.seats[key] = seat
        return stage_codec.encode_loaded(held.info)

    def _check_room(self, message: StageLoad) -> None:
        if self.draining:
            raise CloudUnreachable(
                f"worker {self.shelf.name} is shutting down", todo="plan the model without it"
            )
        if len(self.seats) >= MOST_SEATS or (message.pipeline, message.index) in self.seats:
            raise RemoteProtocolError(
                "this stage of the pipeline was loaded already, or the worker has too many"
            )

    async def _take(self, message: StageLoad, tenant: str) -> Held:
        """Loading goes on when its caller has gone; the stage then is idle."""
        loop = asyncio.get_running_loop()
        loading = loop.run_in_executor(self._pool, self.shelf.take, message, tenant)
        self._loads.add(loading)
        loading.add_done_callback(self._loads.discard)
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(self._give_back)
            raise

    def _give_back(self, loading: asyncio.Future[Held]) -> None:
        if not loading.cancelled() and loading.exception() is None:
            self.shelf.give_back(loading.result())

    # --- weights -------------------------------------------------------------------------------

    async def push(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await guarded(context, self._push(requests, context))

    async def _push(self, requests: AsyncIterator[bytes], context: Context) -> None:
        tenant = self._tenant(context)
        if self.shelf.store is None:
            raise ConfigError(
                f"worker {self.shelf.name} takes no weights",
                why="it was started without --accept-weights",
                effect="nothing was sent",
                todo="start it with --accept-weights 2G, or with --model and the model's files",
            )
        await receive(self.shelf.store, tenant, requests, context.write, self._blocking)

    # --- links ---------------------------------------------------------------------------------

    async def measure(self, data: bytes, context: Context) -> bytes:
        answer: bytes = await guarded(context, self._measure(data, context))
        return answer

    async def _measure(self, data: bytes, context: Context) -> bytes:
        self._tenant(context)
        message = fleet_codec.decode_measure(data)
        if not message.address:
            self.guests.admit(message.ticket, asyncio.get_running_loop())
            return fleet_codec.encode_measured(MeasuredLink())
        return fleet_codec.encode_measured(await probed(message, self.identity))

    async def probe(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await guarded(context, self._probe(requests, context))

    async def _probe(self, requests: AsyncIterator[bytes], context: Context) -> None:
        self.guests.welcome(metadata_of(context, TICKET_KEY))
        await echo(requests, context.write)

    # --- a coordinator's stream ----------------------------------------------------------------

    async def run(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await guarded(context, self._run(requests, context))

    async def _run(self, requests: AsyncIterator[bytes], context: Context) -> None:
        tenant = self._tenant(context)
        message = stage_codec.decode_up(await _next(requests))
        if not isinstance(message, Attach):
            raise RemoteProtocolError("a coordinator's stream begins with attach")
        seat = self._seat((message.pipeline, message.index), tenant)
        try:
            direct, why = await seat.attach(message, self.identity)
            await _write(context, Attached(direct, why))
            await _first(self._hear(seat, requests), self._tell(seat, context))
        finally:
            # That the stream has ended tells the coordinator that the stage is free.
            await self._leave(seat)

    def _seat(self, key: SeatKey, tenant: str) -> Seat:
        seat = self.seats.get(key)
        if seat is None or seat.tenant != tenant or seat.attached:
            raise NotFound(
                "this stage of the pipeline was not loaded here, or has a stream already",
                param="pipeline",
                effect="nothing was attached",
                todo="load it again",
            )
        seat.attached = True
        if seat.claim is not None:
            seat.claim.cancel()
        return seat

    async def _hear(self, seat: Seat, requests: AsyncIterator[bytes]) -> None:
        """Until the coordinator leaves, or says nothing for too long (LinkLost)."""
        while True:
            message = stage_codec.decode_up(await _next(requests))
            match message:
                case Beat():
                    seat.outbox.put_nowait(Beat(_now_us(), message.sent_us, self.draining))
                case Detach():
                    return
                case _:
                    raise RemoteProtocolError("a stage is attached to once")

    async def _tell(self, seat: Seat, context: Context) -> None:
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    message = await seat.outbox.get()
            except TimeoutError:
                message = Beat(_now_us(), leaving=self.draining)
            await _write(context, message)

    def _leave(self, seat: Seat) -> asyncio.Future[None]:
        """The stage is free once nothing of this chain is under way in it; then it is done."""
        if self.seats.pop(seat.key, None) is not None:
            seat.free = asyncio.ensure_future(self._free(seat))
            self._ends.add(seat.free)
            seat.free.add_done_callback(self._ends.discard)
        assert seat.free is not None
        return asyncio.shield(seat.free)

    async def _free(self, seat: Seat) -> None:
        released = seat.leave()
        if released is not None:
            # A stage that was freed meanwhile holds nothing either.
            with suppress(OutriderError):
                await asyncio.wrap_future(released)
        self.shelf.give_back(seat.held)

    # --- orders --------------------------------------------------------------------------------

    async def relay(self, requests: AsyncIterator[bytes], context: Context) -> None:
        await guarded(context, self._relay(requests, context))

    async def _relay(self, requests: AsyncIterator[bytes], context: Context) -> None:
        seat = self._ticketed(context)
        await context.write(stage_codec.encode_reached(seat.key[1]))
        reader = seat.relayed = asyncio.create_task(_read_orders(seat, requests))
        try:
            await asyncio.wait((reader,))
        finally:
            reader.cancel()
        if not reader.cancelled() and (error := reader.exception()) is not None:
            raise error

    def _ticketed(self, context: Context) -> Seat:
        """The ticket alone opens it: the sender is another worker, and no tenant's keys travel."""
        pipeline = metadata_of(context, PIPELINE_KEY)
        index = str(metadata_of(context, INDEX_KEY))
        number = int(index) if index.isascii() and index.isdecimal() and len(index) < 4 else -1
        seat = self.seats.get((pipeline, number)) if isinstance(pipeline, bytes) else None
        if seat is None:
            raise NotFound("this stage of the pipeline was not loaded here", param="pipeline")
        seat.check_ticket(metadata_of(context, TICKET_KEY))
        if seat.relayed is not None:
            raise RemoteProtocolError("a stage gets its orders from one stream")
        return seat

    # --- plumbing ------------------------------------------------------------------------------

    def _tenant(self, context: Context) -> str:
        return self.who(str(metadata_of(context, "authorization")))

    async def _blocking(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


async def _read_orders(seat: Seat, requests: AsyncIterator[bytes]) -> None:
    async for data in requests:
        seat.put(stage_codec.decode_op(data))


async def _next(requests: AsyncIterator[bytes]) -> bytes:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await anext(requests)
    except TimeoutError:
        raise LinkLost(
            "the coordinator went silent", why=f"nothing came for {PATIENCE_S:g} s"
        ) from None
    except StopAsyncIteration:
        raise LinkLost("the coordinator ended its stream") from None


async def _write(context: Context, message: StageDown | bytes) -> None:
    data = message if isinstance(message, bytes) else stage_codec.encode_down(message)
    await context.write(data)


async def _first(*works: Any) -> None:
    """Until one ends; the others are cancelled. Raises what it raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [result for result in results if isinstance(result, Exception)]
    # A stream that broke while it was written tells less than what was read before.
    for error in sorted(errors, key=lambda error: not isinstance(error, OutriderError)):
        raise error


def _now_us() -> int:
    return int(time.monotonic() * 1e6)
