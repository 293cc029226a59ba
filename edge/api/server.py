"""Serving the application on the running event loop, which gRPC shares.

uvicorn's own `run` would make a loop and take the signals; both are the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from outrider.errors import ConfigError, PortInUse


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to the daemon."""
        yield


class ApiServer:
    """`start` binds and serves, `stop` ends; `address` is (host, port) with the real port."""

    def __init__(self, app: ASGIApp, *, drain_s: int = 5) -> None:
        self._server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=drain_s,
            )
        )
        self._task: asyncio.Task[None] | None = None
        self.address = ("", 0)

    @property
    def url(self) -> str:
        """Base address, without a trailing slash."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def start(self, host: str, port: int) -> None:
        """Raises PortInUse, ConfigError for an address that is not this machine's."""
        listener = bind(host, port)
        self.address = listener.getsockname()[:2]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Take no new requests, give running ones `drain_s`, then cancel them."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _refused(host, port, error) from None
    return listener


def _refused(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(
            f"port {port} on {host} is taken",
            why="another process listens there, perhaps another daemon",
            effect="the daemon did not start",
            todo="outrider status, or choose another port with --listen HOST:PORT",
        )
    return ConfigError(
        f"can not listen on {host}:{port}",
        why=error.strerror or "the system refused",
        effect="the daemon did not start",
        todo="use an address of this machine, such as 127.0.0.1",
    )
