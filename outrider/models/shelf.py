"""The models of this machine by name: which there are, where they lie, what they are.

`models_dir()` holds `names/` (one JSON file a name), `hub/` (what was pulled), `used/` (when
a name was loaded last), `fits/` (verdicts of pairs) and `models.lock` (`outrider.models.pins`).
A model that was registered in place stays where it is; its entry alone lies here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import msgspec

from outrider import paths
from outrider.errors import ConfigError, ModelChanged, ModelError, NotFound

SCHEMA = 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,94}(:[a-z0-9][a-z0-9._-]{0,30})?")
"""Small letters, so that one name is one name on file systems of any kind."""
RESERVED = ("bundled", "shape", "ngram", "none", "auto")
ENDINGS = (".gguf", ".onnx", ".safetensors")


class StoredFile(msgspec.Struct, frozen=True):
    """One file of a model, by its name in the model's folder."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Hex."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model by name."""

    schema: int = SCHEMA
    name: str
    path: str
    """Folder or file that a loader gets."""
    origin: Literal["hub", "place"]
    """Pulled from a hub, or registered where it lies."""
    kind: Literal["safetensors", "gguf", "onnx"]
    quantisation: str
    """How most weights are stored: `bfloat16`, `Q8_0`."""
    size: int
    """Bytes of all its files."""
    digest: str
    """Hex SHA-256 as `ModelFiles.digest`."""
    vocabulary: str
    """Vocabulary digest; empty where the model has no tokenizer."""
    files: tuple[StoredFile, ...]
    repo: str = ""
    commit: str = ""
    licence: str = ""
    added_at: float = 0.0
    """Unix seconds."""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return Path(self.path) if self.kind == "safetensors" else Path(self.path).parent


def models_dir() -> Path:
    """Where models lie; OUTRIDER_MODELS overrides the user's data directory."""
    chosen = os.environ.get("OUTRIDER_MODELS")
    return Path(chosen).expanduser() if chosen else paths.data_dir() / "models"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The entries under one directory. Reading needs no lock: files are replaced whole."""

    root: Path = field(default_factory=models_dir)

    def names(self) -> tuple[str, ...]:
        """In order."""
        return tuple(sorted(_name_of(path) for path in self._folder("names").glob("*.json")))

    def entries(self) -> tuple[Entry, ...]:
        """All that can be read, by name; a broken one is left out."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except ModelError:
                continue
        return tuple(found)

    def has(self, name: str) -> bool:
        return is_name(name) and self._place(name).is_file()

    def get(self, name: str) -> Entry:
        """Raises NotFound with the nearest name, ModelError for an entry that can not be read."""
        if not self.has(name):
            raise self.unknown(name)
        try:
            entry = msgspec.json.decode(self._place(name).read_bytes(), type=Entry)
        except (OSError, msgspec.DecodeError):
            raise _unreadable(self._place(name), "it is not the JSON that is kept there") from None
        if entry.schema > SCHEMA:
            raise _unreadable(self._place(name), "a newer release wrote it")
        return entry

    def put(self, entry: Entry) -> None:
        """Raises ConfigError for a name that can not be one."""
        check_name(entry.name)
        data = msgspec.json.format(msgspec.json.encode(entry), indent=1)
        paths.write_atomically(self._place(entry.name), data + b"\n")

    def remove(self, name: str) -> Entry:
        """Forget the name, and delete what was pulled for it and no other name uses."""
        entry = self.get(name)
        self._place(name).unlink()
        self._use(name).unlink(missing_ok=True)
        if entry.origin == "hub":
            self._delete(entry)
        return entry

    def _delete(self, entry: Entry) -> None:
        top = self._folder("hub").resolve()
        folder = entry.folder.resolve()
        if not folder.is_relative_to(top) or folder == top:
            return
        others = [other for other in self.entries() if other.folder.resolve() == folder]
        kept = {file.name for other in others for file in other.files}
        for file in entry.files:
            if file.name not in kept:
                (folder / file.name).unlink(missing_ok=True)
        _sweep(folder, top)

    def used(self, name: str) -> float | None:
        """Unix seconds of the last load; None when it was never loaded."""
        try:
            return self._use(name).stat().st_mtime
        except OSError:
            return None

    def touch(self, name: str) -> None:
        """Note that it is loaded now; a folder that can not be written loses the note alone."""
        try:
            self._use(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._use(name).touch()
        except OSError:
            return

    def near(self, name: str, more: tuple[str, ...] = ()) -> str | None:
        """The known name that is most like it."""
        found = get_close_matches(name.lower(), [*self.names(), *more], 1, 0.5)
        return found[0] if found else None

    def unknown(self, name: str) -> NotFound:
        """The error for a name that is not here."""
        near = self.near(name)
        return NotFound(
            f"there is no model named {name!r} here",
            param="model",
            why=f"the names are in {self._folder('names')}",
            effect="nothing was done",
            todo=f"did you mean {near}?" if near else "outrider ls lists what is here",
        )

    def _folder(self, name: str) -> Path:
        return self.root / name

    def _place(self, name: str) -> Path:
        return self._folder("names") / f"{name.replace(':', '@')}.json"

    def _use(self, name: str) -> Path:
        return self._folder("used") / name.replace(":", "@")


def _name_of(path: Path) -> str:
    return path.stem.replace("@", ":")


def _sweep(folder: Path, top: Path) -> None:
    """Remove folders that are empty now, from one upwards."""
    while folder.resolve() != top and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def is_name(text: str) -> bool:
    """Whether it has the form of a name, and is no path."""
    return bool(NAME.fullmatch(text)) and not text.endswith(ENDINGS) and not _reserved(text)


def _reserved(text: str) -> bool:
    return text.partition(":")[0] in RESERVED


def check_name(text: str) -> str:
    """Raises ConfigError."""
    if not is_name(text):
        raise ConfigError(
            f"{text!r} can not be a model's name",
            why="names are small letters, digits, . _ and -, with at most one : inside",
            effect="nothing was registered",
            todo="give another with --name, such as qwen3:0.6b",
        )
    return text


def readable(count: float) -> str:
    """Bytes for people: `1.40 GiB`, `260.0 MiB`, `12 KiB`."""
    if count >= 2**28:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.1f} MiB" if count >= 2**19 else f"{-(-count // 2**10):.0f} KiB"


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} can not be read",
        why=why,
        effect="the model was not used",
        todo="pull or register the model again",
    )


def verify(entry: Entry, digest_of: Callable[[Path], str]) -> None:
    """Whether a pulled model's files are still those that were pulled. Raises ModelChanged.

    `digest_of` gives a file's SHA-256, from memory where size and time stamps are as they were.
    """
    for file in entry.files:
        path = entry.folder / file.name
        if not path.is_file():
            raise _changed(entry, f"{file.name} is not there any more")
        if path.stat().st_size != file.size or digest_of(path) != file.sha256:
            raise _changed(entry, f"{file.name} has another SHA-256 than when it was pulled")


def _changed(entry: Entry, why: str) -> ModelChanged:
    return ModelChanged(
        f"the files of {entry.name} are not those that were pulled",
        why=why,
        effect="no model was loaded",
        todo=f"outrider rm {entry.name}, then pull {entry.repo}@{entry.commit} again",
    )
