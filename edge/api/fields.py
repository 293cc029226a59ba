"""Typed reading of a JSON object: every refusal names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from outrider.errors import InvalidRequest, UnsupportedParameter

_NOTHING = "the request was not started"


def decode(body: bytes) -> dict[str, Any]:
    """A JSON object from bytes.

    The standard parser takes NaN and Infinity, so that the check of the field can
    name it; text that is not UTF-8 and nesting without end are refused here.
    """
    try:
        found = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        why = _why(error)
        raise InvalidRequest("the body is not JSON", why=why, effect=_NOTHING) from None
    if not isinstance(found, dict):
        raise InvalidRequest("the body must be a JSON object", effect=_NOTHING)
    return found


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error) if isinstance(error, json.JSONDecodeError) else "it is not UTF-8"


def refuse(param: str, wanted: str, todo: str = "") -> InvalidRequest:
    """The field has the wrong type or range."""
    return InvalidRequest(
        f"{param} can not be taken",
        param=param,
        why=f"it must be {wanted}",
        effect=_NOTHING,
        todo=todo,
    )


def unsupported(param: str, todo: str = "") -> UnsupportedParameter:
    """The field would change the answer, and is not supported."""
    return UnsupportedParameter(
        f"{param} is not supported",
        param=param,
        why="it would change the answer",
        effect=_NOTHING,
        todo=todo or f"leave {param} out",
    )


def clean(text: str, param: str) -> str:
    """Text that has a UTF-8 form: JSON can write half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise refuse(param, "text without lone surrogates") from None
    return text


class Fields:
    """One JSON object; `null` means absent. `prefix` names the object in refusals."""

    def __init__(self, body: Mapping[str, Any], prefix: str = "") -> None:
        self._body = body
        self._prefix = prefix

    def named(self, name: str) -> str:
        return self._prefix + name

    def raw(self, name: str) -> Any:
        return self._body.get(name)

    def given(self) -> tuple[str, ...]:
        """Names of the fields that are there and not null."""
        return tuple(name for name, value in self._body.items() if value is not None)

    def text(self, name: str) -> str | None:
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise refuse(self.named(name), "text")
        return clean(value, self.named(name))

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise refuse(self.named(name), f"a whole number from {low} to {high}")
        return value

    def number(self, name: str) -> float | None:
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refuse(self.named(name), "a number")
        if not math.isfinite(value) or abs(value) > 1e9:
            raise refuse(self.named(name), "a finite number")
        return float(value)

    def flag(self, name: str) -> bool | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            raise refuse(self.named(name), "true or false")
        return value

    def choice(self, name: str, allowed: Sequence[str]) -> str | None:
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in allowed:
            raise refuse(self.named(name), f"one of {', '.join(allowed)}")
        return value

    def inner(self, name: str) -> Fields:
        """The object in a field; an empty one when absent."""
        value = self.raw(name)
        if value is None:
            return Fields({}, f"{self.named(name)}.")
        if not isinstance(value, dict):
            raise refuse(self.named(name), "an object")
        return Fields(value, f"{self.named(name)}.")
