"""From a model's name to an ONNX file that was checked, exported at first use."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from outrider.errors import ConfigError, ModelError, ModelUnsupported
from outrider.models import part
from outrider.models import vocabulary as vocabularies
from outrider.models.check import check_onnx
from outrider.models.onnx_notes import FORMAT, Precision, parse
from outrider.models.source import ModelFiles, cache_dir, resolve
from outrider.protocol.vocabulary import Vocabulary

PRECISIONS: Mapping[str, Precision] = {"float32": "stored", "int8": "int8", "int4": "int4"}
"""What people ask for as dtype, and the exporter's word for it."""
_EDITION = 2
"""Of the bytes that the exporter writes within a format: what it wrote before is made anew."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file to load, checked."""

    path: Path
    name: str
    vocabulary: Vocabulary


def find(model: str, dtype: str) -> Found:
    """`dtype`: float32, int8 or int4; an .onnx file has its own.

    Raises NotFound, ModelCorrupt, ModelUnsupported, ConfigError.
    """
    files = resolve(model)
    if files.kind == "gguf":
        raise ModelUnsupported(
            f"{files.name} is a GGUF file",
            effect="no model was loaded",
            todo="use the llama engine, or the folder with config.json and safetensors",
        )
    vocabulary = vocabularies.load(files)
    path = files.path if files.kind == "onnx" else exported(files, dtype)
    check_onnx(path)
    return Found(path, files.name, vocabulary)


def exported(files: ModelFiles, dtype: str) -> Path:
    """The model as ONNX in the cache folder; written when it is not there, or not what it was."""
    if dtype not in PRECISIONS:
        raise ConfigError(f"onnx has no dtype {dtype!r}", todo=f"one of {', '.join(PRECISIONS)}")
    beside = files.sibling("model.onnx")
    if beside is not None and _is_export(beside, files, dtype):
        return beside
    return kept(files, f"{dtype}-{FORMAT}.{_EDITION}", partial(_export, files, dtype))


def kept(files: ModelFiles, name: str, write: Callable[[Path], None]) -> Path:
    """What `write` writes of a model at the path it is given, in the cache folder; written when
    it is not there, or not what it was. Raises ConfigError where that can not be."""
    # Layers that were pushed keep theirs beside them, apart from those of files that lie here.
    home = cache_dir() if part.read(files.folder) is None else files.folder
    folder = home / "onnx" / f"{files.digest[:32]}-{name}"
    if not _sound(folder):
        try:
            _keep(folder, write)
        except OSError as error:
            raise ConfigError(
                f"the ONNX export of {files.name} can not be written",
                why=f"{folder.parent}: {error.strerror}",
                effect="no model was loaded",
                todo="point OUTRIDER_CACHE to a folder with room that can be written",
            ) from error
    return folder / "model.onnx"


def _is_export(path: Path, files: ModelFiles, dtype: str) -> bool:
    """Whether the file beside the weights was made from them, as wanted."""
    import onnx

    check_onnx(path)
    metadata = onnx.load(path, load_external_data=False).metadata_props
    try:
        notes = parse({entry.key: entry.value for entry in metadata})
    except ModelError:
        return False
    return notes.weights == files.digest and notes.precision == PRECISIONS[dtype] and notes.whole


def _sound(folder: Path) -> bool:
    """Whether the export in a folder is the one that was written there."""
    try:
        return (folder / "digest").read_text(encoding="ascii") == _digest(folder)
    except (OSError, ValueError):
        return False


def _digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(folder.glob("model.onnx*")):
        with path.open("rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    return state.hexdigest()


def _export(files: ModelFiles, dtype: str, path: Path) -> None:
    from outrider.models.onnx_export import export

    export(files, path, precision=PRECISIONS[dtype])


def _keep(folder: Path, write: Callable[[Path], None]) -> None:
    """Write beside, then rename, so that another process sees all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    try:
        write(draft / "model.onnx")
        (draft / "digest").write_text(_digest(draft), encoding="ascii")
        _move(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move(draft: Path, folder: Path) -> None:
    if _sound(folder):
        return
    if folder.exists():
        folder.rename(Path(tempfile.mkdtemp(dir=folder.parent, suffix=".old")) / "old")
    try:
        os.rename(draft, folder)
    except OSError:
        # Another process was faster; its export has the same bytes.
        if not _sound(folder):
            raise
