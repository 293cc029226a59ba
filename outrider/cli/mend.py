"""`outrider doctor --fix`: what can be set right without asking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outrider import paths
from outrider.cli import background
from outrider.cli.background import Role

ROLES: tuple[Role, ...] = ("edge", "cloud")


def mend() -> Iterator[str]:
    """Do it, and say each thing that was done."""
    for folder in (paths.runtime_dir(), paths.state_dir(), paths.cache_dir()):
        yield from _folder(folder)
    config = paths.config_file()
    if config.is_file() and config.stat().st_mode & 0o077:
        config.chmod(0o600)
        yield f"{config} is readable by you alone"
    yield from _stale()


def _folder(folder: Path) -> Iterator[str]:
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
        yield f"{folder} is made"
    elif folder == paths.runtime_dir() and folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
        yield f"{folder} is open to you alone"


def _stale() -> Iterator[str]:
    """Cards and sockets of processes that are gone."""
    for role in ROLES:
        place = paths.card_file(role)
        if place.exists() and background.running(role) is None:
            place.unlink(missing_ok=True)
            yield f"{place} of a {role} that is gone is removed"
    for socket in sorted(paths.runtime_dir().glob("*.events")):
        pid = socket.stem.rpartition("-")[2]
        if pid.isdigit() and not background.ours(int(pid)):
            socket.unlink(missing_ok=True)
            yield f"{socket} of a process that is gone is removed"
