"""The files and texts that keys of a sealed channel come from. Raises ConfigError."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from outrider.errors import ConfigError
from outrider.privacy.identity import KEY, Identity
from outrider.privacy.route import KEY as ROUTE_KEY

_HEX = re.compile(r"[0-9a-fA-F]{64}")


def identity(path: Path, flag: str) -> Identity:
    """An Ed25519 key in PEM. Raises SealError for another one."""
    return Identity.from_pem(_read(path, flag))


def pin(text: str, flag: str) -> bytes:
    """A public key as 64 hexadecimal digits, or the name of a file that holds them."""
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    return _hex(_read(Path(text).expanduser(), flag), flag, KEY)


def route_key(path: Path, flag: str) -> bytes:
    return _hex(_read(path, flag), flag, ROUTE_KEY)


def _hex(data: bytes, flag: str, size: int) -> bytes:
    text = data.decode("ascii", "replace").strip()
    if not _HEX.fullmatch(text):
        raise ConfigError(
            f"{flag} holds no key of {size} bytes",
            why=f"it must be {2 * size} hexadecimal digits, and nothing else",
            effect="nothing was started",
        )
    return bytes.fromhex(text)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{flag} can not be read: {error.strerror}",
            effect="nothing was started",
            todo="check that the file is there, and that this user may read it",
        ) from None


@dataclass(slots=True)
class Devices:
    """Public keys of paired devices: a file of `NAME HEX` lines, read again when it changed.

    What can not be read any more lets nobody in.
    """

    path: Path
    _stamp: tuple[int, int] = (0, 0)
    _keys: dict[bytes, str] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Devices:
        """Raises ConfigError for a file that is missing or malformed."""
        found = cls(path)
        found._keys = parsed(_read(path, "--channel-devices"))
        found._stamp = _stamp(path)
        return found

    def knows(self, public: bytes) -> bool:
        return public in self._now()

    def _now(self) -> dict[bytes, str]:
        try:
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._keys, self._stamp = parsed(self.path.read_bytes()), stamp
        except (OSError, ConfigError):
            self._keys, self._stamp = {}, (0, 0)
        return self._keys


def parsed(data: bytes) -> dict[bytes, str]:
    """Public key to name; `#` begins a comment."""
    lines = data.decode("utf-8", "replace").splitlines()
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if any(len(pair) != 2 or not _HEX.fullmatch(pair[1]) for pair in pairs):
        raise ConfigError(
            "the file of channel devices is malformed",
            why="every line is a name, a space and a public key of 64 hexadecimal digits",
            effect="nothing was started",
        )
    return {bytes.fromhex(key): name for name, key in pairs}


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
