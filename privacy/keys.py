"""Where secrets of this machine lie: the system's keyring, else files that the user alone reads.

A file that others may read, that is another user's, or that is a link is refused and not
silently mended: whoever could read it may have. Names are short words with hyphens.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from outrider import paths
from outrider.errors import SealError
from outrider.privacy.identity import Identity

Kind = Literal["keyring", "file", "memory"]
Role = Literal["device", "verifier"]
SERVICE = "outrider"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_MOST = 1 << 16


class Keys(Protocol):
    """Secrets by name."""

    @property
    def kind(self) -> Kind: ...

    def get(self, name: str) -> bytes | None:
        """None where there is none. Raises SealError for one that must not be used."""
        ...

    def put(self, name: str, secret: bytes) -> None:
        """Raises SealError."""
        ...

    def remove(self, name: str) -> None:
        """Nothing there: nothing happens. Raises SealError."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryKeys:
    """Gone with the process."""

    secrets: dict[str, bytes] = field(default_factory=dict, repr=False)
    kind: Kind = "memory"

    def get(self, name: str) -> bytes | None:
        return self.secrets.get(name)

    def put(self, name: str, secret: bytes) -> None:
        self.secrets[name] = secret

    def remove(self, name: str) -> None:
        self.secrets.pop(name, None)


# --- files -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileKeys:
    """One file a secret, mode 0600."""

    folder: Path
    kind: Kind = "file"

    def get(self, name: str) -> bytes | None:
        path = self._place(name)
        try:
            return read_private(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, error.strerror or "the system refused it") from None

    def put(self, name: str, secret: bytes) -> None:
        path = self._place(name)
        try:
            paths.write_atomically(path, secret)
        except OSError as error:
            raise _unusable(path, error.strerror or "the system refused it") from None

    def remove(self, name: str) -> None:
        path = self._place(name)
        try:
            _overwrite(path)
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unusable(path, error.strerror or "the system refused it") from None

    def _place(self, name: str) -> Path:
        return self.folder / f"{_checked(name)}.key"


def read_private(path: Path) -> bytes:
    """A small file that is this user's alone. Raises SealError for any other, OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST:
            raise _unusable(path, "it is no small file")
        if found.st_uid != os.getuid():
            raise _unusable(path, "it is another user's")
        if stat.S_IMODE(found.st_mode) & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise _unusable(path, f"others may read or change it (mode {mode:04o})")
        return file.read()


def _overwrite(path: Path) -> None:
    """Zeros first. On flash and on file systems that copy, old blocks may stay all the same."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(descriptor, bytes(os.fstat(descriptor).st_size))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, why: str) -> SealError:
    return SealError(
        f"the secret in {path} can not be used",
        why=why,
        effect="it was not read, and nothing was sealed or opened with it",
        todo=f"if nobody else has seen it: chmod 600 {path}; else remove it, and make another",
    )


# --- the keyring -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RingKeys:
    """The system's: Keychain, Secret Service, KWallet. Needs the package `keyring`."""

    ring: Any
    kind: Kind = "keyring"

    @classmethod
    def found(cls) -> RingKeys | None:
        """None where the package is not installed, or finds no keyring that it recommends."""
        try:
            import keyring  # type: ignore[import-not-found, unused-ignore]
        except ModuleNotFoundError:
            return None
        backend = keyring.get_keyring()
        # Below 1 are keyrings that fail always, do nothing, or lie in a plain file.
        return cls(backend) if backend.priority >= 1 else None

    def get(self, name: str) -> bytes | None:
        text = self._do(lambda: self.ring.get_password(SERVICE, _checked(name)))
        if text is None:
            return None
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise _locked(f"what it keeps as {name!r} was not written by outrider") from None

    def put(self, name: str, secret: bytes) -> None:
        text = base64.b64encode(secret).decode()
        self._do(lambda: self.ring.set_password(SERVICE, _checked(name), text))

    def remove(self, name: str) -> None:
        if self.get(name) is not None:
            self._do(lambda: self.ring.delete_password(SERVICE, _checked(name)))

    def _do(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - each keyring has errors of its own
            raise _locked(type(error).__name__) from None


def _locked(why: str) -> SealError:
    return SealError(
        "the system's keyring does not answer",
        why=why,
        effect="nothing was sealed or opened",
        todo="unlock it (log in), or set OUTRIDER_KEYS=file to keep secrets in files",
    )


# --- which -------------------------------------------------------------------------------------


def folder() -> Path:
    return paths.state_dir() / "keys"


def here() -> Keys:
    """This machine's: the keyring if there is one, else files in the state folder.

    OUTRIDER_KEYS=file never asks the keyring. Raises SealError for another word.
    """
    wanted = os.environ.get("OUTRIDER_KEYS", "")
    if wanted not in ("", "file", "keyring"):
        raise SealError(
            f"OUTRIDER_KEYS={wanted!r} names no place of secrets",
            effect="nothing was read",
            todo="file or keyring; without it the keyring is taken where there is one",
        )
    ring = None if wanted == "file" else RingKeys.found()
    if ring is None and wanted == "keyring":
        raise SealError(
            "there is no keyring here",
            why="the package is not installed, or finds none that it recommends",
            effect="nothing was read",
            todo='pip install "outrider[keyring]", or leave OUTRIDER_KEYS away',
        )
    return ring or FileKeys(folder())


def identity(keys: Keys, role: Role) -> Identity:
    """Who this machine is in a role; made at first need. Raises SealError."""
    return Identity.from_pem(once(keys, role, lambda: Identity.generate().pem()))


def once(keys: Keys, name: str, make: Callable[[], bytes]) -> bytes:
    """A secret that is made at first need, by one process where several begin at once. Raises
    SealError."""
    found = keys.get(name)
    if found is not None:
        return found
    with _alone():
        found = keys.get(name)
        if found is None:
            found = make()
            keys.put(name, found)
    return found


@contextmanager
def _alone() -> Iterator[None]:
    place = folder()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (place / ".lock").open("w")
    except OSError as error:
        raise _unusable(place, error.strerror or "the system refused it") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} names no secret")
    return name
