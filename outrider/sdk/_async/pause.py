"""Waiting, asynchronously."""

from __future__ import annotations

import asyncio


async def pause(seconds: float) -> None:
    """Let others work meanwhile."""
    await asyncio.sleep(seconds)
