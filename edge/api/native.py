"""Outrider's own endpoints: typed events as NDJSON, status, events, requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from outrider.edge.api import parse, sse, watching
from outrider.edge.api.body import read
from outrider.edge.api.context import Context
from outrider.edge.api.errors import envelope
from outrider.edge.api.fields import Fields, refuse
from outrider.edge.api.fit import fit
from outrider.edge.api.flow import Flow
from outrider.edge.api.openai import begin
from outrider.edge.api.tracing import Thread, traced
from outrider.edge.api.watching import Watching
from outrider.edge.service import Placement, RequestState
from outrider.errors import NotFound
from outrider.protocol.stream import StreamEvent

NDJSON = "application/x-ndjson"
PLACEMENTS: tuple[Placement, ...] = ("auto", "edge", "cloud", "draft")


class Native:
    """Routes under `/outrider/v1`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [
            Route("/outrider/v1/generate", self.generate, methods=["POST"]),
            Route("/outrider/v1/status", self.status),
            Route("/outrider/v1/placement", self.placement, methods=["POST"]),
            Route("/outrider/v1/models/use", self.use, methods=["POST"]),
            Route("/outrider/v1/events", self.events),
            Route("/outrider/v1/requests", self.requests),
            Route("/outrider/v1/requests/{id}", self.request, methods=["GET", "DELETE"]),
        ]

    async def generate(self, request: Request) -> ASGIApp:
        """One line an event of `protocol/stream.py`; an empty line is a ping.

        An error after the first line is a line `{"type": "error", "error": {...}}`.
        """
        settings = self._context.settings
        seen, body = watching.of_body(await read(request, settings.max_body_bytes))
        fitted = await fit(parse.native(body, settings), self._context.service)
        (asked,) = fitted.requests
        asked = replace(asked, linger_s=seen.linger_s)
        answers = self._context.metrics.counted(self._context.service.generate(asked))
        return await begin(request, self._lines(self._watched(answers, seen, Thread())), NDJSON)

    def _watched(
        self, answers: AsyncIterator[StreamEvent], seen: Watching, thread: Thread
    ) -> Flow[Any]:
        """The answers as a reader wants to see them."""
        settings = self._context.settings
        settings = replace(settings, ping_s=seen.ping_s or settings.ping_s)
        context = replace(self._context, settings=settings)
        if seen.trace == "tokens":
            return context.watch([answers])
        if self._context.events is None:
            raise refuse("outrider.trace", "tokens: this daemon publishes no events")
        return context.watch([traced(answers, self._context.events.subscribe(), thread)])

    async def status(self, request: Request) -> Response:
        return _json(self._context.service.status())

    async def placement(self, request: Request) -> Response:
        """`{"placement": "auto" | "edge" | "cloud" | "draft"}`: pin it, or take the pin back."""
        if self._context.pin is None:
            raise NotFound("placements can not be pinned here", why="no daemon serves this")
        body = await read(request, self._context.settings.max_body_bytes)
        chosen = Fields(body).choice("placement", PLACEMENTS)
        if chosen is None:
            raise refuse("placement", f"one of {', '.join(PLACEMENTS)}")
        self._context.pin(cast(Placement, chosen))
        return _json({"placement": chosen})

    async def use(self, request: Request) -> Response:
        """`{"model": NAME}`: another draft model; answers under way keep theirs."""
        if self._context.use is None:
            raise NotFound("models can not be swapped here", why="no daemon serves this")
        body = await read(request, self._context.settings.max_body_bytes)
        model = body.get("model")
        if not isinstance(model, str) or not model or len(model) > 4096:
            raise refuse("model", "a name, a path, bundled:draft, ngram or none")
        return _json({"loaded": await self._context.use(model)})

    async def requests(self, request: Request) -> Response:
        return _json({"requests": self._context.service.requests()})

    async def request(self, request: Request) -> ASGIApp:
        """Its state; with `?position=P[,P...]` (one a choice) the rest of its stream; DELETE
        ends it."""
        state = self._state(request.path_params["id"])
        if request.method == "DELETE":
            self._context.service.cancel(state.id)
            return _json(self._state(state.id))
        given = request.query_params.get("position")
        if given is None:
            return _json(state)
        rest = self._context.service.attach(state.id, _positions(given, state))
        seen, thread = watching.of_query(request.query_params), Thread(state.id, state.began_ms)
        return await begin(request, self._lines(self._watched(rest, seen, thread)), NDJSON)

    def _state(self, wanted: str) -> RequestState:
        for state in self._context.service.requests():
            if state.id == wanted:
                return state
        raise NotFound("there is no such request", why="it never was, or its time to stay is over")

    async def events(self, request: Request) -> ASGIApp:
        """The daemon's events as they happen: NDJSON, or SSE for `Accept: text/event-stream`."""
        if self._context.events is None:
            raise NotFound("the daemon publishes no events")
        flow = self._context.watch([self._context.events.subscribe()])
        if "text/event-stream" in request.headers.get("accept", ""):
            return sse.Stream(self._feed(flow, request), "text/event-stream; charset=utf-8")
        return sse.Stream(self._feed(flow, request), NDJSON)

    async def _feed(self, flow: Flow[Any], request: Request) -> AsyncGenerator[bytes, None]:
        """Begins with a ping, so that the subscriber knows it is connected."""
        as_sse = "text/event-stream" in request.headers.get("accept", "")
        write, ping = (sse.data, sse.PING) if as_sse else (sse.line, sse.BLANK)
        yield ping
        async with flow:
            async for batch in flow.batches():
                yield b"".join(write(event) for _, event in batch) or ping

    async def _lines(self, flow: Flow[Any]) -> AsyncGenerator[bytes, None]:
        begun = False
        try:
            async with flow:
                async for batch in flow.batches():
                    yield b"".join(sse.line(event) for _, event in batch) or sse.BLANK
                    begun = True
        except Exception as error:
            if not begun:
                raise
            yield sse.line({"type": "error", **envelope(self._context.typed(error))})


def _positions(given: str, state: RequestState) -> tuple[int, ...]:
    parts = given.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise refuse("position", "a number, or one per choice with commas between")
    positions = tuple(int(part) for part in parts)
    if len(positions) != len(state.committed):
        raise refuse("position", f"{len(state.committed)} numbers, one per choice")
    return positions


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
