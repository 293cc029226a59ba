"""Hidden states to bytes and back: lossless, or smaller with their outliers kept whole.

    fp32   as they are; the only one that keeps a split run equal to the unsplit one
    bf16   the upper half of a float32, rounded to nearest, ties to even
    fp16   IEEE half precision, each row divided by a power of two where it would overflow
    int8   one scale a row, outliers apart as float32 (LLM.int8, arXiv 2208.07339)
    int4   one scale for 32 values, outliers apart as float32

Each row is coded by itself: what it decodes to does not depend on the rows beside it, so a
lossy code is still a pure function of the row. Outliers are found by the median of a row's
magnitudes, which a few large values do not move, and are at most 1 in 128 values.
Layouts: SPEC.md 10.4.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from outrider.errors import EngineFailed, LocalProtocolError, RemoteProtocolError

ActivationCodec = Literal["fp32", "bf16", "fp16", "int8", "int4"]
CODECS: tuple[ActivationCodec, ...] = get_args(ActivationCodec)

MAX_ROWS = 65535
MAX_HIDDEN = 65535
GROUP = 32
"""Values that share a scale in int4."""
OUTLIER_SHARE = 128
"""At most one value in so many is an outlier, and at least one may be."""
MOST_OUTLIERS = 255
OUTLIER = 6.0
"""Times the median magnitude; of normal values one in 20 000 lies beyond."""

_HEAD = struct.Struct("<BBHH")
_FORMAT = 1

Floats = NDArray[np.float32]


def encode(hidden: Floats, codec: ActivationCodec) -> bytes:
    """Rows of hidden states, float32 [rows, hidden_size], as bytes.

    Raises EngineFailed where a value is not finite: nothing that follows would be.
    """
    if hidden.ndim != 2 or not _fits(*hidden.shape):
        raise LocalProtocolError(f"hidden states of shape {list(hidden.shape)} can not be sent")
    if not np.isfinite(hidden).all():
        raise EngineFailed(
            "a stage gave hidden states that are not finite",
            why="its weights or its dtype do not suit the model",
            effect="the pass was dropped",
        )
    values = np.ascontiguousarray(hidden, dtype=np.float32)
    head = _HEAD.pack(_FORMAT, CODECS.index(codec), *values.shape)
    return head + _WAYS[codec].pack(values)


def decode(data: bytes, codec: ActivationCodec, rows: int, hidden_size: int) -> Floats:
    """The rows again, float32 [rows, hidden_size], writable.

    Raises RemoteProtocolError for another codec or shape than was agreed on, for a size that
    is not the content's, and for values that are not finite.
    """
    if len(data) < _HEAD.size:
        raise _bad("they are shorter than their header")
    form, number, found_rows, found_hidden = _HEAD.unpack_from(data)
    if form != _FORMAT or number >= len(CODECS) or CODECS[number] != codec:
        raise _bad("they are in another code than was agreed on")
    if (found_rows, found_hidden) != (rows, hidden_size):
        raise _bad(
            f"they have shape [{found_rows}, {found_hidden}], "
            f"and [{rows}, {hidden_size}] was announced"
        )
    values = _WAYS[codec].unpack(_Source(data, _HEAD.size), rows, hidden_size)
    if not np.isfinite(values).all():
        raise _bad("a value is not finite")
    return values


def _fits(rows: int, hidden_size: int) -> bool:
    return 0 <= rows <= MAX_ROWS and 1 <= hidden_size <= MAX_HIDDEN


def _bad(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "hidden states can not be read", why=why, effect="the stage's stream ends"
    )


@dataclass(slots=True)
class _Source:
    """Bytes that are read from front to back, to the last one."""

    data: bytes
    at: int

    def take(self, dtype: str, count: int) -> NDArray[np.generic]:
        kind = np.dtype(dtype)
        end = self.at + kind.itemsize * count
        if end > len(self.data):
            raise _bad("they end too early")
        found = np.frombuffer(self.data, kind, count, self.at)
        self.at = end
        return found

    def end(self) -> None:
        if self.at != len(self.data):
            raise _bad("bytes are left over")


@dataclass(frozen=True, slots=True)
class _Way:
    pack: Callable[[Floats], bytes]
    unpack: Callable[[_Source, int, int], Floats]


# --- floats ------------------------------------------------------------------------------------


def _pack_fp32(values: Floats) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _unpack_fp32(source: _Source, rows: int, width: int) -> Floats:
    found = source.take("<f4", rows * width)
    source.end()
    return found.astype(np.float32).reshape(rows, width)


_LARGEST_BF16 = 0x7F7F
"""Finite float32 values that would round to infinity end here."""


def _pack_bf16(values: Floats) -> bytes:
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    sign, size = rounded & 0x8000, np.minimum(rounded & 0x7FFF, _LARGEST_BF16)
    return bytes((sign | size).astype("<u2").tobytes())


def _unpack_bf16(source: _Source, rows: int, width: int) -> Floats:
    found = source.take("<u2", rows * width)
    source.end()
    bits = found.astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(rows, width)


_LAST_SHIFT = 128 - 15


def _pack_fp16(values: Floats) -> bytes:
    """One exponent a row, 0 wherever the row fits as it is."""
    largest = np.abs(values).max(axis=1, initial=0.0)
    _, exponents = np.frexp(largest)
    # 65504 is the largest half; what is below 2^15 fits whatever its rounding.
    shifts = np.maximum(exponents - 15, 0).astype(np.int8)
    scaled = np.ldexp(values, -shifts.astype(np.int32)[:, None])
    # At the end of float32's range, rounding up would leave it.
    most = np.where(shifts == _LAST_SHIFT, np.float32(32752), np.float32(65504))[:, None]
    halves = np.clip(scaled, -most, most).astype("<f2")
    return bytes(shifts.tobytes() + halves.tobytes())


def _unpack_fp16(source: _Source, rows: int, width: int) -> Floats:
    shifts = source.take("<i1", rows).astype(np.int32)
    halves = source.take("<f2", rows * width).astype(np.float32).reshape(rows, width)
    source.end()
    if (shifts < 0).any():
        raise _bad("an exponent is out of range")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ldexp(halves, shifts[:, None]).astype(np.float32)


# --- outliers ----------------------------------------------------------------------------------


def _most_outliers(width: int) -> int:
    return min(MOST_OUTLIERS, max(1, width // OUTLIER_SHARE))


@dataclass(frozen=True, slots=True)
class _Outliers:
    """Values that are not quantised: how many each row has, then all columns and values."""

    counts: NDArray[np.uint8]
    columns: NDArray[np.uint16]
    values: Floats

    @classmethod
    def find(cls, values: Floats) -> _Outliers:
        sizes = np.abs(values)
        middle = values.shape[1] // 2
        usual = np.partition(sizes, middle, axis=1)[:, middle, None]
        with np.errstate(over="ignore"):
            apart = sizes > OUTLIER * usual
        most = _most_outliers(values.shape[1])
        for row in np.flatnonzero(apart.sum(axis=1) > most):
            _keep_largest(apart[row], sizes[row], most)
        rows, columns = np.nonzero(apart)
        counts = np.bincount(rows, minlength=len(values)).astype(np.uint8)
        return cls(counts, columns.astype(np.uint16), values[rows, columns])

    @property
    def rows(self) -> NDArray[np.intp]:
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def without(self, values: Floats) -> Floats:
        rest = values.copy()
        rest[self.rows, self.columns] = 0.0
        return rest

    def put_back(self, values: Floats) -> Floats:
        values[self.rows, self.columns] = self.values
        return values

    def pack(self) -> bytes:
        parts = (self.counts, self.columns.astype("<u2"), self.values.astype("<f4"))
        return b"".join(part.tobytes() for part in parts)

    @classmethod
    def unpack(cls, source: _Source, rows: int, width: int) -> _Outliers:
        counts = source.take("<u1", rows).astype(np.uint8)
        if (counts > _most_outliers(width)).any():
            raise _bad("a row has too many outliers")
        total = int(counts.sum())
        columns = source.take("<u2", total).astype(np.uint16)
        found = cls(counts, columns, source.take("<f4", total).astype(np.float32))
        found._check(width)
        return found

    def _check(self, width: int) -> None:
        same_row = self.rows[1:] == self.rows[:-1]
        rising = self.columns[1:] > self.columns[:-1]
        if (self.columns >= width).any() or (same_row & ~rising).any():
            raise _bad("an outlier stands twice, or beyond the row")


def _keep_largest(apart: NDArray[np.bool_], sizes: Floats, most: int) -> None:
    """Of one row; among equals the first, so that every machine chooses the same."""
    columns = np.flatnonzero(apart)
    order = np.argsort(-sizes[columns], kind="stable")
    apart[columns[order[most:]]] = False


# --- integers ----------------------------------------------------------------------------------


def _quantised(values: Floats, scales: Floats, limit: int) -> NDArray[np.int8]:
    """Nearest multiples of the scales; rows of zeros have scale 0."""
    steps = np.where(scales > 0, scales, np.float32(1.0))
    return np.clip(np.rint(values / steps), -limit, limit).astype(np.int8)


def _scales(values: Floats, limit: int) -> Floats:
    """Over the last axis, kept, such that `limit` scales are finite. A scale that underflows
    to 0 takes its values with it."""
    largest = np.abs(values).max(axis=-1, keepdims=True, initial=0.0)
    most = np.nextafter(np.finfo(np.float32).max / np.float32(limit), np.float32(0))
    scales: Floats = np.minimum(largest / np.float32(limit), most).astype(np.float32)
    return scales


def _read_scales(source: _Source, count: int) -> Floats:
    scales = source.take("<f4", count).astype(np.float32)
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise _bad("a scale is out of range")
    return scales


def _pack_int8(values: Floats) -> bytes:
    outliers = _Outliers.find(values)
    rest = outliers.without(values)
    scales = _scales(rest, 127)
    body = _quantised(rest, scales, 127)
    return bytes(scales.astype("<f4").tobytes() + body.tobytes() + outliers.pack())


def _unpack_int8(source: _Source, rows: int, width: int) -> Floats:
    scales = _read_scales(source, rows)[:, None]
    body = source.take("<i1", rows * width).astype(np.float32).reshape(rows, width)
    outliers = _Outliers.unpack(source, rows, width)
    source.end()
    with np.errstate(over="ignore"):
        return outliers.put_back(np.multiply(body, scales, dtype=np.float32))


def _groups(width: int) -> int:
    return -(-width // GROUP)


def _grouped(values: Floats) -> Floats:
    """[rows, groups, GROUP]; the last group is filled up with zeros."""
    rows, width = values.shape
    filled = np.zeros((rows, _groups(width) * GROUP), np.float32)
    filled[:, :width] = values
    return filled.reshape(rows, _groups(width), GROUP)


_LARGEST_SCALE = 0x7E12
"""The last bfloat16 of which 7 are finite."""


def _pack_int4(values: Floats) -> bytes:
    """Scales as bfloat16, rounded up so that no value leaves the range; two values a byte."""
    outliers = _Outliers.find(values)
    groups = _grouped(outliers.without(values))
    wide = np.minimum((_scales(groups, 7).view(np.uint32) + 0xFFFF) >> 16, _LARGEST_SCALE)
    scales = (wide.astype(np.uint32) << np.uint32(16)).view(np.float32)
    nibbles = (_quantised(groups, scales, 7) + 8).astype(np.uint8)
    body = nibbles[..., ::2] | (nibbles[..., 1::2] << 4)
    return bytes(wide.astype("<u2").tobytes() + body.tobytes() + outliers.pack())


def _unpack_int4(source: _Source, rows: int, width: int) -> Floats:
    count = rows * _groups(width)
    wide = source.take("<u2", count).astype(np.uint32)
    scales = (wide << np.uint32(16)).view(np.float32)
    if not (np.isfinite(scales).all() and (wide < 0x8000).all()):
        raise _bad("a scale is out of range")
    body = source.take("<u1", count * GROUP // 2).astype(np.uint8)
    nibbles = np.stack((body & 0xF, body >> 4), axis=-1).astype(np.float32) - 8.0
    outliers = _Outliers.unpack(source, rows, width)
    source.end()
    with np.errstate(over="ignore"):
        values = nibbles.reshape(count, GROUP) * scales[:, None]
    return outliers.put_back(values.reshape(rows, _groups(width) * GROUP)[:, :width].copy())


_WAYS: dict[ActivationCodec, _Way] = {
    "fp32": _Way(_pack_fp32, _unpack_fp32),
    "bf16": _Way(_pack_bf16, _unpack_bf16),
    "fp16": _Way(_pack_fp16, _unpack_fp16),
    "int8": _Way(_pack_int8, _unpack_int8),
    "int4": _Way(_pack_int4, _unpack_int4),
}
