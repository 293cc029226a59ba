"""OpenAI's endpoints: models, chat completions, completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from outrider.edge.api import parse, sse
from outrider.edge.api.answering import Answering, Parser, body_of, framed
from outrider.edge.api.context import Context
from outrider.edge.api.errors import envelope
from outrider.edge.api.flow import HungUp, unless_hung_up
from outrider.edge.api.parse import ALIASES
from outrider.edge.api.shapes import Chat, Shape, Text
from outrider.edge.service import ModelCard
from outrider.errors import NotFound, OutriderError


class OpenAI:
    """Routes under `/v1`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{id:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        cards = [_card(card) for card in self._context.service.models()]
        return _json({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        wanted = request.path_params["id"]
        cards = self._context.service.models()
        for card in cards:
            if card.id == wanted:
                return _json(_card(card))
        if wanted in ALIASES and cards:
            return _json({**_card(cards[0]), "id": wanted})
        raise NotFound(
            "there is no such model", param="model", todo="GET /v1/models lists what there is"
        )

    async def chat(self, request: Request) -> ASGIApp:
        return await self._answer(request, parse.chat, Chat())

    async def completions(self, request: Request) -> ASGIApp:
        return await self._answer(request, parse.completion, Text())

    async def _answer(self, request: Request, parser: Parser, shape: Shape) -> ASGIApp:
        context = self._context
        body = await body_of(request, context)
        answering = await Answering.begin(context, body, parser, shape)
        if not answering.asked.streamed:
            return _json(await answering.whole(request))
        frames = framed(context, _frames(answering), lambda error: sse.data(envelope(error)))
        return await begin(request, frames, "text/event-stream; charset=utf-8")


async def _frames(answering: Answering) -> AsyncGenerator[bytes, None]:
    """Chunks, pings and the end."""
    async for chunks in answering.chunks():
        yield b"".join(map(sse.data, chunks)) or sse.PING
    yield sse.DONE


async def begin(request: Request, frames: AsyncGenerator[bytes, None], media: str) -> ASGIApp:
    """A streaming response after its first frame, so that early errors keep their status."""
    try:
        first = await unless_hung_up(request.receive, _first(frames))
    except (OutriderError, HungUp, asyncio.CancelledError):
        await frames.aclose()
        raise
    return sse.Stream(_rest(first, frames), media)


async def _first(frames: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(frames, b"")


async def _rest(first: bytes, frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(frames):
        yield first
        async for frame in frames:
            yield frame


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _card(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "outrider",
        "max_model_len": card.context,
        "outrider": {
            "role": card.role,
            "vocabulary_digest": card.vocabulary_digest,
            "numeric_class": card.numeric_class,
        },
    }
