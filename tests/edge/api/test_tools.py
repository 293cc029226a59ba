"""Tools: shown to the model, its calls found again, whole and streamed, for every family."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from outrider.models.served import Served
from outrider.protocol.stream import FinishReason
from outrider.testing.local_edge import LocalEdge

from .conftest import ask
from .speaking import (
    ARGUMENTS,
    CLOCK,
    GEMMA,
    HERMES,
    LLAMA,
    MISTRAL,
    NAMED,
    TEMPLATES,
    WEATHER,
    face,
    marked,
    said,
    speaker,
)

CHAT = "/v1/chat/completions"
HI: Any = [{"role": "user", "content": "hi"}]
CALL = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
BARE = CALL.replace("arguments", "parameters")
STRANGE = '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'
TIME = '{"name": "clock", "arguments": {}}'
CALLS = marked(MISTRAL, "[TOOL_CALLS]")
ARGS = marked(NAMED, "[TOOL_CALLS]", "[ARGS]")
TAGGED = marked(LLAMA, "<|python_tag|>")
ONE = ("", [("weather", json.loads(ARGUMENTS))])
TWO = ("", [*ONE[1], ("clock", {})])

SPOKEN: list[tuple[str, Served, tuple[str | int, ...], tuple[str, list[Any]]]] = [
    ("hermes", face(HERMES), (f"<tool_call>\n{CALL}\n</tool_call>",), ONE),
    (
        "hermes, text and two calls",
        face(HERMES),
        (f"I look.\n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{TIME}</tool_call>\n",),
        ("I look.", TWO[1]),
    ),
    ("llama", face(LLAMA), (BARE,), ONE),
    ("llama, tagged", TAGGED, (257, BARE), ONE),
    ("llama, two", face(LLAMA), (f"{BARE}; {TIME}",), TWO),
    ("mistral", CALLS, (257, f"[{CALL}]"), ONE),
    ("mistral, two", CALLS, ("So: ", 257, f" [{CALL}, {TIME}]"), ("So:", TWO[1])),
    ("mistral, marker as text", face(MISTRAL), (f"[TOOL_CALLS] [{CALL}]",), ONE),
    ("mistral, named", ARGS, (257, "weather", 258, ARGUMENTS, 257, "clock", 258, "{}"), TWO),
    ("plain", face(GEMMA), (f"\n{BARE}\n",), ONE),
    ("another order", face(HERMES), (f'<tool_call>{{"arguments": {ARGUMENTS}, "name": "weather"}}'
                                     "</tool_call>",), ONE),
    ("no call", face(HERMES), ("Just <b>text</b> <tool_cal",), ("Just <b>text</b> <tool_cal", [])),
    ("json that is no call", face(LLAMA), ('{"a": 1}',), ('{"a": 1}', [])),
    ("an unknown function", face(HERMES), (STRANGE,), (STRANGE, [])),
    ("arguments of another kind", face(LLAMA), ('{"name": "clock", "parameters": [1]}',),
     ('{"name": "clock", "parameters": [1]}', [])),
    ("broken", face(HERMES), ('<tool_call>{"name": }</tool_call>',),
     ('<tool_call>{"name": }</tool_call>', [])),
]  # fmt: skip


def answered(known: Served, parts: tuple[str | int, ...], size: int, **body: Any) -> Any:
    edge = speaker(known, said(*parts, size=size, reason=body.pop("reason", "stop")))
    found = ask(edge, "POST", CHAT, body={"messages": HI, "tools": [WEATHER, CLOCK], **body})
    assert found.status_code == 200, found.text
    return found


def folded(text: str) -> tuple[str, list[Any], str]:
    """What a client makes of a stream: content, calls, finish reason. Checks the deltas."""
    content, reason = "", ""
    calls: list[Any] = []
    for line in text.split("\n\n"):
        if not line.startswith("data: {"):
            continue
        (choice,) = json.loads(line[6:])["choices"]
        content += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for delta in choice["delta"].get("tool_calls", ()):
            if "id" in delta:
                assert delta["index"] == len(calls) and delta["type"] == "function"
                calls.append([delta["id"], delta["function"]["name"], ""])
            calls[delta["index"]][2] += delta["function"]["arguments"]
    return content, calls, reason


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("name", "known", "parts", "expected"), SPOKEN)
def test_calls_are_found(
    name: str,
    known: Served,
    parts: tuple[str | int, ...],
    expected: tuple[str, list[Any]],
    size: int,
) -> None:
    whole = answered(known, parts, size).json()["choices"][0]
    message = whole["message"]
    calls = [call["function"] for call in message.get("tool_calls", [])]
    assert (message["content"] or "") == expected[0]
    assert [(c["name"], json.loads(c["arguments"])) for c in calls] == expected[1]
    assert whole["finish_reason"] == ("tool_calls" if expected[1] else "stop")
    content, streamed, reason = folded(answered(known, parts, size, stream=True).text)
    assert content == expected[0]
    assert [(n, json.loads(a)) for _, n, a in streamed] == expected[1]
    assert reason == whole["finish_reason"]
    assert [i for i, _, _ in streamed] == [c["id"] for c in message.get("tool_calls", [])]


def test_arguments_stream_in_pieces() -> None:
    async def pause() -> None:
        for _ in range(9):
            await asyncio.sleep(0)

    steps = said(f"<tool_call>\n{CALL}\n</tool_call>", size=4)
    edge = speaker(face(HERMES), [each for step in steps for each in (step, pause)])
    body = {"messages": HI, "tools": [WEATHER], "stream": True}
    text = ask(edge, "POST", CHAT, body=body).text
    assert text.count('"tool_calls":[') > 4
    assert text.index('"role":"assistant"') < text.index('"name":"weather"')


@pytest.mark.parametrize("cut", range(12, 60, 7))
def test_a_call_that_is_cut_stays_text(cut: int) -> None:
    spoken = f"<tool_call>\n{CALL}\n</tool_call>"[:cut]
    reason: FinishReason = "length"
    whole = answered(face(HERMES), (spoken,), 5, reason=reason).json()["choices"][0]
    assert whole["message"]["content"] == spoken
    assert "tool_calls" not in whole["message"]
    assert whole["finish_reason"] == "length"


def test_ids_have_the_length_that_templates_ask_for() -> None:
    call = answered(CALLS, (257, f"[{CALL}]"), 9).json()["choices"][0]["message"]["tool_calls"][0]
    assert len(call["id"]) == 9 and call["id"].isalnum()


def test_logprobs_of_a_call_are_all_there() -> None:
    parts = (f"<tool_call>\n{CALL}\n</tool_call>",)
    edge = speaker(face(HERMES), said(*parts))
    edge.detokenize = lambda model, ids: b"t"  # type: ignore[method-assign]
    body = {"messages": HI, "tools": [WEATHER], "logprobs": True, "stream": True}
    text = ask(edge, "POST", CHAT, body=body).text
    assert text.count('"token":"t"') == len(edge.steps) - 2


@pytest.mark.parametrize("family", TEMPLATES)
def test_what_the_model_is_shown(family: str) -> None:
    edge = LocalEdge()
    edge.face = face(TEMPLATES[family])
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "abc", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "abc", "content": "noon"},
    ]  # fmt: skip
    body = {"messages": turns, "tools": [WEATHER], "return_token_strs": True}
    found = ask(edge, "POST", "/tokenize", body=body)
    assert found.status_code == 200, found.text
    text = "".join(found.json()["token_strs"])
    assert "The weather of a city." in text and "noon" in text
    if family == "plain":
        assert text.count("<start_of_turn>user") == 2, "no turn of a role it does not know"
        assert '{"name": "clock", "parameters": {}}' in text


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "clock"}}]
)
def test_a_choice_is_kept(family: str, choice: Any) -> None:
    """By the mask of a real engine, whose scores know nothing of JSON."""
    edge = LocalEdge()
    edge.face = face(TEMPLATES[family])
    strict = {**WEATHER["function"], "strict": True}
    strict["parameters"] = {
        **strict["parameters"],
        "properties": {"city": {"enum": ["Ulm", "Rom"]}, "days": {"type": "integer", "maximum": 9}},
    }
    body = {
        "messages": HI,
        "tools": [{"type": "function", "function": strict}, CLOCK],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "seed": 3,
        "max_tokens": 300,
    }
    answer = ask(edge, "POST", CHAT, body=body).json()["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    if choice == "required" and call["function"]["name"] == "weather":
        assert arguments["city"] in ("Ulm", "Rom")
    if choice != "required":
        assert (call["function"]["name"], arguments) == ("clock", {})
    assert answer["finish_reason"] == "tool_calls"


def test_none_shows_and_asks_nothing() -> None:
    edge = speaker(face(HERMES), said(f"<tool_call>{TIME}</tool_call>"))
    body = {"messages": HI, "tools": [CLOCK], "tool_choice": "none"}
    answer = ask(edge, "POST", CHAT, body=body).json()["choices"][0]
    assert "tool_calls" not in answer["message"]
    assert edge.asked[0].tools == () and edge.asked[0].constraint is None


def test_an_answer_without_a_call_keeps_to_its_format() -> None:
    edge = LocalEdge()
    edge.face = face(HERMES)
    schema = {"type": "object", "properties": {"x": {"enum": [1]}}, "required": ["x"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    body = {"messages": HI, "tools": [CLOCK], "response_format": form, "max_tokens": 90}
    for seed in range(3):
        message = ask(edge, "POST", CHAT, body={**body, "seed": seed}).json()["choices"][0][
            "message"
        ]
        assert "tool_calls" in message or json.loads(message["content"])["x"] == 1


DEEP: Any = {"type": "object"}
for _ in range(100):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [CLOCK] * 129}, "tools"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"function": {"name": "a", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters.type",
        ),
        (
            {"tools": [{"function": {"name": "a", "parameters": DEEP}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [CLOCK, {"function": {"name": "a", "parameters": {
                "properties": {"x": {"type": "wizard"}}}}}]},
            "tools[1].function.parameters",
        ),
        (
            {"tools": [{"function": {"name": "a", "strict": True, "parameters": {
                "properties": {"x": {"not": {}}}}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [CLOCK], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [7]}]}, "messages[0].tool_calls[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": 7}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": 7}]},
            "messages[0].tool_call_id",
        ),
    ],
)  # fmt: skip
def test_wrong_tools_name_the_field(change: dict[str, Any], param: str) -> None:
    edge = LocalEdge()
    answer = ask(edge, "POST", CHAT, body={"messages": HI, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert edge.requests() == ()


def test_words_for_the_model_take_no_room_in_the_grammar() -> None:
    """Agents bring many functions with long descriptions; a property may have such a name."""
    words = {"type": "string", "description": "long " * 500, "title": "t"}
    parameters = {"type": "object", "properties": {"description": words, "title": {"enum": ["a"]}},
                  "required": ["title"], "additionalProperties": False}  # fmt: skip
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}}
             for i in range(40)]  # fmt: skip
    edge = speaker(face(HERMES), said("no"))
    answer = ask(edge, "POST", CHAT, body={"messages": HI, "tools": tools})
    assert answer.status_code == 200, answer.text
    constraint = edge.asked[0].constraint
    assert constraint is not None and "long" not in constraint.text
    assert '"description": {"type": "string"}, "title": {"enum": ["a"]}' in constraint.text


def test_a_schema_that_is_not_strict_may_hold_what_can_not_be_kept() -> None:
    loose = {"type": "object", "properties": {"x": {"not": {"type": "null"}}}}
    tool = {"type": "function", "function": {"name": "a", "parameters": loose}}
    edge = speaker(face(HERMES), said("no"))
    assert ask(edge, "POST", CHAT, body={"messages": HI, "tools": [tool]}).status_code == 200
