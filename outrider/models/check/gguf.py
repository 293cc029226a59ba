"""GGUF: header, metadata and tensor table, checked against the file they stand in.

Format: ggml/docs/gguf.md, versions 2 and 3, little endian. All sizes are bounded
by the file's own size before anything is allocated for them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from outrider.errors import ModelCorrupt, ModelUnsupported
from outrider.models.check.mapped import Bytes, corrupt, mapped

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_METADATA = 256 << 20
"""Bytes before the tensor table's end; the largest vocabularies need about 16 MiB."""
MAX_ITEMS = 1 << 22
"""Items of one array."""
MAX_NAME = 64
"""ggml's GGML_MAX_NAME, its final zero included."""
MAX_KEY = 65535
MAX_DIMENSIONS = 4

Value = bool | int | float | bytes | NDArray[np.generic] | tuple[bytes, ...]

_SCALARS: Mapping[int, tuple[str, int]] = MappingProxyType(
    {
        0: ("<u1", 1),
        1: ("<i1", 1),
        2: ("<u2", 2),
        3: ("<i2", 2),
        4: ("<u4", 4),
        5: ("<i4", 4),
        6: ("<f4", 4),
        7: ("?", 1),
        10: ("<u8", 8),
        11: ("<i8", 8),
        12: ("<f8", 8),
    }
)
_STRING, _ARRAY = 8, 9

# ggml type id: (name, elements per block, bytes per block)
TYPES: Mapping[int, tuple[str, int, int]] = MappingProxyType(
    {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 40),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
    }
)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table; `shape` is in ggml's order, fastest first."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    """Absolute, in bytes."""
    size: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A checked header."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[GgufTensor, ...]

    def text(self, key: str) -> str | None:
        """A string value, or None where it is absent or no valid text."""
        value = self.metadata.get(key)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else None

    def number(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def strings(self, key: str) -> tuple[bytes, ...]:
        value = self.metadata.get(key)
        return value if isinstance(value, tuple) else ()

    def numbers(self, key: str) -> NDArray[np.generic] | None:
        value = self.metadata.get(key)
        return value if isinstance(value, np.ndarray) else None


def check_gguf(path: Path) -> Gguf:
    """Parse and check a GGUF file's header. Raises ModelCorrupt, ModelUnsupported.

    Checked: magic, version, counts, string lengths, arrays (not nested), duplicate
    names, types, dimensions (no overflow), alignment, and that every tensor lies
    within the file and on no other.
    """
    with mapped(path) as view:
        return _Reader(path, view).read()


class _Reader:
    """A cursor that never leaves the file."""

    def __init__(self, path: Path, view: Bytes) -> None:
        self._path = path
        self._view = view
        self._size = len(view)
        self._at = 0

    def read(self) -> Gguf:
        version, tensors, keys = self._counts()
        metadata = self._metadata(keys)
        table = self._table(tensors, metadata)
        return Gguf(version, MappingProxyType(metadata), table)

    def _fail(self, why: str) -> ModelCorrupt:
        return corrupt(self._path, why)

    def _counts(self) -> tuple[int, int, int]:
        if self._take(4) != b"GGUF":
            raise self._fail("it does not start with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "big endian" if swapped in (2, 3) else f"version {version}"
            raise ModelUnsupported(
                f"{self._path.name} is GGUF of {what}",
                why="versions 2 and 3 in little endian are read",
                effect="no model was loaded",
                todo="convert it with a current tool",
            )
        tensors, keys = self._number("<Q"), self._number("<Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise self._fail(f"it claims {tensors} tensors and {keys} metadata keys")
        return version, tensors, keys

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if count < 0 or end > self._size:
            raise self._fail(f"it ends at byte {self._size}, inside its header")
        if end > MAX_METADATA:
            raise self._fail(f"its header is longer than {MAX_METADATA} bytes")
        part = self._view[self._at : end]
        self._at = end
        return part

    def _number(self, form: str) -> int:
        found: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return found

    def _string(self, limit: int) -> bytes:
        length = self._number("<Q")
        if length > limit:
            raise self._fail(f"a string claims {length} bytes")
        return self._take(length)

    def _name(self, limit: int) -> str:
        try:
            return self._string(limit).decode("utf-8")
        except UnicodeDecodeError:
            raise self._fail("a name is not UTF-8") from None

    # --- metadata ------------------------------------------------------------------------------

    def _metadata(self, count: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._name(MAX_KEY)
            if not key or key in found:
                raise self._fail("a metadata key is empty or stands twice")
            found[key] = self._value(self._number("<I"))
        return found

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string(self._size)
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self._fail(f"metadata type {kind} does not exist")
        form, size = _SCALARS[kind]
        part = self._take(size)
        if form == "?" and part[0] > 1:
            raise self._fail("a truth value is neither 0 nor 1")
        value: bool | int | float = np.frombuffer(part, dtype=form)[0].item()
        return value

    def _array(self) -> Value:
        kind, count = self._number("<I"), self._number("<Q")
        if count > MAX_ITEMS:
            raise self._fail(f"an array claims {count} items")
        if kind == _STRING:
            return tuple(self._string(self._size) for _ in range(count))
        if kind not in _SCALARS:
            raise self._fail(f"an array of type {kind} is not allowed")
        form, size = _SCALARS[kind]
        part = self._take(count * size)
        return np.frombuffer(part, dtype="u1" if form == "?" else form)

    # --- tensors -------------------------------------------------------------------------------

    def _table(self, count: int, metadata: Mapping[str, Value]) -> tuple[GgufTensor, ...]:
        alignment = self._alignment(metadata)
        rows = [self._tensor() for _ in range(count)]
        if len({row.name for row in rows}) != len(rows):
            raise self._fail("two tensors have one name")
        start = -(-self._at // alignment) * alignment
        placed = tuple(self._placed(row, start, alignment) for row in rows)
        self._check_overlap(placed)
        return placed

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        value = metadata.get("general.alignment", 32)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._fail("its alignment is not a number")
        if not 8 <= value <= 1 << 20 or value & (value - 1):
            raise self._fail(f"its alignment is {value}")
        return value

    def _tensor(self) -> GgufTensor:
        name = self._name(MAX_NAME - 1)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._fail(f"a tensor has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        kind = self._number("<I")
        offset = self._number("<Q")
        if kind not in TYPES:
            raise ModelUnsupported(
                f"{self._path.name} holds a tensor of the unknown type {kind}",
                effect="no model was loaded",
                todo="convert the model to F16 or Q8_0",
            )
        return GgufTensor(name, TYPES[kind][0], shape, offset, self._bytes(shape, kind))

    def _bytes(self, shape: tuple[int, ...], kind: int) -> int:
        _, block, size = TYPES[kind]
        elements = 1
        for extent in shape:
            elements *= extent
            if extent < 1 or elements >= 1 << 63:
                raise self._fail("a tensor's dimensions are zero or overflow")
        if shape[0] % block:
            raise self._fail(f"a tensor's rows of {shape[0]} do not fill blocks of {block}")
        return elements // block * size

    def _placed(self, row: GgufTensor, start: int, alignment: int) -> GgufTensor:
        if row.offset % alignment:
            raise self._fail("a tensor is not aligned")
        if start + row.offset + row.size > self._size:
            raise self._fail(
                f"a tensor ends at byte {start + row.offset + row.size} of {self._size}"
            )
        return GgufTensor(row.name, row.kind, row.shape, start + row.offset, row.size)

    def _check_overlap(self, rows: tuple[GgufTensor, ...]) -> None:
        end = 0
        for row in sorted(rows, key=lambda row: row.offset):
            if row.offset < end:
                raise self._fail("two tensors overlap")
            end = row.offset + row.size
