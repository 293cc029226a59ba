"""The SDK against the real HTTP face: the same cases for both clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

import outrider
from outrider import AsyncClient, Client, Forked, Provisional, Retract, Retry, Started, Token
from outrider.edge.api.settings import ApiSettings
from outrider.errors import (
    AccessDenied,
    ContextExceeded,
    DaemonUnreachable,
    InvalidRequest,
    LinkLost,
    NotFound,
    OutriderError,
    Overloaded,
)
from outrider.testing.local_edge import LocalEdge
from outrider.testing.scripted_edge import ScriptedEdge, Step, done, started, token
from outrider.testing.served import Served

Do = Callable[..., Any]
QUICK = Retry(first_wait_s=0.0, longest_wait_s=0.01)


class Both:
    """Calls a method of one of the two clients, and waits where that is needed."""

    def __init__(self, kind: str, url: str) -> None:
        self._kind = kind
        self._url = url

    def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        if self._kind == "sync":
            with Client(self._url, retry=QUICK) as client:
                return getattr(client, method)(*args, **options)

        async def ask() -> Any:
            async with AsyncClient(self._url, retry=QUICK) as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(ask())

    def events(self, method: str, *args: Any, **options: Any) -> list[Any]:
        if self._kind == "sync":
            with Client(self._url, retry=QUICK) as client:
                return list(getattr(client, method)(*args, **options))

        async def ask() -> list[Any]:
            async with AsyncClient(self._url, retry=QUICK) as client:
                return [event async for event in getattr(client, method)(*args, **options)]

        return asyncio.run(ask())


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def edge() -> LocalEdge:
    return LocalEdge()


@pytest.fixture
def ask(kind: str, edge: LocalEdge) -> Iterator[Both]:
    with Served(edge) as served:
        yield Both(kind, served.url)


def scripted(kind: str, steps: list[Step], method: str, *args: Any, **options: Any) -> list[Any]:
    with Served(ScriptedEdge(steps)) as served:
        return Both(kind, served.url).events(method, *args, **options)


# --- answers -----------------------------------------------------------------------------------


def test_complete(ask: Both) -> None:
    answer = ask("complete", "def f", max_tokens=12, seed=3)
    assert len(answer.text) == 12
    assert "".join(token.text for token in answer.tokens) == answer.text
    assert (answer.model, answer.seed, answer.finish_reason) == ("local/fake", "3", "length")
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 12)
    assert answer.exact and not answer.mixed
    assert answer.acceptance_rate is None


def test_the_seed_of_an_answer_makes_it_again(ask: Both) -> None:
    first = ask("complete", "x", max_tokens=12)
    assert ask("complete", "x", max_tokens=12, seed=first.seed).text == first.text
    assert ask("complete", "x", max_tokens=12).text != first.text


def test_token_ids_are_a_prompt(ask: Both) -> None:
    ids, text = (ask("complete", p, max_tokens=5, seed=1).text for p in ((120, 121), "xy"))
    assert ids == text


def test_chat_takes_a_text_or_messages(ask: Both) -> None:
    text = ask("chat", "hi", max_tokens=9, seed=1)
    messages = ask("chat", [{"role": "user", "content": "hi"}], max_tokens=9, seed=1)
    assert text.text == messages.text
    assert text.text != ask("complete", "hi", max_tokens=9, seed=1).text


def test_every_option_reaches_the_service(kind: str) -> None:
    edge = ScriptedEdge([started(), done(0)])
    with Served(edge) as served:
        Both(kind, served.url)(
            "complete",
            "x",
            model="big",
            max_tokens=9,
            temperature=0.5,
            top_p=0.9,
            top_k=7,
            min_p=0.1,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            repetition_penalty=1.1,
            logit_bias={5: 1.5},
            stop=("a", "b"),
            seed=4,
            top_logprobs=2,
            placement="draft",
            fallback="wait",
            exact="required",
            retract=True,
            prediction="def f",
            share="hidden",
            small_allowed=True,
        )
    (asked,) = edge.asked
    assert (asked.prediction, asked.share, asked.small_allowed) == ("def f", "hidden", True)
    assert asked.linger_s == 10.0
    assert (asked.model, asked.max_tokens, asked.seed, asked.top_logprobs) == ("big", 9, 4, 2)
    assert asked.stop == ("a", "b")
    params = asked.sampling
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert (params.presence_penalty, params.frequency_penalty) == (0.1, 0.2)
    assert (params.repetition_penalty, params.logit_bias) == (1.1, ((5, 1.5),))
    assert (asked.placement, asked.fallback, asked.exact_required) == ("draft", "wait", True)
    assert asked.retract


def test_several_choices(ask: Both) -> None:
    answer = ask("complete", "x", n=3, max_tokens=5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3
    assert answer.completion_tokens == 15


def test_logprobs_come_with_the_tokens(ask: Both) -> None:
    for method in ("complete", "chat"):
        answer = ask(method, "x", max_tokens=2, top_logprobs=2)
        assert all(token.logprob < 0 and len(token.top_logprobs) == 2 for token in answer.tokens)
        assert isinstance(answer.tokens[0].top_logprobs[0].bytes, bytes)


# --- streams -----------------------------------------------------------------------------------


def test_a_stream_has_the_events_of_the_answer(ask: Both) -> None:
    events = ask.events("stream", "x", max_tokens=6, seed=2)
    assert isinstance(events[0], Started)
    tokens = [event for event in events if isinstance(event, Token)]
    assert [event.position for event in tokens] == list(range(6))
    assert events[-1].finish_reason == "length"
    assert "".join(t.text for t in tokens) == ask("complete", "x", max_tokens=6, seed=2).text


TAIL: list[Step] = [
    started(),
    token(0, "sure "),
    Provisional(position=1, id=9, text="maybe ", t_ms=1.0),
    Provisional(position=2, id=9, text="not", t_ms=1.0),
    Retract(position=2),
    token(1, "certain"),
    done(2),
]


def test_provisional_tokens_are_shown_and_replaced(kind: str) -> None:
    assert [type(event) for event in scripted(kind, TAIL, "stream", "x")][2:5] == [
        Provisional,
        Provisional,
        Retract,
    ]
    with Served(ScriptedEdge(TAIL)) as served, Client(served.url) as client:
        shown = []
        with client.stream("x") as events:
            for _ in events:
                shown.append(events.shown)
            answer = events.answer()
    assert shown[1:6] == ["sure ", "sure maybe ", "sure maybe not", "sure maybe ", "sure certain"]
    assert answer.text == "sure certain"


def test_streams_take_retractions_unless_told_otherwise(kind: str) -> None:
    edge = ScriptedEdge([started(), done(0)])
    with Served(edge) as served:
        ask = Both(kind, served.url)
        ask.events("stream", "x")
        ask.events("stream_chat", "x")
        ask.events("stream", "x", retract=False)
        ask("complete", "x")
    assert [asked.retract for asked in edge.asked] == [True, True, False, False]


def test_a_mixed_answer_is_named(kind: str) -> None:
    fork: list[Step] = [
        started(),
        token(0, "a"),
        Forked(position=1, model="small", reason="patience"),
        token(1, "b", source="edge"),
        done(2, mixed_from=1),
    ]
    with Served(ScriptedEdge(fork)) as served:
        answer = Both(kind, served.url)("complete", "x")
    assert (answer.model, answer.mixed, answer.exact) == ("big+small", True, False)
    assert answer.choices[0].mixed_from == 1
    assert answer.acceptance_rate == pytest.approx(3 / 7)


def test_resume(ask: Both) -> None:
    events = ask.events("stream", "x", max_tokens=8, seed=2)
    rest = ask.events("resume", events[0].request, [5])
    assert [event.position for event in rest if isinstance(event, Token)] == [5, 6, 7]


def settled(edge: LocalEdge, client: Client) -> bool:
    """Whether the service frees the slot, within a bounded number of questions."""
    return any(
        not edge.engine.statistics().slots_open for _ in range(1000) if client.status() is not None
    )


def test_leaving_a_loop_cancels_upstream(edge: LocalEdge) -> None:
    with Served(edge) as served, Client(served.url) as client:
        for event in client.stream("x"):
            if isinstance(event, Token):
                break
        assert settled(edge, client)


def test_leaving_a_context_cancels_upstream(edge: LocalEdge) -> None:
    with Served(edge) as served, Client(served.url) as client:
        with client.stream("x") as events:
            next(iter(events))
        assert settled(edge, client)


def test_leaving_an_async_loop_cancels_upstream(edge: LocalEdge) -> None:
    async def run(url: str) -> None:
        async with AsyncClient(url) as client:
            async for event in client.stream("x"):
                if isinstance(event, Token):
                    break
            for _ in range(1000):
                if not edge.engine.statistics().slots_open:
                    break
                await client.status()

    with Served(edge) as served:
        asyncio.run(run(served.url))
        assert edge.engine.statistics().slots_open == 0


def test_a_stream_is_read_once(edge: LocalEdge) -> None:
    with Served(edge) as served, Client(served.url) as client:
        events = client.stream("x", max_tokens=3)
        assert len(list(events)) == 5, "a start, three tokens, an end"
        assert list(events) == []
        assert len(events.answer().text) == 3


def test_an_answer_of_a_stream_that_was_left(edge: LocalEdge) -> None:
    with Served(edge) as served, Client(served.url) as client:
        events = client.stream("x", max_tokens=300)
        for event in events:
            if isinstance(event, Token):
                break
        with pytest.raises(OutriderError, match="ended before"):
            events.answer()


# --- the daemon's word -------------------------------------------------------------------------


def test_status_models_requests(ask: Both) -> None:
    ask("complete", "x", max_tokens=2)
    assert ask("status").tokens_total == 2
    (card,) = ask("models")
    assert (card.id, card.role, card.context) == ("local/fake", "target", 4096)
    (state,) = ask("requests")
    assert state.committed == (2,)


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"temperature": -1}, InvalidRequest, "temperature"),
        ({"model": "none"}, NotFound, "model"),
        ({"max_tokens": 5000}, ContextExceeded, "prompt"),
        ({"exact": "yes"}, InvalidRequest, "outrider.exact"),
    ],
)
def test_errors_are_those_of_the_tree(
    ask: Both, options: dict[str, Any], error: type[InvalidRequest], param: str
) -> None:
    for method in ("complete", "chat"):
        with pytest.raises(error) as raised:
            ask(method, "x", **options)
        assert type(raised.value).code == error.code
        assert raised.value.param in (param, "messages")
    with pytest.raises(error):
        ask.events("stream", "x", **options)


def test_an_error_keeps_all_its_parts(kind: str) -> None:
    full = Overloaded("the queue is full", retry_after_s=2.5, why="64 wait", todo="come back")
    with pytest.raises(Overloaded) as raised:
        scripted(kind, [full], "stream", "x")
    assert str(raised.value) == str(full)
    assert raised.value.retry_after_s == 2.5


def test_an_error_on_the_way_comes_after_the_tokens(kind: str) -> None:
    steps: list[Step] = [started(), token(0, "a"), LinkLost("gone", why="silence")]
    with Served(ScriptedEdge(steps)) as served, Client(served.url) as client:
        seen = []
        with pytest.raises(LinkLost, match="gone"):
            for event in client.stream("x"):
                seen.append(type(event))
        assert seen == [Started, Token]
    with pytest.raises(LinkLost):
        scripted(kind, steps, "stream", "x")


def test_an_answer_that_failed_raises(kind: str) -> None:
    steps: list[Step] = [started(), done(0, reason="error", error="link_lost")]
    with Served(ScriptedEdge(steps)) as served, pytest.raises(LinkLost):
        Both(kind, served.url)("complete", "x")


def test_no_daemon(kind: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ask = Both(kind, f"http://127.0.0.1:{free.getsockname()[1]}")
    for method, args in (("complete", ("x",)), ("status", ()), ("models", ())):
        with pytest.raises(DaemonUnreachable, match="no daemon answers") as raised:
            ask(method, *args)
        assert "outrider edge" in raised.value.todo


def test_a_daemon_that_dies_on_the_way() -> None:
    class Dying(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b'{"type":"retract","position":0,"choice":0}\n'
            raise httpx2.ReadError("connection reset")

    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, stream=Dying()))
    with Client("127.0.0.1", transport=transport) as client:
        events = iter(client.stream("x"))
        assert isinstance(next(events), Retract)
        with pytest.raises(DaemonUnreachable, match="went away"):
            next(events)


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(200, text='{"type":"something_new"}\n'),
        httpx2.Response(502, text="bad gateway"),
        httpx2.Response(500, json=[1]),
    ],
)
def test_something_else_that_answers(answer: httpx2.Response) -> None:
    transport = httpx2.MockTransport(lambda request: answer)
    with Client("127.0.0.1", transport=transport) as client:
        with pytest.raises(OutriderError, match="not understood"):
            client.complete("x")
        with pytest.raises(OutriderError, match="not understood"):
            client.status()


def test_keys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ApiSettings(api_keys=frozenset({"k" * 20}))
    with Served(LocalEdge(), settings) as served:
        with pytest.raises(AccessDenied):
            Both(kind, served.url)("status")
        monkeypatch.setenv("OUTRIDER_API_KEY", "k" * 20)
        assert Both(kind, served.url)("status").schema == 1


def test_openai_is_bound_to_the_daemon(edge: LocalEdge) -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    with Served(edge) as served, outrider.openai(served.url, max_retries=0) as client:
        answer = client.completions.create(model="local/fake", prompt="x", max_tokens=4)
        assert len(answer.choices[0].text) == 4


def test_openai_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(OutriderError, match="pip install openai"):
        outrider.openai()


# --- what the SDK refuses itself ---------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_named(ask: Both, value: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask("complete", "x", temperature=value)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize("prompt", [b"bytes", bytearray(b"bytes"), None, 5, "half \ud800"])
def test_what_is_no_prompt_is_refused(ask: Both, prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask("complete", prompt, max_tokens=2)
    assert caught.value.param == "prompt"


def test_a_misspelt_option_is_not_silently_dropped(ask: Both) -> None:
    with pytest.raises(InvalidRequest, match="temprature") as caught:
        ask("complete", "x", temprature=0)
    assert caught.value.todo == "temperature"


def test_what_has_no_json_form_is_refused(ask: Both) -> None:
    with pytest.raises(InvalidRequest, match="no JSON form"):
        ask("complete", "x", max_tokens=object())
