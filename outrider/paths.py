"""Where the daemon's small files lie, and how they are written."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import msgspec
import platformdirs

APP = "outrider"


class DaemonInfo(msgspec.Struct, frozen=True):
    """`daemon.json`: how clients on this machine find the daemon."""

    schema: int
    url: str
    pid: int
    events: str


def runtime_dir() -> Path:
    """The user's runtime directory for sockets; OUTRIDER_RUNTIME overrides it."""
    chosen = os.environ.get("OUTRIDER_RUNTIME")
    if chosen:
        return Path(chosen)
    with warnings.catch_warnings():
        # Where XDG_RUNTIME_DIR is not set the temporary folder is taken: no news to the user.
        warnings.simplefilter("ignore", UserWarning)
        return Path(platformdirs.user_runtime_dir(APP))


def state_dir() -> Path:
    """The user's state directory, for journals and logs; OUTRIDER_STATE overrides it."""
    chosen = os.environ.get("OUTRIDER_STATE")
    return Path(chosen) if chosen else Path(platformdirs.user_state_dir(APP))


def daemon_file(directory: Path | None = None) -> Path:
    return (directory or runtime_dir()) / "daemon.json"


def read_daemon(directory: Path | None = None) -> DaemonInfo | None:
    """The running daemon's, or None where there is none that can be read."""
    try:
        return msgspec.json.decode(daemon_file(directory).read_bytes(), type=DaemonInfo)
    except (OSError, msgspec.DecodeError):
        return None


def write_atomically(path: Path, data: bytes) -> None:
    """Whole or not at all, readable by the user alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(scratch, path)
