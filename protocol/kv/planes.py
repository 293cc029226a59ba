"""Arrays to streams of bytes and back: packed to their bits, or in planes that zstd makes smaller.

Packed symbols stand in pieces of 8, 4, 2 and 1 bits: six bits are a piece of four and one of two.
In the lossless stage every byte of a float is a plane, and every symbol a byte: zstd then has
streams of one kind, whose entropy coder does the packing. A plane that it can not make smaller
is stored; nothing in a stream asks for more memory than its reader says beforehand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.errors import ConfigError, RemoteProtocolError
from outrider.protocol.kv.groups import Symbols

COMPRESSION = 1
"""Levels above gave nothing on symbols, and cost five times the time."""
_LENGTH = struct.Struct("<I")
_PIECES = (8, 4, 2, 1)


def malformed(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "a KV object can not be read", why=why, effect="nothing of it was used"
    )


class Cursor:
    """Goes through bytes of a stranger; never past their end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise malformed("it is cut")
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        if self._at != len(self._data):
            raise malformed("a part of it is longer than what it holds")


# --- bits --------------------------------------------------------------------------------------


def bits_of(steps: int) -> int:
    return max(1, (steps - 1).bit_length())


def pieces(bits: int) -> Iterator[tuple[int, int]]:
    """Width and shift of each piece of a symbol, the lowest bits first."""
    shift = 0
    for width in _PIECES:
        if bits & width:
            yield width, shift
            shift += width


def packed(symbols: Symbols, bits: int) -> bytes:
    """`bits` of each symbol, flat."""
    flat = symbols.reshape(-1)
    return b"".join(_folded(flat, width, shift) for width, shift in pieces(bits))


def _folded(flat: Symbols, width: int, shift: int) -> bytes:
    """The parts of the stream lie over one another: byte i has symbols i, i + n, i + 2 n ..."""
    if width == 8:
        return flat.tobytes()
    rows = 8 // width
    count = -(-len(flat) // rows)
    piece = (flat >> shift) & ((1 << width) - 1)
    if len(piece) < rows * count:
        piece = np.concatenate([piece, np.zeros(rows * count - len(piece), np.uint8)])
    parts = piece.reshape(rows, count)
    out = parts[0].copy()
    for row in range(1, rows):
        out |= parts[row] << (row * width)
    folded: bytes = out.tobytes()
    return folded


def unpacked(source: Cursor, count: int, bits: int) -> Symbols:
    out = np.zeros(count, np.uint8)
    for width, shift in pieces(bits):
        _unfold(out, source, width, shift)
    return out


def _unfold(out: Symbols, source: Cursor, width: int, shift: int) -> None:
    rows = 8 // width
    count = -(-len(out) // rows)
    folded = np.frombuffer(source.take(count), np.uint8)
    for row in range(rows):
        part = out[row * count : (row + 1) * count]
        piece = folded[: len(part)] >> (row * width)
        if row + 1 < rows:
            piece &= (1 << width) - 1
        part |= piece << shift


# --- the lossless stage ------------------------------------------------------------------------


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError(
            "the lossless stage of KV codecs is not installed",
            why="the library zstandard could not be imported",
            effect="nothing was coded or decoded",
            todo='pip install "outrider[edge]", or choose a codec without +zstd',
        ) from None
    return zstandard


class Squeezer:
    """Planes compressed one by one."""

    def __init__(self) -> None:
        self._coder = _zstandard().ZstdCompressor(level=COMPRESSION, write_content_size=True)

    def planes(self, values: NDArray[Any]) -> bytes:
        """Every byte of the items a plane, lowest first."""
        flat = np.ascontiguousarray(values).reshape(-1)
        split = flat.view(np.uint8).reshape(-1, flat.itemsize)
        return b"".join(self._plane(split[:, byte].tobytes()) for byte in range(flat.itemsize))

    def _plane(self, plain: bytes) -> bytes:
        small = self._coder.compress(plain)
        body = small if len(small) < len(plain) else plain
        return _LENGTH.pack(len(body)) + body


class Expander:
    """What `Squeezer` made, of sizes that are known beforehand."""

    def __init__(self) -> None:
        self._library = _zstandard()
        self._decoder = self._library.ZstdDecompressor()

    def planes(self, source: Cursor, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        out = np.empty((count, dtype.itemsize), np.uint8)
        for byte in range(dtype.itemsize):
            out[:, byte] = np.frombuffer(self._plane(source, count), np.uint8)
        return out.reshape(-1).view(dtype)

    def _plane(self, source: Cursor, size: int) -> bytes | memoryview:
        (length,) = _LENGTH.unpack(source.take(_LENGTH.size))
        if length > size:
            raise malformed("a plane is longer than what it holds")
        body = source.take(length)
        return body if length == size else self._expanded(body, size)

    def _expanded(self, body: memoryview, size: int) -> bytes:
        """A frame says how much it holds, and the library would allocate that much."""
        error = self._library.ZstdError
        try:
            if self._library.frame_content_size(body) != size:
                raise malformed("a plane does not hold what it should")
            plain: bytes = self._decoder.decompress(body, size, allow_extra_data=False)
        except (error, MemoryError, ValueError):
            raise malformed("a plane can not be expanded") from None
        if len(plain) != size:
            raise malformed("a plane does not hold what it should")
        return plain
