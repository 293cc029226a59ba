"""A hard limit on a process's memory, page cache included: a cgroup of its own (version 1 or 2).

Only what the process claims after it enters is counted; over the limit the kernel takes page
cache back first and then ends the process. Needs the right to make cgroups.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and counts since the cage was made."""

    peak: int
    """Most memory at a time, page cache included."""
    cache: int
    """Page cache now."""
    refused: int
    """How often the limit was met and something had to be taken back."""


@dataclass(frozen=True, slots=True)
class Cage:
    folder: Path

    def enter(self, pid: int) -> None:
        """From here on the process's new memory counts."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def usage(self) -> Usage:
        if (self.folder / "memory.max_usage_in_bytes").exists():
            return Usage(
                self._number("memory.max_usage_in_bytes"),
                self._field("memory.stat", "total_cache"),
                self._number("memory.failcnt"),
            )
        return Usage(
            self._number("memory.peak"),
            self._field("memory.stat", "file"),
            self._field("memory.events", "max"),
        )

    def _number(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def _field(self, name: str, field: str) -> int:
        lines = (self.folder / name).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == field)


@contextmanager
def cage(name: str, limit: int, root: Path = ROOT) -> Iterator[Cage | None]:
    """A cage of `limit` bytes; None where this process may not make one. Its processes must
    have ended before the block does."""
    folder = _made(name, limit, root)
    try:
        yield Cage(folder) if folder is not None else None
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _made(name: str, limit: int, root: Path) -> Path | None:
    parent = root / "memory" if (root / "memory").is_dir() else root
    folder = parent / f"{name}-{os.getpid()}"
    try:
        folder.mkdir()
        first = folder / "memory.limit_in_bytes"
        (first if first.exists() else folder / "memory.max").write_text(str(limit))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    return folder
