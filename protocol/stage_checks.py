"""What the codecs of stage messages check of foreign numbers, and of our own."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar

from outrider.errors import HandshakeRefused, LocalProtocolError, RemoteProtocolError
from outrider.protocol.codec import MAX_NAME, OLDEST_VERSION
from outrider.protocol.messages import VERSION
from outrider.protocol.stages import TICKET_BYTES

MAX_LISTED = 256
"""Models, loaded stages, engines, options and files that are listed."""
MAX_AUTHORITY = 64 << 10

T = TypeVar("T")


def bad(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(what, effect="the message was dropped and the stage's stream ends")


def need(holds: object, what: str) -> None:
    if not holds:
        raise bad(what)


def flag(value: int) -> bool:
    need(value <= 1, "a flag is neither 0 nor 1")
    return value == 1


def fitting(build: Callable[[], T]) -> T:
    """What is built of our own numbers. Raises LocalProtocolError where one does not fit."""
    try:
        return build()
    except (struct.error, ValueError, OverflowError, TypeError):
        raise LocalProtocolError("a number of a stage message does not fit its field") from None


def check_version(version: int, *, worker: bool) -> None:
    """`worker`: whether the peer is one, for which side the refusal names as which."""
    if not OLDEST_VERSION <= version <= VERSION:
        sides = (version, VERSION) if worker else (VERSION, version)
        raise HandshakeRefused(
            "protocol version",
            ours=str(sides[0]),
            theirs=str(sides[1]),
            todo="run the same release of outrider on both sides",
        )


def check_names(*names: str) -> None:
    need(max(map(len, names), default=0) <= MAX_NAME, "a name is too long")


def check_ticket(ticket: bytes) -> None:
    need(len(ticket) == TICKET_BYTES, "a ticket has another length")
