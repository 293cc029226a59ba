"""The cloud's side of the sealed channel: who may speak, and one stream that is sealed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from outrider.errors import HandshakeRefused
from outrider.options import CloudOptions
from outrider.privacy import bound, channel_files
from outrider.privacy.channel_files import Devices
from outrider.privacy.handshake import PACE, Binding, Pace, Responder
from outrider.privacy.identity import Identity
from outrider.privacy.lane import Lane, in_the_clear
from outrider.protocol import codec
from outrider.protocol.account import Account
from outrider.protocol.messages import (
    Accept,
    Commit,
    Down,
    Finish,
    Hello,
    ModelDescription,
    Open,
    Up,
)
from outrider.protocol.state import Ledger

Exchange = Callable[[Down], Awaitable[Up]]
"""Send a message in the clear and wait for the next."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """What opened a session: in the clear, or sealed."""

    first: Up
    lane: Lane | None = None
    binding: Binding | None = None

    def check(self, opening: Open, model: ModelDescription, authorization: str) -> None:
        """Raises HandshakeRefused or SealBroken when the keys were made for something else."""
        if self.binding is not None:
            bound.check(self.binding, bound.bind(opening, model, authorization))

    def sealed(self, opening: Open) -> Sealed | None:
        return None if self.lane is None else Sealed(self.lane, Account(opening), opening)


@dataclass(frozen=True, slots=True)
class Door:
    """Without an identity no session can be sealed."""

    identity: Identity | None = None
    known: Callable[[bytes], bool] = lambda public: False
    required: bool = False
    pace: Pace = PACE
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, options: CloudOptions) -> Door:
        """Raises ConfigError, SealError."""
        if options.channel_identity is None or options.channel_devices is None:
            return cls()
        return cls(
            channel_files.identity(options.channel_identity, "--channel-identity"),
            Devices.of(options.channel_devices).knows,
            options.channel == "required",
        )

    async def greet(self, first: Up, exchange: Exchange) -> Greeted:
        """Raises HandshakeRefused where one side wants it sealed and the other can not or will
        not; PeerUntrusted, SealBroken, RemoteProtocolError."""
        if isinstance(first, Hello):
            return await self._shake(first, exchange)
        if self.required and isinstance(first, Open):
            raise HandshakeRefused(
                "channel",
                ours="sealed",
                theirs="plain",
                todo="pair the device with this cloud, or give it --channel-pin",
            )
        return Greeted(first)

    async def _shake(self, hello: Hello, exchange: Exchange) -> Greeted:
        if self.identity is None:
            raise HandshakeRefused(
                "channel",
                ours="plain",
                theirs="sealed",
                todo="start the cloud with --channel-identity and --channel-devices",
            )
        responder = Responder(self.identity, self.known, self.pace)
        answer = await exchange(Accept(responder.accept(hello.data)))
        if not isinstance(answer, Finish):
            raise in_the_clear(answer)
        binding, payload, channel = responder.finished(answer.data, self.clock())
        return Greeted(codec.decode_up(payload, 8), Lane(channel, self.clock), binding)


@dataclass(frozen=True, slots=True)
class Sealed:
    """One stream after its handshake."""

    lane: Lane
    account: Account
    opening: Open

    def seal(self, message: Down, ledgers: Callable[[int], Ledger]) -> bytes:
        """A message as it is sent; what goes into a commit's check is what the ledger holds."""
        if isinstance(message, Commit):
            message = self.account.stamp(message, ledgers(message.choice).tokens)
        slots, top = self.opening.slots, self.opening.top_logprobs
        inner = codec.encode_down(message, slots, top)
        return codec.encode_down(self.lane.seal(inner), slots, top)

    def open(self, outer: Up) -> Up:
        """What came in a frame. Raises SealBroken, RemoteProtocolError."""
        return codec.decode_up(self.lane.open(outer), self.opening.slots)
