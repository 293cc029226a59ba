"""`outrider doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from outrider import paths
from outrider.cli import console
from outrider.cli.jetson import Jetson
from outrider.cli.where import HERE, Daemon, Where
from outrider.errors import ConfigError, DaemonUnreachable, OutriderError
from outrider.options import CLOUD_PORT, EDGE_PORT

State = Literal["ok", "absent", "warning", "failed"]
"""`absent`: not installed, and not needed for everything."""

LEAST_MEMORY, LEAST_DISK = 1 << 30, 2 << 30
"""Bytes: a small draft with its engine, and one small model with its converted forms."""
DAY_S = 86400.0
PROBE_S = 180.0
"""An engine that has not answered by then hangs."""

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "edge": ("grpc", "jinja2", "numpy", "prometheus_client", "starlette", "uvicorn", "zmq"),
    "cloud": ("grpc", "numpy", "psutil", "zmq"),
    "onnx": ("onnx", "onnxruntime"),
    "llama": ("gguf", "llama_cpp"),
    "torch": ("torch",),
    "plan": ("highspy", "networkx"),
    "tui": ("textual",),
}
ENGINES: Mapping[str, str] = {
    "fake": "numpy",
    "ngram": "numpy",
    "onnx": "onnxruntime",
    "torch": "torch",
    "llama": "llama_cpp",
}
"""Engine to the library it needs."""


class Check(msgspec.Struct, frozen=True):
    """One thing looked at."""

    name: str
    state: State
    detail: str
    todo: str = ""


def doctor(
    *, fix: bool = False, bundle: Path | None = None, json: bool = False, where: Where = HERE
) -> int:
    """Check Python, extras, engines (each runs a real operation), settings, folders, memory, disk,
    clock, ports and links.

    Args:
        fix: First make folders, take rights that are too wide, remove what dead daemons left.
        bundle: Write a zip for a report: checks, settings, status, log; no key, no prompt.
        json: Print one JSON object.
    """
    from outrider.cli import mend

    if fix:
        for done in mend.mend():
            console.note(f"fixed: {done}")
    checks = []
    for check in examine(where):
        checks.append(check)
        if not json:
            console.out(_line(check))
    if json:
        console.as_json({"checks": checks})
    if bundle is not None:
        from outrider.cli.bundle import write

        write(bundle, checks, where)
        console.note(f"{bundle} is written: read it before you send it")
    return 1 if any(check.state == "failed" for check in checks) else 0


def _line(check: Check) -> str:
    line = f"{check.state:8} {check.name:16} {check.detail}"
    return f"{line}\n{'':26}try: {check.todo}" if check.todo else line


def examine(where: Daemon) -> Iterator[Check]:
    """All checks, as they are done."""
    yield python()
    for extra, modules in EXTRAS.items():
        yield installed(extra, modules)
    for engine, library in ENGINES.items():
        yield works(engine, library)
    yield settings()
    yield from folders()
    yield from room()
    yield clock()
    yield power()
    yield from jetson()
    reached = daemon(where)
    yield from reached
    yield port("edge port", EDGE_PORT, reached[0].state == "ok")
    yield port("cloud port", CLOUD_PORT, len(reached) > 1)


def python() -> Check:
    """Which one; an older one than 3.11 could not have read this file."""
    return Check("python", "ok", f"{platform.python_version()}, {sys.executable}")


def installed(extra: str, modules: tuple[str, ...]) -> Check:
    """Whether the packages of an extra can be found."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if not lacking:
        return Check(f"extra {extra}", "ok", "installed")
    todo = f'pip install "outrider[{extra}]"'
    return Check(f"extra {extra}", "absent", f"without {', '.join(lacking)}", todo)


def works(engine: str, library: str) -> Check:
    """Whether an engine loads a model and chooses a token, in a process of its own."""
    name = f"engine {engine}"
    if importlib.util.find_spec(library) is None:
        return Check(name, "absent", f"{library} is not installed")
    command = [sys.executable, "-m", "outrider.cli.probe", engine]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return Check(name, "failed", f"it hangs: no token in {PROBE_S:.0f} s", _rebuild(engine))
    if done.returncode < 0:
        cause = signal.Signals(-done.returncode).name
        return Check(name, "failed", f"its library died of {cause}", _rebuild(engine))
    return _judge(name, engine, done.stdout)


def _judge(name: str, engine: str, output: bytes) -> Check:
    try:
        found = msgspec.json.decode(output.strip().split(b"\n")[-1], type=dict[str, object])
    except msgspec.DecodeError:
        return Check(name, "failed", "it ended without a word", _rebuild(engine))
    if not found.get("ok"):
        detail = f"{found.get('what', '')}: {found.get('why', '')}"
        return Check(name, "failed", detail.rstrip(": "), str(found.get("todo") or ""))
    exact = "exact" if found.get("exact") else "not exact"
    detail = f"{found.get('device')}, {found.get('dtype')}, {exact}, {found.get('seconds')} s"
    return Check(name, "ok", detail)


def _rebuild(engine: str) -> str:
    return f'pip install --force-reinstall "outrider[{engine}]" on this very machine'


def folders() -> Iterator[Check]:
    """Places that the servers write to."""
    for name, folder in (
        ("runtime folder", paths.runtime_dir()),
        ("state folder", paths.state_dir()),
        ("cache folder", paths.cache_dir()),
    ):
        yield writable(name, folder)


def settings() -> Check:
    """Whether the servers would start with what file and environment say."""
    from outrider.config.keys import SECTIONS
    from outrider.config.layers import Layers

    try:
        layers = Layers.load()
        for section, kind in SECTIONS.items():
            layers.settle(kind, section, {}, ())
    except ConfigError as error:
        return Check("settings", "failed", error.what, error.todo)
    place = layers.file.path
    if not layers.file.there:
        return Check("settings", "ok", f"defaults; there is no {place}")
    if place.stat().st_mode & 0o022:
        return Check("settings", "warning", f"others may write {place}", "outrider doctor --fix")
    return Check("settings", "ok", str(place))


def room(root: Path = Path("/")) -> Iterator[Check]:
    """Memory that is free now, and disk where models and caches lie."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"))
    if found is not None:
        free = int(found[1]) * 1024
        yield _roomy("memory", free, LEAST_MEMORY, "close what needs memory, or draft with ngram")
    folder = next(p for p in (paths.cache_dir(), *paths.cache_dir().parents) if p.exists())
    todo = f"make room on the disk of {folder}, or set OUTRIDER_CACHE to another"
    yield _roomy("disk", shutil.disk_usage(folder).free, LEAST_DISK, todo)


def _roomy(name: str, free: int, least: int, todo: str) -> Check:
    detail = f"{free / 2**30:.1f} GiB free"
    if free < least:
        return Check(name, "warning", f"{detail}, little for models", todo)
    return Check(name, "ok", detail)


def clock(now: float | None = None, root: Path = Path("/")) -> Check:
    """A clock that is wrong makes every certificate invalid: boards without a battery for it
    begin in the past. Never before this very file was made."""
    seconds = time.clock_gettime(time.CLOCK_REALTIME) if now is None else now
    behind = Path(__file__).stat().st_mtime - seconds
    if behind > DAY_S:
        what = f"it is {behind / DAY_S:.0f} days behind: TLS will refuse every certificate"
        return Check("clock", "failed", what, "sudo timedatectl set-ntp true")
    synced = root / "run/systemd/timesync"
    if synced.is_dir() and not (synced / "synchronized").exists():
        return Check("clock", "warning", "not yet set by the network", "timedatectl tells more")
    return Check("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)))


def jetson(root: Path = Path("/")) -> Iterator[Check]:
    """What is special about a Jetson; nothing elsewhere."""
    found = Jetson.find(root)
    if found is None:
        return
    jetpack = f"JetPack {found.jetpack}" if found.jetpack else "a JetPack that is not known"
    yield Check("jetson", "ok", f"{found.model}, L4T {found.l4t or 'unknown'}, {jetpack}")
    for what, todo in found.advice():
        old = "too old" in what
        yield Check("jetson", "failed" if old else "ok", what, todo)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def writable(name: str, folder: Path) -> Check:
    """Whether a file can be made there, or the folder be made."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Check(name, "ok", str(folder))
    todo = f"make {there} writable, or set OUTRIDER_RUNTIME and OUTRIDER_STATE to other folders"
    return Check(name, "failed", f"{folder} can not be written", todo)


def power() -> Check:
    """Which readers of power and heat this machine has."""
    from outrider.partitioner.power.machine import here

    meter = here().meter()
    troubles = meter.poll(0.0).problems
    if troubles:
        return Check("power", "warning", troubles[0].what, troubles[0].todo)
    names = ", ".join(reader.name for reader in meter.readers)
    if names:
        return Check("power", "ok", f"readers: {names}")
    return Check("power", "absent", "no reader: joules are estimates", "outrider power")


def daemon(where: Daemon) -> list[Check]:
    """The daemon, and the clouds it knows."""
    try:
        with where.client() as client:
            status = client.status()
            url = client.url
    except DaemonUnreachable as error:
        return [Check("daemon", "warning", error.what, "outrider up, or outrider edge")]
    except OutriderError as error:
        return [Check("daemon", "failed", error.what, error.todo)]
    found = [Check("daemon", "ok", f"{url}, version {status.version}")]
    for cloud in status.clouds:
        rtt = f", RTT {cloud.rtt_ms:.1f} ms" if cloud.rtt_ms is not None else ""
        state: State = "ok" if cloud.state == "connected" else "warning"
        todo = "" if state == "ok" else f"start `outrider cloud` at {cloud.address}"
        found.append(Check("cloud", state, f"{cloud.address} {cloud.state}{rtt}", todo))
    return found


def port(name: str, number: int, used: object) -> Check:
    """Whether a server could listen on its usual port; `used`: ours already does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            why = f"{number}: {error.strerror}"
            return Check(name, "ok" if used else "warning", why, "" if used else "use --listen")
    return Check(name, "ok", f"{number} is free")
