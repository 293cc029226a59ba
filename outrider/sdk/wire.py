"""The wire between SDK and daemon: lines to events, responses and failures to errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import httpx2
import msgspec

from outrider.errors import AccessDenied, DaemonUnreachable, InvalidRequest, OutriderError
from outrider.protocol import events
from outrider.protocol.faults import from_parts
from outrider.protocol.trace import Event
from outrider.sdk.errors import APIError, mirrored
from outrider.sdk.find import Place
from outrider.sdk.limits import Timeouts

T = TypeVar("T")

_KEPT = ("retry-after", "retry-after-ms", "x-should-retry")
_ORIGINS = {"argument": "the address was given", "default": "it is the usual address"}

_EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class _Failure(msgspec.Struct, tag_field="type", tag="error"):
    error: dict[str, Any]


def timeouts(given: Timeouts, *, stream: bool = False) -> httpx2.Timeout:
    """Seconds: to connect, and of silence; none for a place in the pool."""
    silence_s = given.read_s() if stream else given.silence_s
    return httpx2.Timeout(silence_s, connect=given.connect_s, pool=None)


class Lines:
    """Lines from pieces of a body. Only a line feed ends one: JSON may hold, unescaped, other
    characters that Python takes for the end of a line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return lines

    def end(self) -> list[bytes]:
        """What is left at the end of the body."""
        return [self._rest] if self._rest else []


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


def event(line: bytes) -> Event:
    """One line of a stream. Raises the error that an error line holds."""
    try:
        return _EVENTS.decode(line)
    except msgspec.ValidationError:
        raise _failure(line) from None
    except msgspec.DecodeError:
        raise _foreign("a line that is no event") from None


def _failure(line: bytes) -> OutriderError:
    try:
        return mirrored(of_envelope(msgspec.json.decode(line, type=_Failure).error))
    except msgspec.ValidationError:
        return _foreign("an event of an unknown kind")


def daemon_event(text: str) -> events.Event:
    """One of the daemon's events."""
    try:
        return events.decode(text.encode())
    except msgspec.ValidationError as error:
        raise _foreign(str(error)) from None


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
    said = {name.lower(): value for name, value in response.headers.items()}
    error = mirrored(found, response.status_code, said.get("x-request-id"))
    error.headers = {name: said[name] for name in _KEPT if name in said}
    raise error


def headers_of(error: OutriderError) -> Mapping[str, str]:
    """What the response that was this error said about trying again."""
    return error.headers if isinstance(error, APIError) else {}


def decode(response: httpx2.Response, kind: type[T]) -> T:
    """A typed body."""
    check(response)
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise _foreign(str(error)) from None


def _foreign(why: str) -> OutriderError:
    unread = OutriderError(
        "the daemon's answer was not understood",
        why=why,
        effect="it was dropped",
        todo="check that the address is an Outrider daemon of this version: outrider version",
    )
    return mirrored(unread)


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
