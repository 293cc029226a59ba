"""What a hostile or odd network does to a byte stream: pieces for the proxy's ways.

A mangler takes the bytes that are delivered at one moment and gives what is written instead,
one write after the other. It lives as long as one direction of one connection, so the proxy is
given factories (`lambda: Slicer(1)`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

Mangler = Callable[[bytes], Iterable[bytes]]
ManglerFactory = Callable[[], Mangler]


@dataclass(frozen=True, slots=True)
class Slicer:
    """Writes at most `size` bytes at a time."""

    size: int = 1

    def __call__(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), self.size):
            yield data[start : start + self.size]


@dataclass(slots=True)
class BitFlip:
    """Turns one bit of the stream around."""

    offset: int
    """Which byte of the stream, from 0."""
    bit: int = 0
    """Which bit of the byte, 0 is the lowest."""
    passed: int = field(default=0, init=False)

    def __call__(self, data: bytes) -> Iterator[bytes]:
        place = self.offset - self.passed
        self.passed += len(data)
        if 0 <= place < len(data):
            flipped = bytearray(data)
            flipped[place] ^= 1 << self.bit
            data = bytes(flipped)
        yield data


def mangle(data: bytes, manglers: Iterable[Mangler]) -> Iterable[bytes]:
    """Passes data through the manglers in turn."""
    pieces: Iterable[bytes] = (data,)
    for mangler in manglers:
        pieces = [out for piece in pieces for out in mangler(piece)]
    return pieces
