"""Streams: the order of chunks to the byte, pings in silence, errors on the way, hang-up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from outrider.edge.api.app import build
from outrider.edge.api.server import ApiServer
from outrider.errors import LinkLost, Overloaded
from outrider.protocol.stream import (
    FinishReason,
    Forked,
    Provisional,
    Retract,
    StreamEvent,
    Waiting,
)
from outrider.testing.local_edge import LocalEdge
from outrider.testing.scripted_edge import ScriptedEdge, Step, done, started, token

from .conftest import Stopwatch, ask

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
GOLDEN = Path(__file__).with_name("golden")
HI = [{"role": "user", "content": "hi"}]

ANSWER: list[Step] = [
    started(),
    token(0, "Hel"),
    token(1, "lo", source="accepted"),
    token(2, ""),
    token(3, " wörld", source="corrected"),
    done(4),
]
TWO: list[Step] = [
    started(0),
    started(1),
    token(0, "a"),
    token(0, "x", choice=1),
    token(1, "b"),
    done(2),
    token(1, "y", choice=1),
    done(2, choice=1, reason="length"),
]
FORK: list[Step] = [
    started(),
    token(0, "big "),
    Waiting(reason="reconnecting"),
    Forked(position=1, model="small", reason="patience"),
    token(1, "small", source="edge"),
    done(2, mixed_from=1),
]


def raw(steps: list[Step], path: str, **body: Any) -> str:
    asked = {"messages": HI} if path == CHAT else {"prompt": "x"}
    answer = ask(ScriptedEdge(steps), "POST", path, body={**asked, "stream": True, **body})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    return answer.text


def chunks(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


@pytest.mark.parametrize(
    ("name", "steps", "path", "body"),
    [
        ("chat", ANSWER, CHAT, {}),
        ("chat_usage", ANSWER, CHAT, {"stream_options": {"include_usage": True}}),
        ("completion", ANSWER, TEXT, {}),
        ("completion_usage", ANSWER, TEXT, {"stream_options": {"include_usage": True}}),
        ("chat_two", TWO, CHAT, {"n": 2}),
        ("chat_fork", FORK, CHAT, {}),
        ("chat_error", [started(), token(0, "a"), LinkLost("the link died")], CHAT, {}),
    ],
)
def test_golden(name: str, steps: list[Step], path: str, body: dict[str, Any]) -> None:
    """The files are written by hand-checked runs: `GOLDEN_WRITE=1 pytest` writes them anew."""
    import os

    file = GOLDEN / f"{name}.sse"
    found = raw(steps, path, **body)
    if os.environ.get("GOLDEN_WRITE"):
        file.write_text(found)
    assert found == file.read_text()


def test_order_of_a_chat_stream() -> None:
    text = raw(ANSWER, CHAT, stream_options={"include_usage": True})
    assert text.endswith("data: [DONE]\n\n")
    opening, piece, closing, usage = chunks(text)
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert piece["choices"][0]["delta"] == {"content": "Hello wörld"}
    assert closing["choices"][0]["delta"] == {}
    assert closing["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert usage["outrider"]["request"] == "r1"
    assert "outrider" not in closing
    assert [chunk["usage"] for chunk in (opening, piece, closing)] == [None] * 3
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks(text)}) == 1


def test_usage_is_never_sent_unasked() -> None:
    found = chunks(raw(ANSWER, CHAT))
    assert all(chunk["choices"] and "usage" not in chunk for chunk in found)
    assert found[-1]["metrics"]["speculative_decoding"]["num_spec_steps"] == 4


def test_a_stream_says_what_the_whole_answer_says() -> None:
    body = {"prompt": "x", "max_tokens": 30, "seed": 4, "n": 2, "logprobs": 1}
    whole = ask(LocalEdge(), "POST", TEXT, body=body).json()
    parts = chunks(ask(LocalEdge(), "POST", TEXT, body={**body, "stream": True}).text)
    for choice in whole["choices"]:
        mine = [part["choices"][0] for part in parts]
        mine = [part for part in mine if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            joined = [v for part in mine if part["logprobs"] for v in part["logprobs"][name]]
            assert joined == values


def test_logprobs_of_tokens_without_text_come_with_the_next_or_at_the_end() -> None:
    steps: list[Step] = [started(), token(0, ""), token(1, "é"), token(2, ""), done(3)]
    edge = ScriptedEdge(steps)
    edge.detokenize = lambda model, ids: b"t%d" % ids[0]  # type: ignore[method-assign]
    body = {"messages": HI, "stream": True, "logprobs": True}
    found = chunks(ask(edge, "POST", CHAT, body=body).text)
    spelt = [
        [entry["token"] for entry in chunk["choices"][0]["logprobs"]["content"]]
        for chunk in found
        if chunk["choices"][0]["logprobs"]
    ]
    assert [token for chunk in spelt for token in chunk] == ["t1000", "t1001", "t1002"]


def test_a_stop_string_over_pieces_never_shows() -> None:
    whole = ask(LocalEdge(), "POST", TEXT, body={"prompt": "x", "max_tokens": 40, "seed": 3})
    text = whole.json()["choices"][0]["text"]
    body = {"prompt": "x", "max_tokens": 40, "seed": 3, "stop": [text[20:25]], "stream": True}
    said = ""
    for chunk in chunks(ask(LocalEdge(), "POST", TEXT, body=body).text):
        said += chunk["choices"][0]["text"]
        assert text[20:21] not in said[20:]
    assert said == text[:20]


def test_no_provisional_token_in_a_plain_stream() -> None:
    tail: list[Step] = [
        started(),
        token(0, "sure"),
        Provisional(position=1, id=9, text="MAYBE", t_ms=1.0),
        Retract(position=1),
        token(1, "!"),
        done(2),
    ]
    assert "MAYBE" not in raw(tail, CHAT)
    assert "retract" not in raw(tail, CHAT)
    found = chunks(raw(tail, CHAT, outrider={"retract": True}))
    notes = [chunk["outrider"] for chunk in found if "type" in chunk.get("outrider", {})]
    assert notes == [
        {"type": "provisional", "position": 1, "id": 9, "text": "MAYBE"},
        {"type": "retract", "position": 1},
    ]
    final = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found)
    assert final == "sure!"


def test_a_fork_is_labelled_from_its_position() -> None:
    found = chunks(raw(FORK, CHAT))
    assert [chunk["model"] for chunk in found] == ["big", "big", *["big+small"] * 3]
    note = found[2]["outrider"]
    assert (note["mixed"], note["mixed_from"], note["model_served"]) == (True, 1, "big+small")
    about = found[-1]["outrider"]
    assert (about["mixed"], about["mixed_from"], about["exact"]) == (True, 1, False)


def test_an_answer_of_the_small_model_alone_names_it() -> None:
    alone: list[Step] = [
        started(),
        Forked(position=0, model="small", reason="no cloud"),
        token(0, "x", source="edge"),
        done(1, mixed_from=0),
    ]
    answer = ask(ScriptedEdge(alone), "POST", TEXT, body={"prompt": "x"}).json()
    assert answer["model"] == answer["outrider"]["model_served"] == "small"


def test_an_error_on_the_way_ends_the_stream_in_words() -> None:
    text = raw([started(), token(0, "a"), LinkLost("the link died")], CHAT)
    assert "[DONE]" not in text
    last = chunks(text)[-1]
    assert last["error"]["code"] == "link_lost"
    assert chunks(text)[-2]["choices"][0]["delta"] == {"content": "a"}


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_an_answer_that_failed_has_no_finish_reason(reason: FinishReason) -> None:
    failed = done(1, reason=reason, error="link_lost")
    text = raw([started(), token(0, "a"), failed], CHAT)
    assert "[DONE]" not in text
    assert "error" in chunks(text)[-1]
    assert not [c for c in chunks(text)[:-1] if c["choices"][0]["finish_reason"]]


def test_a_stream_without_an_end_says_so() -> None:
    text = raw([started(), token(0, "a")], CHAT)
    assert chunks(text)[-1]["error"]["code"] == "internal"


def test_an_error_before_the_first_chunk_keeps_its_status() -> None:
    full = ScriptedEdge([Overloaded("full", retry_after_s=1.0)])
    answer = ask(full, "POST", CHAT, body={"messages": HI, "stream": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


# --- over a real socket, in one loop -----------------------------------------------------------


@asynccontextmanager
async def listening(edge: LocalEdge, watch: Stopwatch) -> AsyncIterator[httpx2.AsyncClient]:
    server = ApiServer(build(edge, timeout=watch.timeout), drain_s=1)
    await server.start("127.0.0.1", 0)
    try:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            yield client
    finally:
        await server.stop()


def test_pings_in_silence_and_only_then() -> None:
    async def run() -> None:
        watch, gate = Stopwatch(), asyncio.Event()
        edge = ScriptedEdge([started(), gate.wait, token(0, "a"), done(1)])
        body = {"messages": HI, "stream": True}
        async with (
            listening(edge, watch) as client,
            client.stream("POST", CHAT, json=body) as answer,
        ):
            lines = answer.aiter_lines()
            assert '"role":"assistant"' in await anext(lines)
            assert await anext(lines) == ""
            await watch.advance(14.9)
            await watch.advance(0.1)
            assert await anext(lines) == ": ping"
            assert await anext(lines) == ""
            gate.set()
            assert '"content":"a"' in await anext(lines)

    asyncio.run(run())


def test_silence_before_the_first_token_pings_too() -> None:
    async def run() -> None:
        watch, gate = Stopwatch(), asyncio.Event()
        edge = ScriptedEdge([gate.wait, started(), token(0, "a"), done(1)])
        body = {"prompt": "x", "stream": True}
        async with listening(edge, watch) as client:
            request = client.build_request("POST", TEXT, json=body)
            sending = asyncio.create_task(client.send(request, stream=True))
            await watch.advance(15)
            answer = await sending
            lines = answer.aiter_lines()
            assert await anext(lines) == ": ping"
            gate.set()
            assert "data: [DONE]" in [line async for line in lines]

    asyncio.run(run())


async def until_closed(edge: ScriptedEdge) -> None:
    while not edge.closed:
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", [CHAT, "/outrider/v1/generate"])
def test_hang_up_cancels_upstream(path: str) -> None:
    async def run() -> None:
        never = asyncio.Event()
        edge = ScriptedEdge([started(), token(0, "a"), never.wait])
        body = {"messages": HI, "stream": True}
        async with listening(edge, Stopwatch()) as client:
            async with client.stream("POST", path, json=body) as answer:
                await anext(answer.aiter_lines())
                assert edge.closed == 0
            await asyncio.wait_for(until_closed(edge), 10)

    asyncio.run(run())


def test_hang_up_of_a_whole_answer_cancels_upstream() -> None:
    async def run() -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def begin() -> None:
            begun.set()

        edge = ScriptedEdge([begin, never.wait])
        async with listening(edge, Stopwatch()) as client:
            asking = asyncio.create_task(client.post(TEXT, json={"prompt": "x"}))
            await begun.wait()
            asking.cancel()
            await asyncio.wait_for(until_closed(edge), 10)

    asyncio.run(run())


def test_a_slow_reader_stops_the_work() -> None:
    """The buffer holds 64 events; past it the service is not asked for more."""

    async def run() -> None:
        from outrider.edge.api.flow import Flow

        given = 0

        async def endless() -> AsyncIterator[StreamEvent]:
            nonlocal given
            while True:
                given += 1
                yield token(given, "x")

        async with Flow([endless()], silence_s=15, buffer=64, timeout=asyncio.timeout) as flow:
            batches = flow.batches()
            first = await anext(batches)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(first) <= 65
            assert given <= 2 * 65 + 1

    asyncio.run(run())


def test_slots_are_free_after_hang_up() -> None:
    async def run() -> None:
        edge = LocalEdge()
        async with listening(edge, Stopwatch()) as client:
            body = {"prompt": "x", "stream": True, "n": 4}
            async with client.stream("POST", TEXT, json=body) as answer:
                await anext(answer.aiter_lines())
                assert edge.engine.statistics().slots_open == 4
            while edge.engine.statistics().slots_open:
                await asyncio.sleep(0)
        edge.engine.check_integrity()

    asyncio.run(run())
