"""KV segments to bytes and back: `encode`, `decode`, and a `Reader` for parts of an object.

An object is a function of the segment and the level alone (with zstd, of the library's version
too; what is decoded is not). It is neither encrypted nor signed: it is sealed by whoever sends
it, `privacy.chunked` under a `privacy.kv_object.KvIdentity` that names the codec. Whoever
decodes trusts nothing in it even so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.engine import KvSegment
from outrider.errors import EngineFailed, LocalProtocolError
from outrider.protocol.kv import header as headers
from outrider.protocol.kv.floats import (
    DTYPES,
    HALF_MOST,
    Dtype,
    Stored,
    finite,
    narrow_into,
    stored_as,
    widen,
)
from outrider.protocol.kv.groups import Grouped, Halves, Symbols, quantized, restored
from outrider.protocol.kv.header import HEAD_BYTES, Header, Section
from outrider.protocol.kv.level import PLAIN, Level
from outrider.protocol.kv.planes import (
    Cursor,
    Expander,
    Squeezer,
    bits_of,
    malformed,
    packed,
    unpacked,
)

LIMIT = 1 << 30
"""Bytes that a decoder allocates at most for its result, and as many for scratch."""
SCRATCH = 24
"""Bytes of scratch for a value of the section at hand: symbols, scales, floats, whatever the
header says."""
BATCH = 1 << 16
"""Values that are worked on at a time: what a processor's cache holds."""
ReadAt = Callable[[int, int], bytes | bytearray | memoryview]
"""The object's bytes of [start, stop): of memory, a file, or a sealed object's reader."""


class _TooWide(Exception):
    """Values that float16 does not reach."""


# --- coding ------------------------------------------------------------------------------------


def encode(segment: KvSegment, level: Level, length: int | None = None) -> bytes:
    """A segment in canonical layout as an object.

    `length`: tokens of the whole context that the segment is a part of, for the recent tokens
    to be its latest; the segment's own end where it is not given. Values that are beyond what
    the level can hold make the object a raw one: its header says so. Raises EngineFailed for
    values that are not finite, LocalProtocolError for a segment that is not canonical.
    """
    array, dtype = canonical(segment)
    try:
        return _encoded(array, _header(segment, dtype, level, length))
    except _TooWide:
        if not finite(array, dtype):
            raise EngineFailed(
                "keys or values are not finite",
                why="the model's weights or its dtype do not suit it",
                effect="nothing was coded",
            ) from None
    raw = replace(PLAIN[0], zstd=level.zstd)
    return _encoded(array, _header(segment, dtype, raw, length))


def canonical(segment: KvSegment) -> tuple[Stored, Dtype]:
    """The segment's array [layer, 2, kv_head, token, head_dim], not copied."""
    dtype, shape = segment.dtype, segment.shape
    if segment.layout != "canonical" or dtype not in DTYPES:
        raise LocalProtocolError("only canonical KV in float16, bfloat16 or float32 is coded")
    known: Dtype = dtype
    stored = stored_as(known)
    size = int(np.prod(shape)) * stored.itemsize
    if len(shape) != 5 or shape[1] != 2 or shape[3] != segment.stop - segment.start:
        raise LocalProtocolError("the KV segment's shape is not that of its tokens")
    if len(segment.data) != size or not 0 < shape[3] or segment.stop > headers.MAX_TOKENS:
        raise LocalProtocolError("the KV segment has another size than its shape")
    if max(shape[0], shape[2], shape[4]) > 0xFFFF:
        raise LocalProtocolError("the KV segment is of a model beyond what an object can hold")
    return np.frombuffer(segment.data, stored).reshape(shape), known


def _header(segment: KvSegment, dtype: Dtype, level: Level, length: int | None) -> Header:
    layers, _, heads, count, dim = segment.shape
    start, stop = segment.start, segment.stop
    grouped = level.coding == "groups"
    first = min(max(0, level.first - start), count)
    latest = max(start, (length or stop) - level.recent)
    last = min(max(0, stop - latest), count - first)
    return Header(
        dtype=dtype,
        coding=level.coding,
        zstd=level.zstd,
        steps=level.steps,
        layers=layers,
        kv_heads=heads,
        head_dim=dim,
        block=level.block,
        group=_fitting(dim, level.group) if grouped else 0,
        key_steps=level.key_steps if grouped else 0,
        value_steps=level.value_steps if grouped else 0,
        start=start,
        stop=stop,
        first=first,
        last=last,
    )


def _fitting(dim: int, group: int) -> int:
    """The largest group up to the wanted one that fills a head."""
    return next(size for size in range(min(group, dim), 0, -1) if dim % size == 0)


def _encoded(array: Stored, header: Header) -> bytes:
    writer = _Writer(header)
    bodies = [writer.section(array, section) for section in header.sections()]
    return b"".join([headers.written(header, [len(body) for body in bodies]), *bodies])


class _Writer:
    def __init__(self, header: Header) -> None:
        self._header = header
        self._squeezer = Squeezer() if header.zstd else None

    def section(self, array: Stored, section: Section) -> bytes:
        low, high = section.start - self._header.start, section.stop - self._header.start
        part = array[:, :, :, low:high]
        match section.coding:
            case "raw":
                if not finite(part, self._header.dtype):
                    raise _TooWide
                return self._floats(part)
            case "fp16":
                return self._floats(self._halves(part))
            case "groups":
                return b"".join(
                    self._groups(part[:, which], kind)
                    for which, kind in enumerate(kinds(self._header))
                )

    def _halves(self, part: Stored) -> Halves:
        if self._header.dtype == "float16":
            halves = part
        else:
            wide = widen(part, self._header.dtype)
            if not (np.abs(wide) <= HALF_MOST).all():
                raise _TooWide
            halves = np.empty(part.shape, np.float16)
            narrow_into(halves, wide, "float16")
        if not finite(halves, "float16"):
            raise _TooWide
        return halves

    def _groups(self, part: Stored, kind: Kind) -> bytes:
        """`part`: keys or values of a section, [layer, kv_head, token, head_dim]."""
        found = [self._quantized(part[layers], kind) for layers in batches(part.shape)]
        steps = np.concatenate([g.step for g in found])
        lows = [g.low for g in found if g.low is not None]
        scales = [steps, np.concatenate(lows)] if lows else [steps]
        symbols = np.concatenate([g.symbols for g in found])
        return b"".join([*map(self._floats, scales), self._symbols(symbols, kind)])

    def _quantized(self, part: Stored, kind: Kind) -> Grouped:
        dtype = self._header.dtype
        if dtype == "float16" and not finite(part, dtype):
            raise _TooWide
        wide = widen(part, dtype).reshape(kind.grouped(part.shape))
        found = quantized(wide, kind.axis, kind.steps, self._header.steps)
        if found is None:
            raise _TooWide
        return found

    def _floats(self, values: NDArray[Any]) -> bytes:
        return self._squeezer.planes(values) if self._squeezer else values.tobytes()

    def _symbols(self, symbols: Symbols, kind: Kind) -> bytes:
        if self._squeezer:
            return self._squeezer.planes(symbols)
        return packed(symbols, bits_of(kind.steps))


# --- what both sides know ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """How the groups of keys, or of values, lie."""

    steps: int
    group: int
    """Of values along the head; 0 for keys, whose groups are a channel over the section."""

    @property
    def axis(self) -> int:
        return 4 if self.group else 2

    def grouped(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of [layer, kv_head, token, head_dim] with the groups along `axis`."""
        if not self.group:
            return tuple(shape)
        return (*shape[:3], shape[3] // self.group, self.group)

    def scales(self, shape: Sequence[int]) -> tuple[int, ...]:
        grouped = self.grouped(shape)
        return (*grouped[: self.axis], 1, *grouped[self.axis + 1 :])


def kinds(header: Header) -> tuple[Kind, Kind]:
    return Kind(header.key_steps, 0), Kind(header.value_steps, header.group)


def batches(shape: Sequence[int]) -> Iterator[slice]:
    """Layers at a time."""
    at_once = max(1, BATCH // max(1, shape[1] * shape[2] * shape[3]))
    for at in range(0, shape[0], at_once):
        yield slice(at, min(at + at_once, shape[0]))


# --- decoding ----------------------------------------------------------------------------------


def decode(
    data: bytes | bytearray | memoryview, tokens: Sequence[int], limit: int = LIMIT
) -> KvSegment:
    """All of an object. `tokens`: the ids of [0, stop), which an object does not hold.

    Raises RemoteProtocolError for whatever is not as it should be.
    """
    view = memoryview(data).cast("B")
    reader = Reader(lambda start, stop: view[start:stop], len(view), limit)
    return reader.segment(reader.header.start, reader.header.stop, tokens)


class Reader:
    """Random access: of an object only the sections with the wanted tokens are read.

    Allocates at most `limit` bytes for what it gives back, and at most as many for the section
    at hand: whatever a header promises. Making one reads head and table. Raises
    RemoteProtocolError.
    """

    def __init__(self, read_at: ReadAt, size: int, limit: int = LIMIT) -> None:
        self._read_at = read_at
        self._limit = limit
        self.header = headers.parsed(bytes(read_at(0, min(HEAD_BYTES, size))))
        count = self.header.section_count
        body = HEAD_BYTES + 4 * count
        if body > size:
            raise malformed("its table is cut")
        sizes = headers.table(self.header, bytes(read_at(HEAD_BYTES, body)))
        if sum(sizes) != size - body:
            raise malformed("its sections do not have its size")
        self._sections = self.header.sections()
        self._at = [body, *(int(end) + body for end in np.cumsum(sizes, dtype=np.int64))]
        self._expander = Expander() if self.header.zstd else None

    def segment(self, start: int, stop: int, tokens: Sequence[int]) -> KvSegment:
        """Tokens [start, stop) as an engine takes them."""
        ids = tuple(tokens[:stop])
        if len(ids) != stop:
            raise malformed("there are fewer token ids than tokens in it")
        values = self.read(start, stop)
        dtype, shape = self.header.dtype, values.shape
        return KvSegment("canonical", dtype, start, stop, ids, values.tobytes(), shape)

    def read(self, start: int, stop: int) -> Stored:
        """The array [layer, 2, kv_head, stop - start, head_dim] of `stored_as(header.dtype)`."""
        self._check_range(start, stop)
        self._check_limit((stop - start) * self.header.token_bytes)
        shape = self.header.shape(stop - start)
        out = np.empty(shape, stored_as(self.header.dtype))
        self.read_into(out, start)
        return out

    def read_into(self, out: Stored, start: int) -> None:
        """Fill an array of that shape and dtype with the tokens from `start` on."""
        stop = start + out.shape[3]
        self._check_range(start, stop)
        for number, section in enumerate(self._sections):
            low, high = max(start, section.start), min(stop, section.stop)
            if low < high:
                self._part(out[:, :, :, low - start : high - start], number, low, high)

    def _check_range(self, start: int, stop: int) -> None:
        if not self.header.start <= start < stop <= self.header.stop:
            raise malformed(f"tokens {start} to {stop} are not in it")

    def _check_limit(self, size: int) -> None:
        if size > self._limit:
            raise malformed(f"it would take more than {self._limit} bytes of memory")

    def _part(self, out: Stored, number: int, low: int, high: int) -> None:
        section = self._sections[number]
        self._check_limit((section.stop - section.start) * self.header.token_values * SCRATCH)
        if (low, high) == (section.start, section.stop):
            self._section(out, number)
            return
        whole = np.empty(self.header.shape(section.stop - section.start), out.dtype)
        self._section(whole, number)
        out[...] = whole[:, :, :, low - section.start : high - section.start]

    def _section(self, out: Stored, number: int) -> None:
        coding = self._sections[number].coding
        source = Cursor(memoryview(self._read_at(self._at[number], self._at[number + 1])))
        if coding == "groups":
            for which, kind in enumerate(kinds(self.header)):
                self._groups(out[:, which], source, kind)
        else:
            self._whole(out, source, "float16" if coding == "fp16" else self.header.dtype)
        source.end()

    def _whole(self, out: Stored, source: Cursor, dtype: Dtype) -> None:
        values = self._floats(source, out.size, stored_as(dtype)).reshape(out.shape)
        if not finite(values, dtype):
            raise malformed("it holds values that are not finite")
        if dtype == self.header.dtype:
            out[...] = values
        else:
            narrow_into(out, widen(values, dtype), self.header.dtype)

    def _groups(self, out: Stored, source: Cursor, kind: Kind) -> None:
        shape = out.shape
        step = self._scale(source, kind, shape)
        if (step < 0).any():
            raise malformed("a step is below zero")
        low = self._scale(source, kind, shape) if self.header.steps == "ranged" else None
        symbols = self._symbols(source, out.size, kind).reshape(kind.grouped(shape))
        for layers in batches(shape):
            found = Grouped(symbols[layers], step[layers], None if low is None else low[layers])
            values = restored(found, kind.steps).reshape(out[layers].shape)
            narrow_into(out[layers], values, self.header.dtype)

    def _scale(self, source: Cursor, kind: Kind, shape: Sequence[int]) -> Halves:
        scales = kind.scales(shape)
        found = self._floats(source, int(np.prod(scales)), np.dtype("<f2")).reshape(scales)
        if not np.isfinite(found).all():
            raise malformed("a step is not finite")
        return found

    def _floats(self, source: Cursor, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        if self._expander:
            return self._expander.planes(source, count, dtype)
        return np.frombuffer(source.take(count * dtype.itemsize), dtype)

    def _symbols(self, source: Cursor, count: int, kind: Kind) -> Symbols:
        if self._expander:
            found = self._expander.planes(source, count, np.dtype(np.uint8))
        else:
            found = unpacked(source, count, bits_of(kind.steps))
        if int(found.max()) >= kind.steps:
            raise malformed("a symbol is beyond the last step")
        return found
