"""The device's record of a request: enough to go on anywhere with the same text.

Records are `open` (prompt, parameters, seed), `committed` (position, tokens, fence),
`provisional` and `fork` (position). In memory unless asked; on disk one file a
request, 0600, each record sealed through a `Seal`, framed by its length and a
checksum, synced at open and at close, and removed when the answer is done. A
torn last record is dropped; everything before it counts.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from outrider.errors import JournalError
from outrider.protocol.constraint import Constraint
from outrider.protocol.sampling import SamplingParams

FORMAT = 2
_MAGIC = b"outrider journal\n"
_HEAD = 8
_MAX_RECORD = 1 << 24


class Opened(msgspec.Struct, frozen=True, tag="open", array_like=True):
    format: int
    request: str
    session: bytes
    model: str
    numeric_class: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: bytes
    choices: int
    max_tokens: int
    stop: tuple[bytes, ...]
    exact_required: bool = False
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    """What the answer must match; since format 2."""


class Committed(msgspec.Struct, frozen=True, tag="committed", array_like=True):
    fence: int
    choice: int
    position: int
    tokens: tuple[int, ...]


class Fenced(msgspec.Struct, frozen=True, tag="fenced", array_like=True):
    """A reconnect: the session goes on under this fence and numeric class."""

    fence: int
    numeric_class: str


class Provisional(msgspec.Struct, frozen=True, tag="provisional", array_like=True):
    """Local tokens are shown from here on; they are not kept."""

    choice: int
    position: int


class Fork(msgspec.Struct, frozen=True, tag="fork", array_like=True):
    """From here on the answer is the small model's, and final."""

    choice: int
    position: int
    model: str


Record = Opened | Committed | Fenced | Provisional | Fork

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class Seal(Protocol):
    """Protects a record at rest; `number` is its place in the file."""

    def seal(self, number: int, data: bytes) -> bytes: ...

    def open(self, number: int, data: bytes) -> bytes:
        """Raises JournalError for what is torn, SealBroken for what was changed."""
        ...

    def forget(self) -> None:
        """The journal is done, and its file removed."""
        ...


class Seals(Protocol):
    """Makes the seal of each journal."""

    def new(self, path: Path) -> Seal:
        """Of one that begins there. Raises JournalError when none can be had."""
        ...

    def of(self, path: Path) -> Seal:
        """Of one that lies there. Raises SealBroken, OSError."""
        ...


class Plain:
    """No protection beyond the file's mode; records are as readable as the user's other files."""

    def seal(self, number: int, data: bytes) -> bytes:
        return data

    def open(self, number: int, data: bytes) -> bytes:
        return data

    def forget(self) -> None:
        return


class PlainSeals:
    """Of a device without a vault."""

    def new(self, path: Path) -> Seal:
        return Plain()

    def of(self, path: Path) -> Seal:
        return Plain()


class Journal(Protocol):
    def write(self, record: Record) -> None:
        """Raises JournalError when it can not be kept; what was kept before stays."""
        ...

    def close(self, *, outcome: Literal["done", "kept"]) -> None:
        """`done` removes it, `kept` leaves it for a later start."""
        ...


class MemoryJournal:
    """The default: gone with the process."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self, *, outcome: Literal["done", "kept"]) -> None:
        self.records.clear()


class DiskJournal:
    """Append-only file. `write` hands records to the system at once, so that they
    outlive the process; open and close are synced, so that they outlive a power cut."""

    def __init__(self, path: Path, seal: Seal) -> None:
        self.path = path
        self._seal = seal
        self._number = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise _unkept(error) from None
        try:
            self._put(_MAGIC)
            os.fsync(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise _unkept(error) from None

    def take_place(self, path: Path) -> None:
        """Lie at `path` from now on, instead of the journal that lies there."""
        try:
            os.fsync(self._descriptor)
            os.replace(self.path, path)
        except OSError as error:
            raise _unkept(error) from None
        self.path = path

    def write(self, record: Record) -> None:
        body = self._seal.seal(self._number, _ENCODER.encode(record))
        self._number += 1
        head = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
        try:
            self._put(head + body)
            if isinstance(record, Opened):
                os.fsync(self._descriptor)
        except OSError as error:
            raise _unkept(error) from None

    def _put(self, data: bytes) -> None:
        written = os.write(self._descriptor, data)
        if written != len(data):
            # A short write is how a full disk begins; the torn record is dropped by readers.
            raise OSError(28, "No space left on device")

    def close(self, *, outcome: Literal["done", "kept"]) -> None:
        try:
            if outcome == "kept":
                os.fsync(self._descriptor)
            os.close(self._descriptor)
            if outcome == "done":
                self.path.unlink(missing_ok=True)
                self._seal.forget()
        except OSError as error:
            raise _unkept(error) from None


def _unkept(error: OSError) -> JournalError:
    return JournalError(
        "the disk journal can not be kept",
        why=error.strerror or "the disk refused",
        effect="the answer goes on, but would not survive a restart of the daemon",
        todo="free disk space, or start with --journal memory",
    )


def read(path: Path, seal: Seal) -> Iterator[Record]:
    """The records of a journal up to the first that is torn or changed.

    Raises JournalError for a file of a newer format, or none at all; SealBroken for a sealed one
    that was changed.
    """
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise JournalError(f"{path.name} is no journal")
    at, number = len(_MAGIC), 0
    _check_format(path, data, seal)
    while (body := _record(data, at)) is not None:
        try:
            record = _DECODER.decode(seal.open(number, body))
        except (msgspec.DecodeError, JournalError):
            return
        yield record
        at, number = at + _HEAD + len(body), number + 1


def _check_format(path: Path, data: bytes, seal: Seal) -> None:
    """Looks at the first record's tag and format alone: a newer one may hold anything else."""
    body = _record(data, len(_MAGIC))
    if body is None:
        return
    try:
        found = msgspec.msgpack.decode(seal.open(0, body))
    except (msgspec.DecodeError, JournalError):
        return
    match found:
        case ["open", int(written), *_] if written > FORMAT:
            raise JournalError(
                f"{path.name} was written by a newer outrider",
                why=f"its format is {written}, this release reads up to {FORMAT}",
                effect="its request is not taken up again",
                todo="update outrider, or delete the file",
            )


def _record(data: bytes, at: int) -> bytes | None:
    """The record's body, None when it is torn."""
    if at + _HEAD > len(data):
        return None
    size = int.from_bytes(data[at : at + 4], "little")
    body = data[at + _HEAD : at + _HEAD + size]
    checksum = int.from_bytes(data[at + 4 : at + _HEAD], "little")
    sound = size <= _MAX_RECORD and len(body) == size and zlib.crc32(body) == checksum
    return body if sound else None
