"""Both ends of gRPC: TLS, or in the clear on loopback. Nothing else can be asked for here.

All servers and channels of the project are made by these functions, so that what options
allow is checked once more where it counts.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio

from outrider.errors import CloudUnreachable, ConfigError, PortInUse
from outrider.options import Address

ChannelOptions = Sequence[tuple[str, int | str]]


def bind(
    server: grpc.aio.Server, listen: Address, tls: grpc.ServerCredentials | None, who: str
) -> str:
    """Where it serves, HOST:PORT. Raises PortInUse; ConfigError without TLS beyond loopback."""
    wanted = str(listen)
    try:
        port = _port(server, listen, tls)
    except RuntimeError:
        port = 0
    if port == 0:
        raise PortInUse(
            f"{wanted} can not be bound",
            why="another process listens there, or the address is not this machine's",
            effect=f"the {who} was not started",
            todo="end that process, or choose another --listen",
        )
    return f"{wanted.rpartition(':')[0]}:{port}"


def _port(server: grpc.aio.Server, listen: Address, tls: grpc.ServerCredentials | None) -> int:
    if tls is not None:
        return server.add_secure_port(str(listen), tls)
    _check_loopback(listen, "nothing was bound")
    return server.add_insecure_port(str(listen))


def channel(
    address: Address, tls: grpc.ChannelCredentials | None, options: ChannelOptions
) -> grpc.aio.Channel:
    """For an event loop. Raises ConfigError without TLS beyond loopback."""
    if tls is not None:
        return grpc.aio.secure_channel(str(address), tls, options=options)
    _check_loopback(address, "it was not called")
    return grpc.aio.insecure_channel(str(address), options=options)  # noqa: TID251 - loopback


def blocking_channel(
    address: Address, tls: grpc.ChannelCredentials | None, options: ChannelOptions
) -> grpc.Channel:
    """The same for threads."""
    if tls is not None:
        return grpc.secure_channel(str(address), tls, options=options)
    _check_loopback(address, "it was not called")
    return grpc.insecure_channel(str(address), options=options)  # noqa: TID251 - loopback


def _check_loopback(address: Address, effect: str) -> None:
    if not address.loopback:
        raise ConfigError(
            f"{address} is beyond loopback, and needs TLS",
            why="keys, tokens and hidden states would travel in the clear",
            effect=effect,
            todo="name the authority that signed its certificate, or use 127.0.0.1",
        )


# --- certificates ------------------------------------------------------------------------------


def server_tls(
    certificate: Path | None, key: Path | None, client_ca: Path | None
) -> grpc.ServerCredentials | None:
    """None without a certificate. Raises ConfigError for a file that can not be read."""
    if certificate is None:
        return None
    pair = (read_pem(key, "--tls-key"), read_pem(certificate, "--tls-cert"))
    roots = read_pem(client_ca, "--client-ca") or None
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


def channel_tls(
    authority: bytes, certificate: bytes = b"", key: bytes = b""
) -> grpc.ChannelCredentials | None:
    """From PEM, empty where there is none; None without an authority."""
    if not authority:
        return None
    return grpc.ssl_channel_credentials(authority, key or None, certificate or None)


def read_pem(path: Path | None, flag: str) -> bytes:
    """Empty for None. Raises ConfigError naming the flag."""
    try:
        return path.read_bytes() if path else b""
    except OSError as error:
        raise ConfigError(
            f"{flag} can not be read: {error.strerror}",
            effect="nothing was started or called",
            todo="check that the file is there, and that this user may read it",
        ) from None


async def shown(address: Address, deadline_s: float) -> bytes:
    """The certificate (DER) that is shown at an address. Nothing says yet that it is genuine:
    the caller has to prove it by other means, as a pairing does. Raises CloudUnreachable."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(deadline_s):
            _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except (OSError, TimeoutError) as error:
        raise CloudUnreachable(
            f"nothing that speaks TLS answers at {address}",
            why=getattr(error, "strerror", None) or f"no answer within {deadline_s:g} s",
            effect="nothing was sent",
            todo="check the address, and that it waits there",
        ) from None
    try:
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
    return bytes(found)
