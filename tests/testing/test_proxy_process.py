"""The proxy in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from dataclasses import fields

import pytest

from outrider.errors import ConfigError
from outrider.testing import proxy_process
from outrider.testing.link import Link
from outrider.testing.proxy import ShapingProxy
from outrider.testing.proxy_process import ProxyProcess

LIMIT_S = 60


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main

    asyncio.run(bounded())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


def test_process_carries_obeys_counts_and_ends() -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        link = Link.of_rtt(10, loss=0.0)
        async with await ProxyProcess.start("127.0.0.1", port, link, nice=3) as proxy:
            assert (
                os.getpriority(os.PRIO_PROCESS, proxy.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
            )
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            told = await proxy.statistics()
            assert (told.bytes_up, told.bytes_down, told.deliveries) == (5, 5, 2)
            assert told.per_connection[0].bytes_up == 5
            await proxy.mark()
            await proxy.set(Link(up_bits_per_s=1e6))
            assert proxy.link.up_bits_per_s == 1e6
            await proxy.black_hole()
            writer.write(b"held")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            await proxy.restore()
            assert await reader.readexactly(4) == b"held"
            await proxy.cut()
            assert await reader.read() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(proxy.host, proxy.port)
            await proxy.restore()
            again, other = await asyncio.open_connection(proxy.host, proxy.port)
            other.write(b"taken")
            assert await again.readexactly(5) == b"taken"
            await proxy.reset()
            with pytest.raises(ConnectionResetError):
                await again.readexactly(1)
            for end in (writer, other):
                end.close()
            pid = proxy.pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        server.close()

    run(main())


def test_process_that_can_not_listen_says_why() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="can not listen"):
            await ProxyProcess.start("127.0.0.1", 1, listen="203.0.113.1:9")

    run(main())


def test_requests_that_can_not_be_done_are_answered_and_change_nothing() -> None:
    async def main() -> None:
        async with ShapingProxy("127.0.0.1", 1, Link.of_rtt(10)) as proxy:
            for bad in (
                b"{",
                b"[]",
                b"{}",
                b'{"do": "dance"}',
                b'{"do": "set"}',
                b'{"do": "set", "link": {"rtt": 3}}',
                b'{"do": "set", "link": {"loss": 7}}',
            ):
                told = await proxy_process.answer(proxy, bad)
                assert told["ok"] is False
                assert told["error"]
            assert proxy.link == Link.of_rtt(10)
            told = await proxy_process.answer(proxy, b'{"do": "set", "link": {"loss": 0.5}}')
            assert told["ok"] is True
            assert proxy.link == Link.of_rtt(10, loss=0.5)
            json.dumps(told)

    run(main())


def test_every_field_of_a_link_is_an_option() -> None:
    whole = Link(1, 2, 3, 4e6, 5e6, 0.25, 300, 7)
    assert all(getattr(whole, f.name) != f.default for f in fields(Link))
    given = ["--to", "h:1", *proxy_process.link_arguments(whole)]
    assert proxy_process.link_of(proxy_process.arguments(given)) == whole
    of_rtt = proxy_process.arguments(["--to", "h:1", "--rtt-ms", "40", "--up-delay-ms", "5"])
    assert proxy_process.link_of(of_rtt) == Link(up_delay_ms=5, down_delay_ms=20)
