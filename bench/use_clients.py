"""Part of `bench use`: real clients, unmodified, against one server.

Their tests run in a process of their own, as in CI. `clients_ok` is 1 when all of them pass; one
that can not be had here (a package that is not installed, npm without a registry) has not
passed, and its cell says why. The control asks every question of a server whose answers are
empty: a client that passes there tests nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as Tree
from collections.abc import Mapping, Sequence
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
LIMIT_S = 300.0
SABOTAGED = "openai"
"""The client of a quick run's control; in a full run all are."""


def run(*, quick: bool) -> dict[str, Any]:
    """`clients_ok`, a cell per client, and the control."""
    cells = tried(tuple(CLIENTS))
    broken = tried((SABOTAGED,) if quick else tuple(CLIENTS), mute=True)
    passed = sum(cell["ok"] for cell in cells)
    return {
        "cases": len(cells),
        "figures": {"clients_ok": int(passed == len(cells)), "clients_passed": passed},
        "controls": {"mute_server_fails_all": int(not any(cell["ok"] for cell in broken))},
        "cells": cells,
        "losing": [cell for cell in cells if not cell["ok"]],
    }


def tried(clients: Sequence[str], *, mute: bool = False) -> list[dict[str, Any]]:
    """A cell for each client, from one new process for all of them."""
    files = [str(TESTS / CLIENTS[client][0]) for client in clients]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ("-q", "-p", "no:cacheprovider", f"--junitxml={report}")
        command = (sys.executable, "-m", "pytest", *options, *files)
        environment = {**os.environ, **({"OUTRIDER_MUTE_SERVER": "1"} if mute else {})}
        try:
            subprocess.run(
                command, cwd=harness.ROOT, env=environment, capture_output=True, timeout=LIMIT_S
            )
            cases = list(Tree.parse(report).getroot().iter("testcase"))
        except (subprocess.TimeoutExpired, OSError, Tree.ParseError):
            cases = []
    return [_cell(client, cases) for client in clients]


def _cell(client: str, cases: Sequence[Tree.Element]) -> dict[str, Any]:
    """What became of a client's tests; the first reason where one did not pass."""
    file, package = CLIENTS[client]
    module = f"tests.clients.{file.removesuffix('.py')}"
    mine = [case for case in cases if case.get("classname") == module]
    outcomes = [outcome for case in mine for outcome in case]
    failed = sum(outcome.tag in ("failure", "error") for outcome in outcomes)
    skipped = sum(outcome.tag == "skipped" for outcome in outcomes)
    reasons = [(each.get("message") or each.tag).splitlines()[0][:160] for each in outcomes]
    return {
        "client": client,
        "version": _version(package),
        "ok": bool(mine) and not failed and not skipped,
        "tests": len(mine),
        "failed": failed,
        "skipped": skipped,
        "why": reasons[0] if reasons else "" if mine else "its tests did not run",
        "seconds": round(sum(float(case.get("time", "0")) for case in mine), 2),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package) if package else ""
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(harness.main("use_clients", run))
