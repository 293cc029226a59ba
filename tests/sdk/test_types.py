"""What a type checker knows of the public names: mypy and pyright read this file as strictly."""

# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never, assert_type

import outrider
from outrider import (
    Answer,
    AsyncClient,
    AsyncStream,
    Client,
    Commit,
    Decision,
    Done,
    Draft,
    Energy,
    Event,
    Fallback,
    Forked,
    Metrics,
    ModelCard,
    Placed,
    Planned,
    Provisional,
    RequestState,
    Retract,
    Started,
    Status,
    Stream,
    Token,
    Usage,
    Waiting,
)
from outrider.partitioner.plan import Plan
from outrider.protocol import events as daemon
from outrider.protocol.status import CloudStatus
from outrider.protocol.stream import Source


def sync(client: Client) -> None:
    answer = assert_type(client.complete("x", max_tokens=3, trace="events"), Answer)
    assert_type(client.chat([{"role": "user", "content": "x"}], seed="7"), Answer)
    assert_type(answer.text, str)
    assert_type(answer.usage, Usage)
    assert_type(answer.metrics, Metrics)
    assert_type(answer.energy, Energy)
    assert_type(answer.plan, Placed)
    assert_type(answer.plan.decisions, tuple[Decision, ...])
    assert_type(client.stream("x"), Stream)
    assert_type(client.resume("r", [1]), Stream)
    assert_type(client.status(), Status)
    assert_type(client.models(), tuple[ModelCard, ...])
    assert_type(client.links(), tuple[CloudStatus, ...])
    assert_type(client.requests(), tuple[RequestState, ...])
    assert_type(client.cancel("r"), RequestState)
    assert_type(client.plan("shape:x", what_if="rtt=1ms"), Planned)
    assert_type(client.plan("shape:x").plan, Plan)
    assert_type(client.tokenize("x"), tuple[int, ...])
    assert_type(client.detokenize([1]), str)
    assert_type(client.events(), Iterator[daemon.Event])
    assert_type(client.replay("r.jsonl", speed=2.0), Iterator[daemon.Event])


async def asynchronous(client: AsyncClient) -> None:
    assert_type(await client.complete([1, 2], n=2), Answer)
    async with client.stream_chat("x", placement="draft") as stream:
        assert_type(stream, AsyncStream)
        async for event in stream:
            assert_type(event, Event)
    assert_type(await client.plan("shape:x"), Planned)
    async for told in client.events():
        assert_type(told, daemon.Event)


def every_event_has_its_case(event: Event) -> str:
    match event:
        case Started() | Waiting() | Forked() | Retract() | Provisional() | Done():
            return ""
        case Token():
            return assert_type(event.source, Source)
        case Draft() | Commit() | Energy() | Fallback():
            return ""
        case Decision():
            return "; ".join(event.reasons)
        case _:
            assert_never(event)


def errors(client: Client) -> None:
    try:
        client.complete("x")
    except outrider.RateLimitError as error:
        assert_type(error.status_code, int)
        assert_type(error.request_id, str | None)
        assert_type(error.message, str)


def test_the_cases_are_all_there() -> None:
    assert every_event_has_its_case(Waiting(reason="queued")) == ""
