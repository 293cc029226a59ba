"""Part of `bench use`: real clients, unmodified, against one server.

Each client's tests run in a process of their own, as in CI. `clients_ok` is 1 when all of them
pass; one that can not be had here (a package that is not installed, npm without a registry) has
not passed, and its cell says why. The control asks every question of a server whose answers are
empty: a client that passes there tests nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as Tree
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import harness

TESTS = harness.ROOT / "tests" / "clients"
CLIENTS: Mapping[str, tuple[str, str]] = {
    "openai": ("test_openai.py", "openai"),
    "openai (node)": ("test_openai_node.py", ""),
    "langchain-openai": ("test_langchain.py", "langchain-openai"),
    "llama-index OpenAILike": ("test_llama_index.py", "llama-index-llms-openai-like"),
    "litellm": ("test_litellm.py", "litellm"),
    "ollama": ("test_ollama.py", "ollama"),
    "curl": ("test_curl.py", ""),
}
"""Name to its tests, and the package whose version is told."""
LIMIT_S = 180.0
SABOTAGED = "openai"
"""The client of the control; in a full run all are."""


def run(*, quick: bool) -> dict[str, Any]:
    """`clients_ok`, a cell per client, and the control."""
    cells = [tried(client) for client in CLIENTS]
    broken = [tried(client, mute=True) for client in ([SABOTAGED] if quick else CLIENTS)]
    passed = sum(cell["ok"] for cell in cells)
    return {
        "cases": len(cells),
        "figures": {"clients_ok": int(passed == len(cells)), "clients_passed": passed},
        "controls": {"mute_server_fails_all": int(not any(cell["ok"] for cell in broken))},
        "cells": cells,
        "losing": [cell for cell in cells if not cell["ok"]],
    }


def tried(client: str, *, mute: bool = False) -> dict[str, Any]:
    """One client's tests in a new process."""
    file, package = CLIENTS[client]
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ("-q", "-p", "no:cacheprovider", "-n0", f"--junitxml={report}")
        command = (sys.executable, "-m", "pytest", *options, str(TESTS / file))
        environment = {**os.environ, **({"OUTRIDER_MUTE_SERVER": "1"} if mute else {})}
        try:
            subprocess.run(
                command, cwd=harness.ROOT, env=environment, capture_output=True, timeout=LIMIT_S
            )
            found = _counted(report)
        except (subprocess.TimeoutExpired, OSError, Tree.ParseError) as error:
            found = {"tests": 0, "failed": 1, "skipped": 0, "why": type(error).__name__}
    ok = found["tests"] > 0 and not found["failed"] and not found["skipped"]
    seconds = round(time.monotonic() - began, 2)
    return {"client": client, "version": _version(package), "ok": ok, **found, "seconds": seconds}


def _counted(report: Path) -> dict[str, Any]:
    """Of a JUnit report: how many ran, and why the first one that did not pass did not."""
    suite = next(Tree.parse(report).getroot().iter("testsuite"))
    number = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors")}
    skipped = int(suite.get("skipped", "0"))
    reasons = [
        (outcome.get("message") or outcome.tag).splitlines()[0]
        for case in suite.iter("testcase")
        for outcome in case
        if outcome.tag in ("failure", "error", "skipped")
    ]
    failed = number["failures"] + number["errors"]
    why = reasons[0][:160] if reasons else ""
    return {"tests": number["tests"], "failed": failed, "skipped": skipped, "why": why}


def _version(package: str) -> str:
    try:
        return metadata.version(package) if package else ""
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(harness.main("use_clients", run))
