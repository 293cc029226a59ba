"""Certificates of paired links are renewed long before they end, and nothing stops for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc.aio

from outrider import paths
from outrider.edge.link import Link, Peer, reason
from outrider.errors import ConfigError, OutriderError
from outrider.options import CloudLink, EdgeOptions
from outrider.privacy import keys
from outrider.privacy.certificates import Life, Wanted
from outrider.privacy.identity import Identity
from outrider.privacy.renewal import METHOD, Renewal
from outrider.protocol import events

LOOK_S = 600.0
"""Between two looks at whose certificate is due."""
CALL_S = 10.0


def now() -> float:
    """Seconds since 1970: what certificates count in."""
    return time.clock_gettime(time.CLOCK_REALTIME)


async def run(
    link: Link,
    options: Callable[[], EdgeOptions],
    publish: Callable[[events.Event], None],
    clock: Callable[[], float] = now,
) -> None:
    """Until it is cancelled. What fails is told, and tried again at the next look."""
    while True:
        for one in options().links:
            try:
                await renew(link, one, options(), clock())
            except OutriderError as error:
                what = f"the certificate of link {one.name} was not renewed: {error.what}"
                publish(events.Trouble(code=error.code, what=what))
        await asyncio.sleep(LOOK_S)


async def renew(link: Link, one: CloudLink, options: EdgeOptions, at: float) -> bool:
    """One look at one link; whether it has a new certificate. Raises what kept it from one."""
    peer = next((peer for peer in link.peers if peer.name == one.name), None)
    if not one.paired or one.cert is None or peer is None or not _due(one, at):
        return False
    identity = keys.identity(keys.here(), "device")
    leaf = await _ask(peer, identity)
    # Certificate and key lie in one file, so that nobody finds one of each.
    paths.write_atomically(one.cert, leaf)
    link.renewed(one, options)
    return True


def _due(one: CloudLink, at: float) -> bool:
    assert one.cert is not None
    try:
        return Life.of(one.cert.read_bytes()).due(at)
    except OSError as error:
        raise ConfigError(
            f"the certificate of link {one.name!r} can not be read: {error.strerror}",
            effect="the link can not be used",
            todo="pair again: outrider link add NAME URL --pair",
        ) from None


async def _ask(peer: Peer, identity: Identity) -> bytes:
    """Certificate and key, PEM. Raises LinkError, AccessDenied, SealError."""
    wanted = Wanted.make()
    method: Any = peer.channel.unary_unary(METHOD)
    call = method(Renewal.asked(identity, wanted.request), timeout=CALL_S)
    try:
        return wanted.granted(await call).both
    except grpc.aio.AioRpcError:
        raise await reason(call) from None
