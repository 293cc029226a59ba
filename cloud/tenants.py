"""Who may open sessions: API keys to tenant names.

A line of the file is `NAME ID scrypt:N:SALT:HASH` (written by `outrider tenants add`), or in the
old form `NAME KEY`, which whoever reads the file can use. A key of the new form says which line
it belongs to, so that one costly hash proves it; what was proven once is known by a fast one for
as long as the process lives. Source of scrypt: RFC 7914.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from outrider import paths
from outrider.errors import AccessDenied, ConfigError, NotFound, Overloaded

_VARIABLES = {"cloud": "CLOUD", "worker": "WORKERS"}
"""In whose environment variable a caller keeps its key."""
ANYBODY = "local"
"""The tenant of everybody where no keys are asked for: loopback only."""
N, R, P = 1 << 14, 8, 1
"""Of scrypt: 16 MiB and some tens of milliseconds a try."""
MOST_N = 1 << 20
LOOK_S = 0.5
"""Between two looks at a file that may change."""
WAITING = 32
"""Unproven keys that may wait to be checked; one is at a time."""
_KEY = re.compile(r"or-([a-z2-7]{8})-[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"scrypt:(\d{1,7}):([0-9a-f]{32}):([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
_checking = ThreadPoolExecutor(1, thread_name_prefix="outrider-keys")


@dataclass(frozen=True, slots=True)
class Hashed:
    """A line of the new form."""

    name: str
    n: int
    salt: bytes
    digest: bytes

    @classmethod
    def parse(cls, name: str, text: str) -> Hashed | None:
        found = _HASH.fullmatch(text)
        if found is None or not 2 <= int(found[1]) <= MOST_N or int(found[1]) & (int(found[1]) - 1):
            return None
        return cls(name, int(found[1]), bytes.fromhex(found[2]), bytes.fromhex(found[3]))

    def proves(self, key: str) -> bool:
        return hmac.compare_digest(_stretch(key, self.salt, self.n), self.digest)


@dataclass(frozen=True, slots=True)
class Tenants:
    """Key digests to names; without keys everybody is one tenant."""

    digests: tuple[tuple[bytes, str], ...] = ()
    server: str = "cloud"
    """What asks for the keys, for people."""
    hashed: dict[str, Hashed] = field(default_factory=dict)
    """By the id that a key of the new form bears."""
    closed: bool = False
    """All keys were taken away: nobody gets in, instead of everybody."""
    _proven: dict[bytes, str] = field(default_factory=dict, repr=False)
    """Keys of the new form that were right once: digest to name."""
    _waiting: list[None] = field(default_factory=list, repr=False)

    @classmethod
    def read(cls, path: Path, server: str = "cloud") -> Tenants:
        """A file of lines as above; `#` begins a comment. Raises ConfigError."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key file can not be read: {error}") from None
        parts = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        hashed = {p[1]: Hashed.parse(p[0], p[2]) for p in parts if len(p) == 3}
        sound = {id: each for id, each in hashed.items() if each is not None}
        if not parts or len(sound) != len(hashed) or any(len(p) not in (2, 3) for p in parts):
            raise ConfigError(
                "the API key file is malformed",
                why="every line is a name, a space and a key, or one that `outrider tenants add` "
                "wrote; there is at least one",
                effect=f"the {server} was not started",
            )
        clear = tuple((_digest(p[1]), p[0]) for p in parts if len(p) == 2)
        return cls(clear, server, sound)

    @classmethod
    def again(cls, path: Path, server: str = "cloud") -> Tenants:
        """The same of a file that changed under a running server. Raises ConfigError."""
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key file can not be read: {error}") from None
        said = any(line.strip() and not line.startswith("#") for line in text.splitlines())
        return cls.read(path, server) if said else cls(server=server, closed=True)

    @property
    def asked_for(self) -> bool:
        """Whether callers need a key at all."""
        return bool(self.digests or self.hashed or self.closed)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(
            [name for _, name in self.digests] + [h.name for h in self.hashed.values()]
        )

    def who(self, authorization: str) -> str:
        """The tenant of an `authorization` metadata value. Raises AccessDenied. A key of the new
        form that comes for the first time takes its time; `admit` does not hold up the loop."""
        if not self.asked_for:
            return ANYBODY
        key = authorization.removeprefix("Bearer ").strip()
        found = self._known(key) or self._proved(key)
        if found is None:
            raise AccessDenied(
                f"the {self.server} does not know this key",
                why=f"no key came, or it is not in the {self.server}'s key file",
                effect="nothing was opened",
                todo=f"give the caller a key: OUTRIDER_{_VARIABLES[self.server]}_API_KEY",
            )
        return found

    async def admit(self, authorization: str) -> str:
        """The same for an event loop. Raises Overloaded when too many unknown keys wait."""
        key = authorization.removeprefix("Bearer ").strip()
        if self._line(key) is None or self._known(key) is not None:
            return self.who(authorization)
        if len(self._waiting) >= WAITING:
            raise Overloaded(
                "too many new keys are being checked",
                retry_after_s=2.0,
                effect="nothing was opened",
            )
        self._waiting.append(None)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                _checking, self.who, authorization
            )
        finally:
            self._waiting.pop()

    def _known(self, key: str) -> str | None:
        """By a fast digest; every one is compared, so that time tells nothing."""
        given = _digest(key)
        every = (*self.digests, *self._proven.items())
        found = [name for digest, name in every if hmac.compare_digest(digest, given)]
        return found[0] if found else None

    def _line(self, key: str) -> Hashed | None:
        said = _KEY.fullmatch(key)
        return self.hashed.get(said[1]) if said else None

    def _proved(self, key: str) -> str | None:
        line = self._line(key)
        if line is None or not line.proves(key):
            return None
        self._proven[_digest(key)] = line.name
        return line.name


async def follow(path: Path, changed: Callable[[Tenants], None]) -> None:
    """Tell of each new state of the file, until cancelled. One that can not be read is passed
    over: those who were let in stay, and the next that can be read counts."""
    seen = _stamp(path)
    while True:
        await asyncio.sleep(LOOK_S)
        stamp = _stamp(path)
        if stamp == seen or stamp is None:
            continue
        seen = stamp
        try:
            changed(Tenants.again(path))
        except ConfigError:
            continue


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# --- the file ----------------------------------------------------------------------------------


def add(path: Path, name: str) -> str:
    """Write a new key's hash; the key itself, which is nowhere else. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} can not name a tenant",
            effect="nothing was written",
            todo="letters, digits, dots, hyphens",
        )
    id = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(8))
    key, salt = f"or-{id}-{secrets.token_urlsafe(32)}", os.urandom(16)
    with _changing(path) as lines:
        digest = _stretch(key, salt, N)
        lines.append(f"{name} {id} scrypt:{N}:{salt.hex()}:{digest.hex()}")
    return key


def revoke(path: Path, name: str) -> int:
    """Take all keys of a tenant out; how many. Raises NotFound, ConfigError."""
    with _changing(path) as lines:
        left = [line for line in lines if line.startswith("#") or line.split()[:1] != [name]]
        gone = len(lines) - len(left)
        if not gone:
            raise NotFound(
                f"there is no tenant {name!r}",
                effect="nothing was written",
                todo="outrider tenants ls",
            )
        lines[:] = left
    return gone


@contextmanager
def _changing(path: Path) -> Iterator[list[str]]:
    """Its lines, one process at a time; written only when nothing was raised."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key file can not be read: {error}") from None
        yield lines
        paths.write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _stretch(key: str, salt: bytes, n: int) -> bytes:
    memory = 132 * n * R + (1 << 20)
    return hashlib.scrypt(key.encode(), salt=salt, n=n, r=R, p=P, maxmem=memory, dklen=32)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
