"""Waiting, synchronously."""

from __future__ import annotations

import threading


def pause(seconds: float) -> None:
    """This thread waits; nothing else does."""
    threading.Event().wait(seconds)
