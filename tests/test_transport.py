"""Nothing is served or called in the clear beyond loopback, whatever options let through."""

from __future__ import annotations

import socket
from pathlib import Path

import grpc
import grpc.aio
import pytest

from outrider import transport
from outrider.errors import ConfigError, PortInUse
from outrider.options import Address
from tests.support import run

AWAY = Address("192.0.2.7", 4711)
HERE = Address("127.0.0.1", 0)


def test_no_port_beyond_loopback_without_tls() -> None:
    async def main() -> None:
        server = grpc.aio.server()
        with pytest.raises(ConfigError, match="needs TLS"):
            transport.bind(server, Address("0.0.0.0", 0), None, "cloud")
        bound = transport.bind(server, HERE, None, "cloud")
        assert bound.startswith("127.0.0.1:") and not bound.endswith(":0")

    run(main())


def test_no_channel_beyond_loopback_without_tls() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="needs TLS"):
            transport.channel(AWAY, None, ())
        await transport.channel(Address("localhost", 1), None, ()).close()
        await transport.channel(AWAY, grpc.ssl_channel_credentials(), ()).close()

    run(main())
    with pytest.raises(ConfigError, match="needs TLS"):
        transport.blocking_channel(AWAY, None, ())
    transport.blocking_channel(Address("127.0.0.1", 1), None, ()).close()


def test_a_port_that_is_taken_is_named() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = Address("127.0.0.1", taken.getsockname()[1])
            server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
            with pytest.raises(PortInUse, match=str(place.port)):
                transport.bind(server, place, None, "worker")

    run(main())


def test_a_file_that_can_not_be_read_is_told_by_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tls-key can not be read") as caught:
        transport.server_tls(tmp_path / "cert.pem", tmp_path / "key.pem", None)
    assert caught.value.effect and caught.value.todo
    assert transport.server_tls(None, None, None) is None
    assert transport.channel_tls(b"") is None
