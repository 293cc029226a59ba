"""Seals of disk journals: a key for each journal, which is forgotten when its answer is done.

The first record of a sealed journal begins with a head, `magic (8) | id (16)`; the id leads to
the journal's key in the *register*, a small file sealed under the vault. Records are AES-256-GCM
with their number as the nonce, and the journal's id and name as what is authenticated beside
them, so that a record of another place, another journal or another file does not open. A journal
that is done is taken out of the register: older copies of its file, wherever they lie, can be
opened by nobody any more, and are refused.

The register carries a count of its own that rises with each change; the count at the daemon's
last start lies with the vault's keys, so that a register from before that is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from outrider.errors import JournalError, SealBroken, SealError
from outrider.privacy.keys import Keys, read_private
from outrider.privacy.vault import KEY, NONCE, Derives

MAGIC = b"ORSEAL1\x00"
ID = 16
START = 25
"""Bytes of a journal before its first record: the file's magic, and the record's frame."""
FLOOR = "journals-floor"
MOST = 4096
"""Journals that are open or left over; far more than a daemon takes up."""
_PREFIX = b"outrider journal v1\x00"


class _Register(msgspec.Struct):
    count: int = 0
    live: dict[str, bytes] = {}
    """Journal id (hexadecimal) to key."""


@dataclass(slots=True)
class JournalSeal:
    """Of one journal that is written, or read."""

    id: bytes
    name: bytes
    _cipher: AESGCM = field(repr=False)
    _done: Callable[[], None]

    def seal(self, number: int, data: bytes) -> bytes:
        body = self._cipher.encrypt(_nonce(number), data, self._said())
        return MAGIC + self.id + body if number == 0 else body

    def open(self, number: int, data: bytes) -> bytes:
        """Raises SealBroken."""
        if number == 0:
            if data[: len(MAGIC) + ID] != MAGIC + self.id:
                raise _broken("its first record is another journal's")
            data = data[len(MAGIC) + ID :]
        try:
            return self._cipher.decrypt(_nonce(number), data, self._said())
        except InvalidTag:
            raise _broken(f"record {number} was changed, or belongs elsewhere") from None

    def forget(self) -> None:
        """The journal is done: nobody can open a copy of it from now on."""
        self._done()

    def _said(self) -> bytes:
        return _PREFIX + self.id + self.name


@dataclass(slots=True)
class JournalSeals:
    """All sealed journals of this device."""

    path: Path
    vault: Derives
    keys: Keys
    _register: _Register = field(default_factory=_Register)

    @classmethod
    def open(cls, path: Path, vault: Derives, keys: Keys) -> JournalSeals:
        """For a daemon that starts. Raises SealError; SealBroken for a register that was changed
        or is older than at the last start."""
        made = cls(path, vault, keys)
        made._register = made._read()
        floor = keys.get(FLOOR)
        if floor is not None and made._register.count < int.from_bytes(floor, "big"):
            raise SealBroken(
                "the register of sealed journals is older than it was at the last start",
                why="an older copy of it was put back, or it was removed",
                effect="no journal was opened",
                todo="restore the newest copy, or remove the journals: outrider vault erase",
            )
        made._save()
        keys.put(FLOOR, made._register.count.to_bytes(8, "big"))
        return made

    def new(self, path: Path) -> JournalSeal:
        """For a journal that begins at this path. Raises JournalError when the register can not
        be kept."""
        if len(self._register.live) >= MOST:
            raise JournalError(
                f"{MOST} sealed journals are left over",
                effect="the answer goes on, but would not survive a restart of the daemon",
                todo="outrider vault rotate gives up those that nobody takes up again",
            )
        id, key = os.urandom(ID), os.urandom(KEY)
        self._register.live[id.hex()] = key
        try:
            self._save()
        except OSError as error:
            del self._register.live[id.hex()]
            raise JournalError(
                "the register of sealed journals can not be kept",
                why=error.strerror or "the disk refused",
                effect="the answer goes on, but would not survive a restart of the daemon",
                todo="free disk space, or start with --journal memory",
            ) from None
        return self._seal(id, key, path)

    def of(self, path: Path) -> JournalSeal:
        """For a journal that lies there; its first record says which it is. Raises SealBroken
        for one that is not sealed, or done, or of another vault or epoch; OSError."""
        with path.open("rb") as file:
            head = file.read(START + len(MAGIC) + ID)[START:]
        if not MAGIC.startswith(head[: len(MAGIC)]):
            raise _broken("it is not sealed")
        id = head[len(MAGIC) :]
        if len(id) < ID:
            # Its first record is torn, so that nothing will be opened.
            return self._seal(os.urandom(ID), os.urandom(KEY), path)
        key = self._register.live.get(id.hex())
        if key is None:
            raise _broken("its answer was done long ago, or it is of another vault or epoch")
        return self._seal(id, key, path)

    def _seal(self, id: bytes, key: bytes, path: Path) -> JournalSeal:
        return JournalSeal(id, _name(path), AESGCM(key), lambda: self._forget(id))

    def _forget(self, id: bytes) -> None:
        if self._register.live.pop(id.hex(), None) is None:
            return
        try:
            self._save()
        except OSError:
            # The file of the journal is gone, too; the next change takes the key along.
            return

    def erase(self) -> None:
        """Give up all journals: what is left of them can be opened by nobody any more."""
        self.path.unlink(missing_ok=True)
        self.keys.remove(FLOOR)
        self._register = _Register(live={})

    # --- the register ----------------------------------------------------------------------

    def _read(self) -> _Register:
        try:
            sealed = read_private(self.path)
        except FileNotFoundError:
            return _Register(live={})
        except OSError as error:
            raise _no_register(error.strerror or "the system refused it") from None
        cipher = AESGCM(self.vault.key("journals"))
        try:
            data = cipher.decrypt(sealed[:NONCE], sealed[NONCE:], _PREFIX)
            return msgspec.msgpack.decode(data, type=_Register)
        except (InvalidTag, ValueError):
            raise _no_register(
                f"it was changed, or sealed before epoch {self.vault.epoch} of the vault"
            ) from None

    def _save(self) -> None:
        self._register.count += 1
        nonce = os.urandom(NONCE)
        cipher = AESGCM(self.vault.key("journals"))
        data = msgspec.msgpack.encode(self._register)
        _durably(self.path, nonce + cipher.encrypt(nonce, data, _PREFIX))


def _durably(path: Path, data: bytes) -> None:
    """Whole or not at all, even when the power fails: journals outlive that, so must their keys."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _nonce(number: int) -> bytes:
    # Each journal has a key of its own and is only ever appended to.
    return number.to_bytes(NONCE, "big")


def _name(path: Path) -> bytes:
    """The request's id: a journal keeps it when it is put in the place of an older one."""
    return path.name.partition(".")[0].encode()


def _broken(why: str) -> SealBroken:
    return SealBroken(
        "a sealed journal can not be opened",
        why=why,
        effect="its request is not taken up again; the file stays where it is",
        todo="remove the file",
    )


def _no_register(why: str) -> SealError:
    return SealBroken(
        "the register of sealed journals can not be opened",
        why=why,
        effect="no journal was opened",
        todo="restore it, or begin anew: outrider vault erase",
    )
