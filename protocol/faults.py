"""Errors as plain parts, so that the far side of a wire raises the same class again.

No prompt or generated text is in an error (see `outrider.errors`), so none travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from outrider.errors import (
    InvalidRequest,
    OutriderError,
    Overloaded,
    StageLost,
    Unplannable,
    by_code,
)
from outrider.protocol.stream import Done

RETRY_S = 1.0
"""When an overloaded peer named no time, or none that can be meant."""
MOST_RETRY_S = 86400.0


def to_parts(error: OutriderError) -> dict[str, Any]:
    """`code`, `what`, `why`, `effect`, `todo`; `param`, `retry_after_s`, `device`,
    `constraint` and `nearest` where there are."""
    parts: dict[str, Any] = {
        "code": error.code,
        "what": error.what,
        "why": error.why,
        "effect": error.effect,
        "todo": error.todo,
    }
    if isinstance(error, InvalidRequest):
        parts["param"] = error.param
    if isinstance(error, Overloaded):
        parts["retry_after_s"] = error.retry_after_s
    for name in _TEXTS.get(type(error), ()):
        parts[name] = getattr(error, name)
    return parts


_TEXTS: dict[type[OutriderError], tuple[str, ...]] = {
    StageLost: ("device",),
    Unplannable: ("constraint", "nearest"),
}
"""What some classes say beyond the texts that all have."""


def from_parts(parts: Mapping[str, Any]) -> OutriderError:
    """The error again. Foreign input: anything that is missing or no text becomes empty."""
    kind = by_code(_text(parts, "code"))
    # Some classes make their texts from other arguments, and these texts are finished.
    error = kind.__new__(kind)
    OutriderError.__init__(
        error,
        _text(parts, "what") or "the request failed",
        why=_text(parts, "why"),
        effect=_text(parts, "effect"),
        todo=_text(parts, "todo"),
    )
    if isinstance(error, InvalidRequest):
        error.param = _text(parts, "param")
    if isinstance(error, Overloaded):
        wait = parts.get("retry_after_s")
        error.retry_after_s = RETRY_S
        if isinstance(wait, int | float) and 0 <= wait <= MOST_RETRY_S:
            error.retry_after_s = float(wait)
    for name in _TEXTS.get(kind, ()):
        setattr(error, name, _text(parts, name))
    return error


def of_done(done: Done) -> OutriderError:
    """The error that ended an answer; `Done.error` holds its code."""
    if done.finish_reason == "cancelled":
        return OutriderError("the answer was cancelled", todo="ask again")
    return from_parts({"code": done.error or "", "what": "the answer ended in an error"})


def _text(parts: Mapping[str, Any], name: str) -> str:
    value = parts.get(name)
    return value if isinstance(value, str) else ""


METADATA = "outrider-error-bin"
"""The trailing metadata of a gRPC call that failed: `pack` of its error."""


def pack(error: OutriderError) -> bytes:
    """msgpack of `to_parts`."""
    return msgspec.msgpack.encode(to_parts(error))


def unpack(data: bytes) -> OutriderError:
    """The same error again; what can not be read becomes a plain OutriderError."""
    try:
        return from_parts(msgspec.msgpack.decode(data, type=dict[str, Any]))
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError):
        return OutriderError("the cloud failed and did not say how")
