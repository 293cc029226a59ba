"""`outrider doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from outrider import paths
from outrider.cli import console
from outrider.cli.where import HERE, Daemon, Where
from outrider.errors import DaemonUnreachable, OutriderError
from outrider.options import CLOUD_PORT, EDGE_PORT

State = Literal["ok", "absent", "warning", "failed"]
"""`absent`: not installed, and not needed for everything."""

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


def doctor(*, json: bool = False, where: Where = HERE) -> int:
    """Check Python, extras, engines (each runs a real operation), ports, folders and links.

    Args:
        json: Print one JSON object.
    """
    checks = []
    for check in examine(where):
        checks.append(check)
        if not json:
            console.out(_line(check))
    if json:
        console.as_json({"checks": checks})
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
    yield from folders()
    yield power()
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
    ):
        yield writable(name, folder)


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
        return [Check("daemon", "warning", error.what, "outrider edge")]
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
