"""Writes what comes to a record, as `protocol/recording.py` describes it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from outrider.errors import ConfigError
from outrider.protocol import events, recording


class Recorder:
    """Whole lines, handed to the system at once. Packed where the name ends with `.gz`.

    Raises ConfigError for a file that is there, or can not be written.
    """

    def __init__(self, path: Path, version: str, at: float) -> None:
        self.path = path
        self.written = 0
        self._plain = _create(path)
        self._file: IO[bytes] = self._plain
        if path.name.endswith(".gz"):
            # No name and no time in its head: equal records are equal files.
            self._file = gzip.GzipFile("", "wb", fileobj=self._plain, mtime=0)  # type: ignore[assignment]
        recording.begin(self._file, version, at)

    def write(self, found: Iterable[events.Event]) -> None:
        for event in found:
            recording.add(self._file, event)
            self.written += 1
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self._plain.close()


def _create(path: Path) -> IO[bytes]:
    """Readable by the user alone."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        why, todo = "it is there already", "name another file, or remove it"
    except OSError as error:
        why, todo = error.strerror or "the system refused it", "choose another folder"
    raise ConfigError(
        f"{path} can not be written", why=why, effect="no record was begun", todo=todo
    )
