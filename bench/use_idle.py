"""What Outrider costs while nobody asks: the idle daemon, the base installation, a newcomer's path.

`idle_rss_mb` and `idle_core_share` are of a daemon whose draft model waits for the first request,
with a cloud that is away, so that it keeps looking for it; beside them stands the same daemon with
the bundled draft loaded. `base_install_s` is `pip install` of the built wheel into a fresh
environment, with a warm cache; `newcomer_s` is `make demo` step by step: fresh environment,
installation of the demo's extras from the source checkout, the first token that the demo shows.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from bench import harness

SETTLE_S = 5.0
WATCH_S = (10.0, 40.0)
"""Quick, full: how long the idle daemon is watched."""
START_S = 120.0
DEMO_S = 180.0
NOBODY = "127.0.0.1:9"
DEMO_EXTRAS = "edge,cloud,onnx,torch"
"""Those of `make demo`, whose steps are timed here."""
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check")


def run(*, quick: bool) -> dict[str, Any]:
    """A quick run leaves the newcomer's path away: it installs hundreds of megabytes."""
    watch_s = WATCH_S[0] if quick else WATCH_S[1]
    lazy = idle(("--draft-load", "lazy"), watch_s)
    loaded = idle((), watch_s)
    figures = {
        "idle_rss_mb": lazy["rss_mb"],
        "idle_core_share": lazy["core_share"],
        "idle_draft_rss_mb": loaded["rss_mb"],
        "idle_draft_core_share": loaded["core_share"],
        **installs(newcomer=not quick),
    }
    return {"cases": len(figures), "figures": figures, "cells": [lazy, loaded]}


# --- the idle daemon ---------------------------------------------------------------------------


def idle(flags: tuple[str, ...], watch_s: float) -> dict[str, Any]:
    """Resident megabytes (10^6) and share of one core, once it has settled."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-idle-")))
        process, started_s = _daemon(home, flags)
        stack.callback(_end, process)
        _pause(SETTLE_S)
        seen = psutil.Process(process.pid)
        before, began = sum(seen.cpu_times()[:2]), time.monotonic()
        _pause(watch_s)
        spent, lasted = sum(seen.cpu_times()[:2]) - before, time.monotonic() - began
        family = [seen, *seen.children(recursive=True)]
        return {
            "flags": " ".join(flags),
            "rss_mb": sum(one.memory_info().rss for one in family) / 1e6,
            "core_share": spent / lasted,
            "threads": seen.num_threads(),
            "started_s": started_s,
            "watched_s": lasted,
        }


def _daemon(home: Path, flags: tuple[str, ...]) -> tuple[subprocess.Popen[bytes], float]:
    """One that serves, and how long that took."""
    ready, began = home / "ready", time.monotonic()
    words = ["--listen", "127.0.0.1:0", "--cloud", NOBODY, "--ready-file", str(ready), *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "outrider.cli", "edge", *words],
        env={**os.environ, "OUTRIDER_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=harness.ROOT,
    )
    while not ready.exists():
        if process.poll() is not None or time.monotonic() - began > START_S:
            _end(process)
            raise RuntimeError(f"the daemon did not start: status {process.poll()}")
        _pause(0.02)
    return process, time.monotonic() - began


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


# --- installing --------------------------------------------------------------------------------


def installs(*, newcomer: bool) -> dict[str, float]:
    """Seconds, in fresh environments; the first installation warms pip's cache."""
    with tempfile.TemporaryDirectory(prefix="outrider-install-") as name:
        folder = Path(name)
        wheel = _wheel(folder)
        base = [_base(folder / f"venv{n}", wheel) for n in range(2)][-1]
        return {**base, **(_newcomer(folder / "new") if newcomer else {})}


def _wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    _do([*command, "-w", str(folder), str(harness.ROOT)])
    return next(folder.glob("outrider-*.whl"))


def _base(place: Path, wheel: Path) -> dict[str, float]:
    """With the pinned versions, as the set-up of this project does."""
    made = _timed([sys.executable, "-m", "venv", str(place)])
    installed = _timed([str(place / "bin" / "python"), *PIP, "-c", _pins(), str(wheel)])
    ran = _timed([str(place / "bin" / "outrider"), "version"])
    return {"base_venv_s": made, "base_install_s": installed, "base_first_verb_s": ran}


def _newcomer(place: Path) -> dict[str, float]:
    """Fresh environment, installation, the demo's first token."""
    began = time.monotonic()
    _do([sys.executable, "-m", "venv", str(place)])
    _do([str(place / "bin" / "python"), str(harness.ROOT / "scripts" / "setup"), DEMO_EXTRAS])
    installed = time.monotonic() - began
    first = _first_token(place, place.parent / "home")
    return {
        "newcomer_s": installed + first,
        "newcomer_install_s": installed,
        "newcomer_demo_first_token_s": first,
    }


def _first_token(place: Path, home: Path) -> float:
    """From the command to the first character after a prompt, on a terminal of its own."""
    from outrider.demo.story import PROMPTS

    began = time.monotonic()
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [str(place / "bin" / "outrider"), "demo"],
        stdin=child,
        stdout=child,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OUTRIDER_HOME": str(home)},
        start_new_session=True,
    )
    os.close(child)
    # Answers stand in a frame: its strokes lie between the lines.
    lines = [re.escape(line.strip()) for line in PROMPTS[0][0].splitlines() if line.strip()]
    shown = re.compile(r"[\s│]+".join(lines) + r"[\s│]*[^\s│]")
    text = ""
    try:
        while not shown.search(ANSI.sub("", text)):
            if time.monotonic() - began > DEMO_S:
                raise RuntimeError("the demo showed no token")
            text += _heard(parent, process)
        return time.monotonic() - began
    finally:
        _end(process)
        os.close(parent)


def _heard(parent: int, process: subprocess.Popen[bytes]) -> str:
    try:
        return os.read(parent, 4096).decode("utf-8", "replace")
    except OSError:
        # The terminal's other end is closed: the demo is over.
        raise RuntimeError(f"the demo ended with status {process.wait()}, no token") from None


def _pins() -> str:
    return str(harness.ROOT / "constraints.txt")


def _timed(command: list[str]) -> float:
    began = time.monotonic()
    _do(command)
    return time.monotonic() - began


def _do(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=harness.ROOT)


if __name__ == "__main__":
    sys.exit(harness.main("use_idle", run))
