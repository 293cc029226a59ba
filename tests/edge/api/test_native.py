"""Outrider's own endpoints: typed events, resuming, status, events, health, metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from outrider.edge.api.app import build
from outrider.edge.api.settings import ApiSettings
from outrider.errors import LinkLost
from outrider.protocol.status import Status
from outrider.protocol.stream import Done, Retract, Started, StreamEvent, Token, Waiting
from outrider.testing.local_edge import LocalEdge
from outrider.testing.scripted_edge import ScriptedEdge, Step, done, started, token

from .conftest import BASE, ask

GENERATE = "/outrider/v1/generate"


def events(text: str) -> list[StreamEvent]:
    lines = [line for line in text.split("\n") if line]
    return [msgspec.json.decode(line, type=StreamEvent) for line in lines]


def test_events_are_those_of_the_service() -> None:
    script: list[Step] = [
        started(),
        token(0, "é"),
        Waiting(reason="queued"),
        Retract(position=1),
        done(1),
    ]
    answer = ask(ScriptedEdge(script), "POST", GENERATE, body={"prompt": "x"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert events(answer.text) == script


def test_parameters_reach_the_service() -> None:
    edge = ScriptedEdge([started(), done(0)])
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "big",
        "temperature": 0.5,
        "n": 2,
        "max_tokens": 9,
        "stop": "x",
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 3,
        "outrider": {
            "placement": "cloud",
            "fallback": "error",
            "exact": "required",
            "retract": True,
        },
    }
    ask(edge, "POST", GENERATE, body=body)
    (asked,) = edge.asked
    assert asked.prompt == ({"role": "user", "content": "hi"},)
    assert (asked.model, asked.n, asked.max_tokens, asked.stop) == ("big", 2, 9, ("x",))
    assert (asked.seed, asked.top_logprobs, asked.sampling.temperature) == (5, 3, 0.5)
    assert (asked.placement, asked.fallback) == ("cloud", "error")
    assert (asked.exact_required, asked.retract) == (True, True)


def test_defaults_leave_it_to_the_daemon() -> None:
    edge = ScriptedEdge([started(), done(0)])
    ask(edge, "POST", GENERATE, body={"prompt": "x"})
    (asked,) = edge.asked
    assert (asked.model, asked.placement, asked.fallback) == ("", "auto", None)
    assert (asked.max_tokens, asked.seed, asked.top_logprobs) == (None, None, None)
    assert (asked.exact_required, asked.retract) == (False, False)


def test_an_error_on_the_way_is_a_line() -> None:
    script: list[Step] = [started(), LinkLost("the link died")]
    lines = ask(ScriptedEdge(script), "POST", GENERATE, body={"prompt": "x"}).text.split("\n")
    last = json.loads(lines[1])
    assert (last["type"], last["error"]["code"]) == ("error", "link_lost")


# --- resuming ----------------------------------------------------------------------------------


def test_a_stream_goes_on_from_a_position() -> None:
    edge = LocalEdge()
    body = {"prompt": "x", "max_tokens": 9, "seed": 2, "n": 2}
    whole = events(ask(edge, "POST", GENERATE, body=body).text)
    name = next(event.request for event in whole if isinstance(event, Started))
    rest = events(ask(edge, "GET", f"/outrider/v1/requests/{name}?position=7,0").text)
    wanted = [
        event
        for event in whole
        if not (isinstance(event, Token) and event.choice == 0 and event.position < 7)
    ]
    assert rest == wanted
    assert sum(isinstance(event, Done) for event in rest) == 2


def test_the_state_of_a_request() -> None:
    edge = LocalEdge()
    ask(edge, "POST", GENERATE, body={"prompt": "x", "max_tokens": 4})
    state = ask(edge, "GET", "/outrider/v1/requests/local-1").json()
    assert (state["state"], state["committed"]) == ("done", [4])
    assert ask(edge, "GET", "/outrider/v1/requests").json() == {"requests": [state]}


@pytest.mark.parametrize("position", ["x", "-1", "1,2", "", "1.5", "9" * 30])
def test_positions_that_are_none(position: str) -> None:
    edge = LocalEdge()
    ask(edge, "POST", GENERATE, body={"prompt": "x", "max_tokens": 2})
    answer = ask(edge, "GET", f"/outrider/v1/requests/local-1?position={position}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "position")


def test_an_unknown_request() -> None:
    answer = ask(LocalEdge(), "GET", "/outrider/v1/requests/none?position=0")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


# --- the house ---------------------------------------------------------------------------------


def test_status_is_typed() -> None:
    edge = LocalEdge()
    ask(edge, "POST", GENERATE, body={"prompt": "x", "max_tokens": 3})
    answer = ask(edge, "GET", "/outrider/v1/status")
    status = msgspec.json.decode(answer.content, type=Status)
    assert (status.schema, status.requests_total, status.tokens_total) == (1, 1, 3)


class Bus:
    """Two events, and then the end."""

    def __init__(self) -> None:
        self.closed = False

    async def subscribe(self) -> AsyncIterator[Any]:
        try:
            yield Waiting(reason="one")
            yield Waiting(reason="two")
        finally:
            self.closed = True


def feed(bus: Bus | None, accept: str) -> httpx2.Response:
    async def run() -> httpx2.Response:
        app = build(LocalEdge(), events=bus)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            return await client.get("/outrider/v1/events", headers={"accept": accept})

    return asyncio.run(run())


def test_bus_events_as_lines_or_sse() -> None:
    bus = Bus()
    lines = feed(bus, "*/*").text.split("\n")
    assert [json.loads(line)["reason"] for line in lines if line] == ["one", "two"]
    assert bus.closed
    parts = feed(Bus(), "text/event-stream").text.split("\n\n")
    assert parts[0] == ": ping"
    assert [json.loads(part[6:])["reason"] for part in parts[1:] if part] == ["one", "two"]


def test_no_bus_no_events() -> None:
    assert feed(None, "*/*").status_code == 404


def test_health_waits_for_the_models() -> None:
    async def run(ready: bool) -> httpx2.Response:  # noqa: FBT001
        app = build(LocalEdge(), ready=lambda: ready)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            return await client.get("/health")

    assert asyncio.run(run(True)).json() == {"status": "ok"}
    loading = asyncio.run(run(False))
    assert (loading.status_code, loading.json()["error"]["type"]) == (503, "unavailable_error")


def test_the_root_says_what_is_served() -> None:
    answer = ask(LocalEdge(), "GET", "/")
    assert answer.text.startswith("Outrider is running\n")
    assert "/v1/chat/completions\n" in answer.text
    head = ask(LocalEdge(), "HEAD", "/")
    assert (head.status_code, head.content) == (200, b"")


def test_metrics_count_what_was_said() -> None:
    async def run() -> str:
        script: list[Step] = [
            started(),
            token(0, "a"),
            token(1, "b", source="accepted"),
            done(2, mixed_from=1),
        ]
        transport = httpx2.ASGITransport(app=build(ScriptedEdge(script), ApiSettings()))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            for _ in range(2):
                await client.post("/v1/completions", json={"prompt": "x"})
            await client.post("/v1/completions", json={})
            return (await client.get("/metrics")).text

    page = asyncio.run(run())
    for line in (
        'vllm:spec_decode_num_drafts_total{model_name="big"} 8.0',
        'vllm:spec_decode_num_draft_tokens_total{model_name="big"} 14.0',
        'vllm:spec_decode_num_accepted_tokens_total{model_name="big"} 6.0',
        'outrider_tokens_total{model_name="big",source="accepted"} 2.0',
        'outrider_stale_draft_tokens_total{model_name="big"} 4.0',
        'outrider_mixed_answers_total{model_name="big"} 2.0',
        'outrider_answers_total{reason="stop"} 2.0',
        "outrider_link_sent_bytes_total 600.0",
        'gen_ai_server_time_to_first_token_seconds_count{model_name="big"} 2.0',
        'outrider_http_requests_total{route="/v1/completions",status="200"} 2.0',
        'outrider_http_requests_total{route="/v1/completions",status="400"} 1.0',
    ):
        assert line in page.split("\n")


def test_an_answer_that_never_began_has_no_times() -> None:
    async def run() -> str:
        script: list[Step] = [done(0, reason="error", error="invalid_request")]
        transport = httpx2.ASGITransport(app=build(ScriptedEdge(script)))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            await client.post("/v1/completions", json={"prompt": "x"})
            return (await client.get("/metrics")).text

    page = asyncio.run(run())
    assert 'outrider_answers_total{reason="error"} 1.0' in page
    assert "model_name=" not in page
