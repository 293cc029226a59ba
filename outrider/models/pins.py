"""`models.lock`: the commit and SHA-256 of every file that was pulled, for good.

A later pull that would bring other bytes under the same name is refused until it is asked
for with `--update`. The file stays when a model is removed, and may be copied to other
machines: they then take the same bytes, or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from outrider import paths
from outrider.errors import ModelChanged, ModelCorrupt, ModelError

SCHEMA = 1
FILE = "models.lock"


class Pin(msgspec.Struct, frozen=True):
    """One file as it was pulled."""

    commit: str
    size: int
    sha256: str
    git: str = ""
    """The hub's git object id, for files that it lists without SHA-256."""


class Lock(msgspec.Struct):
    schema: int = SCHEMA
    repos: dict[str, dict[str, dict[str, Pin]]] = {}
    """Repository, revision as it was asked for, path in the repository."""


@dataclass(frozen=True, slots=True)
class Offered:
    """One file as a hub lists it now."""

    name: str
    """Path in the repository."""
    size: int
    sha256: str = ""
    git: str = ""

    def differs(self, pin: Pin) -> bool:
        if self.sha256:
            return self.sha256 != pin.sha256
        return self.size != pin.size or bool(pin.git) and self.git != pin.git


def read(root: Path) -> Lock:
    """Empty where there is none. Raises ModelError: a lock is not guessed."""
    try:
        lock = msgspec.json.decode((root / FILE).read_bytes(), type=Lock)
    except FileNotFoundError:
        return Lock()
    except (OSError, msgspec.DecodeError):
        raise _broken(root, "it is not the JSON that is kept there") from None
    if lock.schema > SCHEMA:
        raise _broken(root, "a newer release wrote it")
    return lock


def _broken(root: Path, why: str) -> ModelError:
    return ModelError(
        f"{root / FILE} can not be read",
        why=why,
        effect="nothing was pulled: what was pinned is not known",
        todo="repair it or move it away",
    )


def check(
    lock: Lock, repo: str, revision: str, commit: str, offered: Iterable[Offered], *, update: bool
) -> None:
    """Compare with what was pinned. Raises ModelChanged; ModelCorrupt when one and the same
    commit has other bytes, which `update` does not excuse."""
    known = lock.repos.get(repo, {})
    for file in offered:
        for pins in known.values():
            pin = pins.get(file.name)
            if pin is not None and pin.commit == commit and file.differs(pin):
                raise _forged(repo, commit, file.name)
        pin = known.get(revision, {}).get(file.name)
        if pin is not None and file.differs(pin) and not update:
            raise _moved(repo, revision, pin.commit, commit, file.name)


def _forged(repo: str, commit: str, name: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{name} of {repo} is not the one that was pulled from this commit",
        why=f"commit {commit[:12]} can hold only one {name}, and the hub offers another",
        effect="nothing was pulled",
        todo="do not trust this hub; check HF_ENDPOINT and the proxy",
    )


def _moved(repo: str, revision: str, old: str, new: str, name: str) -> ModelChanged:
    return ModelChanged(
        f"{repo} is another one than was pulled before",
        why=f"{name} changed: {revision} was at commit {old[:12]}, it is at {new[:12]}",
        effect="nothing was pulled; what is here stays",
        todo=f"pull {repo}@{old} for the old one, or the same again with --update",
    )


def keep(root: Path, repo: str, revision: str, pins: dict[str, Pin]) -> None:
    """Add them to the lock."""
    lock = read(root)
    lock.repos.setdefault(repo, {}).setdefault(revision, {}).update(pins)
    data = msgspec.json.format(msgspec.json.encode(lock, order="sorted"), indent=1)
    paths.write_atomically(root / FILE, data + b"\n")
