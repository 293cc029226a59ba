"""Everything that Outrider wrote on this machine, and its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from outrider import paths
from outrider.cli import units
from outrider.models.shelf import models_dir

KNOWN = {
    "runtime": ("*.json", "*.events", ".*.json.*"),
    "state": ("log", "journals", "device.json", "links.json", "keys", "vault", "links", "cloud"),
    "cache": ("onnx", "kv", "blobs", "digests", "gguf", "inflated", "stages", "*.onnx"),
    "models": ("names", "hub", "used", "fits", "models.lock"),
}
"""What is ours in a folder that somebody else named, and that may hold other things."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a folder with all that is in it."""

    path: Path
    bytes: int


def pieces() -> list[Piece]:
    """What a purge would remove, in the order in which it would."""
    found = {place: None for place in _places() if place.is_symlink() or place.exists()}
    return [Piece(place, size(place)) for place in found]


def _places() -> Iterator[Path]:
    for role in ("edge", "cloud"):
        yield units.file(role)
    yield from _folder("runtime", paths.runtime_dir(), "OUTRIDER_RUNTIME")
    yield from _folder("state", paths.state_dir(), "OUTRIDER_STATE")
    yield from _folder("cache", paths.cache_dir(), "OUTRIDER_CACHE")
    yield from _folder("models", models_dir(), "OUTRIDER_MODELS")
    yield paths.data_dir()
    config = paths.config_file()
    yield config
    if not os.environ.get("OUTRIDER_CONFIG"):
        yield config.parent
    if home := os.environ.get(paths.HOME):
        yield from (Path(home) / part for part in ("run", "state", "cache", "data", "config"))


def _folder(kind: str, place: Path, variable: str) -> Iterator[Path]:
    """The folder itself where we named it; of one that somebody named what is known as ours."""
    if not os.environ.get(variable):
        yield place
        return
    for pattern in KNOWN[kind]:
        yield from sorted(place.glob(pattern))


def size(place: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    if place.is_symlink() or place.is_file():
        return place.lstat().st_size
    return sum(p.lstat().st_size for p in place.rglob("*") if p.is_symlink() or p.is_file())


def remove(found: list[Piece]) -> None:
    """Links go, what they lead to stays. Folders that this leaves empty go too.

    The keys of what is sealed go first, so that copies of it elsewhere can not be read either.
    """
    _forget()
    for piece in found:
        if piece.path.is_symlink() or piece.path.is_file():
            piece.path.unlink(missing_ok=True)
        else:
            shutil.rmtree(piece.path, ignore_errors=False) if piece.path.exists() else None
    for folder in _emptied():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _forget() -> None:
    """Secrets in the keyring are no file that could be found and removed."""
    try:
        from outrider.privacy import keys, vault
        from outrider.privacy.journal_seal import FLOOR
    except ModuleNotFoundError:
        # Without the library there is nothing that it could have written.
        return
    secrets = keys.here()
    vault.erase(vault.place(), secrets)
    for name in (FLOOR, "device", "verifier", "authority"):
        secrets.remove(name)


def _emptied() -> Iterator[Path]:
    yield from (paths.runtime_dir(), paths.state_dir(), paths.cache_dir(), models_dir())
    if home := os.environ.get(paths.HOME):
        yield Path(home)
