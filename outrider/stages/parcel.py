"""What a worker without a model's files is sent: its config, its tokenizer, and its layers.

Each unit of a model (the embedding, a decoder layer, the head) travels as a small safetensors
file of its own, made from ranges of the files that lie here; the same model gives the same
bytes everywhere, so that a worker knows by their digests what it has already.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outrider.engine import LayerRange
from outrider.errors import ModelUnsupported
from outrider.models.check import check_safetensors
from outrider.models.check.safetensors import SafeTensor
from outrider.models.config import ModelConfig, load_config
from outrider.models.source import ModelFiles
from outrider.models.weights import shapes_of
from outrider.protocol.fleet import MAX_CHUNK, PushedFile, PushOffer

CONFIG = "config.json"
SMALL = (CONFIG, "generation_config.json", "tokenizer.json")
"""Beside the weights; those that there are."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [start, stop) of a file."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ParcelFile:
    """A file as it is sent: `head`, then the ranges in order."""

    name: str
    head: bytes
    ranges: tuple[Range, ...]

    @property
    def size(self) -> int:
        return len(self.head) + sum(each.stop - each.start for each in self.ranges)

    def read(self, offset: int = 0) -> Iterator[bytes]:
        """From a byte on, in pieces of at most a message. Raises OSError."""
        if offset < len(self.head):
            yield self.head[offset:]
        skip = max(0, offset - len(self.head))
        for each in self.ranges:
            size = each.stop - each.start
            if skip < size:
                yield from _bytes_of(each, skip)
            skip = max(0, skip - size)


def _bytes_of(part: Range, skip: int) -> Iterator[bytes]:
    with part.path.open("rb") as stream:
        stream.seek(part.start + skip)
        left = part.stop - part.start - skip
        while left > 0:
            data = stream.read(min(left, MAX_CHUNK))
            if not data:
                raise OSError(f"{part.path.name} became shorter")
            left -= len(data)
            yield data


def unit_name(number: int | str) -> str:
    """The file of a decoder layer by number, of `embedding`, or of `head`."""
    return f"unit-{number:05d}.safetensors" if isinstance(number, int) else f"unit-{number}" + _ST


_ST = ".safetensors"


def units_of(config: ModelConfig, layers: LayerRange) -> tuple[str, ...]:
    """Names of the files that a stage needs. A tied head reads the embedding's table."""
    names = [unit_name(number) for number in range(layers.start, layers.stop)]
    if layers.embedding or (layers.head and config.tied):
        names.insert(0, unit_name("embedding"))
    return (*names, unit_name("head")) if layers.head else tuple(names)


def range_of(name: str) -> LayerRange:
    """What a unit's file holds, alone; a head without the table that it may be tied to."""
    inner = name.removeprefix("unit-").removesuffix(_ST)
    if inner == "embedding":
        return LayerRange(0, 0, embedding=True, head=False)
    if inner == "head":
        return LayerRange(0, 0, embedding=False, head=True)
    return LayerRange(int(inner), int(inner) + 1, embedding=False, head=False)


def tensors_of(config: ModelConfig, name: str) -> tuple[str, ...]:
    """Names of a unit's tensors, sorted."""
    found = set(shapes_of(config, range_of(name)))
    if name == unit_name("head"):
        found.discard("model.embed_tokens.weight")
    return tuple(sorted(found))


@dataclass(slots=True)
class Parcel:
    """A model that lies here, ready to be sent in parts. Thread-safe."""

    files: ModelFiles
    config: ModelConfig
    _where: dict[str, tuple[Path, SafeTensor]]
    _digests: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, files: ModelFiles) -> Parcel:
        """Raises ModelUnsupported for what is no folder with safetensors, ModelCorrupt."""
        if files.kind != "safetensors" or files.config is None:
            raise ModelUnsupported(
                f"layers of the {files.kind} file {files.name} can not be sent to a worker",
                effect="nothing was sent",
                todo="name the folder with config.json and safetensors, or copy the file there",
            )
        where = {
            entry.name: (path, entry) for path in files.weights for entry in check_safetensors(path)
        }
        return cls(files, load_config(files.config), where)

    def contents(self, layers: Sequence[LayerRange]) -> tuple[ParcelFile, ...]:
        """The config first, then what lies beside it, then the units in order."""
        units = dict.fromkeys(name for part in layers for name in units_of(self.config, part))
        beside = [self.files.sibling(name) for name in SMALL]
        small = [_whole(path) for path in beside if path is not None]
        return (*small, *(self._unit(name) for name in sorted(units)))

    def offer(self, contents: Sequence[ParcelFile]) -> PushOffer:
        """Hashes what was not yet, so it takes as long as reading it. Raises OSError."""
        files = tuple(PushedFile(each.name, each.size, self._digest(each)) for each in contents)
        return PushOffer(self.files.digest, self.files.name, files)

    def _unit(self, name: str) -> ParcelFile:
        header: dict[str, object] = {}
        ranges, at = [], 0
        for tensor in tensors_of(self.config, name):
            path, entry = self._where[tensor]
            size = entry.stop - entry.start
            place = {"shape": list(entry.shape), "data_offsets": [at, at + size]}
            header[tensor] = {"dtype": entry.dtype, **place}
            ranges.append(Range(path, entry.start, entry.stop))
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return ParcelFile(name, len(text).to_bytes(8, "little") + text, tuple(ranges))

    def _digest(self, file: ParcelFile) -> bytes:
        with self._lock:
            if file.name not in self._digests:
                state = hashlib.sha256()
                for data in file.read():
                    state.update(data)
                self._digests[file.name] = state.digest()
            return self._digests[file.name]


def _whole(path: Path) -> ParcelFile:
    return ParcelFile(path.name, b"", (Range(path, 0, path.stat().st_size),))
