"""Nothing connects anywhere, and nothing is looked up, that was not asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.testing.local_edge import LocalEdge
from outrider.testing.served import Served

GUARD = """
import os, socket, sys

ALLOWED = set(filter(None, os.environ.get("GUARD_ALLOWED", "").split(",")))
HERE = ("127.0.0.1", "::1", "None", "localhost", "0.0.0.0")
log = os.open(os.environ["GUARD_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def place(address):
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)

def tell(what, address):
    if place(address) not in ALLOWED:
        os.write(log, f"{what} {place(address)}\\n".encode())

def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if arguments[0].family != socket.AF_UNIX and arguments[1]:
            tell(event.removeprefix("socket."), arguments[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if str(arguments[0]) not in HERE:
            tell("look up", str(arguments[0]))
    elif event == "urllib.Request":
        tell("urllib", str(arguments[0]))

sys.addaudithook(guard)
"""
"""As `sitecustomize`, so that every process that is started is guarded too."""


def reached_by(program: str, home: Path, *allowed: str) -> list[str]:
    """What a fresh interpreter, and those it started, reached for while it ran the program."""
    (home / "guard").mkdir(exist_ok=True)
    (home / "guard" / "sitecustomize.py").write_text(GUARD)
    log = home / "reached"
    log.write_text("")
    environment = {
        **os.environ,
        "GUARD_ALLOWED": ",".join(allowed),
        "GUARD_LOG": str(log),
        "PYTHONPATH": str(home / "guard"),
        "HOME": str(home),
        "OUTRIDER_RUNTIME": str(home / "run"),
        "OUTRIDER_STATE": str(home / "state"),
        **{f"XDG_{name}_HOME": str(home / name) for name in ("CONFIG", "DATA", "CACHE", "STATE")},
    }
    for name in ("OUTRIDER_HOST", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stdout + done.stderr
    return log.read_text().splitlines()


def verb(*words: str) -> str:
    return f"from outrider.cli.app import run\nrun({list(words)!r})"


MODULES = """
import importlib, pkgutil
import outrider
from outrider import *
for name in ("outrider.sdk", "outrider.cli.app", "outrider.edge.main", "outrider.cloud.main",
             "outrider.partitioner.plan", "outrider.models.served", "outrider.engines.registry"):
    importlib.import_module(name)
"""


def test_the_guard_sees_a_connection_and_a_look_up(tmp_path: Path) -> None:
    program = (
        "import socket\n"
        "try:\n    socket.create_connection(('127.0.0.1', 9), 0.1)\nexcept OSError:\n    pass\n"
        "try:\n    socket.getaddrinfo('outrider.invalid', 80)\nexcept OSError:\n    pass\n"
    )
    found = reached_by(program, tmp_path)
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {program!r}])"
    assert reached_by(program, tmp_path) == found, "a child is not guarded"
    assert "connect 127.0.0.1:9" in found
    assert "look up outrider.invalid" in found
    assert "connect 127.0.0.1:9" not in reached_by(program, tmp_path, "127.0.0.1:9")


def test_importing_reaches_for_nothing(tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="needs outrider[edge,cloud]")
    assert reached_by(MODULES, tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ("version", "--json"),
        ("--help",),
        ("plan", "shape:llama-3.1-8b", "--devices", "rtx-3060-12gb", "--json"),
        ("bench",),
        ("power", "--json", "--host", "127.0.0.1:9"),
    ],
    ids=lambda words: words[0],
)
def test_verbs_reach_for_nothing_but_the_daemon(words: tuple[str, ...], tmp_path: Path) -> None:
    assert reached_by(verb(*words), tmp_path, "127.0.0.1:9", "127.0.0.1:11711") == []


def test_the_sdk_reaches_its_daemon_alone(tmp_path: Path) -> None:
    program = (
        "from outrider import Client\n"
        "import os\n"
        "with Client(os.environ['GUARD_ALLOWED']) as client:\n"
        "    assert client.complete('x', max_tokens=3).text\n"
        "    client.models(), client.status(), client.requests()\n"
    )
    with Served(LocalEdge()) as served:
        place = served.url.removeprefix("http://")
        assert reached_by(program, tmp_path, place) == []


SERVE = """
import asyncio, contextlib, os, signal, sys, threading
from pathlib import Path
from outrider.cli.app import run

def end():
    while not ready.exists():
        if gone.wait(0.02):
            return
    os.kill(os.getpid(), signal.SIGTERM)

ready, gone = Path(os.environ["HOME"]) / "ready.json", threading.Event()
watcher = threading.Thread(target=end)
watcher.start()
try:
    run(WORDS + ["--ready-file", str(ready)])
finally:
    gone.set()
    watcher.join()
"""


@pytest.mark.parametrize("role", ["edge", "cloud"])
def test_a_daemon_reaches_the_clouds_it_was_told_of_alone(role: str, tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="needs outrider[edge,cloud]")
    words = {
        "edge": ["edge", "--listen", "127.0.0.1:0", "--cloud", "127.0.0.1:9", "--draft", "none"],
        "cloud": ["cloud", "--listen", "127.0.0.1:0", "--model", "fake", "--engine", "fake"],
    }[role]
    program = SERVE.replace("WORDS", repr(words))
    found = reached_by(program, tmp_path, "127.0.0.1:9")
    assert (tmp_path / "ready.json").exists()
    assert json.loads((tmp_path / "ready.json").read_text())
    assert found == []
