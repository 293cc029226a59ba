"""What lies on this machine's disk is sealed under one master key, and that is kept wrapped.

The vault is a small file: the master key, encrypted under another key that lies in the keyring,
in a 0600 file, or is made from a passphrase (Argon2id, RFC 9106; its parameters stand beside it).
Keys for a purpose come from the master key by HKDF (RFC 5869), bound to the vault's *epoch*.
Erasing the wrap makes everything that was ever sealed unreadable, wherever copies of it lie.

The epoch rises when what was sealed before must not be taken any more; the least epoch that may
be taken lies with the keys and not beside the vault, so that an older vault that was put back is
noticed. It is not where somebody can put back the keys, too: then only hardware would help.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from outrider import paths
from outrider.errors import NotFound, SealBroken, SealError
from outrider.privacy.keys import Keys, read_private

FORMAT = 1
_PREFIX = b"outrider vault v1\x00"
KEY = 32
NONCE = 12
SALT = 16
WRAP, FLOOR = "vault-wrap", "vault-floor"
"""Names of secrets among the keys."""
LEAST_PASSPHRASE = 10
MOST_MEMORY_KIB = 1 << 21
"""A vault file that asks for more than 2 GiB is not ours."""
Kind = Literal["keyring", "file", "memory", "passphrase"]
Ask = Callable[[], str]
"""Gives the passphrase."""


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """Of Argon2id. The default is RFC 9106's second choice, for machines with little memory."""

    iterations: int = 3
    lanes: int = 4
    memory_kib: int = 65536


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What may be known of a vault that is locked. Authenticated with the wrap, byte by byte."""

    format: int
    kind: Kind
    id: bytes
    epoch: int
    salt: bytes = b""
    cost: Cost | None = None


class _File(msgspec.Struct, frozen=True, array_like=True):
    head: bytes
    nonce: bytes
    wrapped: bytes


class Derives(Protocol):
    """What seals with the vault need of it."""

    @property
    def epoch(self) -> int: ...

    def key(self, purpose: str) -> bytes: ...


@dataclass(slots=True)
class Vault:
    """Open: the master key is in memory."""

    path: Path
    keys: Keys
    kind: Kind
    id: bytes
    epoch: int
    _master: bytes = field(repr=False)
    _wrap: bytes = field(repr=False)
    _salt: bytes = b""
    _cost: Cost | None = None

    def key(self, purpose: str) -> bytes:
        """32 bytes, for this purpose and epoch alone."""
        info = b"outrider vault v1 " + self.epoch.to_bytes(8, "big") + purpose.encode()
        return HKDFExpand(SHA256(), KEY, info).derive(self._master)

    def rise(self) -> int:
        """The next epoch: nothing that was sealed before is taken any more."""
        self.epoch += 1
        self._write()
        return self.epoch

    def rewrap(self, keys: Keys, passphrase: str | None, cost: Cost | None = None) -> None:
        """Under another passphrase, or none; what is sealed stays as it is."""
        kind, salt, chosen, wrap = _wrapping(keys, passphrase, cost)
        self.kind, self.keys, self._salt, self._cost, self._wrap = kind, keys, salt, chosen, wrap
        self._write()
        if kind == "passphrase":
            keys.remove(WRAP)

    def _write(self) -> None:
        """The file first: a floor above it would lock the vault for good."""
        head = Head(FORMAT, self.kind, self.id, self.epoch, self._salt, self._cost)
        said, nonce = msgspec.msgpack.encode(head), os.urandom(NONCE)
        wrapped = AESGCM(self._wrap).encrypt(nonce, self._master, _PREFIX + said)
        try:
            paths.write_atomically(self.path, msgspec.msgpack.encode(_File(said, nonce, wrapped)))
        except OSError as error:
            raise SealError(
                f"the vault can not be written: {error.strerror}",
                effect="it stays as it was",
                todo="free disk space, and check the rights of the state folder",
            ) from None
        self.keys.put(FLOOR, self.id + self.epoch.to_bytes(8, "big"))


def place() -> Path:
    return paths.state_dir() / "vault"


def exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def make(path: Path, keys: Keys, passphrase: str | None = None, cost: Cost | None = None) -> Vault:
    """A new one. Raises SealError where there is one, and for a passphrase that is too short."""
    if exists(path):
        raise SealError(
            "there is a vault already",
            effect="it stays as it is",
            todo="outrider vault status; outrider vault erase makes all that it sealed unreadable",
        )
    kind, salt, chosen, wrap = _wrapping(keys, passphrase, cost)
    made = Vault(path, keys, kind, os.urandom(16), 1, os.urandom(KEY), wrap, salt, chosen)
    made._write()
    return made


def unlock(path: Path, keys: Keys, ask: Ask | None = None) -> Vault:
    """Raises NotFound without a vault; SealError when it can not be unlocked here; SealBroken
    for a wrong passphrase, a file that was changed, and one that is older than it must be."""
    file, head = _read(path)
    wrap = _unwrapping(head, keys, ask)
    try:
        master = AESGCM(wrap).decrypt(file.nonce, file.wrapped, _PREFIX + file.head)
    except (InvalidTag, ValueError):
        raise _wrong(head.kind) from None
    _check_floor(head, keys)
    return Vault(path, keys, head.kind, head.id, head.epoch, master, wrap, head.salt, head.cost)


def read(path: Path) -> Head:
    """Without unlocking it. Raises NotFound, SealError."""
    return _read(path)[1]


def _read(path: Path) -> tuple[_File, Head]:
    try:
        file = msgspec.msgpack.decode(read_private(path), type=_File)
        head = msgspec.msgpack.decode(file.head, type=Head)
    except FileNotFoundError:
        raise NotFound(
            "there is no vault here", effect="nothing was opened", todo="outrider vault init"
        ) from None
    except OSError as error:
        raise _malformed(error.strerror or "the system refused it") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _malformed("it is cut, or no vault") from None
    _check_head(head)
    if len(file.nonce) != NONCE:
        raise _malformed("its nonce has the wrong length")
    return file, head


def erase(path: Path, keys: Keys) -> bool:
    """Delete the wrap, then the file: nothing that was sealed can be read any more. Whether
    there was anything. Raises SealError."""
    found = exists(path)
    keys.remove(WRAP)
    if found and path.is_file() and not path.is_symlink():
        _shred(path)
    path.unlink(missing_ok=True)
    keys.remove(FLOOR)
    return found


def measure(cost: Cost) -> float:
    """Seconds that one try of a passphrase takes on this machine."""
    began = time.perf_counter()
    _stretch("measure", bytes(SALT), cost)
    return time.perf_counter() - began


# --- wrapping ----------------------------------------------------------------------------------


def _wrapping(
    keys: Keys, passphrase: str | None, cost: Cost | None
) -> tuple[Kind, bytes, Cost | None, bytes]:
    """(kind, salt, cost, key)"""
    if passphrase is None:
        wrap = os.urandom(KEY)
        keys.put(WRAP, wrap)
        return keys.kind, b"", None, wrap
    if len(passphrase) < LEAST_PASSPHRASE:
        raise SealError(
            f"a passphrase has at least {LEAST_PASSPHRASE} characters",
            why="shorter ones are guessed, whatever a try costs",
            effect="nothing was changed",
            todo="several words are best",
        )
    salt, chosen = os.urandom(SALT), cost or Cost()
    return "passphrase", salt, chosen, _stretch(passphrase, salt, chosen)


def _unwrapping(head: Head, keys: Keys, ask: Ask | None) -> bytes:
    if head.kind == "passphrase":
        if ask is None or head.cost is None:
            raise SealError(
                "the vault needs its passphrase",
                why="nobody can be asked here",
                effect="nothing was opened",
                todo="set OUTRIDER_VAULT_PASSPHRASE, or outrider vault init with the keyring",
            )
        return _stretch(ask(), head.salt, head.cost)
    wrap = keys.get(WRAP)
    if wrap is None:
        raise SealError(
            "the key of the vault is gone",
            why=f"it was erased, or this is not the {head.kind} in which it lay",
            effect="what was sealed can not be read any more",
            todo="outrider vault erase, then outrider vault init, to begin anew",
        )
    return wrap


def _stretch(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    return Argon2id(
        salt=salt,
        length=KEY,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(passphrase.encode())


def _check_head(head: Head) -> None:
    if head.format != FORMAT:
        raise SealError(
            "the vault was written by another release of outrider",
            why=f"its format is {head.format}, this release reads {FORMAT}",
            effect="nothing was opened",
            todo="update outrider",
        )
    cost = head.cost
    if cost is None:
        if head.kind == "passphrase":
            raise _malformed("it does not say how its passphrase is stretched")
        return
    sane = (
        1 <= cost.iterations <= 64
        and 1 <= cost.lanes <= 64
        and 8 * cost.lanes <= cost.memory_kib <= MOST_MEMORY_KIB
        and len(head.salt) == SALT
    )
    if not sane:
        raise _malformed("it asks for an unreasonable stretching of its passphrase")


def _check_floor(head: Head, keys: Keys) -> None:
    floor = keys.get(FLOOR)
    if floor is None or floor[:16] != head.id:
        return
    least = int.from_bytes(floor[16:], "big")
    if head.epoch < least:
        raise SealBroken(
            f"the vault is of epoch {head.epoch}, and must be of {least} at least",
            why="an older copy of it was put back",
            effect="nothing was opened",
            todo="restore the newest copy; outrider vault erase begins anew",
        )


def _shred(path: Path) -> None:
    try:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SealError(
            f"the vault can not be erased: {error.strerror}",
            effect="its key is gone already",
            todo=f"remove {path}",
        ) from None


def _wrong(kind: Kind) -> SealBroken:
    passphrase = kind == "passphrase"
    return SealBroken(
        "the vault can not be unlocked",
        why="the passphrase is wrong, or the file was changed"
        if passphrase
        else "the file was changed, or its key belongs to another vault",
        effect="nothing was opened",
        todo="try again" if passphrase else "restore the file, or outrider vault erase",
    )


def _malformed(why: str) -> SealError:
    return SealError(
        "the vault file can not be used",
        why=why,
        effect="nothing was opened",
        todo="restore it; outrider vault erase begins anew, and loses what was sealed",
    )
