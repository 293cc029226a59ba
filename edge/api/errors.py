"""Errors as OpenAI's clients read them: the envelope, the status and the headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from outrider.errors import (
    AccessDenied,
    EngineFull,
    InvalidRequest,
    LinkError,
    NotFound,
    OutriderError,
    Overloaded,
)
from outrider.protocol.faults import to_parts

_ENGINE_RETRY_S = 1.0


def kind(status: int) -> str:
    """OpenAI's `type` for a status."""
    if status == 429:
        return "rate_limit_error"
    if status == 503:
        return "unavailable_error"
    return "invalid_request_error" if status < 500 else "server_error"


def code(error: OutriderError) -> str:
    """OpenAI's word where it has one; ours stands beside it in `outrider.code`."""
    if isinstance(error, AccessDenied):
        return "invalid_api_key"
    if isinstance(error, NotFound) and error.param == "model":
        return "model_not_found"
    return error.code


def envelope(error: OutriderError, status: int | None = None) -> dict[str, Any]:
    """`{"error": {...}}`; the parts of an Outrider error stand in `outrider`, for the SDK."""
    return {
        "error": {
            "message": sentence(error),
            "type": kind(status or error.http_status),
            "param": (error.param or None) if isinstance(error, InvalidRequest) else None,
            "code": code(error),
            "outrider": to_parts(error),
        }
    }


def sentence(error: OutriderError) -> str:
    """All parts of an error on one line."""
    text = error.what + (f": {error.why}" if error.why else "")
    return "; ".join(part for part in (text, error.effect, error.todo) if part)


def headers(error: OutriderError) -> dict[str, str]:
    """When to try again, or that it is of no use.

    OpenAI's clients try every 5xx twice more; for one that would fail the same way
    again `x-should-retry: false` stops them.
    """
    if isinstance(error, Overloaded):
        return _retry_after(error.retry_after_s)
    if isinstance(error, EngineFull):
        return _retry_after(_ENGINE_RETRY_S)
    if error.http_status >= 500 and not isinstance(error, LinkError):
        return {"x-should-retry": "false"}
    return {}


def _retry_after(seconds: float) -> dict[str, str]:
    return {
        "retry-after": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(max(1, math.ceil(seconds * 1000))),
    }


def respond(
    error: OutriderError, *, status: int | None = None, extra: Mapping[str, str] | None = None
) -> Response:
    """The error as a JSON response; `status` overrides the error's own."""
    status = status or error.http_status
    body = msgspec.json.encode(envelope(error, status))
    return Response(body, status, {**headers(error), **(extra or {})}, "application/json")


def no_route(method: str, path: str) -> NotFound:
    """For a path, or a method on a path, that is not served."""
    return NotFound(
        f"there is no {method} {path}",
        effect="nothing was done",
        todo="GET / lists what is served",
    )


def internal() -> OutriderError:
    """A bug of ours, without its text: that may hold a prompt."""
    return OutriderError(
        "the daemon failed inside",
        why="a bug; the daemon's log has the trace under this request id",
        effect="the request was ended",
    )
