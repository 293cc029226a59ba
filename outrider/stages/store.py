"""Weights that coordinators sent: files by their SHA-256, checked before anything loads them.

    objects/DIGEST            whole files, checked
    incoming/DIGEST.part      what came of others; a push goes on where the last one ended
    manifests/TENANT-DIGEST   which file is which unit of a model, as this tenant says
    views/ID/                 one stage's files under their names (hard links), and the note
                              that says of which model they are

One tenant's word about a model counts for that tenant alone; the files themselves are shared,
since a digest names one content. The oldest give way when room is wanted, never those of a
stage that is loaded or of a push under way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from outrider.engine import LayerRange
from outrider.errors import DiskFull, EngineFull, ModelCorrupt, OutriderError, RemoteProtocolError
from outrider.models import part
from outrider.models.check import check_safetensors
from outrider.models.config import ModelConfig, load_config
from outrider.models.weights import shapes_of
from outrider.protocol.fleet import PushedFile, PushOffer, PushWant
from outrider.stages.emulate import spell
from outrider.stages.parcel import CONFIG, SMALL, range_of, tensors_of, units_of

MAX_CONFIG = 1 << 20
MAX_TOKENIZER = 64 << 20
SPARE = 64 << 20
"""Bytes that stay free on the disk."""
_NAME = re.compile(r"unit-(embedding|head|\d{5})\.safetensors")


@dataclass(slots=True, eq=False)
class Reception:
    """One push under way. Its calls block, and come one after the other."""

    store: WeightStore
    tenant: str
    offer: PushOffer
    held: str = ""
    """Digest of the file that is coming, which no other push brings meanwhile."""
    resumed: bool = False
    """It goes on where another push ended."""
    came: int = 0
    """Bytes."""
    config: ModelConfig | None = None

    def next(self) -> PushWant | str:
        """What to send now; `wait` while others bring what is missing; `done`. Raises what a
        config that can not be used deserves."""
        return self.store.wanted(self)

    def add(self, data: bytes) -> bool:
        """Bytes of what was asked for; whether the file has all of its own now. Raises
        ModelCorrupt, DiskFull, RemoteProtocolError."""
        return self.store.add(self, data)

    def end(self) -> None:
        """However it ended; what came of a file stays for the next push."""
        self.store.leave(self)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(file.digest.hex() for file in self.offer.files)


@dataclass(slots=True)
class WeightStore:
    """`limit`: bytes of all files together. Thread-safe; calls block on the disk."""

    root: Path
    limit: int
    free: Callable[[], int] | None = None
    """Bytes free on the disk; None asks it."""
    in_use: Callable[[], Iterable[str]] = tuple
    """Views that loaded stages read."""
    _receptions: list[Reception] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for name in ("objects", "incoming", "manifests", "views"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    # --- receiving -----------------------------------------------------------------------------

    def receive(self, tenant: str, offer: PushOffer) -> Reception:
        """Begin a push. Raises EngineFull, DiskFull, ModelCorrupt; then nothing has changed but
        that older files may have given way."""
        _check_offer(offer, self.limit)
        with self._lock:
            reception = Reception(self, tenant, offer)
            self._receptions.append(reception)
            try:
                self._make_room()
            except BaseException:
                self._receptions.remove(reception)
                raise
            return reception

    def wanted(self, reception: Reception) -> PushWant | str:
        with self._lock:
            missing = [
                (index, file)
                for index, file in enumerate(reception.offer.files)
                if not self._object(file).is_file()
            ]
            if missing and missing[0][0] == 0 and self._taken(missing[0][1]):
                return "wait"
            if reception.config is None and (not missing or missing[0][0] > 0):
                reception.config = load_config(self._object(reception.offer.files[0]))
            if not missing:
                self._remember(reception)
                return "done"
            for index, file in missing:
                if not self._taken(file):
                    return self._want(reception, index, file)
            return "wait"

    def _want(self, reception: Reception, index: int, file: PushedFile) -> PushWant:
        path = self._incoming(file)
        if _size(path) >= file.size:
            path.unlink()
        offset = _size(path)
        reception.held, reception.resumed = file.digest.hex(), offset > 0
        return PushWant(index, offset)

    def add(self, reception: Reception, data: bytes) -> bool:
        file = next(f for f in reception.offer.files if f.digest.hex() == reception.held)
        path = self._incoming(file)
        if _size(path) + len(data) > file.size:
            raise RemoteProtocolError("more of a file came than it has", effect="it was not kept")
        self._append(path, data)
        reception.came += len(data)
        if _size(path) < file.size:
            return False
        self._accept(reception, file, path)
        reception.held = ""
        return True

    def leave(self, reception: Reception) -> None:
        with self._lock:
            if reception in self._receptions:
                self._receptions.remove(reception)

    def _taken(self, file: PushedFile) -> bool:
        return any(other.held == file.digest.hex() for other in self._receptions)

    def _append(self, path: Path, data: bytes) -> None:
        if self._free() - len(data) < SPARE:
            raise _disk_full(len(data), self._free())
        try:
            with path.open("ab") as stream:
                stream.write(data)
        except OSError as error:
            raise _disk_full(len(data), self._free(), error.strerror or "") from None

    def _accept(self, reception: Reception, file: PushedFile, path: Path) -> None:
        """Whole: hash it, check it, and only then give it its name."""
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").digest()
            if found != file.digest and reception.resumed:
                # What another push left was bad: it is asked for from its start.
                path.unlink()
                return
            if found != file.digest:
                raise _corrupt(file.name, "its SHA-256 is not the one that was named")
            _check_content(file.name, path, reception.config)
        except OutriderError:
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            path.replace(self._object(file))

    # --- what is there -------------------------------------------------------------------------

    def view(self, tenant: str, digest: str, layers: LayerRange) -> Path | None:
        """A folder with a stage's files, as this tenant sent them; None where one is missing."""
        with self._lock:
            told = self._manifest(tenant, digest)
            if CONFIG not in told or not self._has(told[CONFIG]):
                return None
            config = load_config(self.root / "objects" / told[CONFIG])
            if layers.stop > config.layers:
                return None
            names = (*(n for n in SMALL if n in told), *units_of(config, layers))
            if not all(name in told and self._has(told[name]) for name in names):
                return None
            return self._linked(digest, {name: told[name] for name in names})

    def layers(self, tenant: str, digest: str) -> int:
        """Decoder layers of a model that was sent, by its config."""
        config = self._manifest(tenant, digest)[CONFIG]
        return load_config(self.root / "objects" / config).layers

    def _linked(self, digest: str, names: dict[str, str]) -> Path:
        text = json.dumps([digest, sorted(names.items())])
        folder = self.root / "views" / hashlib.sha256(text.encode()).hexdigest()[:32]
        if not (folder / part.NOTE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            for name, found in names.items():
                os.link(self.root / "objects" / found, folder / name)
            part.write(folder, part.Part(digest, digest[:12]))
        for found in names.values():
            os.utime(self.root / "objects" / found)
        return folder

    def _remember(self, reception: Reception) -> None:
        told = self._manifest(reception.tenant, reception.offer.digest)
        told |= {file.name: file.digest.hex() for file in reception.offer.files}
        path = self._manifest_path(reception.tenant, reception.offer.digest)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(told), encoding="ascii")
        draft.replace(path)
        for found in reception.digests:
            os.utime(self.root / "objects" / found)

    def _manifest(self, tenant: str, digest: str) -> dict[str, str]:
        try:
            text = self._manifest_path(tenant, digest).read_text(encoding="ascii")
            return dict(json.loads(text))
        except (OSError, ValueError, TypeError):
            return {}

    def _manifest_path(self, tenant: str, digest: str) -> Path:
        whose = hashlib.sha256(f"{tenant}\0{digest}".encode()).hexdigest()
        return self.root / "manifests" / whose[:32]

    def _object(self, file: PushedFile) -> Path:
        return self.root / "objects" / file.digest.hex()

    def _incoming(self, file: PushedFile) -> Path:
        return self.root / "incoming" / f"{file.digest.hex()}.part"

    def _has(self, digest: str) -> bool:
        return (self.root / "objects" / digest).is_file()

    # --- room ----------------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes that count against the limit: objects, parts, and what engines made in views."""
        kept = [*(self.root / "objects").iterdir(), *(self.root / "incoming").iterdir()]
        made = [each for each in (self.root / "views").rglob("*") if each.is_file()]
        return sum(_size(each) for each in kept) + sum(
            each.stat().st_size for each in made if each.stat().st_nlink == 1
        )

    def _make_room(self) -> None:
        """For all that pushes under way will still bring. Raises EngineFull, DiskFull."""
        coming = self._coming()
        oldest = self._oldest()
        while (self.used() + coming > self.limit or self._free() - coming < SPARE) and oldest:
            self._remove(oldest.pop(0))
        if self.used() + coming > self.limit:
            raise EngineFull(
                "this worker's store of weights is in use",
                why=f"{spell(coming)} would come, it takes {spell(self.limit)} in all, and what "
                "is there is loaded or on its way",
                effect="nothing was sent",
                todo="a larger --accept-weights, or fewer layers",
            )
        if self._free() - coming < SPARE:
            raise _disk_full(coming, self._free())

    def _coming(self) -> int:
        files = {f.digest: f for r in self._receptions for f in r.offer.files}.values()
        return sum(
            file.size - _size(self._incoming(file))
            for file in files
            if not self._object(file).is_file()
        )

    def _oldest(self) -> list[Path]:
        """What may go, the longest unused first."""
        wanted = {digest for reception in self._receptions for digest in reception.digests}
        used = {
            each.stat().st_ino
            for view in self.in_use()
            for each in Path(view).glob("*")
            if Path(view).parent == self.root / "views"
        }
        kept = [*(self.root / "objects").iterdir(), *(self.root / "incoming").iterdir()]
        free = [p for p in kept if p.stem not in wanted and p.stat().st_ino not in used]
        return sorted(free, key=lambda path: path.stat().st_mtime_ns)

    def _remove(self, path: Path) -> None:
        """With the views that link to it."""
        inode = path.stat().st_ino
        for view in list((self.root / "views").iterdir()):
            if any(each.stat().st_ino == inode for each in view.iterdir()):
                shutil.rmtree(view, ignore_errors=True)
        path.unlink(missing_ok=True)

    def _free(self) -> int:
        return self.free() if self.free is not None else shutil.disk_usage(self.root).free


# --- checks ------------------------------------------------------------------------------------


def _check_offer(offer: PushOffer, limit: int) -> None:
    if re.fullmatch(r"[0-9a-f]{64}", offer.digest) is None or offer.files[0].name != CONFIG:
        raise RemoteProtocolError("a push names no model, or its config does not come first")
    for file in offer.files:
        if file.name in SMALL:
            most = MAX_TOKENIZER if file.name == SMALL[-1] else MAX_CONFIG
        elif _NAME.fullmatch(file.name):
            most = limit
        else:
            raise RemoteProtocolError("a push names a file that is no part of a model")
        if file.size > most and file.name in SMALL:
            raise _corrupt(file.name, f"it has {file.size} bytes, at most {most} are taken")
    if len({file.digest for file in offer.files}) != len(offer.files):
        raise RemoteProtocolError("two files of a push have one digest")
    if offer.size > limit:
        raise EngineFull(
            f"{spell(offer.size)} of weights are more than this worker takes",
            why=f"it was started with --accept-weights {limit}",
            effect="nothing was sent",
            todo="fewer layers for it, or a larger --accept-weights",
        )


def _check_content(name: str, path: Path, config: ModelConfig | None) -> None:
    """By our own checks, before any loader sees it. Raises ModelCorrupt, ModelUnsupported."""
    if name == CONFIG:
        load_config(path)
    if name in SMALL:
        return
    assert config is not None, "the config comes first"
    where = range_of(name)
    if where.stop > config.layers:
        raise _corrupt(name, f"the model has {config.layers} layers")
    shapes = shapes_of(config, where)
    wanted = {tensor: shapes[tensor] for tensor in tensors_of(config, name)}
    found = {entry.name: entry.shape for entry in check_safetensors(path)}
    if found != wanted:
        differ = sorted(Counter(found.items()) - Counter(wanted.items()) or wanted.items())
        raise _corrupt(name, f"its tensors are not those of the config, such as {differ[0][0]}")


def _corrupt(name: str, why: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{name} was not taken", why=why, effect="it was thrown away", todo="send it again"
    )


def _disk_full(size: int, free: int, why: str = "") -> DiskFull:
    return DiskFull(
        "the worker's disk has no room for the weights",
        why=why or f"{spell(size)} would come, {spell(free)} are free, {spell(SPARE)} stay so",
        effect="what came so far is kept",
        todo="free some of it, or point --cache to another disk",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
