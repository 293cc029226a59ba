"""A link to a running cloud, measured with what its protocol already has.

Round trips: `Describe` without tokenizers, some hundred bytes each way. Downwards: `Describe`
with them, some hundred kilobytes. Upwards: an `Open` of padded size for a model that no cloud
serves, which is refused as soon as it was read, so that no session begins. Turns of all three
alternate; `observe` makes of them what it makes of live traffic.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from outrider.errors import AccessDenied, CloudUnreachable
from outrider.options import Address
from outrider.partitioner.observe import Estimate, Exchange, measured
from outrider.protocol import codec
from outrider.protocol.messages import VERSION, ChoiceOpen, Open
from outrider.protocol.sampling import GREEDY

SERVICE = "outrider.v1.Outrider"
NOWHERE = "-"
"""No cloud serves a model of this name."""
SMALL_IDS, LARGE_IDS = 900, 8000
"""Prompt tokens of the two sizes upwards: 4 and 32 KiB with padding."""
TURNS = 12
TRIPS = 3
"""Round trips in each turn."""
ANSWER_S = 30.0
WINDOW = 8 << 20
"""HTTP/2 flow control must not be what is measured."""
OPTIONS = (
    ("grpc.max_receive_message_length", 96 << 20),
    ("grpc.http2.lookahead_bytes", WINDOW),
    ("grpc.http2.write_buffer_size", 1 << 20),
    ("grpc.enable_retries", 0),
)
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Target:
    """Which cloud, and what it wants to be shown."""

    address: Address
    metadata: tuple[tuple[str, str], ...] = ()
    credentials: Any = None
    """`grpc.ChannelCredentials`; None speaks in the clear."""


async def probe(target: Target, *, turns: int = TURNS, clock: Clock = time.monotonic) -> Estimate:
    """Raises CloudUnreachable, AccessDenied."""
    from outrider import transport

    channel = transport.channel(target.address, target.credentials, OPTIONS)
    async with channel:
        wire = Wire(channel, target.metadata, clock)
        await wire.describe("small")
        return measured([exchange async for exchange in wire.turns(turns)])


@dataclass(frozen=True, slots=True)
class Wire:
    """Timed exchanges on one channel."""

    channel: Any
    metadata: tuple[tuple[str, str], ...]
    clock: Clock

    async def turns(self, count: int) -> AsyncIterator[Exchange]:
        for _ in range(count):
            for _ in range(TRIPS):
                yield await self.describe("small")
            yield await self.refused(SMALL_IDS)
            yield await self.describe("bulk")
            yield await self.refused(LARGE_IDS)

    async def describe(self, size: str) -> Exchange:
        """`bulk`: with tokenizers."""
        import grpc.aio

        call = self.channel.unary_unary(f"/{SERVICE}/Describe")
        data = codec.encode_describe(VERSION, "", with_tokenizer=size == "bulk")
        began = self.clock()
        try:
            answer = await call(data, metadata=self.metadata, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise _typed(error.code().name) from None
        return Exchange(len(data), len(answer), began, self.clock())

    async def refused(self, ids: int) -> Exchange:
        """An Open that leads nowhere."""
        import grpc.aio

        message = Open(
            session=secrets.token_bytes(16),
            fence=1,
            prompt=(0,) * ids,
            choices=(ChoiceOpen(0),),
            sampling=GREEDY,
            seed=0,
            max_tokens=1,
            model=NOWHERE,
        )
        data = codec.encode_up(message, message.slots)
        call = self.channel.stream_stream(f"/{SERVICE}/Session")(
            metadata=self.metadata, timeout=ANSWER_S
        )
        began = self.clock()
        try:
            await call.write(data)
            await call.read()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise _typed(error.code().name) from None
        return Exchange(len(data), 0, began, self.clock())


def _typed(status: str) -> CloudUnreachable | AccessDenied:
    """From gRPC's name of a status."""
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return AccessDenied(
            "the cloud refused the key",
            effect="the link was not measured",
            todo="set OUTRIDER_CLOUD_API_KEY",
        )
    return CloudUnreachable(
        "the link could not be measured",
        why=f"gRPC says {status.lower().replace('_', ' ')}",
        effect="nothing was saved",
        todo="check that `outrider cloud` runs at that address",
    )
