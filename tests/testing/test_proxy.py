"""The shaping proxy on real sockets; delays are read off the schedule, never off a stop-watch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from outrider.errors import ConfigError, PortInUse
from outrider.testing.flow import MOST_BUFFER_BYTES
from outrider.testing.link import Link
from outrider.testing.mangle import BitFlip, Slicer
from outrider.testing.proxy import ShapingProxy, percentile, split_address

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LIMIT_S = 20


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main

    asyncio.run(bounded())


class Echo:
    """A server that sends back what it gets and remembers each read."""

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.ended: list[str] = []
        self.accepted = 0
        self.changed = asyncio.Condition()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._note(accepted=1)
        try:
            while data := await reader.read(65536):
                self.reads.append(data)
                writer.write(data)
                await writer.drain()
            await self._note(ended="end")
        except ConnectionResetError:
            await self._note(ended="reset")
        finally:
            writer.close()

    async def _note(self, accepted: int = 0, ended: str = "") -> None:
        async with self.changed:
            self.accepted += accepted
            self.ended += [ended] if ended else []
            self.changed.notify_all()

    async def wait_ended(self, count: int) -> list[str]:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.ended) >= count)
        return self.ended


@asynccontextmanager
async def house(
    link: Link | None = None, **options: Any
) -> AsyncIterator[tuple[ShapingProxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo.talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with ShapingProxy("127.0.0.1", port, link, **options) as proxy:
            yield proxy, echo
    finally:
        server.close()


@asynccontextmanager
async def client(proxy: ShapingProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def round_trip(streams: Streams, data: bytes) -> bytes:
    reader, writer = streams
    writer.write(data)
    return await reader.readexactly(len(data))


async def until_queued(proxy: ShapingProxy, least: int) -> None:
    """Lets the loop run until the proxy holds so many bytes."""
    while proxy.statistics().queued_bytes < least:
        await asyncio.sleep(0.001)


def test_bytes_pass_unchanged_both_ways_and_are_counted() -> None:
    async def main() -> None:
        data = random.Random(1).randbytes(3_000_000)
        async with house(Link(jitter_ms=0.5)) as (proxy, _), client(proxy) as one:
            assert await round_trip(one, data) == data
            async with client(proxy) as other:
                assert await round_trip(other, b"hello") == b"hello"
            told = proxy.statistics()
        assert (told.bytes_up, told.bytes_down) == (3_000_005, 3_000_005)
        assert (told.connections, told.chunks_up >= 2) == (2, True)
        assert [c.bytes_up for c in told.per_connection] == [3_000_000, 5]

    run(main())


def test_delivery_waits_for_the_schedule() -> None:
    async def main() -> None:
        async with house(Link.of_rtt(60)) as (proxy, _):
            start = proxy.loop.time()
            async with client(proxy) as one:
                await round_trip(one, b"a")
                first = proxy.loop.time() - start
                await round_trip(one, b"b")
                second = proxy.loop.time() - start - first
                told = proxy.statistics()
        # Lower bounds only: a busy machine is late, never early.
        assert first >= 0.119  # The opening handshake costs a round trip of its own.
        assert second >= 0.059
        assert told.deliveries == 4
        assert 0 <= told.lateness_p50_ms <= told.lateness_p99_ms <= told.lateness_max_ms

    run(main())


def test_mark_begins_a_new_window_of_lateness() -> None:
    async def main() -> None:
        async with house() as (proxy, _), client(proxy) as one:
            await round_trip(one, b"a")
            proxy.mark()
            assert proxy.statistics().deliveries == 0
            await round_trip(one, b"a")
            assert proxy.statistics().deliveries == 2

    run(main())


def test_bandwidth_limits_the_rate() -> None:
    async def main() -> None:
        async with house(Link(up_bits_per_s=1_600_000)) as (proxy, _), client(proxy) as one:
            start = proxy.loop.time()
            await round_trip(one, bytes(40_000))
            assert proxy.loop.time() - start >= 0.199

    run(main())


def test_full_buffers_stop_the_sender() -> None:
    async def main() -> None:
        async with house(Link(up_bits_per_s=8000)) as (proxy, _), client(proxy) as (_, writer):
            writer.write(bytes(40_000_000))
            await until_queued(proxy, 256 * 1024)
            for _ in range(50):
                await asyncio.sleep(0.001)
            held = proxy.statistics().queued_bytes
            assert 256 * 1024 <= held < 1024 * 1024
            proxy.link = Link()
            await until_queued(proxy, 1024 * 1024)
            assert proxy.statistics().queued_bytes < MOST_BUFFER_BYTES + 1024 * 1024

    run(main())


def test_link_changes_while_running() -> None:
    async def main() -> None:
        async with house(Link.of_rtt(30)) as (proxy, _), client(proxy) as one:
            await round_trip(one, b"a")
            proxy.link = Link.of_rtt(90)
            start = proxy.loop.time()
            await round_trip(one, b"b")
            assert proxy.loop.time() - start >= 0.089
            proxy.link = replace(proxy.link, up_delay_ms=0, down_delay_ms=0)
            proxy.mark()
            assert await round_trip(one, b"c") == b"c"

    run(main())


def test_black_hole_passes_nothing_keeps_sockets_and_heals() -> None:
    async def main() -> None:
        async with house(Link.of_rtt(120)) as (proxy, echo), client(proxy) as one:
            await round_trip(one, b"before")
            before = proxy.statistics()
            one[1].write(b"under way")
            await until_queued(proxy, 9)
            proxy.black_hole()
            one[1].write(b", not read")
            async with client(proxy) as late:  # The kernel takes it; nobody answers.
                late[1].write(b"late")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(one[0].read(1), 0.2)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(late[0].read(1), 0.05)
                during = proxy.statistics()
                assert echo.reads == [b"before"]
                assert during.bytes_down == before.bytes_down
                assert during.bytes_up == before.bytes_up + 9
                assert (during.open_connections, echo.accepted) == (2, 1)
                proxy.mark()
                await proxy.restore()
                assert await one[0].readexactly(19) == b"under way, not read"
                assert await late[0].readexactly(4) == b"late"
                assert echo.accepted == 2

    run(main())


def test_time_in_a_black_hole_is_not_lateness() -> None:
    async def main() -> None:
        async with house(Link.of_rtt(100)) as (proxy, _), client(proxy) as one:
            one[1].write(b"x")
            await until_queued(proxy, 1)
            proxy.black_hole()
            await asyncio.sleep(1.2)
            await proxy.restore()
            await one[0].readexactly(1)
            assert proxy.statistics().lateness_max_ms < 600

    run(main())


def test_reset_reaches_both_sides_and_new_connections_are_welcome() -> None:
    async def main() -> None:
        async with house() as (proxy, echo), client(proxy) as one:
            await round_trip(one, b"a")
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                await one[0].readexactly(1)
            assert await echo.wait_ended(1) == ["reset"]
            async with client(proxy) as two:
                assert await round_trip(two, b"b") == b"b"
            assert proxy.statistics().connections == 2

    run(main())


def test_cut_refuses_new_connections_at_the_same_port_until_restored() -> None:
    async def main() -> None:
        async with house() as (proxy, echo), client(proxy) as one:
            await round_trip(one, b"a")
            port = proxy.port
            proxy.cut()
            assert await one[0].read() == b""
            await echo.wait_ended(1)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(proxy.host, port)
            await proxy.restore()
            assert proxy.port == port
            async with client(proxy) as two:
                assert await round_trip(two, b"b") == b"b"

    run(main())


def test_end_of_stream_passes_after_the_bytes_and_leaves_the_other_way_open() -> None:
    async def main() -> None:
        async with house(Link.of_rtt(20, up_bits_per_s=1e7)) as (proxy, echo):
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            writer.write(bytes(20_000))
            writer.write_eof()
            assert await reader.read() == bytes(20_000)
            assert await echo.wait_ended(1) == ["end"]
            writer.close()
            await writer.wait_closed()

    run(main())


def test_a_clients_reset_reaches_the_server() -> None:
    async def main() -> None:
        async with house(Link.of_rtt(10)) as (proxy, echo):
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            await round_trip((reader, writer), b"a")
            writer.write(b"unanswered")
            while len(echo.reads) < 2:
                await asyncio.sleep(0.001)
            proxy_side = proxy.statistics().open_connections
            writer.get_extra_info("socket").setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")
            writer.transport.abort()
            assert proxy_side == 1
            assert await echo.wait_ended(1) == ["reset"]
            while proxy.statistics().open_connections:
                await asyncio.sleep(0.001)

    run(main())


def test_a_server_that_is_away_resets_the_client() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        async with ShapingProxy("127.0.0.1", port) as proxy, client(proxy) as one:
            with pytest.raises(ConnectionResetError):
                await one[0].readexactly(1)

    run(main())


def test_manglers_work_on_the_real_stream() -> None:
    async def main() -> None:
        ways: dict[str, Any] = {"up": [lambda: BitFlip(2, 0), lambda: Slicer(1)]}
        async with house(**ways) as (proxy, echo), client(proxy) as one:
            assert await round_trip(one, b"abcdef" * 50) == b"abbdef" + b"abcdef" * 49
        assert b"".join(echo.reads).startswith(b"abbdef")

    run(main())


def test_a_slow_reader_is_back_pressure_not_lateness() -> None:
    async def main() -> None:
        async with house() as (proxy, _), client(proxy) as (reader, writer):
            writer.write(bytes(30_000_000))
            await until_queued(proxy, 1)
            for _ in range(100):
                await asyncio.sleep(0.001)
            assert proxy.statistics().queued_bytes <= 2 * (MOST_BUFFER_BYTES + 1024 * 1024)
            got = 0
            while got < 30_000_000:
                got += len(await reader.read(1 << 20))
            assert got == 30_000_000

    run(main())


def test_taken_port_is_a_typed_error() -> None:
    async def main() -> None:
        async with house() as (proxy, _):
            with pytest.raises(PortInUse, match=str(proxy.port)):
                await ShapingProxy("127.0.0.1", 1, port=proxy.port).start()

    run(main())


def test_percentiles_are_nearest_rank() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([1.0], 0.99) == 1
    assert percentile([float(i) for i in range(100)], 0.5) == 50
    assert percentile([float(i) for i in range(100)], 0.99) == 99


@pytest.mark.parametrize("bad", ["", "host", ":1", "host:", "host:x", "host:70000"])
def test_bad_addresses_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError):
        split_address(bad)


def test_addresses_are_split() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:8080") == ("::1", 8080)
