"""A model's weights as one file of aligned units, read past the page cache, ahead of use.

Each unit (a decoder layer, the head, the embedding) is one run of bytes that starts at a
multiple of `PAGE`, so that one read brings it whole into a staging buffer of which its
tensors are views. Written once from safetensors; the index beside it names the model's
digest and the dtype.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch
from torch import Tensor

from outrider.errors import EngineFailed, ModelCorrupt
from outrider.paths import write_atomically

PAGE = 4096
FORMAT = 1
CHUNK = 8 << 20
"""Bytes of one read call, at most."""


class TensorPlace(msgspec.Struct, frozen=True):
    """A tensor inside its unit."""

    name: str
    shape: tuple[int, ...]
    offset: int


class UnitPlace(msgspec.Struct, frozen=True):
    """A unit inside the file; `size` is a multiple of `PAGE`."""

    offset: int
    size: int
    tensors: tuple[TensorPlace, ...]


class Index(msgspec.Struct, frozen=True):
    format: int
    digest: str
    dtype: str
    units: tuple[UnitPlace, ...]


Unit = Sequence[tuple[str, Tensor]]


# --- writing -----------------------------------------------------------------------------------


def write_blob(path: Path, digest: str, dtype: torch.dtype, units: Iterable[Unit]) -> Index:
    """One unit in memory at a time; index last, so that a torn file is never taken for whole."""
    places: list[UnitPlace] = []
    scratch = path.with_suffix(".new")
    with scratch.open("wb") as file:
        for unit in units:
            places.append(_write_unit(file, unit, dtype))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    scratch.replace(path)
    index = Index(FORMAT, digest, _name(dtype), tuple(places))
    write_atomically(index_of(path), msgspec.json.encode(index))
    return index


def _write_unit(file: BinaryIO, unit: Unit, dtype: torch.dtype) -> UnitPlace:
    start = file.tell()
    places, at = [], 0
    for name, tensor in unit:
        data = tensor.to(dtype).contiguous().view(torch.uint8).numpy()
        places.append(TensorPlace(name, tuple(tensor.shape), at))
        file.write(data.data)
        at += data.nbytes
        at += file.write(bytes(-at % 64))
    at += file.write(bytes(-at % PAGE))
    return UnitPlace(start, at, tuple(places))


def index_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read_index(path: Path, digest: str, dtype: torch.dtype) -> Index | None:
    """None when there is no whole file of this model, dtype and format."""
    try:
        index = msgspec.json.decode(index_of(path).read_bytes(), type=Index)
        size = path.stat().st_size
    except (OSError, msgspec.DecodeError):
        return None
    whole = bool(index.units) and size == index.units[-1].offset + index.units[-1].size
    same = (index.format, index.digest, index.dtype) == (FORMAT, digest, _name(dtype))
    return index if whole and same else None


# --- reading -----------------------------------------------------------------------------------


class Buffer:
    """Aligned memory that units are read into, and tensors are views of."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(-1, max(size, PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def tensors(self, unit: UnitPlace, dtype: torch.dtype) -> dict[str, Tensor]:
        """Views; valid until the next read into this buffer."""
        return {place.name: self._tensor(place, dtype) for place in unit.tensors}

    def _tensor(self, place: TensorPlace, dtype: torch.dtype) -> Tensor:
        count = int(torch.Size(place.shape).numel()) * dtype.itemsize
        return self.bytes[place.offset : place.offset + count].view(dtype).view(place.shape)


class BlobFile:
    """Reads past the page cache where the file system can; counts what it read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        self.bytes_written = 0
        self._counting = threading.Lock()
        self._file = _opened(path)

    def read(self, buffer: Buffer, offset: int, size: int, at: int = 0) -> None:
        """`size` bytes from `offset` to place `at` of the buffer. Raises EngineFailed."""
        done = 0
        while done < size:
            part = buffer.view[at + done : at + min(size, done + CHUNK)]
            try:
                got = os.preadv(self._file, [part], offset + done)
            except OSError as error:
                raise _unreadable(self.path, str(error.strerror)) from error
            if got <= 0:
                raise _unreadable(self.path, "it is shorter than its index says")
            done += got
        with self._counting:
            self.bytes_read += size

    def write(self, buffer: Buffer, offset: int, size: int, at: int = 0) -> None:
        """Raises EngineFailed; a torn write is found by nobody, so the pass fails."""
        try:
            put = os.pwritev(self._file, [buffer.view[at : at + size]], offset)
        except OSError as error:
            raise _unreadable(self.path, str(error.strerror)) from error
        if put != size:
            raise _unreadable(self.path, "the disk took only a part of a write")
        with self._counting:
            self.bytes_written += size

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _opened(path: Path) -> int:
    """With O_DIRECT, or without it where the file system refuses it (tmpfs)."""
    flags = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, flags)


def _unreadable(path: Path, why: str) -> EngineFailed:
    return EngineFailed(
        f"{path.name} can not be used",
        why=why,
        effect="the pass was not run",
        todo="check the disk, and start the engine again: the file is made anew",
    )


def checked_index(path: Path, digest: str, dtype: torch.dtype) -> Index:
    """Raises ModelCorrupt."""
    index = read_index(path, digest, dtype)
    if index is None:
        raise ModelCorrupt(
            f"{path.name} is not whole, or of another model",
            effect="the model was not loaded",
            todo="delete it: it is made anew from the model's own files",
        )
    return index


# --- reading ahead -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Slot:
    """A staging buffer, and which unit it holds."""

    buffer: Buffer
    unit: int | None = None
    ready: bool = False
    failed: EngineFailed | None = None

    def drop(self) -> None:
        self.unit, self.ready = None, False


class Stream:
    """Streamed units in their cyclic order, through `staging` buffers.

    With one buffer a unit is read when it is asked for. With more, a thread reads the
    next ones of the cycle meanwhile, over the end of a pass into the next: nothing is
    read twice as long as units are asked for in order.
    """

    def __init__(self, file: BlobFile, index: Index, order: Sequence[int], staging: int) -> None:
        self._file = file
        self._index = index
        self._order = tuple(order)
        largest = max((index.units[i].size for i in order), default=0)
        self._slots = [_Slot(Buffer(largest)) for _ in range(staging if order else 0)]
        self._turn = threading.Condition()
        self._wanted: list[int] = []
        """Units to read, nearest first."""
        self._taken: int | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        if staging > 1 and order:
            self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
            self._thread.start()

    @property
    def memory_bytes(self) -> int:
        return sum(slot.buffer.size for slot in self._slots)

    def units(self) -> tuple[int, ...]:
        return self._order

    def take(self, number: int) -> Buffer:
        """The unit's bytes, until the next one is taken. Raises EngineFailed."""
        if self._taken is not None:
            self._give_back(self._taken)
            self._taken = None
        slot = self._ask(number) if self._thread is not None else self._read_now(number)
        self._taken = number
        return slot.buffer

    def _read_now(self, number: int) -> _Slot:
        slot = self._slots[0]
        if slot.unit != number:
            self._fill(slot, number)
            slot.unit = number
        return slot

    def _ask(self, number: int) -> _Slot:
        with self._turn:
            if number not in self._wanted and all(slot.unit != number for slot in self._slots):
                self._turn_to(number)
            self._turn.wait_for(lambda: self._holding(number) is not None)
            slot = self._holding(number)
            assert slot is not None
            if slot.failed is not None:
                failed, slot.failed = slot.failed, None
                slot.drop()
                raise failed
            return slot

    def _turn_to(self, number: int) -> None:
        """Out of turn: what was read ahead is of no use."""
        for slot in self._slots:
            if slot.ready:
                slot.drop()
        self._wanted = [number, *self._next(number, len(self._slots) - 1)]
        self._turn.notify_all()

    def _holding(self, number: int) -> _Slot | None:
        return next((s for s in self._slots if s.unit == number and s.ready), None)

    def _next(self, number: int, count: int) -> list[int]:
        place = self._order.index(number)
        size = len(self._order)
        return [self._order[(place + 1 + i) % size] for i in range(min(count, size))]

    def _give_back(self, number: int) -> None:
        if self._thread is None:
            return
        with self._turn:
            coming = self._next(number, len(self._slots))
            for each in self._slots:
                if each.ready and each.unit not in coming:
                    each.drop()
            held = {each.unit for each in self._slots}
            self._wanted = [i for i in coming if i not in held]
            self._turn.notify_all()

    def _run(self) -> None:
        while (job := self._job()) is not None:
            slot, number = job
            failed = self._tried(slot, number)
            with self._turn:
                slot.failed, slot.ready = failed, True
                self._turn.notify_all()

    def _job(self) -> tuple[_Slot, int] | None:
        """The next unit to read and where to; None at the end."""
        with self._turn:
            self._turn.wait_for(lambda: self._closed or self._startable() is not None)
            slot = self._startable()
            if self._closed or slot is None:
                return None
            slot.unit = number = self._wanted.pop(0)
            return slot, number

    def _startable(self) -> _Slot | None:
        if not self._wanted:
            return None
        return next((slot for slot in self._slots if slot.unit is None), None)

    def _tried(self, slot: _Slot, number: int) -> EngineFailed | None:
        try:
            self._fill(slot, number)
        except EngineFailed as error:
            return error
        return None

    def _fill(self, slot: _Slot, number: int) -> None:
        place = self._index.units[number]
        self._file.read(slot.buffer, place.offset, place.size)

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join()
