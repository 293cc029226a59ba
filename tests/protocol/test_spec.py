"""SPEC.md says what the code does."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.protocol import codec
from outrider.protocol import wire_pb2 as pb
from outrider.protocol.messages import SLOT_CLASSES, VERSION, Commit, Hint

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = (ROOT / "protocol" / "SPEC.md").read_text()
WIDTHS = {"u8": "B", "u16": "H", "u32": "I", "f32": "f"}


def test_parts_from_code_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "spec"), "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def layout(title: str) -> list[tuple[int, str, str]]:
    """(offset, type, field) of the table below a bold title."""
    part = SPEC.split(f"**{title}**, `", 1)[1].split("\n\n", 2)[1]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| (\w+)", part, re.MULTILINE)
    return [(int(offset), kind.strip(), field) for offset, kind, field in rows]


@pytest.mark.parametrize("slots", SLOT_CLASSES)
def test_the_layout_of_a_hint(slots: int) -> None:
    message = Hint(fence=1, choice=4, seen=2, base=3, tokens=(5, 6))
    data = codec.pack_hint(message, slots)
    got = read(data, layout("Hint"))
    assert got == {"fence": 1, "seen": 2, "base": 3, "choice": 4, "count": 2}
    assert struct.unpack_from(f"<{slots}I", data, 14) == (5, 6, *[0] * (slots - 2))


@pytest.mark.parametrize("slots", SLOT_CLASSES)
def test_the_layout_of_a_commit(slots: int) -> None:
    message = Commit(
        fence=1, choice=9, position=2, tokens=(7, 8), hint_rows=5, from_hints=1, wish=6, rows=4,
        step_us=3,
    )  # fmt: skip
    data = codec.pack_commit(message, slots, None)
    assert read(data, layout("Commit")) == {
        "fence": 1, "position": 2, "step_us": 3, "rows": 4, "choice": 9, "count": 2,
        "hint_rows": 5, "from_hints": 1, "wish": 6,
    }  # fmt: skip
    assert struct.unpack_from(f"<{slots}I", data, 19) == (7, 8, *[0] * (slots - 2))


def read(data: bytes, rows: list[tuple[int, str, str]]) -> dict[str, int]:
    """Scalars where the table says they lie; each row begins where the one before ends."""
    found, at = {}, 0
    for offset, kind, field in rows:
        assert offset == at, field
        if kind in WIDTHS:
            (found[field],) = struct.unpack_from("<" + WIDTHS[kind], data, offset)
            at = offset + struct.calcsize(WIDTHS[kind])
    return found


def test_the_version_and_the_service_are_named() -> None:
    assert SPEC.startswith(f"# Outrider protocol, version {VERSION}\n")
    service = pb.DESCRIPTOR.services_by_name["Outrider"]
    calls = re.findall(r"^\| `(\w+)` \|", SPEC.split("## 3.", 1)[0], re.MULTILINE)
    assert sorted(calls) == sorted(method.name for method in service.methods)


def test_every_message_has_its_row() -> None:
    part = SPEC.split("### 3.1", 1)[1].split("### 3.2", 1)[0]
    named = set(re.findall(r"^\| (\w+) \| (?:edge|cloud|both)", part, re.MULTILINE))
    kinds = {
        field.name
        for kind in (pb.Up, pb.Down)
        for field in kind.DESCRIPTOR.oneofs_by_name["kind"].fields
    }
    assert named == kinds
