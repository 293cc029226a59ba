"""ONNX: the protobuf walked by hand, so that a hostile file meets no native parser.

Only what can do harm is looked at: nesting, lengths, tensors against their bytes,
and external data, whose path must stay inside the model's folder and whose range
inside the file it names. Field numbers: onnx/onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from outrider.errors import ModelCorrupt
from outrider.models.check.mapped import Bytes, corrupt, mapped

MAX_FILE = (1 << 31) - 1
"""protobuf's own limit."""
MAX_FIELDS = 2_000_000
MAX_DEPTH = 32
MAX_TEXT = 4096

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# TensorProto.DataType to bits; absent ones (strings, complex) have no raw bytes to compare.
_BITS: Mapping[int, int] = MappingProxyType(
    {
        1: 32,
        2: 8,
        3: 8,
        4: 16,
        5: 16,
        6: 32,
        7: 64,
        9: 8,
        10: 16,
        11: 64,
        12: 32,
        13: 64,
        14: 64,
        15: 128,
        16: 16,
        17: 8,
        18: 8,
        19: 8,
        20: 8,
        21: 4,
        22: 4,
        23: 4,
        24: 8,
        25: 2,
        26: 2,
    }
)

# Message to {field number: (message inside, may stand more than once)}.
_INSIDE: Mapping[str, Mapping[int, tuple[str, bool]]] = MappingProxyType(
    {
        "model": {7: ("graph", False), 20: ("training", True), 25: ("function", True)},
        "training": {1: ("graph", False), 2: ("graph", False)},
        "function": {7: ("node", True), 11: ("attribute", True)},
        "graph": {1: ("node", True), 5: ("tensor", True), 15: ("sparse", True)},
        "node": {5: ("attribute", True)},
        "attribute": {
            5: ("tensor", False),
            6: ("graph", False),
            10: ("tensor", True),
            11: ("graph", True),
            22: ("sparse", False),
            23: ("sparse", True),
        },
        "sparse": {1: ("tensor", False), 2: ("tensor", False)},
    }
)


@dataclass(frozen=True, slots=True)
class External:
    """Tensor data in a file beside the model."""

    path: Path
    offset: int
    length: int


def check_onnx(path: Path) -> tuple[Path, ...]:
    """Walk an ONNX file; returns the external data files it names, sorted.

    Raises ModelCorrupt.
    """
    with mapped(path) as view:
        if not 0 < len(view) <= MAX_FILE:
            raise corrupt(path, f"an ONNX file has 1 to {MAX_FILE} bytes, not {len(view)}")
        walk = _Walk(path, view)
        walk.message("model", 0, len(view), 0)
    if not walk.graphs:
        raise corrupt(path, "it holds no graph")
    return tuple(sorted({found.path for found in walk.external}))


@dataclass(slots=True)
class _Tensor:
    """What a TensorProto says of itself."""

    elements: int = 1
    dtype: int = 0
    raw: int | None = None
    external: bool = False
    where: dict[str, str] = field(default_factory=dict)


class _Walk:
    def __init__(self, path: Path, view: Bytes) -> None:
        self._path = path
        self._folder = path.resolve().parent
        self._view = view
        self._fields = 0
        self.graphs = 0
        self.external: list[External] = []

    def _fail(self, why: str) -> ModelCorrupt:
        return corrupt(self._path, why)

    def message(self, kind: str, at: int, end: int, depth: int) -> None:
        """Walk one message and all that matters inside it."""
        if depth > MAX_DEPTH:
            raise self._fail("its messages are nested too deep")
        if kind == "tensor":
            self._check_tensor(self._tensor(at, end))
            return
        self.graphs += kind == "graph"
        seen: set[int] = set()
        for number, wire, start, stop in self._split(at, end):
            if number not in _INSIDE[kind]:
                continue
            inside, repeated = _INSIDE[kind][number]
            self._expect(wire, _BYTES)
            if number in seen and not repeated:
                raise self._fail("a single field stands twice")
            seen.add(number)
            self.message(inside, start, stop, depth + 1)

    def _expect(self, wire: int, wanted: int) -> None:
        if wire != wanted:
            raise self._fail("a field has the wrong wire type")

    def _split(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, start, stop) of each field's payload."""
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise self._fail(f"it has more than {MAX_FIELDS} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            start, stop = self._payload(wire, at, end)
            if not 0 < number < 1 << 29 or stop > end:
                raise self._fail("a field ends beyond its message")
            yield number, wire, start, stop
            at = stop

    def _payload(self, wire: int, at: int, end: int) -> tuple[int, int]:
        if wire == _VARINT:
            return at, self._varint(at, end)[1]
        if wire == _BYTES:
            length, start = self._varint(at, end)
            return start, start + length
        if wire in (_FIXED64, _FIXED32):
            return at, at + (8 if wire == _FIXED64 else 4)
        raise self._fail(f"wire type {wire} is not allowed")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise self._fail("it ends inside a number")
            byte = self._view[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, at
        raise self._fail("a number is longer than ten bytes")

    # --- tensors -------------------------------------------------------------------------------

    def _tensor(self, at: int, end: int) -> _Tensor:
        found = _Tensor()
        for number, wire, start, stop in self._split(at, end):
            match number:
                case 1:
                    self._dimensions(found, wire, start, stop)
                case 2 | 14:
                    self._expect(wire, _VARINT)
                    value = self._varint(start, stop)[0]
                    if number == 2:
                        found.dtype = value
                    else:
                        found.external = value == 1
                case 9:
                    self._expect(wire, _BYTES)
                    found.raw = stop - start
                case 13:
                    self._expect(wire, _BYTES)
                    self._where(found, start, stop)
        return found

    def _dimensions(self, found: _Tensor, wire: int, start: int, stop: int) -> None:
        """Packed, or one by one."""
        if wire not in (_VARINT, _BYTES):
            raise self._fail("a field has the wrong wire type")
        while start < stop:
            extent, start = self._varint(start, stop)
            found.elements *= extent
            if extent >= 1 << 63 or found.elements >= 1 << 63:
                raise self._fail("a tensor's dimensions are negative or overflow")

    def _where(self, found: _Tensor, start: int, stop: int) -> None:
        pair = {1: "", 2: ""}
        for number, wire, first, last in self._split(start, stop):
            if number in pair:
                self._expect(wire, _BYTES)
                if last - first > MAX_TEXT:
                    raise self._fail("an external data entry is too long")
                pair[number] = self._text(first, last)
        if pair[1] in found.where:
            raise self._fail("an external data entry stands twice")
        found.where[pair[1]] = pair[2]

    def _text(self, start: int, stop: int) -> str:
        try:
            return bytes(self._view[start:stop]).decode("utf-8")
        except UnicodeDecodeError:
            raise self._fail("a text is not UTF-8") from None

    def _check_tensor(self, found: _Tensor) -> None:
        bits = _BITS.get(found.dtype)
        size = None if bits is None else -(-found.elements * bits // 8)
        if found.external or found.where:
            self._check_external(found, size)
        elif found.raw is not None and size is not None and found.raw != size:
            raise self._fail("a tensor's bytes do not match its shape")

    def _check_external(self, found: _Tensor, size: int | None) -> None:
        target = self._inside(found.where.get("location", ""))
        offset = self._decimal(found.where.get("offset", "0"))
        whole = target.stat().st_size
        length = self._decimal(found.where["length"]) if "length" in found.where else size
        if size is None or length is None or length != size:
            raise self._fail("external data has another length than its tensor")
        if offset + length > whole:
            raise self._fail(f"external data ends at byte {offset + length} of {whole}")
        self.external.append(External(target, offset, length))

    def _inside(self, location: str) -> Path:
        """The named file, which must really lie in the model's folder."""
        pure = PurePosixPath(location)
        bad = not location or pure.is_absolute() or ".." in pure.parts
        if bad or any(mark in location for mark in ("\\", "\0", ":")):
            raise self._fail("external data lies outside the model's folder")
        target = (self._folder / pure).resolve()
        if not target.is_relative_to(self._folder):
            raise self._fail("external data lies outside the model's folder")
        if not target.is_file():
            raise self._fail("a file with external data is not there")
        return target

    def _decimal(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise self._fail("an external data offset or length is not a number")
        return int(text)
