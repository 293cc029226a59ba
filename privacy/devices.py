"""The devices that were paired with this cloud, and those that were revoked."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from outrider import paths
from outrider.errors import NotFound, SealError
from outrider.privacy.identity import KEY, fingerprint
from outrider.privacy.keys import read_private

FORMAT = 1


class Device(msgspec.Struct, frozen=True):
    name: str
    public: str
    """64 hexadecimal digits."""
    tenant: str
    paired_at: float
    """Seconds since 1970."""
    revoked_at: float | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(bytes.fromhex(self.public))


class _File(msgspec.Struct, frozen=True):
    format: int
    devices: tuple[Device, ...] = ()


@dataclass(slots=True)
class Devices:
    """A file, which other processes may change: `now` reads it again when they did."""

    path: Path
    _stamp: tuple[int, int, int] | None = None
    _known: tuple[Device, ...] = ()

    def now(self) -> tuple[Device, ...]:
        """Raises SealError for a file that can not be used: then nobody is known."""
        stamp = _stamp(self.path)
        if stamp is None or stamp != self._stamp:
            self._known, self._stamp = (), None
            self._known, self._stamp = _read(self.path), stamp
        return self._known

    def find(self, who: str) -> Device:
        """By its fingerprint. Raises NotFound, SealError."""
        for device in self.now():
            if device.fingerprint == who:
                return device
        raise _nobody(who)

    def known(self, public: bytes) -> bool:
        """Whether a device of this key was paired, and not revoked. Raises SealError."""
        text = public.hex()
        return any(d.public == text and d.revoked_at is None for d in self.now())

    def add(self, device: Device) -> None:
        """A key that was there before is paired anew. Raises SealError."""
        with self._changing() as found:
            found[:] = [*(d for d in found if d.public != device.public), device]

    def revoke(self, who: str, now: float) -> list[Device]:
        """All of that name, or the one of that fingerprint. Raises NotFound, SealError."""
        with self._changing() as found:
            live = [d for d in found if d.revoked_at is None and who in (d.name, d.fingerprint)]
            if not live:
                raise _nobody(who)
            ended = [msgspec.structs.replace(device, revoked_at=now) for device in live]
            found[:] = [*(d for d in found if d not in live), *ended]
        return ended

    @contextmanager
    def _changing(self) -> Iterator[list[Device]]:
        """One process at a time; written only when nothing was raised."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = list(_read(self.path))
            yield found
            file = _File(FORMAT, tuple(found))
            paths.write_atomically(self.path, msgspec.json.encode(file))


def _read(path: Path) -> tuple[Device, ...]:
    try:
        file = msgspec.json.decode(read_private(path), type=_File)
        for device in file.devices:
            if len(bytes.fromhex(device.public)) != KEY:
                raise ValueError("a key is of the wrong length")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise _malformed(path, str(error)) from None
    if file.format != FORMAT:
        raise _malformed(path, f"its format is {file.format}, this release reads {FORMAT}")
    return file.devices


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _malformed(path: Path, why: str) -> SealError:
    return SealError(
        f"the list of paired devices in {path} can not be used",
        why=why,
        effect="no device is let in",
        todo="restore it, or remove it and pair all devices again",
    )


def _nobody(who: str) -> NotFound:
    return NotFound(
        f"no device {who!r} is paired here",
        effect="nothing was changed",
        todo="outrider identity devices lists them",
    )
