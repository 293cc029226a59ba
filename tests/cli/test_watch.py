"""`status --watch` reads the daemon's events from its real ZeroMQ bus."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from outrider.cli import look

zmq = pytest.importorskip("zmq", reason="the events need pyzmq")


def watched(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, Any]) -> str:
    """What is printed until something was; a subscriber that is new misses the first events."""
    from outrider.protocol.bus import Bus
    from outrider.protocol.events import Down

    async def run() -> str:
        bus = Bus(tmp_path / "run", "edge-1")
        following = asyncio.create_task(look._follow(bus.address, **flags))
        out = ""
        try:
            async with asyncio.timeout(30):
                while not out:
                    bus.publish(Down(role="edge", reason="the end"))
                    await asyncio.sleep(0.01)
                    out = capsys.readouterr().out
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            bus.close()
        return out

    return asyncio.run(run())


def test_events_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(watched(tmp_path, capsys, {"json": True}).splitlines()[0])
    assert (found["type"], found["role"], found["reason"]) == ("down", "edge", "the end")
    assert (found["v"], found["source"]) == (1, "edge-1")


def test_events_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = watched(tmp_path, capsys, {"json": False}).splitlines()[0]
    assert re.fullmatch(r" *\d+\.\d{3}  down +role=edge reason=the end", line)
