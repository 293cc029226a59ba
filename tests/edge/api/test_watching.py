"""How a reader follows its answer: what it may ask for, and which events are its."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from outrider.edge.api.tracing import Thread, traced
from outrider.edge.api.watching import Watching, of_body, of_query
from outrider.edge.stay import Stay
from outrider.errors import InvalidRequest, LinkLost
from outrider.protocol import events
from outrider.protocol.stream import StreamEvent
from outrider.protocol.trace import Decision, Draft, Energy, Event
from outrider.testing.scripted_edge import done, started, token


def test_what_a_body_asks_for_is_taken_out_of_it() -> None:
    seen, rest = of_body(
        {"prompt": "x", "outrider": {"trace": "events", "ping_s": 1, "placement": "cloud"}}
    )
    assert seen == Watching("events", 0.0, 1.0)
    assert rest == {"prompt": "x", "outrider": {"placement": "cloud"}}
    assert of_body({"prompt": "x"}) == (Watching(), {"prompt": "x"})
    assert of_query({"position": "3", "linger_s": "2.5"}) == Watching(linger_s=2.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("trace", "all"), ("linger_s", -1), ("linger_s", 1e6), ("ping_s", 0), ("ping_s", "soon")],
)
def test_what_can_not_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        of_body({"outrider": {name: value}})
    assert raised.value.param == f"outrider.{name}"
    with pytest.raises(InvalidRequest):
        of_query({name: str(value)})


# --- whose events ------------------------------------------------------------------------------


def hint(request: str, t_ms: float) -> events.HintSent:
    return events.HintSent(request=request, choice=0, base=1, tokens=2, draft_ms=3.0, t_ms=t_ms)


BILL = events.RequestDone(
    request="r1",
    finish_reason="stop",
    completion_tokens=4,
    ttft_ms=1.0,
    total_ms=2.0,
    passes=1,
    hint_rows=1,
    accepted=1,
    stale=0,
    sent=2,
    mixed=False,
    exact=True,
    bytes_up=1,
    bytes_down=1,
    energy_j=2.0,
    energy_kind="estimated",
    device_j=1.5,
    t_ms=130.0,
)


async def said(*told: events.Event) -> AsyncIterator[events.Event]:
    for event in told:
        yield event
    await asyncio.Event().wait()


async def answered(*told: StreamEvent | Exception) -> AsyncIterator[StreamEvent]:
    for event in told:
        await asyncio.sleep(0)
        if isinstance(event, Exception):
            raise event
        yield event


def collect(answers: AsyncIterator[StreamEvent], bus: AsyncIterator[Any]) -> list[Event]:
    async def run() -> list[Event]:
        return [event async for event in traced(answers, bus, Thread())]

    return asyncio.run(run())


def test_only_its_own_events_come_and_the_bill_before_the_end() -> None:
    begun = events.RequestStarted(
        request="r1", placement="draft", prompt_tokens=1, choices=1, t_ms=100.0
    )
    answers = answered(started(), token(0, "a"), done(1))
    found = collect(answers, said(begun, hint("r2", 101.0), hint("r1", 110.0), BILL))
    assert [type(event).__name__ for event in found].count("Draft") == 1
    (draft,) = [event for event in found if isinstance(event, Draft)]
    assert (draft.t_ms, draft.position, draft.tokens) == (10.0, 1, 2)
    assert isinstance(found[-2], Energy) and found[-1] == done(1)
    assert (found[-2].joules_per_token, found[-2].device_j) == (0.5, 1.5)


def test_an_answer_whose_bill_is_not_told_ends_all_the_same() -> None:
    assert collect(answered(started(), done(0)), said())[-1] == done(0)


def test_the_answer_s_error_is_raised() -> None:
    with pytest.raises(LinkLost):
        collect(answered(started(), LinkLost("gone")), said(hint("r1", 1.0)))


def test_a_decision_says_its_reasons_once() -> None:
    decision = events.Decision(
        request="r1",
        what="placement",
        old="cloud",
        new="draft",
        reason="cheaper",
        cause="cheaper",
        binding="battery",
    )
    (found,) = [
        event
        for event in collect(answered(started(), done(0)), said(decision))
        if isinstance(event, Decision)
    ]
    assert found.reasons == ("cheaper", "bound by battery")


# --- without a reader --------------------------------------------------------------------------


def test_an_answer_ends_after_its_last_reader() -> None:
    async def run() -> None:
        over = asyncio.Event()
        stay = Stay(0.0, over.set)
        stay.enter()
        stay.enter()
        stay.leave()
        await asyncio.sleep(0)
        assert not over.is_set(), "somebody reads it still"
        stay.leave()
        stay.enter()
        await asyncio.sleep(0)
        assert not over.is_set(), "somebody came back"
        stay.leave()
        await asyncio.wait_for(over.wait(), 5.0)

    asyncio.run(run())
