"""What a router may see of a sealed session, under a key that it was given. No I/O.

Two sessions whose prompts begin alike have marks alike, so that a router can send them to one
replica, whose prefix cache then serves both. Without the key nobody can tell what begins alike
with a guess. The number of marks follows from the length that is told, so it tells nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from outrider.protocol.codec import pack_ids

KEY = 32
BLOCK = 64
"""Tokens of a prompt's block."""
BLOCKS = (1, 2, 4, 8)
"""Beginnings that are marked, in blocks."""
MARK = 8
"""Bytes of a mark."""
MARKS, LENGTH = "outrider-route", "outrider-length"
"""Names in the call's metadata."""
_NAME = b"outrider route v1\x00"


def header(key: bytes, model: str, prompt: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Metadata of a session's call: marks in hex, shortest beginning first, with dots between,
    and the greatest power of two that is not above the prompt's length."""
    ends = [count * BLOCK for count in BLOCKS if count * BLOCK <= bucket(len(prompt))]
    marks = ".".join(mark(key, model, prompt[:end]) for end in ends)
    length = (LENGTH, str(bucket(len(prompt))))
    return (((MARKS, marks), length)) if marks else (length,)


def mark(key: bytes, model: str, beginning: Sequence[int]) -> str:
    text = _NAME + model.encode() + b"\x00" + pack_ids(beginning)
    return hmac.new(key, text, hashlib.sha256).digest()[:MARK].hex()


def bucket(length: int) -> int:
    return 1 << (length.bit_length() - 1) if length else 0
