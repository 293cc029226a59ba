"""Events in a file: what `outrider top --record` writes, and `--replay` and the SDK read.

JSON lines. The first is a header, `{"type":"recording","schema":1,...}`; every other
is an event as the bus sends it, in the order it came, with its producer's `t_ms`. A
record that was cut off in the middle of its last line is read up to there. One that was
packed with gzip is read as it is.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import msgspec

from outrider.errors import InvalidRequest, NotFound
from outrider.protocol import events

SCHEMA = 1
"""Rises when the form of the file changes; a newer one is refused."""


class Header(msgspec.Struct, frozen=True, tag_field="type", tag="recording", kw_only=True):
    """The first line."""

    schema: int
    events: int
    """The schema of the events."""
    version: str = ""
    """Of the Outrider that wrote it."""
    at: float = 0.0
    """When it began, Unix seconds."""


def begin(file: IO[bytes], version: str, at: float) -> None:
    """Write the header; `at` is the wall clock, Unix seconds."""
    file.write(
        msgspec.json.encode(Header(schema=SCHEMA, events=events.SCHEMA, version=version, at=at))
        + b"\n"
    )


def add(file: IO[bytes], event: events.Event) -> None:
    """Write one event."""
    file.write(events.encode(event) + b"\n")


def read(path: Path) -> Iterator[events.Event]:
    """The events of a record, in order. Raises NotFound where there is no file, InvalidRequest
    for one that is no record of this schema or holds a line that is no event."""
    try:
        file = _opened(path)
    except OSError as error:
        raise NotFound(
            f"the record {path} can not be read", why=error.strerror or "", effect="nothing is told"
        ) from None
    with closing(file):
        lines = _lines(path, file)
        _check(path, next(lines, b""))
        for number, line in enumerate(lines, 2):
            if line.strip():
                try:
                    yield events.decode(line)
                except msgspec.ValidationError as error:
                    if line.endswith(b"\n"):
                        raise _broken(path, f"line {number}: {error}") from None


def _opened(path: Path) -> IO[bytes]:
    file = path.open("rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    file.close()
    return gzip.open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Up to the end, or to where a packed file was cut off."""
    try:
        yield from file
    except EOFError:
        return
    except (OSError, zlib.error) as error:
        raise _broken(path, f"it can not be unpacked: {error}") from None


def _check(path: Path, line: bytes) -> None:
    try:
        header = msgspec.json.decode(line, type=Header)
    except msgspec.DecodeError:
        raise _broken(path, "its first line is no header of a record") from None
    if header.schema > SCHEMA:
        raise _broken(path, f"its schema is {header.schema}, and {SCHEMA} is the newest known")


def _broken(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} is no record of events",
        param="path",
        why=why,
        effect="what comes after it is not told",
        todo="take a file that `outrider top --record` wrote with this version or an older one",
    )
