"""Any `EdgeService` over real HTTP, from a thread of its own: for tests of clients."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from outrider.edge.api.app import build
from outrider.edge.api.context import EventSource
from outrider.edge.api.server import ApiServer
from outrider.edge.api.settings import ApiSettings
from outrider.edge.service import EdgeService


class Served:
    """A context manager; `url` is where it listens, on a free port of loopback.

    The service lives on the thread's loop; a test that wants to touch it there uses
    `loop.call_soon_threadsafe`.
    """

    def __init__(
        self,
        service: EdgeService,
        settings: ApiSettings | None = None,
        *,
        events: EventSource | None = None,
    ) -> None:
        self._app = build(service, settings, events=events)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served")
        self.url = ""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Served:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.loop is not None and self._stop is not None
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = ApiServer(self._app, drain_s=1)
        await server.start("127.0.0.1", 0)
        self.url = server.url
        self._ready.set()
        await self._stop.wait()
        await server.stop()
