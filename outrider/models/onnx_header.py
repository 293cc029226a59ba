"""What an ONNX file says beside its weights: metadata, nodes in order, sizes of the weights.

Read from the mapped file without a protobuf library, so that weights are never loaded;
`check_onnx` proves all lengths first. Field numbers: onnx/onnx.proto3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from outrider.models.check import check_onnx
from outrider.models.check.mapped import Bytes, mapped

_BITS = {1: 32, 2: 8, 3: 8, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 16: 16, 21: 4, 22: 4}
"""TensorProto.DataType to bits of an element."""

_VARINT, _FIXED64, _BYTES = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; integer attributes only."""

    kind: str
    inputs: tuple[str, ...]
    numbers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight's shape and size."""

    name: str
    shape: tuple[int, ...]
    dtype: int
    """TensorProto.DataType."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * _BITS.get(self.dtype, 32) // 8


@dataclass(slots=True)
class Header:
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Initializer] = field(default_factory=dict)


def read(path: Path) -> Header:
    """Raises ModelCorrupt."""
    check_onnx(path)
    found = Header()
    with mapped(path) as view:
        for number, start, stop in _fields(view, 0, len(view)):
            if number == 14:
                key, value = _texts(view, start, stop, (1, 2))
                found.metadata[key] = value
            elif number == 7:
                _graph(view, start, stop, found)
    return found


def _graph(view: Bytes, at: int, end: int, found: Header) -> None:
    for number, start, stop in _fields(view, at, end):
        if number == 1:
            found.nodes.append(_node(view, start, stop))
        elif number == 5:
            weight = _initializer(view, start, stop)
            found.weights[weight.name] = weight


def _node(view: Bytes, at: int, end: int) -> Node:
    kind, inputs, numbers = "", [], {}
    for number, start, stop in _fields(view, at, end):
        if number == 1:
            inputs.append(_text(view, start, stop))
        elif number == 4:
            kind = _text(view, start, stop)
        elif number == 5:
            name, value = _attribute(view, start, stop)
            numbers[name] = value
    return Node(kind, tuple(inputs), numbers)


def _attribute(view: Bytes, at: int, end: int) -> tuple[str, int]:
    """Name and integer value; 0 for attributes of other kinds."""
    name, value = "", 0
    for number, start, stop in _fields(view, at, end):
        if number == 1:
            name = _text(view, start, stop)
        elif number == 3:
            value = _varint(view, start)[0]
    return name, value


def _initializer(view: Bytes, at: int, end: int) -> Initializer:
    name, dtype = "", 0
    shape: list[int] = []
    for number, start, stop in _fields(view, at, end):
        if number == 1:
            shape += _dimensions(view, start, stop)
        elif number == 2:
            dtype = _varint(view, start)[0]
        elif number == 8:
            name = _text(view, start, stop)
    return Initializer(name, tuple(shape), dtype)


def _dimensions(view: Bytes, at: int, end: int) -> Iterator[int]:
    """Packed, or one alone."""
    while at < end:
        value, at = _varint(view, at)
        yield value


def _texts(view: Bytes, at: int, end: int, wanted: tuple[int, ...]) -> list[str]:
    found = dict.fromkeys(wanted, "")
    for number, start, stop in _fields(view, at, end):
        if number in found:
            found[number] = _text(view, start, stop)
    return [found[number] for number in wanted]


def _text(view: Bytes, start: int, stop: int) -> str:
    return view[start:stop].decode("utf-8", "replace")


def _fields(view: Bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, stop) of each field's payload."""
    while at < end:
        tag, start = _varint(view, at)
        wire = tag & 7
        if wire == _VARINT:
            at = _varint(view, start)[1]
        elif wire == _BYTES:
            length, start = _varint(view, start)
            at = start + length
        else:
            at = start + (8 if wire == _FIXED64 else 4)
        yield tag >> 3, start, at


def _varint(view: Bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
