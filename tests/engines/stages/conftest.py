"""These tests build their own stages."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _sound() -> None:
    """Takes the place of the contract suite's check, which runs every test on every engine."""
