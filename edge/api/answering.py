"""An understood request through the service: its answer whole, or as chunks while it grows.

The faces of other APIs translate OpenAI's chat answers: one way through the house for all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request

from outrider.edge.api.body import read
from outrider.edge.api.context import Context
from outrider.edge.api.fit import fit
from outrider.edge.api.flow import unless_hung_up
from outrider.edge.api.parse import Asked
from outrider.edge.api.settings import ApiSettings
from outrider.edge.api.shapes import Shape
from outrider.edge.api.transcript import Chunk, Transcript
from outrider.errors import OutriderError
from outrider.protocol.stream import StreamEvent, Waiting

Parser = Callable[[Mapping[str, Any], ApiSettings], Asked]


class Answering:
    """One request of one shape."""

    def __init__(self, context: Context, asked: Asked, shape: Shape) -> None:
        self.asked = asked
        self._context = context
        model = asked.requests[0].model
        service = context.service
        self._transcript = Transcript(
            asked, shape, lambda token: service.detokenize(model, (token,)), int(context.now())
        )

    @classmethod
    async def begin(
        cls, context: Context, body: Mapping[str, Any], parser: Parser, shape: Shape
    ) -> Answering:
        """Raises InvalidRequest, and what finding the model raises."""
        asked = await fit(parser(body, context.settings), context.service)
        return cls(context, asked, shape)

    async def whole(self, request: Request) -> dict[str, Any]:
        """The answer, unless the client hangs up."""
        return await unless_hung_up(request.receive, self._collect())

    async def _collect(self) -> dict[str, Any]:
        async with self._context.flow(self.asked.requests) as flow:
            async for batch in flow.batches():
                for source, event in batch:
                    self._transcript.take(source, event)
        self._transcript.check()
        return self._transcript.answer()

    async def chunks(self) -> AsyncGenerator[list[Chunk], None]:
        """Chunks as they come; an empty list is a ping. Raises what the answer ended with."""
        async with self._context.flow(self.asked.requests) as flow:
            async for batch in flow.batches():
                found = self._transcript.chunks(batch)
                if found or _waits(batch):
                    yield found
        self._transcript.check()


def _waits(batch: Sequence[tuple[int, StreamEvent]]) -> bool:
    """Nothing came for a while, or the service says that nothing will for now."""
    return not batch or any(isinstance(event, Waiting) for _, event in batch)


async def body_of(request: Request, context: Context) -> dict[str, Any]:
    return await read(request, context.settings.max_body_bytes)


async def framed(
    context: Context,
    frames: AsyncGenerator[bytes, None],
    failed: Callable[[OutriderError], bytes],
) -> AsyncGenerator[bytes, None]:
    """Frames, and an error on the way as the last one; one before the first is the caller's to
    show."""
    begun = False
    try:
        async for frame in frames:
            yield frame
            begun = True
    except Exception as error:
        if not begun:
            raise
        yield failed(context.typed(error))
    finally:
        await frames.aclose()
