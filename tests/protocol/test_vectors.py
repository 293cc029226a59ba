"""Golden bytes: what every implementation of protocol 1 writes, reads and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from outrider.errors import OutriderError, by_code
from outrider.protocol import codec

ROOT = Path(__file__).resolve().parent.parent.parent
SEALED_UP, SEALED_DOWN = ("Hello", "Finish", "Frame"), ("Accept", "Frame")
VECTORS: dict[str, Any] = json.loads((ROOT / "tests" / "vectors" / "wire.json").read_text())


def decode(case: dict[str, Any]) -> Any:
    data = bytes.fromhex(case["bytes"])
    if case["way"] == "up":
        return codec.decode_up(data, case["slots"])
    return codec.decode_down(data, case["slots"], case["top_logprobs"])


def encode(message: Any, case: dict[str, Any]) -> bytes:
    if case["way"] == "up":
        return codec.encode_up(message, case["slots"])
    return codec.encode_down(message, case["slots"], case["top_logprobs"])


def as_json(value: Any) -> Any:
    """Bytes as hex, numbers of 53 bits and more as text."""
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and value >= 2**53:
        return str(value)
    return value


@pytest.mark.parametrize("case", VECTORS["messages"], ids=lambda c: f"{c['way']}, {c['name']}")
def test_golden_bytes(case: dict[str, Any]) -> None:
    message = decode(case)
    got = {"kind": type(message).__name__, **as_json(asdict(message))}
    assert got == case["message"]
    assert encode(message, case).hex() == case["bytes"]


@pytest.mark.parametrize("case", VECTORS["malformed"], ids=lambda c: f"{c['way']}, {c['name']}")
def test_malformed_bytes_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(OutriderError) as caught:
        decode(case)
    assert type(caught.value) is by_code(case["code"])


def test_the_vectors_cover_every_message() -> None:
    kinds = {(case["way"], case["message"]["kind"]) for case in VECTORS["messages"]}
    up = {("up", kind) for kind in ("Open", "Hint", "Close", "Heartbeat", *SEALED_UP)}
    plain = ("Opened", "Commit", "Finished", "Heartbeat")
    assert kinds == up | {("down", kind) for kind in (*plain, *SEALED_DOWN)}


def test_vectors_are_what_the_code_gives() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "vectors"), "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
