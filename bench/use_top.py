"""Part of `bench use`: what `outrider top` costs while it watches.

The command itself runs on a terminal of its own (a pseudo-terminal of 140 columns and 40 rows,
which is read), over the recorded session at the pace at which it was recorded: two answers at a
time under way, a look twice a second. `top_core_share` is its processor time over the wall time,
of all its threads, after it has come up; `top_idle_core_share` the same with no request under
way: the session's gauges as they came, without what requests add to them. The control looks ten
times as often, which must cost more.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

import outrider
from bench import harness
from outrider.errors import OutriderError
from outrider.protocol import events, recording

SESSION = harness.ROOT / "tests" / "tui" / "session.events.gz"
SIZE = (140, 40)
START_S, WATCH_S, QUICK_S = 3.0, 60.0, 12.0
"""Until it has come up; how long it is watched."""
SCREENS = ("overview", "split", "requests", "logs")
COUNTED = ("requests", "tokens", "sent", "hint_rows", "accepted")
"""What a gauge counts of requests."""
PROGRAM = "from outrider.cli import main; main()"
HASTY = """
from dataclasses import replace
from outrider.tui import start
run = start.run
start.run = lambda feed, options, caller: run(feed, replace(options, every_s=0.05), caller)
"""
"""Before the program: looks twenty times a second."""


def run(*, quick: bool) -> dict[str, Any]:
    """`top_core_share`, the largest of the screens that were watched."""
    screens = SCREENS[:1] if quick else SCREENS
    seconds = QUICK_S if quick else WATCH_S / 2
    cells = [watched(screen, seconds) for screen in screens]
    with tempfile.TemporaryDirectory() as folder:
        idle = watched("overview", seconds, record=quiet(Path(folder) / "quiet.events"))
    hasty = watched("overview", QUICK_S, before=HASTY)
    most = max(cell["core_share"] for cell in cells)
    return {
        "cases": len(cells),
        "figures": {
            "top_core_share": most,
            "top_idle_core_share": idle["core_share"],
            "top_rss_mb": max(cell["rss_mb"] for cell in cells),
        },
        "controls": {"ten_times_as_often_costs_more": int(hasty["core_share"] > most)},
        "cells": [*cells, idle, hasty],
        "losing": [cell for cell in cells if cell["core_share"] >= 0.02],
    }


def quiet(path: Path) -> Path:
    """A record of the session's gauges, link and load as they were measured, and no request."""
    told = [event for event in recording.read(SESSION) if isinstance(event, events.Gauge)]
    first = told[0]
    with path.open("wb") as file:
        recording.begin(file, outrider.__version__, first.at)
        for one in told:
            if one.pid == first.pid:
                recording.add(file, _without_requests(one, first))
    return path


def _without_requests(now: events.Gauge, first: events.Gauge) -> events.Gauge:
    return msgspec.structs.replace(
        now,
        running=0,
        queued=0,
        **{name: getattr(first, name) for name in COUNTED},
    )


def watched(
    screen: str, seconds: float, before: str = "", record: Path = SESSION
) -> dict[str, Any]:
    """Processor time over wall time of one run of the command."""
    master, slave = pty.openpty()
    size = struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    words = ["top", "--replay", str(record), "--screen", screen]
    process = subprocess.Popen(
        [sys.executable, "-c", before + PROGRAM, *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        start_new_session=True,
    )
    os.close(slave)
    read = _Drain(master)
    try:
        _runs_on(process, START_S)
        found = psutil.Process(process.pid)
        spent, began, painted = _spent(found), time.monotonic(), read.bytes
        _runs_on(process, seconds)
        spent, wall = _spent(found) - spent, time.monotonic() - began
        rss = found.memory_info().rss / 1e6
    finally:
        process.terminate()
        process.wait(10.0)
        os.close(master)
    return {
        "screen": screen,
        "hasty": bool(before),
        "requests": int(record == SESSION),
        "seconds": round(wall, 2),
        "core_share": round(spent / wall, 4),
        "rss_mb": round(rss, 1),
        "bytes_per_s": round((read.bytes - painted) / wall, 1),
    }


def _runs_on(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait, and see that it does not end meanwhile."""
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
    raise OutriderError(f"outrider top ended with status {status}", effect="nothing was measured")


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Drain:
    """Reads what is painted, as a terminal does."""

    def __init__(self, file: int) -> None:
        self.bytes = 0
        self._file = file
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                data = os.read(self._file, 1 << 16)
            except OSError:
                return
            if not data:
                return
            self.bytes += len(data)


if __name__ == "__main__":
    print(run(quick="--quick" in sys.argv))
