"""Vectors of Project Wycheproof, as they come."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "vectors" / "wycheproof"


def groups(name: str) -> list[dict[str, Any]]:
    """Test groups of `NAME_test.json`."""
    packed = (FOLDER / f"{name}_test.json.xz").read_bytes()
    found: list[dict[str, Any]] = json.loads(lzma.decompress(packed))["testGroups"]
    return found


def cases(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(group, test)"""
    for group in groups(name):
        for test in group["tests"]:
            yield group, test
