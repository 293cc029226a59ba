"""A file as read-only bytes, without reading it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outrider.errors import ModelCorrupt, NotFound

Bytes = mmap.mmap | bytes


@contextmanager
def mapped(path: Path) -> Iterator[Bytes]:
    """The file's bytes; an empty file can not be mapped and gives b""."""
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                yield b""
                return
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                yield view
    except OSError as error:
        raise NotFound(
            f"{path} can not be read",
            param="model",
            why=error.strerror or "the system refused",
            effect="no model was loaded",
        ) from None


def corrupt(path: Path, why: str) -> ModelCorrupt:
    """The one way to say that a file is not what it claims to be."""
    return ModelCorrupt(
        f"{path.name} is corrupt",
        why=why,
        effect="it was not handed to a loader; no model was loaded",
        todo="fetch or make the file again and compare its SHA-256",
    )
