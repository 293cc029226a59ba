"""Named points at which a process can be made to die, stop or fail, for fault tests.

`hit("cloud.before_commit")` does nothing unless the environment variable `OUTRIDER_FAILPOINTS`
arms that point when the process starts:

    OUTRIDER_FAILPOINTS="cloud.before_commit=kill:3,edge.after_hint=stop"

Each entry is `point=action` or `point=action:n`; it acts once, at the n-th hit (the first, if n
is not given), counted in each process by itself. Actions:

    kill    SIGKILL to this process: nothing is flushed, no handler runs
    stop    SIGSTOP to this process: it freezes until SIGCONT
    exit    leave at once with status 70, without clean-up
    raise   raise FailpointHit in the code under test

Before it acts, a point writes one line to the file descriptor of standard error, so that a
supervisor sees which process was struck where: `outrider-failpoint POINT ACTION PID`.

This module imports nothing of Outrider, so that any layer may call it.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

VARIABLE: Final = "OUTRIDER_FAILPOINTS"
EXIT_STATUS: Final = 70
ANNOUNCEMENT: Final = re.compile(r"outrider-failpoint (?P<point>\S+) (?P<action>\S+) (?P<pid>\d+)")

Action = Literal["kill", "stop", "exit", "raise"]

_ENTRY = re.compile(r"(?P<point>[\w.-]+)=(?P<action>\w+)(:(?P<nth>[1-9]\d*))?")


class FailpointHit(Exception):
    """What a point armed with `raise` raises."""


@dataclass(frozen=True, slots=True)
class Failpoint:
    """One armed point; it acts at its n-th hit."""

    point: str
    action: Action
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.point}={self.action}:{self.nth}"


@dataclass(slots=True)
class _Armed:
    """The points armed in this process, and how often each was hit."""

    points: dict[str, Failpoint]
    hits: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, point: str) -> Failpoint | None:
        armed = self.points.get(point)
        if armed is None:
            return None
        with self.lock:
            self.hits[point] = count = self.hits.get(point, 0) + 1
        return armed if count == armed.nth else None


def parse(text: str) -> tuple[Failpoint, ...]:
    """Reads the value of `OUTRIDER_FAILPOINTS`; raises ValueError naming the bad entry."""
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    points = tuple(_parse_entry(entry) for entry in entries)
    if len({p.point for p in points}) != len(points):
        raise ValueError(f"{VARIABLE} arms a point twice: {text!r}")
    return points


def _parse_entry(entry: str) -> Failpoint:
    found = _ENTRY.fullmatch(entry)
    if found is not None:
        for action in get_args(Action):
            if action == found["action"]:
                return Failpoint(found["point"], action, int(found["nth"] or 1))
    wanted = "|".join(get_args(Action))
    raise ValueError(f"{VARIABLE} has the entry {entry!r}; each must be POINT={wanted}[:N]")


def spell(*points: Failpoint) -> str:
    """The value of `OUTRIDER_FAILPOINTS` that arms these points."""
    return ",".join(str(point) for point in points)


def _from_environment() -> _Armed | None:
    points = parse(os.environ.get(VARIABLE, ""))
    return _Armed({p.point: p for p in points}) if points else None


_armed = _from_environment()


def hit(point: str) -> None:
    """Marks that the code came by; acts if the point is armed and this is its n-th hit."""
    if _armed is not None:
        due = _armed.due(point)
        if due is not None:
            _act(due)


def _act(due: Failpoint) -> None:
    pid = os.getpid()
    os.write(2, f"outrider-failpoint {due.point} {due.action} {pid}\n".encode())
    match due.action:
        case "kill":
            _strike(signal.SIGKILL)
        case "stop":
            _strike(signal.SIGSTOP)
        case "exit":
            os._exit(EXIT_STATUS)
        case "raise":
            raise FailpointHit(due.point)


def _strike(number: signal.Signals) -> None:
    """Signals the whole process through this thread, so that not one line more runs in it."""
    signal.pthread_kill(threading.get_ident(), number)
