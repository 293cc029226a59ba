"""The HTTP face in this process: a client that talks to the application without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from outrider.edge.api.app import build
from outrider.edge.api.settings import ApiSettings
from outrider.edge.service import EdgeService
from outrider.testing.local_edge import LocalEdge
from outrider.testing.served import Served

BASE = "http://localhost"


class Stopwatch:
    """Time that passes only when a test says so; `timeout` stands in for `asyncio.timeout`."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Timeout, float] = {}

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as scope:
            self._open[scope] = seconds
            try:
                yield
            finally:
                del self._open[scope]

    async def advance(self, seconds: float) -> None:
        """Let the timeouts that are due run out, once someone waits."""
        while not self._open:
            await asyncio.sleep(0)
        for scope in list(self._open):
            self._open[scope] -= seconds
            if self._open[scope] <= 0:
                scope.reschedule(asyncio.get_running_loop().time())
        for _ in range(10):
            await asyncio.sleep(0)


Ask = Callable[..., httpx2.Response]


def ask(
    service: EdgeService,
    method: str,
    path: str,
    *,
    settings: ApiSettings | None = None,
    headers: dict[str, str] | None = None,
    body: Any = None,
    content: bytes | None = None,
) -> httpx2.Response:
    """One request to a fresh application around the service."""

    async def run() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=build(service, settings, now=lambda: 1700000000.0))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            return await client.request(method, path, headers=headers, json=body, content=content)

    return asyncio.run(run())


@pytest.fixture
def edge() -> LocalEdge:
    return LocalEdge()


@pytest.fixture
def post(edge: LocalEdge) -> Ask:
    """POST a JSON body to a path of the local edge."""
    return lambda path, **body: ask(edge, "POST", path, body=body)


@pytest.fixture
def url(edge: LocalEdge) -> Iterator[str]:
    """The local edge behind a real server."""
    with Served(edge) as served:
        yield served.url
