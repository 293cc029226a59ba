"""A pairing over gRPC: the port that is open while an invitation lasts, and the device's call.

The port shows a certificate that it made for this once, and that nobody has reason to believe:
both sides put it into what the code proves (`pairing.py`), so that the TLS connection ends where
the code was shown, or nothing is paired.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from outrider import transport
from outrider.errors import (
    CloudUnreachable,
    LinkLost,
    OutriderError,
    RemoteProtocolError,
)
from outrider.options import Address
from outrider.privacy.certificates import Wanted, der, ephemeral
from outrider.privacy.identity import Identity
from outrider.privacy.pairing import Invitation, Inviter, Issue, Joiner, Paired
from outrider.protocol import faults

METHOD = "/outrider.v1.Pairing/Pair"
TLS_NAME = "pairing.outrider"
STEP_S = 10.0
"""For each message: a device that stays silent does not hold the code for long."""
OPTIONS = (("grpc.max_receive_message_length", 1 << 16), ("grpc.so_reuseport", 0))


@dataclass(slots=True)
class Port:
    """The cloud's side. `tell` hears of each code that is to be shown, and of None at the end."""

    identity: Identity
    authority: bytes
    """PEM."""
    address: str
    """Where the cloud itself serves, as devices are told."""
    issue: Issue
    clock: Callable[[], float]
    tell: Callable[[str | None], None]
    now: float
    """Seconds since 1970, for the certificate."""
    invitation: Invitation = field(init=False)
    done: asyncio.Future[Paired] = field(init=False)
    """The device; or why there will be none."""
    port: int = 0
    """Where it waits, once it does."""
    _tls: bytes = b""

    async def serve(self, listen: Address, stack: AsyncExitStack) -> str:
        """Bind and serve until the stack ends; where. Raises PortInUse."""
        leaf = ephemeral(TLS_NAME, self.now)
        self._tls = der(leaf.pem)
        self.done = asyncio.get_running_loop().create_future()
        server = grpc.aio.server(options=OPTIONS)
        method: Any = grpc.stream_stream_rpc_method_handler(self._pair)
        service, name = METHOD[1:].split("/")
        handler = grpc.method_handlers_generic_handler(service, {name: method})
        server.add_generic_rpc_handlers((handler,))
        tls = grpc.ssl_server_credentials([(leaf.key, leaf.pem)])
        address = transport.bind(server, listen, tls, "invitation")
        await server.start()
        stack.push_async_callback(server.stop, 1.0)
        self.port = Address.parse(address, 0).port
        self.invitation = Invitation(self.clock())
        self.tell(self.invitation.code)
        return address

    async def _pair(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        try:
            await self._attempt(requests, context)
        except OutriderError as error:
            trailing = ((faults.METADATA, faults.pack(error)),)
            await context.abort(grpc.StatusCode[error.grpc_status], error.what, trailing)

    async def _attempt(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        # Whoever knocks uses the code up, so that nobody can try it twice.
        code = self.invitation.use(self.clock())
        inviter = Inviter(self.identity, self.authority, self.address, code, self._tls)
        failed: OutriderError | None = None
        try:
            await context.write(inviter.hello(await _next(requests)))
            while inviter.paired is None:
                await context.write(inviter.turn(await _next(requests), self.issue))
        except OutriderError as error:
            failed = error
            raise
        finally:
            self._ended(inviter.paired, failed)

    def _ended(self, paired: Paired | None, failed: OutriderError | None) -> None:
        if self.done.done():
            return
        if paired is not None:
            self.done.set_result(paired)
            return
        code = self.invitation.renew(self.clock())
        self.tell(code)
        if code is None:
            self.done.set_exception(failed or LinkLost("the device went away"))


async def _next(requests: AsyncIterator[bytes]) -> bytes:
    try:
        async with asyncio.timeout(STEP_S):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration):
        raise LinkLost(
            "the device went away while it was being paired", effect="nothing was paired"
        ) from None


async def join(
    address: Address, identity: Identity, name: str, code: str, wanted: Wanted
) -> Paired:
    """The device's side. Raises PeerUntrusted for a wrong code, AccessDenied for one that is
    over, CloudUnreachable, RemoteProtocolError."""
    shown = await transport.shown(address, STEP_S)
    root = ssl_pem(shown)
    options = (("grpc.ssl_target_name_override", TLS_NAME),)
    channel = transport.channel(address, transport.channel_tls(root), options)
    joiner = Joiner(identity, name, wanted.request, code, shown)
    try:
        async with asyncio.timeout(STEP_S * 3):
            return await _talk(channel, joiner)
    except TimeoutError:
        raise CloudUnreachable(
            "the invitation does not answer", effect="nothing was paired"
        ) from None
    except grpc.aio.AioRpcError as error:
        raise _typed(error) from None
    finally:
        await channel.close()


async def _talk(channel: grpc.aio.Channel, joiner: Joiner) -> Paired:
    method: Any = channel.stream_stream(METHOD)
    call = method()
    try:
        await call.write(joiner.hello())
        said: bytes | Paired = joiner.welcome(await _read(call))
        while not isinstance(said, Paired):
            await call.write(said)
            said = joiner.turn(await _read(call))
        await call.done_writing()
    except asyncio.InvalidStateError:
        # A write on a call that ended; its status says why.
        await call.read()
        raise RemoteProtocolError("the pairing ended early") from None
    finally:
        call.cancel()
    return said


async def _read(call: Any) -> bytes:
    data = await call.read()
    if data is grpc.aio.EOF:
        raise RemoteProtocolError("the pairing ended early", effect="nothing was paired")
    found: bytes = data
    return found


def ssl_pem(certificate: bytes) -> bytes:
    import ssl

    return ssl.DER_cert_to_PEM_cert(certificate).encode()


def _typed(error: grpc.aio.AioRpcError) -> OutriderError:
    for key, value in error.trailing_metadata() or ():
        if key == faults.METADATA and isinstance(value, bytes):
            return faults.unpack(value)
    return CloudUnreachable(
        "the invitation can not be reached",
        why=f"gRPC says {error.code().name.lower().replace('_', ' ')}",
        effect="nothing was paired",
        todo="outrider link invite, on the cloud's machine, says where it waits",
    )
