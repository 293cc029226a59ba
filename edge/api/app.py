"""The whole HTTP face as one Starlette application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from outrider.daemon.reload import Reloaded
from outrider.edge.api import metrics as pages
from outrider.edge.api.anthropic import Anthropic
from outrider.edge.api.context import Context, EventSource
from outrider.edge.api.control import Control
from outrider.edge.api.errors import no_route, respond
from outrider.edge.api.flow import HungUp, Timeout
from outrider.edge.api.guard import Guard
from outrider.edge.api.metrics import Metrics
from outrider.edge.api.native import Native
from outrider.edge.api.net import Net
from outrider.edge.api.ollama import Ollama
from outrider.edge.api.openai import OpenAI
from outrider.edge.api.plans import Plans
from outrider.edge.api.responses import Responses
from outrider.edge.api.settings import ApiSettings
from outrider.edge.api.words import Words
from outrider.edge.service import EdgeService, Placement
from outrider.errors import LinkError, OutriderError
from outrider.protocol.status import LoadedModel

CLIENT_CLOSED = 499
"""The status nobody receives, since the client hung up; for the counters."""


def unix_seconds() -> float:
    """The wall clock; `created` in responses is a date, not an interval."""
    return time.time()  # noqa: TID251


def always() -> bool:
    return True


def build(
    service: EdgeService,
    settings: ApiSettings | None = None,
    *,
    events: EventSource | None = None,
    ready: Callable[[], bool] = always,
    timeout: Timeout = asyncio.timeout,
    now: Callable[[], float] = unix_seconds,
    pin: Callable[[Placement], None] | None = None,
    use: Callable[[str], Awaitable[LoadedModel | None]] | None = None,
    reload: Callable[[], Reloaded] | None = None,
) -> Starlette:
    """The application. `ready` says whether a plain request would be answered now; while it
    would not, `/health` is 503."""
    settings = settings or ApiSettings()
    context = Context(service, settings, Metrics(), events, ready, timeout, now, pin, use)
    house = House(context)
    faces = (
        house,
        OpenAI(context),
        Words(context),
        Ollama(context),
        Responses(context),
        Anthropic(context),
        Native(context),
        Plans(context),
    )
    routes = [route for face in faces for route in face.routes()]
    routes += Control(reload).routes()
    house.served = [str(route.path) for route in routes]
    return Starlette(
        routes=routes,
        middleware=_middleware(context),
        exception_handlers={
            OutriderError: house.typed,
            HTTPException: house.http,
            HungUp: house.hung_up,
        },
    )


def _middleware(context: Context) -> list[Middleware]:
    settings = context.settings
    found = [
        Middleware(Guard, settings=settings, metrics=context.metrics),
        Middleware(Net, context=context),
    ]
    if settings.origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id"],
            )
        )
    return found


class House:
    """`/`, `/health`, `/metrics`, and every error in the envelope."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.served: list[str] = []

    def routes(self) -> list[Route]:
        return [
            Route("/", self.root),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("\n".join(["Outrider is running", *self.served, ""]))

    async def health(self, request: Request) -> Response:
        if self._context.ready():
            return Response(b'{"status":"ok"}', media_type="application/json")
        return respond(
            LinkError(
                "nothing can answer yet",
                why="no cloud is connected, and the small model may not answer alone",
                effect="requests wait or fail until a cloud is there",
                todo="start the cloud, or the edge with --fallback local and a --draft model",
            )
        )

    async def metrics(self, request: Request) -> Response:
        page = self._context.metrics.text(self._context.service)
        return Response(page, headers={"content-type": pages.CONTENT_TYPE})

    async def typed(self, request: Request, error: Exception) -> Response:
        return respond(self._context.typed(error))

    async def http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        missing = no_route(request.method, request.url.path)
        return respond(missing, status=error.status_code, extra=error.headers)

    async def hung_up(self, request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED)
