"""A worker that joins a coordinator by itself, and stays as long as it serves."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from outrider import transport
from outrider.errors import OutriderError
from outrider.options import Address
from outrider.protocol import fleet_codec
from outrider.protocol.fleet import JoinReply, JoinRequest
from outrider.stages.channel import CHANNEL_OPTIONS, CONNECT_S, JOIN, Credentials, reason

SHARE = 3
"""Of a lease, until it is renewed."""
PAUSES_S = (0.5, 10.0)
"""First and longest pause after a try that failed; doubled each time."""


def fresh_key() -> str:
    """What the coordinator is told to show this worker."""
    return secrets.token_urlsafe(32)


@dataclass(slots=True)
class Joiner:
    """`run` in a task; `leave` before the worker ends. `tell` is given lines for people."""

    coordinator: Address
    request: JoinRequest
    credentials: Credentials
    tell: Callable[[str], None]
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    _said: str = ""

    async def run(self) -> None:
        """Join, and join again before the lease ends, until cancelled. A coordinator that is
        away is tried again and again."""
        pause = PAUSES_S[0]
        while True:
            try:
                reply = await self._ask(self.request)
            except OutriderError as error:
                self._changed(f"could not join {self.coordinator}: {_line(error)}")
                await asyncio.sleep(pause)
                pause = min(PAUSES_S[1], pause * 2)
                continue
            pause = PAUSES_S[0]
            self._changed(f"joined {self.coordinator}{_splits(reply)}, called at {reply.address}")
            self.joined.set()
            await asyncio.sleep(reply.lease_ms / 1e3 / SHARE)

    async def leave(self) -> None:
        """Tell the coordinator to plan without; whether it heard does not matter any more. What
        `run` goes on to say is the same."""
        self.request = replace(self.request, leaving=True)
        if self.joined.is_set():
            try:
                await self._ask(self.request)
            except OutriderError:
                return

    async def _ask(self, request: JoinRequest) -> JoinReply:
        """Raises LinkLost, AccessDenied, ConfigError, HandshakeRefused."""
        tls = self.credentials.tls
        async with transport.channel(self.coordinator, tls, CHANNEL_OPTIONS) as channel:
            method: Any = channel.unary_unary(JOIN)
            data = fleet_codec.encode_join(request)
            call = method(data, metadata=self.credentials.metadata, timeout=CONNECT_S)
            try:
                return fleet_codec.decode_joined(await call)
            except grpc.aio.AioRpcError:
                raise await reason(call, "no coordinator answers there") from None

    def _changed(self, line: str) -> None:
        """Each state once."""
        if line != self._said:
            self._said = line
            self.tell(line)


def _splits(reply: JoinReply) -> str:
    names = ", ".join(model.name for model in reply.models)
    return f", which splits {names}" if names else ""


def _line(error: OutriderError) -> str:
    parts = (error.what, error.why, error.todo and f"try: {error.todo}")
    return "; ".join(part for part in parts if part)
