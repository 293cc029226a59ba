"""Events: there and back, versions, and that none can hold text, token ids or keys."""

from __future__ import annotations

import json
import types
import typing
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.protocol import events

KINDS: tuple[type[msgspec.Struct], ...] = get_args(events.Event)
NAMES_OF_TEXT = {
    "text", "token", "id", "ids", "token_ids", "prompt", "answer", "content", "message", "messages",
    "seed", "key", "logprob", "logprobs", "bytes", "hint", "draft",
}  # fmt: skip
# Strings of an event are names, addresses, states and reasons that the program itself writes.
STRINGS = {
    "source", "role", "version", "listen", "reason", "model", "engine", "device", "dtype",
    "row_rule", "numeric_class", "cloud", "state", "detail", "request", "placement", "session",
    "what", "old", "new", "binding", "runner_up", "cause", "to", "finish_reason", "energy_kind",
    "where", "code", "said", "drafter", "drafter_device", "supply", "watts_kind", "watts_source",
    "power_policy", "power_draft", "power_reason", "joules_kind", "kind", "peer", "trigger", "why",
}  # fmt: skip


def leaves(kind: Any) -> set[Any]:
    """The plain types in an annotation; a Literal counts as `Literal`."""
    origin = get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return set[Any]().union(*(leaves(part) for part in get_args(kind)))
    if (part := part_of(kind)) is not None:
        return set[Any]().union(*(leaves(of) for of in typing.get_type_hints(part).values()))
    return {Literal if origin is Literal else kind}


def part_of(kind: Any) -> type[msgspec.Struct] | None:
    """The kind of the parts in `tuple[Part, ...]`, the one sort of list that an event may hold."""
    inside = get_args(kind)
    if get_origin(kind) is not tuple or len(inside) != 2 or inside[1] is not ...:
        return None
    found: Any = inside[0]
    return found if isinstance(found, type) and issubclass(found, msgspec.Struct) else None


def fields(kind: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    """Of an event and of the parts that it holds."""
    found: list[tuple[str, Any]] = []
    for field, annotation in typing.get_type_hints(kind).items():
        part = part_of(annotation)
        found += [(field, annotation)] if part is None else fields(part)
    return found


def value(kind: Any) -> st.SearchStrategy[Any]:
    if (part := part_of(kind)) is not None:
        hints = typing.get_type_hints(part)
        one = st.builds(part, **{name: value(of) for name, of in hints.items()})
        return st.lists(one, max_size=2).map(tuple)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) in (typing.Union, types.UnionType):
        return st.one_of(*(value(part) for part in get_args(kind)))
    found: st.SearchStrategy[Any] = {
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        int: st.integers(0, 2**53),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        type(None): st.none(),
    }[kind]
    return found


@st.composite
def some_event(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(KINDS))
    hints = typing.get_type_hints(kind)
    return kind(
        **{field: draw(value(hints[field])) for field in kind.__struct_fields__ if field != "v"}
    )


@settings(max_examples=100)
@given(some_event())
def test_events_round_trip(event: events.Event) -> None:
    line = events.encode(event)
    assert b"\n" not in line
    assert events.decode(line) == event


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_event_can_hold_text_ids_or_keys(kind: type[msgspec.Struct]) -> None:
    """Numbers, states and reasons: no lists but of parts that are such, no bytes, and no string
    that is not on the list."""
    for field, annotation in fields(kind):
        found = leaves(annotation)
        assert found <= {str, int, float, bool, type(None), Literal}, field
        assert field not in NAMES_OF_TEXT
        if str in found:
            assert field in STRINGS


def test_the_schema_check_sees_what_it_forbids() -> None:
    class Leaky(msgspec.Struct):
        tokens: tuple[int, ...]
        text: str | None = None

    found = {name: leaves(kind) for name, kind in typing.get_type_hints(Leaky).items()}
    assert not found["tokens"] <= {int, str, type(None)}
    assert str in found["text"] and "text" not in STRINGS


def test_tags_are_unique_and_documented_events_are_kinds() -> None:
    tags = [kind.__struct_config__.tag for kind in KINDS]
    assert len(set(tags)) == len(tags)


# --- versions ----------------------------------------------------------------------------------

LAG = events.Lag(p50_ms=1.0, p99_ms=2.0)


def of_version(version: Any) -> bytes:
    return json.dumps({**json.loads(events.encode(LAG)), "v": version}).encode()


def test_this_schema_and_the_one_before_are_read() -> None:
    for version in (events.SCHEMA, events.SCHEMA - 1):
        event = events.decode(of_version(version))
        assert isinstance(event, events.Lag) and event.p99_ms == 2.0


@pytest.mark.parametrize("version", [events.SCHEMA + 1, events.SCHEMA - 2, -(2**40), 2**60])
def test_other_schemas_are_refused_by_number(version: int) -> None:
    with pytest.raises(msgspec.ValidationError, match="schema (above|below)"):
        events.decode(of_version(version))


def test_a_newer_schema_is_refused_before_its_fields_are_read() -> None:
    data = json.dumps({"v": events.SCHEMA + 1, "type": "not known yet"}).encode()
    with pytest.raises(msgspec.ValidationError, match="update outrider"):
        events.decode(data)


def test_new_fields_of_the_same_schema_are_passed_over() -> None:
    data = {**json.loads(events.encode(LAG)), "more": [1, 2]}
    assert events.decode(json.dumps(data).encode()) == LAG


@settings(max_examples=200)
@given(st.binary(max_size=60) | some_event().map(lambda e: events.encode(e)[:-3]))
def test_what_is_no_event_is_a_validation_error(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        events.decode(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"1", b'{"v":1}', b'{"v":"1"}', b'{"v":1,"type":"lag"}', b"\xff\xfe"],
)
def test_bad_lines(data: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        events.decode(data)
