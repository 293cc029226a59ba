"""What a sealed piece of KV is: said once, as the context it is sealed under.

A piece that was swapped for one of another layer, range, session, tenant or epoch then does not
open at all; nobody has to remember to compare. Canonical: MessagePack of a fixed tuple.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

Purpose = Literal["wire", "disk", "tier"]
_PREFIX = b"outrider kv v1\x00"


class KvIdentity(msgspec.Struct, frozen=True, array_like=True):
    """Of one piece of KV; ranges are half open."""

    tenant: str
    session: bytes
    model_digest: str
    numeric_class: str
    layers: tuple[int, int]
    tokens: tuple[int, int]
    token_hash: bytes
    """Of the ids of [0, tokens[1]), by `token_hash`: what the keys and values were made from."""
    index: int
    """Of so many pieces of this transfer."""
    count: int
    epoch: int
    """Rises when what was stored before must not be taken any more."""
    purpose: Purpose
    codec: str = "raw"

    def context(self) -> bytes:
        return _PREFIX + msgspec.msgpack.encode(self)


def token_hash(ids: tuple[int, ...]) -> bytes:
    """SHA-256 over the ids as 32-bit little-endian words, and their number."""
    body = b"".join(token.to_bytes(4, "little") for token in ids)
    return hashlib.sha256(len(ids).to_bytes(8, "little") + body).digest()
