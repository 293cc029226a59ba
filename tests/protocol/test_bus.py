"""Events over ZeroMQ: a socket only its user reaches, and a publisher that nobody can hold up."""

from __future__ import annotations

import asyncio
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from outrider.protocol import events
from outrider.protocol.bus import Bus, NoBus, subscribe

LAG = events.Lag(p50_ms=1.0, p99_ms=2.0)
MOST_TRIES = 400


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: the path of an ipc socket is limited to about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="outrider-") as name:
        yield Path(name) / "run"


async def first(bus: Bus, reader: AsyncIterator[events.Event], event: events.Event) -> events.Event:
    """Publish until the reader is connected and something arrives."""
    waiting = asyncio.ensure_future(anext(reader))
    for _ in range(MOST_TRIES):
        bus.publish(event)
        done, _ = await asyncio.wait({waiting}, timeout=0.02)
        if done:
            return waiting.result()
    waiting.cancel()
    raise AssertionError("nothing arrived")


async def close(reader: AsyncIterator[events.Event]) -> None:
    await reader.aclose()  # type: ignore[attr-defined]


def test_events_arrive_in_order_and_stamped(folder: Path) -> None:
    async def scene() -> list[events.Event]:
        bus = Bus(folder, "cloud")
        reader = subscribe(bus.address)
        try:
            await first(bus, reader, LAG)
            sent = [events.Shed(where="edge", queued=n, retry_after_s=1.0) for n in range(50)]
            for event in sent:
                bus.publish(event)
            got: list[events.Event] = []
            while len(got) < len(sent):
                event_in = await anext(reader)
                if isinstance(event_in, events.Shed):
                    got.append(event_in)
            return got
        finally:
            await close(reader)
            bus.close()

    got = asyncio.run(scene())
    assert [event.queued for event in got if isinstance(event, events.Shed)] == list(range(50))
    assert {event.source for event in got} == {"cloud"}
    assert all(event.at > 0 and event.t_ms > 0 for event in got)


def test_two_readers_hear_the_same(folder: Path) -> None:
    async def scene() -> None:
        bus = Bus(folder, "edge")
        readers = [subscribe(bus.address) for _ in range(2)]
        try:
            for reader in readers:
                assert isinstance(await first(bus, reader, LAG), events.Lag)
        finally:
            for reader in readers:
                await close(reader)
            bus.close()

    asyncio.run(scene())


def test_the_folder_is_the_users_alone(folder: Path) -> None:
    folder.mkdir(mode=0o755, parents=True)
    bus = Bus(folder, "edge")
    try:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert bus.address == f"ipc://{folder}/edge.events"
        assert stat.S_ISSOCK((folder / "edge.events").stat().st_mode)
    finally:
        bus.close()
    assert not (folder / "edge.events").exists()


def test_a_socket_left_behind_is_replaced(folder: Path) -> None:
    folder.mkdir()
    (folder / "edge.events").write_text("left by a process that was killed")
    bus = Bus(folder, "edge")
    bus.close()


def test_nobody_listening_holds_nothing_up(folder: Path) -> None:
    bus = Bus(folder, "edge")
    try:
        for _ in range(20_000):
            bus.publish(LAG)
    finally:
        bus.close()


def test_the_plain_twin_publishes_nothing() -> None:
    bus = NoBus()
    bus.publish(LAG)
    bus.close()
    assert bus.address == ""
