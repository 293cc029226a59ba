"""Every bad request is refused before anything starts, and the field is named."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.edge.api.settings import ApiSettings
from outrider.errors import (
    CloudUnreachable,
    EngineFailed,
    EngineFull,
    LinkLost,
    OutriderError,
    Overloaded,
)
from outrider.testing.local_edge import LocalEdge
from outrider.testing.scripted_edge import ScriptedEdge, Step, done, started

from .conftest import Ask, ask

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
NATIVE = "/outrider/v1/generate"
USER = {"role": "user", "content": "hi"}
SECRET = "the lighthouse keeper"

VALUES: dict[str, list[Any]] = {
    "temperature": ["warm", True, -0.1, 101, float("nan"), float("inf"), [], {}],
    "top_p": [0, -1, 1.01, "1"],
    "top_k": [0, -1, 1.5, True, "3"],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [float("nan"), "0", 1e300],
    "frequency_penalty": [float("-inf"), 101],
    "repetition_penalty": [0, -1],
    "max_tokens": [0, -1, 1.5, "9", True, 2**40],
    "max_completion_tokens": [0, -5],
    "n": [0, -1, 17, 1.5, "2", True],
    "seed": [-1, 2**128, 1.5, "x", True, "-1"],
    "stop": ["", [""], ["a"] * 5, 7, [1], {"a": 1}],
    "stream": ["yes", 1],
    "stream_options": [[], "x"],
    "logit_bias": [[], "x", {"a": 1}, {"-1": 1}, {"1.5": 1}],
    "outrider": ["x", []],
    "model": [7, ["m"]],
}

WRONG: list[tuple[str, Any, str]] = [
    (name, value, name) for name, values in VALUES.items() for value in values
] + [
    ("logit_bias", {"5": "x"}, "logit_bias.5"),
    ("logit_bias", {"5": float("nan")}, "logit_bias.5"),
    ("logit_bias", {"5": 2000}, "logit_bias"),
    ("outrider", {"placement": "moon"}, "outrider.placement"),
    ("outrider", {"fallback": 1}, "outrider.fallback"),
    ("outrider", {"exact": True}, "outrider.exact"),
    ("outrider", {"retract": "yes"}, "outrider.retract"),
    ("outrider", {"retrakt": True}, "outrider.retrakt"),
]


def refusal(path: str, body: dict[str, Any]) -> tuple[int, str, str]:
    """(status, code, param) and the check that nothing was started."""
    import json

    edge = LocalEdge()
    answer = ask(edge, "POST", path, content=json.dumps(body).encode())
    error = answer.json()["error"]
    assert edge.requests() == ()
    assert edge.engine.statistics().slots_open == 0
    assert set(error) == {"message", "type", "param", "code", "outrider"}
    assert error["type"] == "invalid_request_error"
    return answer.status_code, error["code"], error["param"]


@pytest.mark.parametrize(("name", "value", "param"), WRONG)
def test_wrong_values_name_the_field(name: str, value: Any, param: str) -> None:
    body = {"prompt": "x", name: value}
    assert refusal(TEXT, body) == (400, "invalid_request", param)


@pytest.mark.parametrize(
    "prompt", [None, "", [], 7, {}, [""], [[]], [None], [1, "a"], [-1], [True], [2**40], [1.0]]
)
def test_prompts_that_are_none(prompt: Any) -> None:
    assert refusal(TEXT, {"prompt": prompt}) == (400, "invalid_request", "prompt")


def test_an_id_beyond_the_vocabulary() -> None:
    assert refusal(TEXT, {"prompt": [5, 257]}) == (400, "invalid_request", "prompt")


def test_too_many_prompts() -> None:
    assert refusal(TEXT, {"prompt": ["x"] * 17}) == (400, "invalid_request", "prompt")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([USER, {"content": "x"}], "messages[1].role"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
    ],
)
def test_messages_that_are_none(messages: Any, param: str) -> None:
    assert refusal(CHAT, {"messages": messages}) == (400, "invalid_request", param)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
        ({"role": "assistant", "content": "", "refusal": "no"}, "messages[0].refusal"),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom"}]},
            "messages[0].tool_calls[0].type",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]},
            "messages[0].content[1].type",
        ),
    ],
)
def test_messages_of_other_kinds(message: Any, param: str) -> None:
    assert refusal(CHAT, {"messages": [message]}) == (400, "unsupported_parameter", param)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("reasoning_effort", "high"),
        ("suffix", "tail"),
        ("best_of", 2),
        ("best_of", True),
        ("guided_whitespace_pattern", "x"),
        ("chat_template", "{{ messages }}"),
        ("ignore_eos", True),
        ("min_tokens", 3),
    ],
)
def test_what_would_change_the_answer_is_refused(name: str, value: Any) -> None:
    assert refusal(TEXT, {"prompt": "x", name: value}) == (400, "unsupported_parameter", name)


def test_neutral_and_unknown_fields_are_ignored_and_named(post: Ask) -> None:
    neutral = {"tools": [], "echo": False, "best_of": 1, "suffix": "", "functions": None}
    harmless = {"user": "u", "store": True, "metadata": {}, "top_of_the_world": 1}
    plain = post(TEXT, prompt="x", max_tokens=4, seed=1).json()
    answer = post(TEXT, prompt="x", max_tokens=4, seed=1, **neutral, **harmless).json()
    assert answer["choices"] == plain["choices"]
    assert answer["outrider"]["ignored"] == ["metadata", "store", "top_of_the_world", "user"]


def test_top_logprobs_without_logprobs() -> None:
    body = {"messages": [USER], "top_logprobs": 3}
    assert refusal(CHAT, body) == (400, "invalid_request", "top_logprobs")
    body = {"messages": [USER], "logprobs": True, "top_logprobs": 21}
    assert refusal(CHAT, body) == (400, "invalid_request", "top_logprobs")
    assert refusal(CHAT, {"messages": [USER], "logprobs": 3})[2] == "logprobs"
    assert refusal(TEXT, {"prompt": "x", "logprobs": 21})[2] == "logprobs"


def test_stream_options_without_stream() -> None:
    body = {"prompt": "x", "stream_options": {"include_usage": True}}
    assert refusal(TEXT, body)[2] == "stream_options"


def test_too_long_for_the_context() -> None:
    assert refusal(TEXT, {"prompt": "x" * 5000}) == (400, "context_length_exceeded", "prompt")
    body = {"prompt": "x", "max_tokens": 4096}
    assert refusal(TEXT, body) == (400, "context_length_exceeded", "prompt")
    messages = [{"role": "user", "content": "x" * 5000}]
    assert refusal(CHAT, {"messages": messages}) == (400, "context_length_exceeded", "messages")


def test_too_long_is_a_400_in_a_stream_too() -> None:
    body = {"prompt": "x" * 5000, "stream": True}
    assert refusal(TEXT, body) == (400, "context_length_exceeded", "prompt")


def test_an_unknown_model() -> None:
    assert refusal(TEXT, {"prompt": "x", "model": "m"}) == (404, "model_not_found", "model")


def test_native_takes_one_prompt() -> None:
    assert refusal(NATIVE, {"prompt": ["a", "b"]}) == (400, "invalid_request", "prompt")
    assert refusal(NATIVE, {}) == (400, "invalid_request", "prompt")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"prompt": "x"} tail',
        b"[" * 200_000,
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_json_object(content: bytes) -> None:
    answer = ask(LocalEdge(), "POST", TEXT, content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_a_body_beyond_the_limit(edge: LocalEdge) -> None:
    small = ApiSettings(max_body_bytes=100)
    fits = ask(edge, "POST", TEXT, settings=small, body={"prompt": "x" * 50, "max_tokens": 1})
    large = ask(edge, "POST", TEXT, settings=small, body={"prompt": "x" * 100})
    assert (fits.status_code, large.status_code) == (200, 413)
    assert "100 bytes" in large.json()["error"]["message"]


def test_a_body_beyond_the_limit_that_declares_nothing(url: str) -> None:
    import httpx2

    pieces = (b"x" * 65536 for _ in range(200))
    assert httpx2.post(url + TEXT, content=pieces).status_code == 413


def test_unknown_routes_and_methods_are_in_the_envelope(edge: LocalEdge) -> None:
    missing = ask(edge, "GET", "/v2/models")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = ask(edge, "GET", CHAT)
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")
    assert wrong.headers["allow"] == "POST"


# --- what the service raises -------------------------------------------------------------------


def raised(error: Exception) -> Any:
    return ask(ScriptedEdge([error]), "POST", TEXT, body={"prompt": SECRET})


def test_overload_says_when_to_come_back() -> None:
    answer = raised(Overloaded("the queue is full", retry_after_s=2.5))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.headers["retry-after-ms"] == "2500"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert "retry-after" in raised(EngineFull("no slot")).headers


def test_a_deterministic_failure_asks_not_to_be_tried_again() -> None:
    answer = raised(EngineFailed("no finite scores"))
    assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
    away = raised(CloudUnreachable("nothing answered"))
    assert away.status_code == 503
    assert "x-should-retry" not in away.headers


def test_a_bug_tells_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    answer = raised(ValueError(f"can not digest {SECRET}"))
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert SECRET not in answer.text
    assert "ValueError" in caplog.text
    assert SECRET not in caplog.text


def test_an_answer_that_ends_in_an_error() -> None:
    lost: list[Step] = [
        started(),
        done(0, reason="error", error="link_lost"),
    ]
    answer = ask(ScriptedEdge(lost), "POST", TEXT, body={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "link_lost")
    named = ScriptedEdge([*lost, LinkLost("the cloud went silent")])
    error = ask(named, "POST", TEXT, body={"prompt": "x"}).json()["error"]
    assert error["message"] == "the cloud went silent"
    vague: list[Step] = [started(), done(0, reason="cancelled")]
    assert ask(ScriptedEdge(vague), "POST", TEXT, body={"prompt": "x"}).status_code == 500


def test_an_answer_that_never_ends_is_a_bug_not_a_short_answer() -> None:
    answer = ask(ScriptedEdge([started()]), "POST", TEXT, body={"prompt": "x"})
    assert answer.status_code == 500


def test_the_parts_of_an_error_travel() -> None:
    error = OutriderError("what", why="why", effect="effect", todo="todo")
    found = raised(error).json()["error"]
    assert found["message"] == "what: why; effect; todo"
    assert found["outrider"] == {
        "code": "internal",
        "what": "what",
        "why": "why",
        "effect": "effect",
        "todo": "todo",
    }
