"""Where the daemon's small files lie, and how they are written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
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
    log: str = ""
    """Its log: a file, `journal:UNIT`, or empty."""


HOME = "OUTRIDER_HOME"
"""One folder for everything, instead of the platform's places."""


def _place(variable: str, name: str, usual: Callable[[str], str]) -> Path:
    """The folder that a variable names, else a part of OUTRIDER_HOME, else the platform's."""
    chosen = os.environ.get(variable, "") if variable else ""
    if not chosen and (home := os.environ.get(HOME)):
        return Path(home).expanduser() / name
    return Path(chosen) if chosen else Path(usual(APP))


def runtime_dir() -> Path:
    """The user's runtime directory for sockets; OUTRIDER_RUNTIME overrides it."""
    with warnings.catch_warnings():
        # Where XDG_RUNTIME_DIR is not set the temporary folder is taken: no news to the user.
        warnings.simplefilter("ignore", UserWarning)
        return _place("OUTRIDER_RUNTIME", "run", platformdirs.user_runtime_dir)


def state_dir() -> Path:
    """The user's state directory, for journals and logs; OUTRIDER_STATE overrides it."""
    return _place("OUTRIDER_STATE", "state", platformdirs.user_state_dir)


def cache_dir() -> Path:
    """For what can be made again, such as converted models; OUTRIDER_CACHE overrides it."""
    return _place("OUTRIDER_CACHE", "cache", platformdirs.user_cache_dir)


def data_dir() -> Path:
    """For what can not be made again here, such as pulled models."""
    return _place("", "data", platformdirs.user_data_dir)


def config_file() -> Path:
    """`config.toml`; OUTRIDER_CONFIG names another file."""
    chosen = os.environ.get("OUTRIDER_CONFIG")
    if chosen:
        return Path(chosen).expanduser()
    return _place("", "config", platformdirs.user_config_dir) / "config.toml"


def log_file(role: str) -> Path:
    """Where a server that runs in the background writes its log."""
    return state_dir() / "log" / f"{role}.jsonl"


def card_file(role: str, directory: Path | None = None) -> Path:
    """`daemon.json` of the edge; other servers have one of their own name."""
    name = "daemon" if role == "edge" else role
    return (directory or runtime_dir()) / f"{name}.json"


def daemon_file(directory: Path | None = None) -> Path:
    return card_file("edge", directory)


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
