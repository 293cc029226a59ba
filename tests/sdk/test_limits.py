"""How long a client waits, how often it tries, and what it raises."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest

import outrider
from outrider import Client, Retry, Timeouts, Token
from outrider.errors import (
    DaemonUnreachable,
    EngineFull,
    InvalidRequest,
    NotFound,
    OutriderError,
    TimedOut,
    by_code,
)
from outrider.protocol import events, recording
from outrider.sdk import errors as mirror
from outrider.sdk import wire
from outrider.sdk._sync import pause
from outrider.testing.scripted_edge import ScriptedEdge, Step, started, token
from outrider.testing.served import Served

DONE = (
    b'{"type":"started","request":"r","model":"m","placement":"cloud","seed":"1","exact":true,'
    b'"numeric_class":"","prompt_tokens":1}\n'
    b'{"type":"done","finish_reason":"stop","completion_tokens":0,"prompt_tokens":1,'
    b'"speculation":{},"exact":true,"mixed_from":null,"class_changed_at":[],"queue_ms":0,'
    b'"prefill_ms":0,"total_ms":1,"ttft_ms":1,"rtt_ms":null,"bytes_up":0,"bytes_down":0}\n'
)
Answers = Iterator[httpx2.Response | Exception]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited between its tries."""
    found: list[float] = []
    monkeypatch.setattr(pause, "pause", found.append)
    return found


def asking(answers: Answers, retry: Retry | None = None) -> tuple[Client, list[httpx2.Request]]:
    asked: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    transport = httpx2.MockTransport(handle)
    return Client("127.0.0.1", transport=transport, retry=retry or Retry()), asked


def full(**headers: str) -> httpx2.Response:
    return httpx2.Response(429, headers=headers, json={"error": {"message": "full"}})


def good() -> httpx2.Response:
    return httpx2.Response(200, content=DONE)


# --- trying again ------------------------------------------------------------------------------


def test_a_start_is_tried_again_after_what_the_daemon_asks(waits: list[float]) -> None:
    client, asked = asking(iter([full(**{"retry-after-ms": "1500"}), good()]))
    assert client.complete("x").finish_reason == "stop"
    assert waits == [1.5] and len(asked) == 2


def test_waits_double_and_vary(waits: list[float]) -> None:
    client, _ = asking(iter([httpx2.ConnectError("no"), httpx2.ConnectError("no"), good()]))
    client.complete("x")
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(503, headers={"x-should-retry": "false"}, json={"error": {}}),
        httpx2.Response(500, json={"error": {}}),
        httpx2.Response(400, json={"error": {}}),
        httpx2.Response(429, headers={"retry-after": "60"}, json={"error": {}}),
        httpx2.ReadError("cut"),
    ],
)
def test_what_may_have_begun_or_would_fail_again_is_not(
    answer: httpx2.Response | Exception, waits: list[float]
) -> None:
    client, asked = asking(iter([answer]))
    with pytest.raises(OutriderError):
        client.complete("x")
    assert len(asked) == 1 and waits == []


def test_what_only_reads_is_tried_again_after_a_cut(waits: list[float]) -> None:
    listing = httpx2.Response(200, json={"data": []})
    client, asked = asking(iter([httpx2.ReadError("cut"), listing]))
    assert client.models() == ()
    assert len(asked) == 2


def test_a_budget_bounds_all_tries_of_a_client(waits: list[float]) -> None:
    client, asked = asking((full() for _ in range(100)), Retry(budget=6.0))
    for _ in range(5):
        with pytest.raises(outrider.RateLimitError):
            client.complete("x")
    assert len(asked) == 5 + 3, "three retries leave half of the budget"


# --- waiting -----------------------------------------------------------------------------------


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("steps", "timeouts", "which"),
    [
        ([started(), for_ever], Timeouts(first_token_s=0.2), "first"),
        ([started(), token(0, "a"), for_ever], Timeouts(token_s=0.2), "further"),
    ],
)
def test_a_token_that_does_not_come(steps: list[Step], timeouts: Timeouts, which: str) -> None:
    edge = ScriptedEdge(steps)
    with Served(edge) as served, Client(served.url, timeouts=timeouts) as client:
        with pytest.raises(TimedOut, match=f"no {which} token") as raised:
            client.complete("x")
        assert isinstance(raised.value, outrider.APITimeoutError)
        assert any(edge.closed for _ in range(1000) if client.models()), "it was not cancelled"


def test_pings_are_asked_for_where_a_limit_needs_them() -> None:
    assert Timeouts().ping_s() is None
    assert Timeouts(first_token_s=30.0, token_s=2.0).ping_s() == 0.5
    assert Timeouts(token_s=2.0).read_s() == 2.0
    assert Timeouts().read_s() == 60.0


# --- lines -------------------------------------------------------------------------------------


def test_only_a_line_feed_ends_a_line() -> None:
    steps: list[Step] = [started(), token(0, "a\u2028b\x85c\u2029")]
    with Served(ScriptedEdge(steps)) as served, Client(served.url) as client:
        said = [event.text for event in client.stream("x") if isinstance(event, Token)]
    assert said == ["a\u2028b\x85c\u2029"]


def test_lines_are_put_together_from_any_pieces() -> None:
    lines = wire.Lines()
    assert [lines.feed(piece) for piece in (b"a", b"b\nc\n\nd")] == [[], [b"ab", b"c", b""]]
    assert lines.end() == [b"d"]


# --- errors ------------------------------------------------------------------------------------


def raised_by(answer: httpx2.Response | Exception) -> mirror.APIError:
    client, _ = asking(iter([answer] * 5), Retry(attempts=1))
    with pytest.raises(mirror.APIError) as raised:
        client.complete("x")
    return raised.value


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_each_status_raises_what_openai_raises(status: int) -> None:
    answer = httpx2.Response(status, headers={"x-request-id": "req-1"}, json={"error": {}})
    error = raised_by(answer)
    theirs = next(
        kind
        for kind in (*openai.APIStatusError.__subclasses__(), openai.APIStatusError)
        if getattr(kind, "status_code", 500 if status >= 500 else None) == min(status, 500)
    )
    assert getattr(mirror, theirs.__name__) in type(error).__mro__
    assert isinstance(error, mirror.APIStatusError)
    assert (error.status_code, error.request_id) == (status, "req-1")


def test_the_trees_have_the_same_branches() -> None:
    ours = {n: k for n, k in vars(mirror).items() if isinstance(k, type) and n.endswith("Error")}
    shared = {n for n in ours if hasattr(openai, n)} - {"OutriderError"}
    assert len(shared) >= 12
    for name in shared - {"APIError"}:
        above = [
            base.__name__ for base in getattr(openai, name).__mro__[1:] if base.__name__ in ours
        ]
        assert [b.__name__ for b in ours[name].__mro__[1:] if b.__name__ in shared] == above


def test_an_error_is_ours_and_theirs() -> None:
    parts = {"code": "engine_full", "what": "no slot", "why": "", "effect": "", "todo": ""}
    error = raised_by(httpx2.Response(429, json={"error": {"outrider": parts}}))
    assert isinstance(error, EngineFull) and isinstance(error, outrider.RateLimitError)
    assert type(error).__name__ == "EngineFull" and error.message == error.what == "no slot"
    again = copy.copy(error)
    assert type(again) is type(error) and again.what == "no slot"
    assert by_code("engine_full") is EngineFull


def test_no_daemon_is_a_connection_error() -> None:
    error = raised_by(httpx2.ConnectError("no"))
    assert isinstance(error, DaemonUnreachable) and isinstance(error, outrider.APIConnectionError)


# --- records -----------------------------------------------------------------------------------


def record(path: Path, end: bytes = b"") -> None:
    with path.open("wb") as file:
        recording.begin(file, "0.1.0", 1.0)
        for t_ms, said in ((10.0, "one"), (510.0, "two")):
            recording.add(file, events.Trouble(code="link", what=said, t_ms=t_ms))
        file.write(end)


def test_a_record_is_told_again(tmp_path: Path, waits: list[float]) -> None:
    record(tmp_path / "r.jsonl", end=b'{"type":"trou')
    with Client("127.0.0.1") as client:
        told = [getattr(event, "what", "") for event in client.replay(tmp_path / "r.jsonl")]
        assert told == ["one", "two"] and waits == []
        list(client.replay(tmp_path / "r.jsonl", speed=2.0))
    assert waits == [0.25]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, NotFound),
        ("", InvalidRequest),
        ("{}\n", InvalidRequest),
        (json.dumps({"type": "recording", "schema": 99}) + "\n", InvalidRequest),
        (json.dumps({"type": "recording", "schema": 1}) + "\nnot json\n", InvalidRequest),
    ],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, text: str | None, error: type[OutriderError]
) -> None:
    path = tmp_path / "r.jsonl"
    if text is not None:
        path.write_text(text)
    tell: Callable[[], object] = lambda: list(Client("127.0.0.1").replay(path))  # noqa: E731
    with pytest.raises(error):
        tell()
