"""The corpus: Python files of the running environment, without what is held out.

A manifest line is `<first 16 hex digits of the file's SHA-256> <root>/<path inside the root>`.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.train_pair.shingles import Hashes, Lexicon, likeness

SHINGLE = 8
"""Words in a shingle when files are compared as a whole."""
TOO_MUCH_ALIKE = 0.5
"""A file this much like a held-out one (Jaccard) is left out."""
TOO_MUCH_CONTAINED = 0.2
"""So is a file that contains this share of a held-out file's shingles."""
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"})
SIZE_BYTES = range(200, 200_001)


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that Python files are taken from, under a short name."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Source:
    """One file of the corpus."""

    root: str
    path: str
    text: str
    sha256: str

    @property
    def line(self) -> str:
        return f"{self.sha256[:16]} {self.root}/{self.path}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file left out because it is too much like a held-out one."""

    line: str
    like: str
    jaccard: float
    containment: float


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on, what is held out, and what was dropped in between."""

    sources: tuple[Source, ...]
    held_out: tuple[Source, ...]
    rejected: tuple[Rejected, ...]


def environment_roots() -> tuple[Root, Root]:
    """The standard library and the packages installed beside it."""
    paths = sysconfig.get_paths()
    return Root("stdlib", Path(paths["stdlib"])), Root("packages", Path(paths["purelib"]))


def read_source(root: Root, path: Path) -> Source | None:
    """Reads one file; None if it is not UTF-8 text."""
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    inside = path.relative_to(root.folder).as_posix()
    return Source(root.name, inside, text, hashlib.sha256(data).hexdigest())


def walk(root: Root) -> Iterator[Source]:
    """All files of a root that qualify, in order of their path."""
    for path in sorted(root.folder.rglob("*.py")):
        inside = path.relative_to(root.folder)
        if SKIPPED_FOLDERS.isdisjoint(inside.parts) and path.stat().st_size in SIZE_BYTES:
            source = read_source(root, path)
            if source is not None:
                yield source


def held_out_names(file: Path) -> tuple[str, ...]:
    """The names in a `held_out.json`: a list of objects with the key `file`."""
    return tuple(entry["file"] for entry in json.loads(file.read_text()))


def collect(roots: Sequence[Root], held_out: Iterable[str], most_files: int | None) -> Corpus:
    """Gathers files, sets the held-out ones apart and drops copies and near-duplicates.

    Held-out names are looked up in the first root. `most_files` keeps that many files, chosen
    by their digest, so that the choice does not depend on the order of folders.
    """
    held = tuple(_find(roots[0], held_out))
    names = {(source.root, source.path) for source in held}
    unique = {s.sha256: s for root in roots for s in walk(root) if (s.root, s.path) not in names}
    for source in held:
        unique.pop(source.sha256, None)
    chosen = sorted(unique.values(), key=lambda s: s.sha256)[:most_files]
    kept, rejected = drop_near_duplicates(chosen, held)
    return Corpus(tuple(sorted(kept, key=lambda s: (s.root, s.path))), held, tuple(rejected))


def _find(root: Root, names: Iterable[str]) -> Iterator[Source]:
    for name in names:
        path = root.folder / name
        source = read_source(root, path) if path.is_file() else None
        if source is not None:
            yield source


def drop_near_duplicates(
    sources: Sequence[Source], held_out: Sequence[Source]
) -> tuple[list[Source], list[Rejected]]:
    """Parts the sources into those unlike every held-out file and those too much like one."""
    lexicon = Lexicon()
    held = {s.path: np.unique(lexicon.shingles(s.text, SHINGLE)) for s in held_out}
    kept: list[Source] = []
    rejected: list[Rejected] = []
    for source in sources:
        twin = _twin(source, np.unique(lexicon.shingles(source.text, SHINGLE)), held)
        if twin is None:
            kept.append(source)
        else:
            rejected.append(twin)
    return kept, rejected


def _twin(source: Source, hashes: Hashes, held: dict[str, Hashes]) -> Rejected | None:
    for name, wanted in held.items():
        found = likeness(wanted, hashes)
        if found.jaccard >= TOO_MUCH_ALIKE or found.containment >= TOO_MUCH_CONTAINED:
            return Rejected(source.line, name, found.jaccard, found.containment)
    return None


def write_manifest(corpus: Corpus, folder: Path) -> None:
    """Writes `corpus.txt`, `held_out.json` and `near_duplicates.json`.

    Raises ValueError if the folder has the manifest of another corpus: a run that goes on there
    would mix two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest, lines = folder / "corpus.txt", "".join(f"{s.line}\n" for s in corpus.sources)
    if manifest.exists() and manifest.read_text() != lines:
        raise ValueError(
            f"{manifest} lists other files than are found now, so the run can not be resumed: "
            "restore the files, or start in an empty folder"
        )
    manifest.write_text(lines)
    held = [{"file": s.path, "sha256": s.sha256} for s in corpus.held_out]
    (folder / "held_out.json").write_text(json.dumps(held, indent=1) + "\n")
    dropped = [
        {"file": r.line, "like": r.like, "jaccard": r.jaccard, "containment": r.containment}
        for r in corpus.rejected
    ]
    (folder / "near_duplicates.json").write_text(json.dumps(dropped, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class ManifestFiles:
    """The files that a manifest names, as far as the running environment has them unchanged."""

    sources: tuple[Source, ...]
    missing: tuple[str, ...]
    """Lines whose file is not installed here or differs from the one trained on."""


def read_manifest(file: Path, roots: Sequence[Root]) -> ManifestFiles:
    """Finds the files of a manifest by name and digest."""
    by_name = {root.name: root for root in roots}
    sources: list[Source] = []
    missing: list[str] = []
    for line in file.read_text().splitlines():
        digest, _, name = line.partition(" ")
        source = _named(by_name, name)
        if source is not None and source.sha256.startswith(digest):
            sources.append(source)
        else:
            missing.append(line)
    return ManifestFiles(tuple(sources), tuple(missing))


def _named(roots: dict[str, Root], name: str) -> Source | None:
    root_name, _, inside = name.partition("/")
    root = roots.get(root_name)
    if root is None or not (root.folder / inside).is_file():
        return None
    return read_source(root, root.folder / inside)
