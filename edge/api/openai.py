"""OpenAI's endpoints: models, chat completions, completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from outrider.edge.api import parse, sse
from outrider.edge.api.body import read
from outrider.edge.api.context import Context
from outrider.edge.api.errors import envelope
from outrider.edge.api.flow import HungUp, unless_hung_up
from outrider.edge.api.parse import Asked
from outrider.edge.api.settings import ApiSettings
from outrider.edge.api.shapes import Chat, Shape, Text
from outrider.edge.api.transcript import Transcript
from outrider.edge.service import ModelCard
from outrider.errors import NotFound, OutriderError
from outrider.protocol.stream import StreamEvent, Waiting

Parser = Callable[[Mapping[str, Any], ApiSettings], Asked]


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
        for card in self._context.service.models():
            if card.id == wanted:
                return _json(_card(card))
        raise NotFound(
            "there is no such model", param="model", todo="GET /v1/models lists what there is"
        )

    async def chat(self, request: Request) -> ASGIApp:
        return await self._answer(request, parse.chat, Chat())

    async def completions(self, request: Request) -> ASGIApp:
        return await self._answer(request, parse.completion, Text())

    async def _answer(self, request: Request, parser: Parser, shape: Shape) -> ASGIApp:
        settings = self._context.settings
        asked = parser(await read(request, settings.max_body_bytes), settings)
        transcript = Transcript(
            asked, shape, self._speller(asked.requests[0].model), int(self._context.now())
        )
        if asked.streamed:
            frames = self._frames(asked, transcript)
            return await begin(request, frames, "text/event-stream; charset=utf-8")
        return _json(await unless_hung_up(request.receive, self._collect(asked, transcript)))

    def _speller(self, model: str) -> Callable[[int], bytes]:
        return lambda token: self._context.service.detokenize(model, (token,))

    async def _collect(self, asked: Asked, transcript: Transcript) -> dict[str, Any]:
        async with self._context.flow(asked.requests) as flow:
            async for batch in flow.batches():
                for source, event in batch:
                    transcript.take(source, event)
        transcript.check()
        return transcript.answer()

    async def _frames(self, asked: Asked, transcript: Transcript) -> AsyncGenerator[bytes, None]:
        """Chunks, pings and the end; an error before the first frame is the caller's to show."""
        begun = False
        try:
            async with self._context.flow(asked.requests) as flow:
                async for batch in flow.batches():
                    frame = b"".join(map(sse.data, transcript.chunks(batch)))
                    if frame or waits(batch):
                        yield frame or sse.PING
                        begun = True
            transcript.check()
        except Exception as error:
            if not begun:
                raise
            yield sse.data(envelope(self._context.typed(error)))
        else:
            yield sse.DONE


def waits(batch: Sequence[tuple[int, StreamEvent]]) -> bool:
    """Nothing came for a while, or the service says that nothing will for now."""
    return not batch or any(isinstance(event, Waiting) for _, event in batch)


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
