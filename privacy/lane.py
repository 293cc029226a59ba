"""A sealed stream after its handshake: messages to frames and back, in either role. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outrider.errors import RemoteProtocolError, SealBroken
from outrider.privacy.frames import OVERHEAD
from outrider.privacy.handshake import Channel
from outrider.protocol.messages import Frame

MESSAGE = 1
"""The only kind of frame: what a message is stands inside."""


@dataclass(frozen=True, slots=True)
class Lane:
    """`clock`: seconds, monotonic, for the change of keys."""

    channel: Channel
    clock: Callable[[], float]

    def seal(self, message: bytes) -> Frame:
        """In the order in which frames are sent."""
        return Frame(self.channel.sender.seal(MESSAGE, message, self.clock()))

    def open(self, message: object) -> bytes:
        """An encoded message. Raises SealBroken; RemoteProtocolError for one in the clear."""
        if not isinstance(message, Frame):
            raise in_the_clear(message)
        kind, data = self.channel.receiver.open(message.data)
        if kind != MESSAGE:
            raise SealBroken("a frame of the sealed channel is of no known kind")
        return data


def sealed_size(size: int) -> int:
    """Bytes of the wire message whose frame holds a message of so many bytes."""
    whole = size + OVERHEAD
    return 1 + max(1, -(-whole.bit_length() // 7)) + whole


def in_the_clear(message: object) -> RemoteProtocolError:
    """Whoever stands between could have written it."""
    return RemoteProtocolError(
        f"a {type(message).__name__.lower()} came in the clear on a sealed stream",
        effect="it was not read, and the session ends",
        todo="the session goes on over a new connection with new keys",
    )
