"""The wire between SDK and daemon: lines to events, responses and failures to errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx2
import msgspec

from outrider.errors import AccessDenied, DaemonUnreachable, InvalidRequest, OutriderError
from outrider.protocol.faults import from_parts
from outrider.protocol.stream import StreamEvent
from outrider.sdk.find import Place

T = TypeVar("T")

CONNECT_S = 5.0
READ_S = 60.0
"""Longer than the daemon's pings are apart, so that only a dead one runs into it."""

_ORIGINS = {"argument": "the address was given", "default": "it is the usual address"}

_EVENTS: msgspec.json.Decoder[StreamEvent] = msgspec.json.Decoder(StreamEvent)


class _Failure(msgspec.Struct, tag_field="type", tag="error"):
    error: dict[str, Any]


def timeouts() -> httpx2.Timeout:
    """Seconds: to connect, and of silence; none for a place in the pool."""
    return httpx2.Timeout(READ_S, connect=CONNECT_S, pool=None)


def headers(place: Place) -> dict[str, str]:
    return {"authorization": f"Bearer {place.api_key}"} if place.api_key else {}


def encode(body: Mapping[str, object]) -> bytes:
    """A request's body. NaN and halves of characters travel, so that the daemon's refusal can
    name the field. Raises InvalidRequest for what has no JSON form."""
    try:
        return json.dumps(body).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            "the request has no JSON form", why=str(error), effect="nothing was asked"
        ) from None


def event(line: str) -> StreamEvent:
    """One line of a stream. Raises the error that an error line holds."""
    try:
        return _EVENTS.decode(line)
    except msgspec.ValidationError:
        raise _failure(line) from None
    except msgspec.DecodeError:
        raise _foreign("a line that is no event") from None


def _failure(line: str) -> OutriderError:
    try:
        return of_envelope(msgspec.json.decode(line, type=_Failure).error)
    except msgspec.ValidationError:
        return _foreign("an event of an unknown kind")


def of_envelope(error: dict[str, Any]) -> OutriderError:
    """The error again: from our own parts, else from what every OpenAI server sends."""
    parts = error.get("outrider")
    if isinstance(parts, dict):
        return from_parts(parts)
    return OutriderError(str(error.get("message") or "the request failed"))


def check(response: httpx2.Response) -> None:
    """Raise for any status but 2xx; the body has been read."""
    if response.is_success:
        return
    try:
        body = msgspec.json.decode(response.content)
        error = body["error"]
        found = of_envelope(error if isinstance(error, dict) else {})
    except (msgspec.DecodeError, TypeError, KeyError):
        found = _foreign(f"status {response.status_code} without an error in it")
    if isinstance(found, AccessDenied) and not found.todo:
        found.todo = "set OUTRIDER_API_KEY"
    raise found


def decode(response: httpx2.Response, kind: type[T]) -> T:
    """A typed body."""
    check(response)
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise _foreign(str(error)) from None


def _foreign(why: str) -> OutriderError:
    return OutriderError(
        "the daemon's answer was not understood",
        why=why,
        effect="it was dropped",
        todo="check that the address is an Outrider daemon of this version: outrider version",
    )


def lost(error: httpx2.TransportError, place: Place) -> DaemonUnreachable:
    """Our error for one of the HTTP library's."""
    connecting = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    what = "no daemon answers" if connecting else "the daemon went away while answering"
    why = "nothing accepts connections there" if connecting else type(error).__name__
    return DaemonUnreachable(
        f"{what} at {place.url}",
        why=f"{why}; {_ORIGINS.get(place.found_by, f'the address is from {place.found_by}')}",
        effect="nothing was asked" if connecting else "the answer is not complete",
        todo="start one with `outrider edge`, or set OUTRIDER_HOST to where it is",
    )
