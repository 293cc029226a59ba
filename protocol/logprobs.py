"""Logprobs of a row as fixed-width bytes: the chosen id's, then id and value of each of the best.

Little-endian. Commits carry 32-bit floats, stages hand on 64-bit ones; the rest is one layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Literal

from outrider.protocol.sampling import TokenLogprobs

NO_ID = 2**32 - 1
"""Fills the places that a small vocabulary leaves."""

Width = Literal["f", "d"]
"""`struct`'s code of a value: 4 bytes or 8."""


def size(top: int, width: Width) -> int:
    """Bytes of a row with so many of the best."""
    each = struct.calcsize(f"<{width}")
    return each + top * (4 + each)


def pack(row: TokenLogprobs, top: int, width: Width) -> bytes:
    """Raises struct.error for an id that does not fit."""
    best = [*row.top[:top], *[(NO_ID, 0.0)] * (top - len(row.top))]
    pairs = b"".join(struct.pack(f"<I{width}", i, value) for i, value in best)
    return struct.pack(f"<{width}", row.chosen) + pairs


def unpack(data: bytes, at: int, top: int, width: Width) -> TokenLogprobs:
    """The row that begins at byte `at`; there are enough bytes."""
    (chosen,) = struct.unpack_from(f"<{width}", data, at)
    flat = struct.unpack_from("<" + f"I{width}" * top, data, at + struct.calcsize(f"<{width}"))
    best = zip(flat[::2], flat[1::2], strict=True)
    return TokenLogprobs(chosen, tuple((i, value) for i, value in best if i != NO_ID))


def sound(rows: Iterable[TokenLogprobs]) -> bool:
    """Whether every value is a number, and none is above 0."""
    return all(value <= 0.0 for row in rows for value in _values(row))


def _values(row: TokenLogprobs) -> Iterator[float]:
    yield row.chosen
    yield from (value for _, value in row.top)
