"""A worker's side of a push: asks for what it lacks, file by file, until all is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from outrider.errors import LinkLost, RemoteProtocolError
from outrider.protocol import fleet_codec
from outrider.protocol.fleet import PushDone, PushOffer, PushUp, PushWant
from outrider.stages.channel import PATIENCE_S
from outrider.stages.store import Reception, WeightStore

T = TypeVar("T")

LOOK_S = 0.05
"""Between two looks whether another coordinator has brought what is missing."""

Blocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs what blocks on the disk in another thread."""


async def receive(
    store: WeightStore,
    tenant: str,
    requests: AsyncIterator[bytes],
    write: Callable[[bytes], Awaitable[None]],
    blocking: Blocking,
) -> None:
    """One push from its offer to its end. Raises what the offer or a file deserves, and
    LinkLost when the coordinator goes."""
    offer = await _next(requests)
    if not isinstance(offer, PushOffer):
        raise RemoteProtocolError("a push begins with an offer")
    reception: Reception = await blocking(lambda: store.receive(tenant, offer))
    try:
        while (want := await _wanted(reception, blocking)) is not None:
            await write(fleet_codec.encode_pushed(want))
            await _file(reception, requests, blocking)
        await write(fleet_codec.encode_pushed(PushDone(reception.came)))
    finally:
        reception.end()


async def _wanted(reception: Reception, blocking: Blocking) -> PushWant | None:
    """None when all is there."""
    while (found := await blocking(reception.next)) == "wait":
        await asyncio.sleep(LOOK_S)
    return found if isinstance(found, PushWant) else None


async def _file(reception: Reception, requests: AsyncIterator[bytes], blocking: Blocking) -> None:
    whole = False
    while not whole:
        data = await _next(requests)
        if not isinstance(data, bytes):
            raise RemoteProtocolError("a push has one offer")
        whole = await blocking(lambda data=data: reception.add(data))  # type: ignore[misc]


async def _next(requests: AsyncIterator[bytes]) -> PushUp:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return fleet_codec.decode_push(await anext(requests))
    except TimeoutError:
        raise LinkLost("the push went silent", why=f"nothing came for {PATIENCE_S:g} s") from None
    except StopAsyncIteration:
        raise LinkLost("the push ended before all was sent") from None
