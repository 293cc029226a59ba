"""Workers that registered themselves, as a file that the process with the engine reads.

The process that serves the port keeps it, and writes it anew whenever it changes; its folder
is for this user alone, since it holds the keys by which the workers are called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from outrider import paths
from outrider.errors import Overloaded
from outrider.stages.worker_at import WorkerAt

MOST = 256
FORMAT = 1


class Entry(msgspec.Struct, frozen=True):
    """A worker as it registered; `address` tells them apart."""

    name: str
    kind: str
    address: str
    key: str


class _File(msgspec.Struct, frozen=True):
    format: int
    entries: tuple[Entry, ...]


@dataclass(slots=True)
class Register:
    """The writing side. `clock` gives seconds, monotonic."""

    path: Path
    lease_s: float
    clock: Callable[[], float]
    _until: dict[str, tuple[float, Entry]] = field(default_factory=dict)

    def renew(self, entry: Entry) -> bool:
        """For a lease more; whether that is news. Raises Overloaded where too many are there."""
        if entry.address not in self._until and len(self._until) >= MOST:
            raise Overloaded(
                f"{MOST} workers have joined already",
                retry_after_s=self.lease_s,
                effect="the worker was not taken in",
            )
        old = self._until.get(entry.address)
        self._until[entry.address] = (self.clock() + self.lease_s, entry)
        if old is not None and old[1] == entry:
            return False
        self._write()
        return True

    def remove(self, address: str) -> bool:
        """Whether it was there."""
        if self._until.pop(address, None) is None:
            return False
        self._write()
        return True

    def expire(self) -> tuple[Entry, ...]:
        """Those whose lease has ended go."""
        now = self.clock()
        gone = [entry for until, entry in self._until.values() if until <= now]
        for entry in gone:
            del self._until[entry.address]
        if gone:
            self._write()
        return tuple(gone)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(entry for _, entry in self._until.values())

    def _write(self) -> None:
        data = msgspec.json.encode(_File(FORMAT, self.entries()))
        paths.write_atomically(self.path, data)


@dataclass(slots=True)
class Roster:
    """The reading side; a file that can not be read names nobody."""

    path: Path

    def workers(self) -> tuple[WorkerAt, ...]:
        entries = self._entries()
        names = Counter(entry.name for entry in entries)
        return tuple(
            WorkerAt(e.address, e.name if names[e.name] == 1 else e.address, key=e.key)
            for e in sorted(entries, key=lambda entry: entry.address)
        )

    def stamp(self) -> tuple[int, int]:
        """Differs when the file was written anew."""
        try:
            state = self.path.stat()
        except OSError:
            return 0, 0
        return state.st_mtime_ns, state.st_ino

    def _entries(self) -> Sequence[Entry]:
        try:
            found = msgspec.json.decode(self.path.read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError):
            return ()
        return found.entries if found.format == FORMAT else ()
