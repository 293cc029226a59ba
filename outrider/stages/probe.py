"""The way between two workers, measured by one of them: round trips, and bytes each way.

The coordinator tells one worker a ticket, and sends the other there with it. Empty messages
give the round trip, the shortest of a few; then messages of 64 KiB follow one another, and
what counts is from the first answer to the last, so that the round trip stays out of the
rate. A probe ends after 1 MiB or a third of a second each way, whichever comes first.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from outrider import transport
from outrider.errors import AccessDenied, LinkLost, OutriderError, RemoteProtocolError
from outrider.options import WORKER_PORT, Address
from outrider.protocol import fleet_codec
from outrider.protocol.fleet import MAX_PROBE, MAX_PROBED, MeasuredLink, MeasureLink, ProbeData
from outrider.stages.channel import CHANNEL_OPTIONS, PROBE, TICKET_KEY, reason
from outrider.stages.seat import Identity

TRIPS = 5
WAY_BYTES = 1 << 20
"""Each way."""
WAY_S = 0.33
AHEAD = 4
"""Messages under way: 256 KiB, which is what a stream of stages may have on its way."""
ADMITTED_S = 10.0
"""How long a ticket waits for its probe."""
MOST_GUESTS = 64
PROBE_S = 10.0


@dataclass(slots=True)
class Guests:
    """Tickets of probes that are expected. Lives on the event loop."""

    tickets: set[bytes] = field(default_factory=set)

    def admit(self, ticket: bytes, loop: asyncio.AbstractEventLoop) -> None:
        """Once, and not for long. Raises RemoteProtocolError where too many wait."""
        if len(self.tickets) >= MOST_GUESTS:
            raise RemoteProtocolError(f"more than {MOST_GUESTS} probes are expected")
        self.tickets.add(ticket)
        loop.call_later(ADMITTED_S, self.tickets.discard, ticket)

    def welcome(self, shown: bytes | str) -> None:
        """Raises AccessDenied for a ticket that nobody announced, or that was shown before."""
        if not isinstance(shown, bytes) or shown not in self.tickets:
            raise AccessDenied(
                "the worker expects no probe with this ticket",
                why="none was announced, or it was used already",
                effect="nothing was measured",
            )
        self.tickets.remove(shown)


async def echo(requests: AsyncIterator[bytes], write: Callable[[bytes], Awaitable[None]]) -> None:
    """The side that is measured: as many bytes back as are wanted, within bounds."""
    spent, full = 0, os.urandom(MAX_PROBE)
    async with asyncio.timeout(PROBE_S):
        async for data in requests:
            message = fleet_codec.decode_probe(data)
            spent += len(message.data) + message.count
            if spent > MAX_PROBED:
                raise RemoteProtocolError(f"a probe costs at most {MAX_PROBED} bytes")
            answer = ProbeData(len(message.data), full[: message.count])
            await write(fleet_codec.encode_probe(answer))


async def probed(message: MeasureLink, identity: Identity) -> MeasuredLink:
    """The side that measures. Raises LinkLost, AccessDenied, ConfigError."""
    tls = transport.channel_tls(message.authority, identity.certificate, identity.private_key)
    address = Address.parse(message.address, WORKER_PORT)
    async with transport.channel(address, tls, CHANNEL_OPTIONS) as channel:
        method: Any = channel.stream_stream(PROBE)
        call = method(metadata=((TICKET_KEY, message.ticket),), wait_for_ready=False)
        try:
            async with asyncio.timeout(PROBE_S):
                return await _Probe(call).run()
        except TimeoutError:
            raise LinkLost("the other worker did not answer", why=f"in {PROBE_S:g} s") from None
        except grpc.aio.AioRpcError:
            raise await reason(call, "the other worker can not be reached") from None
        except asyncio.InvalidStateError:
            raise await reason(call, "the way to the other worker broke") from None
        finally:
            call.cancel()


@dataclass(slots=True)
class _Probe:
    call: Any
    spent: int = 0

    async def run(self) -> MeasuredLink:
        trips = [await self._trip() for _ in range(TRIPS + 1)]
        full = os.urandom(MAX_PROBE)
        up = await self._rate(ProbeData(0, full))
        down = await self._rate(ProbeData(MAX_PROBE))
        # The first one waits for the stream to be made.
        return MeasuredLink(int(min(trips[1:]) * 1e6), up, down, self.spent)

    async def _trip(self) -> float:
        began = time.perf_counter()
        await self._say(ProbeData(0))
        await self._hear()
        return time.perf_counter() - began

    async def _rate(self, message: ProbeData) -> float:
        """Bytes per second of messages that follow one another."""
        began = time.perf_counter()
        first = last = began
        sent = heard = 0
        most = WAY_BYTES // MAX_PROBE
        while heard < sent or heard == 0:
            while sent < most and sent - heard < AHEAD and time.perf_counter() - began < WAY_S:
                await self._say(message)
                sent += 1
            await self._hear()
            heard += 1
            last = time.perf_counter()
            first = last if heard == 1 else first
        # One alone is timed from its start, round trip and all.
        return MAX_PROBE * max(heard - 1, 1) / max(last - (first if heard > 1 else began), 1e-9)

    async def _say(self, message: ProbeData) -> None:
        self.spent += len(message.data)
        await self.call.write(fleet_codec.encode_probe(message))

    async def _hear(self) -> None:
        data = await self.call.read()
        if data is grpc.aio.EOF:
            error: OutriderError = await reason(self.call, "the probe was ended")
            raise error
        self.spent += len(fleet_codec.decode_probe(data).data)
