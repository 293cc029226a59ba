"""Where a model lies: from what the user named to the files that are read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outrider import paths
from outrider.errors import ModelCorrupt, ModelUnsupported, NotFound
from outrider.models import part, presets
from outrider.models.check.onnx import check_onnx
from outrider.models.shelf import Shelf, is_name, verify

Kind = Literal["safetensors", "gguf", "onnx"]

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"
_INDEX = "model.safetensors.index.json"
_MAX_JSON = 64 << 20
_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model. Names and presence were looked at; of ONNX, the external data."""

    kind: Kind
    name: str
    """For people."""
    path: Path
    """The folder (safetensors) or the file that is handed to a loader (GGUF: the first part)."""
    folder: Path
    weights: tuple[Path, ...]
    """Every file with weights: shards by name; an ONNX file, then its external data."""
    config: Path | None
    """config.json; always there for safetensors."""
    tokenizer_json: Path | None

    @property
    def digest(self) -> str:
        """Hex SHA-256 over weights and config; computed once per state of the files."""
        return digest(self)

    def sibling(self, name: str) -> Path | None:
        """A file beside the model's, or None."""
        path = self.folder / name
        return path if path.is_file() else None


def cache_dir() -> Path:
    """Folder for what can be made again; OUTRIDER_CACHE overrides the platform's place."""
    return paths.cache_dir()


def resolve(model: str) -> ModelFiles:
    """Find a model's files.

    `model`: `bundled:target`, `bundled:draft`, a name of `outrider ls`, a folder, or a
    .gguf, .onnx or .safetensors file. Raises NotFound, ModelUnsupported, ModelCorrupt (an
    index or an ONNX file that names files outside its folder), ModelChanged (a pulled model
    whose files are not those that were pulled).
    """
    if model.startswith("bundled:"):
        return _bundled(model)
    path = Path(locate(model)).expanduser()
    if path.is_dir():
        return _folder(path, path.resolve().name)
    if not path.is_file():
        raise _missing(model, "there is no such file or folder" + _nearest(model))
    return _file(path)


def _nearest(model: str) -> str:
    """What was perhaps meant, for the error."""
    if not is_name(model):
        return ""
    known = tuple(presets.models())
    near = Shelf().near(model, (*known, "bundled:target", "bundled:draft"))
    if near is None:
        return ", and no model is named so"
    if near in known and not Shelf().has(near):
        return f", and no model is named so; {near} can be had: outrider pull {near}"
    return f", and no model is named so: did you mean {near}?"


def locate(model: str) -> str:
    """The path behind a name of `outrider ls`; anything else as it is.

    A name wins over a folder of that name in the working directory: what a daemon loads must
    not depend on where it was started, and a folder can be written `./NAME`.
    Raises ModelChanged.
    """
    shelf = Shelf()
    if not shelf.has(model):
        return model
    entry = shelf.get(model)
    if entry.origin == "hub":
        verify(entry, file_digest)
    return entry.path


def _bundled(model: str) -> ModelFiles:
    known = sorted(entry.name for entry in BUNDLED.iterdir() if (entry / "config.json").is_file())
    name = model.removeprefix("bundled:")
    if name not in known:
        raise _missing(model, f"bundled are {', '.join(known)}")
    return _folder(BUNDLED / name, model)


def _missing(model: str, why: str) -> NotFound:
    return NotFound(
        f"model {model!r} was not found",
        param="model",
        why=why,
        effect="no model was loaded",
        todo="name bundled:target, bundled:draft, a name of outrider ls, a folder with"
        " config.json and safetensors, or a .gguf or .onnx file",
    )


def _folder(folder: Path, name: str) -> ModelFiles:
    if (folder / "config.json").is_file() and (weights := _shards(folder)):
        return _safetensors(folder, name, weights)
    for suffix in (".gguf", ".onnx"):
        found = [path for path in sorted(folder.glob(f"*{suffix}")) if _leads(path)]
        if len(found) == 1:
            return _file(found[0])
        if found:
            raise ModelUnsupported(
                f"{folder} holds {len(found)} {suffix} models",
                effect="no model was loaded",
                todo="name one of the files",
            )
    raise _missing(
        str(folder), "it holds neither config.json with safetensors, nor a .gguf or .onnx file"
    )


def _leads(path: Path) -> bool:
    """Not a later part of a split GGUF."""
    split = _SPLIT.match(path.name)
    return split is None or split["number"] == "00001"


def _shards(folder: Path) -> tuple[Path, ...]:
    if (folder / _INDEX).is_file():
        return _indexed(folder)
    single = folder / "model.safetensors"
    return (single,) if single.is_file() else tuple(sorted(folder.glob("*.safetensors")))


def _indexed(folder: Path) -> tuple[Path, ...]:
    """Shards by the index; every name must be a plain file name in the folder."""
    names = sorted(set(_weight_map(folder / _INDEX).values()), key=str)
    shards = []
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or _nested(name):
            raise _bad_index(folder, "it names a file outside the folder, or no safetensors")
        if not (folder / name).is_file():
            raise _missing(str(folder), f"its index names {name}, which is not there")
        shards.append(folder / name)
    return tuple(shards)


def _nested(name: str) -> bool:
    return Path(name).name != name or "\\" in name or "\0" in name


def _weight_map(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise _bad_index(path.parent, "it is too large")
        found = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _bad_index(path.parent, "it is not a JSON object with a weight_map") from None
    if not isinstance(found, dict):
        raise _bad_index(path.parent, "its weight_map is not an object")
    return found


def _bad_index(folder: Path, why: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{folder / _INDEX} can not be used",
        why=why,
        effect="no model was loaded",
        todo="fetch the model again",
    )


def _safetensors(folder: Path, name: str, weights: tuple[Path, ...]) -> ModelFiles:
    return ModelFiles(
        kind="safetensors",
        name=name,
        path=folder,
        folder=folder,
        weights=weights,
        config=folder / "config.json",
        tokenizer_json=_present(folder / "tokenizer.json"),
    )


def _present(path: Path) -> Path | None:
    return path if path.is_file() else None


def _file(path: Path) -> ModelFiles:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        if not (path.parent / "config.json").is_file():
            raise _missing(str(path), "there is no config.json beside it")
        return _safetensors(path.parent, path.stem, (path,))
    if suffix == ".gguf":
        return _single("gguf", path, _parts(path))
    if suffix == ".onnx":
        return _single("onnx", path, (path, *check_onnx(path)))
    raise ModelUnsupported(
        f"{path.name} is of no known kind",
        why=f"the name ends in {suffix or 'nothing'}",
        effect="no model was loaded",
        todo="name a .gguf, .onnx or .safetensors file, or a folder",
    )


def _single(kind: Kind, path: Path, weights: tuple[Path, ...]) -> ModelFiles:
    return ModelFiles(
        kind=kind,
        name=path.stem,
        path=weights[0],
        folder=path.parent,
        weights=weights,
        config=_present(path.parent / "config.json"),
        tokenizer_json=_present(path.parent / "tokenizer.json"),
    )


def _parts(path: Path) -> tuple[Path, ...]:
    """All files of a split GGUF (`name-00001-of-00003.gguf`), or the one."""
    split = _SPLIT.match(path.name)
    if split is None:
        return (path,)
    count = int(split["count"])
    if not 1 <= count <= 1000:
        raise ModelUnsupported(f"{path.name} says it has {count} parts")
    names = [f"{split['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    for name in names:
        if not (path.parent / name).is_file():
            raise _missing(str(path), f"its part {name} is not there")
    return tuple(path.parent / name for name in names)


# --- digests -----------------------------------------------------------------------------------


def digest(files: ModelFiles) -> str:
    """Hex SHA-256 over weights and config.

    A lone GGUF or ONNX file has its plain SHA-256; several files (shards, external
    data) have the one over `name, digest` lines. Some layers of a model have the whole one's.
    """
    of = part.read(files.folder) if files.kind == "safetensors" else None
    if of is not None:
        return of.digest
    parts = [*files.weights]
    if files.kind == "safetensors" and files.config is not None:
        parts.append(files.config)
    if len(parts) == 1:
        return file_digest(parts[0])
    lines = "".join(f"{part.name}\0{file_digest(part)}\n" for part in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hex SHA-256 of a file, remembered under the cache folder by size and time stamps."""
    note = _note_of(path)
    known = _noted(note)
    if known is None:
        known = _hashed(path)
        _note(note, known)
    return known


def remember(path: Path, sha256: str) -> None:
    """Note a digest that was computed just now, so that nobody computes it again."""
    _note(_note_of(path), sha256)


def _note_of(path: Path) -> Path:
    state = path.stat()
    stamp = (str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    return cache_dir() / "digests" / hashlib.sha256(repr(stamp).encode()).hexdigest()


def _hashed(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _noted(note: Path) -> str | None:
    try:
        text = note.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None


def _note(note: Path, text: str) -> None:
    """Best effort: a cache that can not be written costs time, nothing else."""
    try:
        write_atomically(note, text.encode("ascii"))
    except OSError:
        return


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, then rename, so that a reader sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
