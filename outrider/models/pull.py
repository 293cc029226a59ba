"""From a wish to a model with a name: list, pin, look for room, fetch, check, register.

Nothing gets a name before every byte is what the hub listed, and before our own bounds check
and the vocabulary have been read; a pull that was cut leaves files and no name.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from outrider.errors import (
    AccessDenied,
    ConfigError,
    DiskFull,
    ModelCorrupt,
    ModelUnsupported,
    OutriderError,
)
from outrider.models import pins, source
from outrider.models.anatomy import stored_as, support
from outrider.models.check import check_model
from outrider.models.hub import Hub, Listing, Meter
from outrider.models.pins import Offered, Pin
from outrider.models.shelf import Entry, Shelf, StoredFile, check_name, readable
from outrider.models.source import ModelFiles
from outrider.models.vocabulary import load as load_vocabulary
from outrider.models.wanted import CONFIG, INDEX, Selected, Wanted, select

SPARE = 256 << 20
"""Bytes that a pull leaves free on the disk."""


class Silent:
    """A meter for nobody."""

    def begin(self, name: str, total: int, there: int) -> None:
        return

    def came(self, count: int) -> None:
        return


@dataclass(frozen=True, slots=True)
class Pull:
    """What a pull needs to know and whom it tells."""

    shelf: Shelf
    hub: Hub
    now: Callable[[], float]
    """Unix seconds."""
    note: Callable[[str], None] = lambda text: None
    meter: Meter = field(default_factory=Silent)
    agree: Callable[[str, str], bool] = lambda repo, licence: False
    """Asked before a gated repository is fetched: (repository, licence)."""
    room: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    """Bytes free on the disk of a folder that is there."""

    def fetch(self, wanted: Wanted, name: str = "", *, update: bool = False) -> Entry:
        """Pull it. Raises what the hub, the pins, the disk and the checks raise."""
        if name:
            check_name(name)
        self.shelf.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(self.shelf.root, wanted.repo):
            listing = self.hub.listing(wanted.repo, wanted.revision)
            selected = select(wanted, listing.sizes())
            self._show(wanted, listing)
            offered = [listing.file(name) for name in selected.files]
            lock = pins.read(self.shelf.root)
            pins.check(lock, wanted.repo, wanted.revision, listing.commit, offered, update=update)
            name = self._named(name, wanted, selected)
            self._ask(listing)
            return self._bring(wanted, listing, selected, name)

    def _show(self, wanted: Wanted, listing: Listing) -> None:
        gated = ", gated" if listing.gated else ""
        self.note(f"{wanted.repo} at {listing.commit[:12]} ({wanted.revision})")
        self.note(f"licence: {listing.licence or 'none stated'}{gated}")

    def _named(self, name: str, wanted: Wanted, selected: Selected) -> str:
        """The name it gets; another model's name is not taken away."""
        name = check_name(name or default_name(wanted.repo, selected.quantisation))
        if self.shelf.has(name) and (old := self.shelf.get(name)).repo != wanted.repo:
            raise ConfigError(
                f"{name} is another model already",
                why=f"it is {old.repo or old.path}",
                effect="nothing was pulled",
                todo=f"give another name with --name, or outrider rm {name} first",
            )
        return name

    def _ask(self, listing: Listing) -> None:
        if not listing.gated:
            return
        if not self.hub.has_token():
            raise self.hub.gated(listing.repo)
        if not self.agree(listing.repo, listing.licence):
            raise AccessDenied(
                f"the licence of {listing.repo} was not agreed to",
                why=f"its text: {self.hub.url}/{listing.repo}",
                effect="nothing was pulled",
                todo="read it, then pull again with --yes",
            )

    def _bring(self, wanted: Wanted, listing: Listing, chosen: Selected, name: str) -> Entry:
        folder = self.shelf.root / "hub" / wanted.repo.replace("/", "--") / listing.commit
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        missing = [f for f in map(listing.file, chosen.files) if not _there(folder, f)]
        self._look_for_room(folder, missing)
        for part in chosen.first:
            self._one(listing, listing.file(part), folder)
        weights = _shards(folder, chosen)
        _check_config(folder, chosen, weights)
        for part in weights:
            self._one(listing, listing.file(part), folder)
        files = source.resolve(str(_path(folder, chosen)))
        self._check(files)
        names = (*chosen.first, *weights)
        entry = self._entry(name, files, [folder / _local(n) for n in names])
        entry = _from_hub(entry, wanted, listing)
        pinned = {n: _pin(listing, n, folder) for n in names}
        pins.keep(self.shelf.root, wanted.repo, wanted.revision, pinned)
        self.shelf.put(entry)
        return entry

    def _look_for_room(self, folder: Path, missing: Sequence[Offered]) -> None:
        need = sum(file.size - _came(folder, file) for file in missing)
        free = self.room(folder)
        total = sum(file.size for file in missing)
        files = f"{len(missing)} file{'s' * (len(missing) != 1)} to fetch, {readable(total)}"
        self.note(f"{files}; {readable(free)} free" if missing else "all of its files are here")
        if need + SPARE > free and need:
            raise DiskFull(
                f"there is no room: {readable(need)} are to come, {readable(free)} are free",
                why=f"{self.shelf.root} is to keep {readable(SPARE)} free beside it",
                effect="nothing was pulled",
                todo="make room (outrider ls, outrider rm), set OUTRIDER_MODELS to another disk,"
                " or take a smaller quantisation",
            )

    def _one(self, listing: Listing, file: Offered, folder: Path) -> None:
        """One file to its place, from its part, or from another commit that has the same."""
        place = folder / _local(file.name)
        if _there(folder, file) and self._same(place, file):
            return
        twin = self._twin(folder, file)
        if twin is not None:
            os.link(twin, place)
            return
        part = _part(folder, file)
        self.hub.fetch(listing, file, part, self.meter)
        part.replace(place)
        source.remember(place, file.sha256)

    def _same(self, place: Path, file: Offered) -> bool:
        """A file that was fetched before and changed since is fetched again."""
        if not file.sha256 or source.file_digest(place) == file.sha256:
            return True
        place.unlink()
        return False

    def _twin(self, folder: Path, file: Offered) -> Path | None:
        """The same bytes under another commit of this repository."""
        if not file.sha256:
            return None
        for other in folder.parent.glob(f"*/{_local(file.name)}"):
            size = other.stat().st_size
            if other.parent != folder and size == file.size:
                if source.file_digest(other) == file.sha256:
                    return other
        return None

    def _check(self, files: ModelFiles) -> None:
        """Before it gets a name. Raises ModelCorrupt, ModelUnsupported; what is corrupt goes."""
        try:
            check_model(files)
            support(files)
        except ModelCorrupt:
            for path in files.weights:
                path.unlink(missing_ok=True)
            raise

    def _entry(self, name: str, files: ModelFiles, paths: Sequence[Path]) -> Entry:
        stored = tuple(
            StoredFile(path.name, path.stat().st_size, source.file_digest(path)) for path in paths
        )
        return Entry(
            name=name,
            path=str(files.path.resolve()),
            origin="place",
            kind=files.kind,
            quantisation=stored_as(files),
            size=sum(file.size for file in stored),
            digest=files.digest,
            vocabulary=_vocabulary(files),
            files=stored,
            added_at=self.now(),
        )

    # --- what lies here already ------------------------------------------------------------

    def register(self, place: str, name: str = "") -> Entry:
        """Give a folder or a file a name, where it lies. Raises NotFound, ModelError."""
        files = source.resolve(str(Path(place).expanduser()))
        name = check_name(name or default_name(files.name, ""))
        if self.shelf.has(name) and (old := self.shelf.get(name)).origin == "hub":
            raise ConfigError(
                f"{name} is another model already",
                why=f"it was pulled from {old.repo}",
                effect="nothing was registered",
                todo="give another name with --name",
            )
        check_model(files)
        support(files)
        self.note(f"reading {files.path}: its SHA-256 is taken once")
        entry = self._entry(name, files, _beside(files))
        self.shelf.put(entry)
        return entry


def default_name(text: str, quantisation: str) -> str:
    """`qwen3-0.6b:q8_0` of Qwen/Qwen3-0.6B-GGUF and Q8_0."""
    base = re.sub(r"[^a-z0-9._-]+", "-", text.rpartition("/")[2].lower()).strip("-._")
    base = base.removesuffix("-gguf") or "model"
    tag = re.sub(r"[^a-z0-9._-]+", "-", quantisation.rpartition("/")[2].lower())
    return f"{base}:{tag}" if tag and not base.endswith(tag) else base


@contextmanager
def _alone(root: Path, repo: str) -> Iterator[None]:
    """One pull of a repository at a time on this machine. Raises ConfigError."""
    place = root / "hub" / f".{repo.replace('/', '--')}.lock"
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with place.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{repo} is being pulled by another process",
                effect="this one did nothing",
                todo="wait for it, or end it",
            ) from None
        yield


# --- files -------------------------------------------------------------------------------------


def _local(name: str) -> str:
    """The name on this machine: folders of a repository are left out."""
    return name.rpartition("/")[2]


def _there(folder: Path, file: Offered) -> bool:
    place = folder / _local(file.name)
    return place.is_file() and place.stat().st_size == file.size


def _part(folder: Path, file: Offered) -> Path:
    """Named by content, so that what was begun of another version is not gone on with."""
    return folder / f"{_local(file.name)}.{(file.sha256 or file.git)[:12]}.part"


def _came(folder: Path, file: Offered) -> int:
    part = _part(folder, file)
    return min(part.stat().st_size, file.size) if part.is_file() else 0


def _path(folder: Path, chosen: Selected) -> Path:
    return folder if chosen.kind == "safetensors" else folder / _local(chosen.weights[0])


def _shards(folder: Path, chosen: Selected) -> tuple[str, ...]:
    """The weights to fetch; of an index only those that it names."""
    if INDEX not in chosen.first:
        return chosen.weights
    try:
        named = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelCorrupt(
            f"{INDEX} can not be used",
            why="it is no JSON object with a weight_map",
            effect="nothing was registered",
        ) from None
    if not named <= set(chosen.weights):
        raise ModelCorrupt(
            f"{INDEX} names files that the repository does not hold",
            effect="nothing was registered",
            todo="pull another revision",
        )
    return tuple(name for name in chosen.weights if name in named)


def _check_config(folder: Path, chosen: Selected, weights: Sequence[str]) -> None:
    """Refuse what no engine here computes before gigabytes of it are fetched."""
    if chosen.kind != "safetensors" or all((folder / name).is_file() for name in weights):
        return
    from outrider.models.config import load_config

    try:
        load_config(folder / CONFIG)
    except ModelUnsupported as error:
        error.effect = "its weights were not fetched"
        error.todo = f"{error.todo}; a GGUF of it may run under llama.cpp"
        raise


def _beside(files: ModelFiles) -> list[Path]:
    """What belongs to a model that lies somewhere."""
    extra = [] if files.kind == "gguf" else [files.config, files.tokenizer_json]
    names = () if files.kind == "gguf" else ("tokenizer_config.json", "chat_template.jinja")
    found = [files.sibling(name) for name in names]
    return [*files.weights, *(path for path in (*extra, *found) if path is not None)]


def _vocabulary(files: ModelFiles) -> str:
    try:
        return load_vocabulary(files).digest
    except OutriderError:
        if files.kind == "onnx":
            return ""
        raise


def _pin(listing: Listing, name: str, folder: Path) -> Pin:
    file = listing.file(name)
    found = source.file_digest(folder / _local(name))
    return Pin(listing.commit, file.size, found, file.git)


def _from_hub(entry: Entry, wanted: Wanted, listing: Listing) -> Entry:
    return msgspec.structs.replace(
        entry,
        origin="hub",
        repo=wanted.repo,
        commit=listing.commit,
        licence=listing.licence,
    )


def is_place(text: str) -> bool:
    """Whether it is written as a path of this machine, not as a repository's name."""
    looks = text.startswith((".", "/", "~")) or text.endswith((".gguf", ".onnx", ".safetensors"))
    return (looks and ":" not in text) or ("/" not in text and Path(text).is_dir())
