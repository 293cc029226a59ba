"""Servers in the background: started, found again, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from outrider import paths
from outrider.errors import OutriderError
from outrider.options import Address

Role = Literal["edge", "cloud"]
LOOK_S = 0.05
"""Between two looks at what a process says, or whether it is gone."""
STOP_S = 20.0
"""Longer than a cloud drains and an edge waits for its streams."""
TAIL = 20
"""Lines of a server that did not start."""


class Card(msgspec.Struct, frozen=True):
    """What a server leaves in the runtime folder while it runs."""

    pid: int
    url: str = ""
    address: str = ""
    events: str = ""
    log: str = ""

    @property
    def place(self) -> str:
        return self.url or self.address


def card(role: Role) -> Card | None:
    """As it lies there, whether or not the server still runs."""
    try:
        return msgspec.json.decode(paths.card_file(role).read_bytes(), type=Card)
    except (OSError, msgspec.DecodeError):
        return None


def running(role: Role) -> Card | None:
    """The card of a server that runs."""
    found = card(role)
    return found if found is not None and ours(found.pid) else None


def ours(pid: int) -> bool:
    """Whether a process lives and is Outrider's: numbers are given anew."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        # No such file system: the number is all there is to go by.
        return not Path("/proc/self").exists()
    return b"outrider" in words and stat.rpartition(")")[2].split()[0] != "Z"


@dataclass(frozen=True, slots=True)
class Started:
    """A server that answers."""

    role: Role
    card: Card
    log: str
    already: bool = False


def start(role: Role, words: Sequence[str], timeout_s: float) -> Started:
    """Until it has written its card and takes connections. Raises what it failed with."""
    if (found := running(role)) is not None:
        return Started(role, found, found.log, already=True)
    paths.card_file(role).unlink(missing_ok=True)
    said = paths.log_file(role).with_suffix(".err")
    said.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = _spawn([sys.executable, "-m", "outrider.cli", role, *words], said)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise _failed(role, process.wait(LOOK_S), said)
        found = card(role)
        if found is not None and found.pid == process.pid and answers(found.place):
            # It outlives us on purpose: nobody here is to wait for it.
            process.returncode = 0
            return Started(role, found, found.log)
    process.terminate()
    raise OutriderError(
        f"the {role} did not serve within {timeout_s:g} s",
        why=f"it was still loading; what it said stands in {said}",
        effect="it was ended",
        todo="give it longer with --timeout, or run it in the foreground: outrider " + role,
    )


def _spawn(command: Sequence[str], said: Path) -> subprocess.Popen[bytes]:
    """Without a terminal, in a session of its own."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def answers(place: str) -> bool:
    """Whether connections are taken where a card says."""
    address = Address.parse(place.rpartition("://")[2], 0)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    try:
        with socket.create_connection((host, address.port), timeout=2.0):
            return True
    except OSError:
        return False


class StartFailed(OutriderError):
    """A server ended before it served; it leaves with the server's own exit code."""

    def __init__(self, what: str, status: int, **parts: str) -> None:
        super().__init__(what, **parts)
        self.exit_code = status if 0 < status < 128 else 1  # type: ignore[misc]


def _failed(role: Role, status: int, said: Path) -> StartFailed:
    """What it wrote before it ended, as our error."""
    lines = said.read_text("utf-8", "replace").splitlines()[-TAIL:]
    at = next((n for n, line in enumerate(lines) if line.startswith("error: ")), None)
    parts = {"what": f"the {role} ended with status {status} before it served"}
    if at is not None:
        parts["what"] = lines[at].removeprefix("error: ")
        for line in lines[at + 1 :]:
            name, _, text = line.strip().partition(": ")
            parts |= {{"try": "todo"}.get(name, name): text} if text else {}
    known = {name: parts[name] for name in ("why", "effect", "todo") if name in parts}
    known.setdefault("todo", f"read {said}")
    return StartFailed(parts["what"], status, **known)


def end(found: Card, role: Role, *, force: bool) -> None:
    """SIGTERM, and wait; with `force` SIGKILL after that. Raises OutriderError."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGTERM)
    if not _gone(found.pid, STOP_S):
        if not force:
            raise OutriderError(
                f"the {role} (pid {found.pid}) did not end within {STOP_S:g} s",
                effect="it still runs",
                todo="outrider down --force kills it; answers under way are lost",
            )
        os.kill(found.pid, signal.SIGKILL)
        _gone(found.pid, STOP_S)
    left = card(role)
    if left is not None and left.pid == found.pid:
        paths.card_file(role).unlink(missing_ok=True)


def _gone(pid: int, within_s: float) -> bool:
    """Whether it ended in time."""
    deadline, pause = time.monotonic() + within_s, threading.Event()
    while ours(pid):
        if time.monotonic() > deadline:
            return False
        _reap(pid)
        pause.wait(LOOK_S)
    return True


def _reap(pid: int) -> None:
    """A child of this very process stays until it is asked for."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
