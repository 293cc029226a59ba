"""What the daemon's owner asks of it over HTTP: to read its settings anew."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from outrider.daemon.reload import Reloaded
from outrider.errors import NotFound


class Control:
    """`POST /outrider/v1/reload`: what changed, what waits for a restart, or what is wrong."""

    def __init__(self, reload: Callable[[], Reloaded] | None) -> None:
        self._reload = reload

    def routes(self) -> list[Route]:
        return [Route("/outrider/v1/reload", self.reload, methods=["POST"])]

    async def reload(self, request: Request) -> Response:
        if self._reload is None:
            raise NotFound("there are no settings to read here", why="no daemon serves this")
        return Response(msgspec.json.encode(self._reload()), media_type="application/json")
