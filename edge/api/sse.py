"""Streams on the wire: server-sent events and newline-delimited JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from outrider.edge.api.flow import HungUp, unless_hung_up

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
BLANK = b"\n"
"""The ping of NDJSON: an empty line."""

HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}


def data(value: Any) -> bytes:
    """One event without a name."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def line(value: Any) -> bytes:
    """One line of NDJSON."""
    return msgspec.json.encode(value) + b"\n"


class Stream:
    """An ASGI response that sends frames as they come, and stops when the client hangs up."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        media: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._frames = frames
        self._headers = {**HEADERS, "content-type": media, **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_hung_up(receive, self._send(send))
        except HungUp:
            pass

    async def _send(self, send: Send) -> None:
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in self._headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        async with aclosing(self._frames) as frames:
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
