"""How a client follows its answer on the native routes: what it sees, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from outrider.edge.api.fields import Fields, refuse

Seen = Literal["tokens", "events"]

LEAST_PING_S, MOST_PING_S = 0.05, 60.0
MOST_LINGER_S = 120.0
_OURS = ("trace", "linger_s", "ping_s")


@dataclass(frozen=True, slots=True)
class Watching:
    """Of one reader. None and 0 are what a client gets that asks for nothing."""

    trace: Seen = "tokens"
    """`events`: the daemon's decisions, hints, commits and joules of this request too."""
    linger_s: float = 0.0
    """Seconds for which the answer goes on without a reader, so that it can be resumed."""
    ping_s: float | None = None
    """Silence after which a ping comes; None is the daemon's setting."""


def of_body(body: Mapping[str, Any]) -> tuple[Watching, dict[str, Any]]:
    """What stands in the `outrider` field of a body, and the body without it."""
    ours = body.get("outrider")
    if not isinstance(ours, dict):
        return Watching(), dict(body)
    rest = {name: value for name, value in ours.items() if name not in _OURS}
    return _watching(Fields(ours, "outrider.")), {**body, "outrider": rest}


def of_query(query: Mapping[str, str]) -> Watching:
    """What stands in the query of a request that resumes."""
    given: dict[str, Any] = dict(query)
    for name in ("linger_s", "ping_s"):
        if name in given:
            given[name] = _number(name, given[name])
    return _watching(Fields(given))


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise refuse(name, "a number of seconds") from None


def _watching(fields: Fields) -> Watching:
    trace = fields.choice("trace", ("tokens", "events")) or "tokens"
    return Watching(
        cast(Seen, trace),
        _seconds(fields, "linger_s", 0.0, MOST_LINGER_S) or 0.0,
        _seconds(fields, "ping_s", LEAST_PING_S, MOST_PING_S),
    )


def _seconds(fields: Fields, name: str, low: float, high: float) -> float | None:
    value = fields.number(name)
    if value is not None and not low <= value <= high:
        raise refuse(fields.named(name), f"seconds from {low:g} to {high:g}")
    return value
