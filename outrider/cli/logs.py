"""`outrider logs`."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from outrider import paths
from outrider.cli import background, console
from outrider.errors import NotFound

LOOK_S = 0.25
"""Between two looks for more."""
JOURNAL = "journal:"
HEAD = ("time", "level", "event", "logger")


def logs(
    *,
    follow: Annotated[bool, Parameter(alias="-f")] = False,
    lines: Annotated[int, Parameter(alias="-n")] = 50,
    request: str = "",
    level: Literal["debug", "info", "warning", "error"] = "debug",
    cloud: bool = False,
    json: bool = False,
) -> int:
    """What the daemon logged: states, numbers and reasons; never a prompt or an answer.

    Args:
        follow: Go on as more comes, until ctrl-c.
        lines: How many of the last to begin with.
        request: Only of this request of `outrider ps`.
        level: Nothing below it.
        cloud: The log of the cloud on this machine.
        json: One JSON object a line, as it was written.
    """
    place = _place("cloud" if cloud else "edge")
    wanted = Wanted(request, level)
    try:
        for line in _chosen(_source(place), wanted, lines, follow=follow):
            console.out(line if json else shown(line))
    except KeyboardInterrupt:
        return 130
    return 0


def _place(role: background.Role) -> str:
    """Where its card says, else where one in the background writes. Raises NotFound."""
    found = background.running(role)
    place = found.log if found is not None else ""
    usual = paths.log_file(role)
    if not place and (found is None or usual.exists()) and usual.exists():
        place = str(usual)
    if not place:
        raise NotFound(
            f"the {role} keeps no log" if found else f"there is no log of the {role}",
            why="it runs in the foreground, without --log-file" if found else "none ran here",
            effect="nothing was shown",
            todo="outrider up starts one that does, or give it --log-file FILE",
        )
    return place


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines."""

    request: str
    level: str

    def takes(self, line: str) -> bool:
        fields = parsed(line)
        order = ("debug", "info", "warning", "error", "critical")
        level = str(fields.get("level", "info"))
        loud = level not in order or order.index(level) >= order.index(self.level)
        return loud and (not self.request or fields.get("request") == self.request)


def parsed(line: str) -> dict[str, Any]:
    """The fields; of a line that is none of ours the whole line as `event`."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return {"event": line.strip()}


def shown(line: str) -> str:
    """For people: when, how grave, what, and the rest."""
    fields = parsed(line)
    when = str(fields.get("time", "")).partition("T")[2][:12]
    rest = {k: v for k, v in fields.items() if k not in HEAD and v not in (None, "", [], {})}
    said = " ".join(f"{name}={_word(value)}" for name, value in rest.items())
    level = str(fields.get("level", ""))
    mark = console.bold(level.ljust(7)) if level in ("warning", "error") else level.ljust(7)
    return f"{when:12} {mark} {fields.get('event', '')!s:18} {said}".rstrip()


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@dataclass(slots=True)
class File:
    """A log file, and the older ones that it was before."""

    path: Path
    at: int = 0
    inode: int = 0

    def last(self) -> Iterator[str]:
        older = sorted(self.path.parent.glob(f"{self.path.name}.[0-9]"), reverse=True)
        for each in older:
            yield from each.read_text("utf-8", "replace").splitlines()
        yield from self._new()

    def more(self) -> Iterator[str]:
        """Never ends; goes over to the new file when the log begins anew."""
        pause = threading.Event()
        while True:
            yield from self._new()
            pause.wait(LOOK_S)

    def _new(self) -> list[str]:
        """Whole lines since the last look."""
        try:
            stat = os.stat(self.path)
            if stat.st_ino != self.inode or stat.st_size < self.at:
                self.at, self.inode = 0, stat.st_ino
            with self.path.open("rb") as file:
                file.seek(self.at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = data.rpartition(b"\n")
        self.at += len(whole) + len(newline)
        return whole.decode("utf-8", "replace").splitlines()


@dataclass(slots=True)
class Journal:
    """A unit's lines in journald."""

    unit: str

    def last(self) -> Iterator[str]:
        done = subprocess.run(self._command(), capture_output=True, text=True, check=False)
        yield from done.stdout.splitlines()

    def more(self) -> Iterator[str]:
        command = [*self._command(), "--follow", "--lines=0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield from (line.rstrip("\n") for line in process.stdout)
            finally:
                process.terminate()

    def _command(self) -> list[str]:
        return ["journalctl", "--user", "--unit", self.unit, "--output=cat", "--quiet"]


def _source(place: str) -> File | Journal:
    if not place.startswith(JOURNAL):
        return File(Path(place))
    if not shutil.which("journalctl"):
        raise NotFound("the log is in journald, and there is no journalctl to read it")
    return Journal(place.removeprefix(JOURNAL))


def _chosen(source: File | Journal, wanted: Wanted, lines: int, *, follow: bool) -> Iterator[str]:
    yield from deque((line for line in source.last() if wanted.takes(line)), maxlen=max(0, lines))
    if follow:
        yield from (line for line in source.more() if wanted.takes(line))
