"""Where events come from: sockets that come and go, streams that break, records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

pytest.importorskip("zmq", reason="the events need pyzmq")

from outrider.errors import ConfigError, LinkLost
from outrider.protocol import events, recording
from outrider.protocol.bus import Bus
from outrider.tui import feed as feeds
from outrider.tui.feed import NEWER_S, BusFeed, StreamFeed
from outrider.tui.recorder import Recorder

PATIENCE_S = 20.0


async def heard(feed: BusFeed, publish: Callable[[], None], wanted: str) -> list[str]:
    """Sources of what comes, until one is the wanted; a new subscriber misses the first events."""
    found: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while wanted not in found:
            publish()
            await asyncio.sleep(0.005)
            found += [event.source for event in feed.take()]
    return found


def test_sockets_that_come_later_are_joined_and_those_that_go_are_left(tmp_path: Path) -> None:
    now = [0.0]

    async def main() -> None:
        folder = tmp_path / "run"
        edge = Bus(folder, "edge-1")
        feed = BusFeed(folder, lambda: now[0], (edge.address,))
        told = events.Lag(p50_ms=0.0, p99_ms=1.0)
        await heard(feed, lambda: edge.publish(told), "edge-1")
        cloud = Bus(folder, "cloud-2")
        edge.close()
        now[0] += NEWER_S
        found = await heard(feed, lambda: cloud.publish(told), "cloud-2")
        assert set(found) <= {"edge-1", "cloud-2"}
        assert feed._known == {cloud.address}
        feed.close()
        cloud.close()

    asyncio.run(main())


def test_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    async def main() -> None:
        bus = Bus(tmp_path / "run", "edge-1")
        feed = BusFeed(None, lambda: 0.0, (bus.address,))

        def publish() -> None:
            bus._socket.send(b"{}")
            bus.publish(events.Lag(p50_ms=0.0, p99_ms=1.0))

        await heard(feed, publish, "edge-1")
        assert feed.refused >= 1
        feed.close()
        bus.close()

    asyncio.run(main())


def test_a_stream_that_breaks_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "AGAIN_S", 0.0)
    opened = [0]

    async def stream() -> AsyncIterator[events.Event]:
        opened[0] += 1
        yield events.Remark(said=f"time {opened[0]}")
        raise LinkLost("the stream broke")

    async def main() -> None:
        feed = StreamFeed(stream)
        task = asyncio.create_task(feed.run())
        async with asyncio.timeout(PATIENCE_S):
            while opened[0] < 3:
                await asyncio.sleep(0)
        task.cancel()
        said = [event.said for event in feed.take() if isinstance(event, events.Remark)]
        assert said[:2] == ["time 1", "time 2"]
        assert feed.take() == []

    asyncio.run(main())


@pytest.mark.parametrize("name", ["a.events", "a.events.gz"])
def test_what_is_recorded_is_read_back(tmp_path: Path, name: str) -> None:
    found: list[events.Event] = [events.Remark(said="one"), events.Lag(p50_ms=0.0, p99_ms=1.0)]
    for place in (tmp_path / name, tmp_path / f"b-{name}"):
        recorder = Recorder(place, "1.0", 5.0)
        recorder.write(found)
        recorder.close()
        assert list(recording.read(place)) == found
    assert (tmp_path / name).read_bytes() == (tmp_path / f"b-{name}").read_bytes()


def test_a_record_goes_where_it_may(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can not be written"):
        Recorder(tmp_path / "none" / "a.events", "1.0", 5.0)
