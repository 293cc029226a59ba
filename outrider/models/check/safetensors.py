"""safetensors: an 8-byte length, a JSON header, then bytes without holes.

Format: github.com/huggingface/safetensors, README "Format".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from outrider.errors import ModelUnsupported
from outrider.models.check.mapped import corrupt, mapped

MAX_HEADER = 16 << 20
"""Bytes of JSON; a hundred thousand tensors need about 15 MB."""
MAX_RANK = 16

_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "U8": 8,
        "I8": 8,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "U16": 16,
        "I16": 16,
        "F16": 16,
        "BF16": 16,
        "U32": 32,
        "I32": 32,
        "F32": 32,
        "U64": 64,
        "I64": 64,
        "F64": 64,
    }
)


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """One entry of the header; offsets are absolute."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def check_safetensors(path: Path) -> tuple[SafeTensor, ...]:
    """Parse and check a safetensors header. Raises ModelCorrupt, ModelUnsupported.

    Checked: header length, JSON without doubled names, types, shapes against byte
    counts, and that the tensors fill the rest of the file without hole or overlap.
    """
    with mapped(path) as view:
        size = len(view)
        if size < 8:
            raise corrupt(path, "it is shorter than its 8-byte length")
        length = int.from_bytes(view[:8], "little")
        if length > MAX_HEADER or 8 + length > size:
            raise corrupt(path, f"its header claims {length} bytes, the file has {size}")
        header = _json(path, view[8 : 8 + length])
    entries = [
        _entry(path, name, value, 8 + length)
        for name, value in header.items()
        if name != "__metadata__"
    ]
    _check_metadata(path, header.get("__metadata__", {}))
    _check_layout(path, entries, 8 + length, size)
    return tuple(entries)


def _json(path: Path, text: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    if not text.startswith(b"{"):
        raise corrupt(path, "its header does not start with {")
    try:
        found: dict[str, object] = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise corrupt(path, "its header is not JSON, or names a tensor twice") from None
    return found


def _check_metadata(path: Path, found: object) -> None:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise corrupt(path, "its __metadata__ is not a map of strings")


def _entry(path: Path, name: str, value: object, body: int) -> SafeTensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise corrupt(path, "a tensor's entry has other fields than dtype, shape, data_offsets")
    dtype, shape = value["dtype"], _counts(path, value["shape"])
    offsets = _counts(path, value["data_offsets"])
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ModelUnsupported(
            f"{path.name} holds a tensor of an unknown type",
            effect="no model was loaded",
            todo="convert it to F32, F16 or BF16",
        )
    if len(offsets) != 2 or offsets[1] - offsets[0] != _bytes(path, dtype, shape):
        raise corrupt(path, "a tensor's bytes do not match its shape")
    return SafeTensor(name, dtype, shape, body + offsets[0], body + offsets[1])


def _counts(path: Path, found: object) -> tuple[int, ...]:
    if not isinstance(found, list) or len(found) > MAX_RANK:
        raise corrupt(path, "a shape or offset is not a short list")
    if not all(type(item) is int and 0 <= item < 1 << 63 for item in found):
        raise corrupt(path, "a shape or offset is not a list of whole numbers")
    return tuple(found)


def _bytes(path: Path, dtype: str, shape: tuple[int, ...]) -> int:
    elements = 1
    for extent in shape:
        elements *= extent
        if elements >= 1 << 63:
            raise corrupt(path, "a tensor's shape overflows")
    return elements * _BITS[dtype] // 8


def _check_layout(path: Path, entries: list[SafeTensor], start: int, size: int) -> None:
    at = start
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != at:
            raise corrupt(path, "its tensors overlap or leave a hole")
        at = entry.stop
    if at != size:
        raise corrupt(path, f"its tensors end at byte {at}, the file at {size}")
