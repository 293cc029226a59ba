"""These tests build their own engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="the llama extra is not installed")


@pytest.fixture(autouse=True)
def _sound() -> None:
    """Takes the place of the contract suite's check, which runs every test on every engine."""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Converted models of these tests go to a folder of their own."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("OUTRIDER_CACHE")
    os.environ["OUTRIDER_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["OUTRIDER_CACHE"]
    else:
        os.environ["OUTRIDER_CACHE"] = before
