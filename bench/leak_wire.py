"""What a wire shows of sessions: gRPC messages, taken out of the HTTP/2 that a proxy passes on.

TLS would hide what is in them, and show sizes, order and times alike. Nothing here reads more
than that, except `bare`, which the control with padding switched off needs.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from outrider.protocol import codec
from outrider.protocol import wire_pb2 as pb
from outrider.protocol.messages import Commit, Down, Hint, Up
from outrider.protocol.vocabulary import Vocabulary

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _PADDED = 0, 0x8
_HEAD = struct.Struct(">BHBBI")
_GRPC = struct.Struct(">BI")

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Message:
    """One gRPC message of a session; `t` in seconds, of the clock of this process."""

    direction: Direction
    t: float
    body: bytes


@dataclass(slots=True)
class Tap:
    """A mangler of the proxy that changes nothing and notes what passes in one direction."""

    direction: Direction
    capture: Capture
    _rest: bytearray = field(default_factory=bytearray)
    _begun: bool = False
    _streams: dict[int, bytearray] = field(default_factory=dict)

    def __call__(self, data: bytes) -> Iterable[bytes]:
        now = time.perf_counter()
        self._rest += data
        for stream, body in self._messages():
            self.capture.note(stream, Message(self.direction, now, body))
        yield data

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        for stream, part in self._frames():
            held = self._streams.setdefault(stream, bytearray())
            held += part
            while len(held) >= _GRPC.size:
                _, size = _GRPC.unpack_from(held)
                if len(held) < _GRPC.size + size:
                    break
                yield stream, bytes(held[_GRPC.size : _GRPC.size + size])
                del held[: _GRPC.size + size]

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """What DATA frames hold, by stream; the rest waits for more bytes."""
        if self.direction == "up" and not self._begun:
            if len(self._rest) < len(_PREFACE):
                return
            assert self._rest.startswith(_PREFACE), "this is not HTTP/2"
            del self._rest[: len(_PREFACE)]
            self._begun = True
        while len(self._rest) >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._rest)
            end = _HEAD.size + (high << 16 | low)
            if len(self._rest) < end:
                return
            body = bytes(self._rest[_HEAD.size : end])
            del self._rest[:end]
            if kind == _DATA:
                yield stream, body[1 : len(body) - body[0]] if flags & _PADDED else body


@dataclass(slots=True)
class Capture:
    """Everything that passed since `clear`, by stream."""

    streams: dict[int, list[Message]] = field(default_factory=dict)

    def note(self, stream: int, message: Message) -> None:
        self.streams.setdefault(stream, []).append(message)

    def clear(self) -> None:
        self.streams = {}

    def session(self) -> list[Message]:
        """The one session that ran: its stream begins with an open, the only padded message."""
        found = [
            messages
            for messages in self.streams.values()
            if messages[0].direction == "up" and len(messages[0].body) >= codec.MIN_OPEN
        ]
        assert len(found) == 1, f"{len(found)} sessions were captured, not one"
        return found[0]


def bare(message: Message, slots: int, vocabulary: Vocabulary) -> int:
    """Bytes of the message if sizes followed content: an open without padding, hints and commits
    with their tokens as text and nothing more."""
    heard: Up | Down
    if message.direction == "up":
        wire = pb.Up.FromString(message.body)
        if wire.WhichOneof("kind") == "open":
            wire.open.ClearField("padding")
            return wire.ByteSize()
        heard = codec.decode_up(message.body, slots)
    else:
        heard = codec.decode_down(message.body, slots, None)
    if not isinstance(heard, Hint | Commit):
        return len(message.body)
    return 16 + sum(len(vocabulary.tokens[token]) for token in heard.tokens)
