"""What a KV object says of itself, and where in it which tokens are.

Little-endian: the head of `_HEAD`, one 32-bit size for each section, then the sections. A
section is a run of tokens that can be read alone: the first tokens that are kept whole, blocks,
and the latest that are kept whole. Format 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from outrider.protocol.kv.floats import DTYPES, Dtype, stored_as
from outrider.protocol.kv.level import Coding, Steps
from outrider.protocol.kv.planes import malformed

FORMAT = 1
MAGIC = b"ORKV"
MAX_TOKENS = 1 << 21
MAX_SECTIONS = (1 << 16) + 2
MAX_STEPS = 256
_HEAD = struct.Struct("<4sHBBBBHHHHHHHIIII")
HEAD_BYTES = _HEAD.size
_CODINGS: tuple[Coding, ...] = get_args(Coding)
_STEPS: tuple[Steps, ...] = get_args(Steps)


@dataclass(frozen=True, slots=True)
class Section:
    """Tokens [start, stop) of an object."""

    start: int
    stop: int
    coding: Coding


@dataclass(frozen=True, slots=True)
class Header:
    dtype: Dtype
    """The engine's; what is decoded has it again."""
    coding: Coding
    zstd: bool
    steps: Steps
    layers: int
    kv_heads: int
    head_dim: int
    block: int
    group: int
    key_steps: int
    value_steps: int
    start: int
    stop: int
    first: int
    """Tokens at this object's beginning that are kept whole."""
    last: int
    """Tokens at its end that are kept whole."""

    def sections(self) -> tuple[Section, ...]:
        """In order of tokens."""
        return tuple(self._sections())

    def _sections(self) -> Iterator[Section]:
        whole: Coding = "raw" if self.coding == "raw" else "fp16"
        low, high = self.start + self.first, self.stop - self.last
        if self.first:
            yield Section(self.start, low, whole)
        for at in range(low, high, self.block):
            yield Section(at, min(at + self.block, high), self.coding)
        if self.last:
            yield Section(high, self.stop, whole)

    @property
    def section_count(self) -> int:
        coded = self.stop - self.start - self.first - self.last
        return bool(self.first) + -(-coded // self.block) + bool(self.last)

    @property
    def token_values(self) -> int:
        """Numbers in one token's keys and values."""
        return self.layers * 2 * self.kv_heads * self.head_dim

    @property
    def token_bytes(self) -> int:
        """Of one token as the engine holds it."""
        return self.token_values * stored_as(self.dtype).itemsize

    def shape(self, tokens: int) -> tuple[int, int, int, int, int]:
        return (self.layers, 2, self.kv_heads, tokens, self.head_dim)


def written(header: Header, sizes: list[int]) -> bytes:
    """Head and table."""
    head = _HEAD.pack(
        MAGIC,
        FORMAT,
        DTYPES.index(header.dtype),
        _CODINGS.index(header.coding),
        header.zstd,
        _STEPS.index(header.steps),
        header.layers,
        header.kv_heads,
        header.head_dim,
        header.block,
        header.group,
        header.key_steps,
        header.value_steps,
        header.start,
        header.stop,
        header.first,
        header.last,
    )
    return head + struct.pack(f"<{len(sizes)}I", *sizes)


def parsed(head: bytes) -> Header:
    """The first `HEAD_BYTES` of an object. Raises RemoteProtocolError."""
    if len(head) < HEAD_BYTES:
        raise malformed("it is shorter than its head")
    magic, form, dtype, coding, zstd, steps, *sizes = _HEAD.unpack_from(head)
    if magic != MAGIC:
        raise malformed("it does not begin as one")
    if form != FORMAT:
        raise malformed(f"it has format {form}, and {FORMAT} is read here")
    if dtype >= len(DTYPES) or coding >= len(_CODINGS) or zstd > 1 or steps >= len(_STEPS):
        raise malformed("it names a code that there is not")
    found = Header(DTYPES[dtype], _CODINGS[coding], bool(zstd), _STEPS[steps], *sizes)
    _check(found)
    return found


def table(header: Header, data: bytes) -> tuple[int, ...]:
    """Sizes of the sections."""
    return struct.unpack(f"<{header.section_count}I", data)


def _check(h: Header) -> None:
    if not (h.layers and h.kv_heads and h.head_dim and h.block):
        raise malformed("a size in its head is 0")
    if not h.start < h.stop <= MAX_TOKENS or h.first + h.last > h.stop - h.start:
        raise malformed("its range of tokens makes no sense")
    if h.section_count > MAX_SECTIONS:
        raise malformed("it has more sections than an object may have")
    if h.coding != "groups":
        if h.group or h.key_steps or h.value_steps:
            raise malformed("its head speaks of groups, and it has none")
        return
    if not h.group or h.head_dim % h.group:
        raise malformed("its groups do not fill a head")
    if not (2 <= h.key_steps <= MAX_STEPS and 2 <= h.value_steps <= MAX_STEPS):
        raise malformed("its steps are not from 2 to 256")
    if h.steps == "symmetric" and not (h.key_steps % 2 and h.value_steps % 2):
        raise malformed("its symmetric steps are not odd")
