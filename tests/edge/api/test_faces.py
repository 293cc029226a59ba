"""The other APIs: the same answers in other words, and refusals that name their own fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from outrider.edge.api.settings import ApiSettings
from outrider.errors import LinkLost
from outrider.testing.local_edge import LocalEdge
from outrider.testing.scripted_edge import ScriptedEdge, started, token

from .conftest import Ask, ask
from .speaking import CLOCK, HERMES, WEATHER, face, marked, said, speaker

HI: Any = [{"role": "user", "content": "hi"}]
CALL = 'So: <tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
CITY = {"city": "Ulm"}


def events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line[6:]) for line in lines]


# --- Ollama ------------------------------------------------------------------------------------


def test_ollama_streams_unless_told_otherwise(post: Ask) -> None:
    body = {"messages": HI, "options": {"num_predict": 4, "seed": 1, "top_k": 0}}
    whole = post("/api/chat", stream=False, **body).json()
    lines = [json.loads(line) for line in post("/api/chat", **body).text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert [line["done"] for line in lines[:-1]] == [False] * (len(lines) - 1)
    assert (lines[-1]["done"], lines[-1]["done_reason"], whole["eval_count"]) == (True, "length", 4)


@pytest.mark.parametrize("stream", [True, False])
def test_ollama_calls_are_whole(stream: bool) -> None:  # noqa: FBT001
    edge = speaker(face(HERMES), said(CALL, size=3))
    body = {"messages": HI, "tools": [WEATHER], "stream": stream}
    text = ask(edge, "POST", "/api/chat", body=body).text
    messages = [json.loads(line)["message"] for line in text.splitlines()]
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    assert calls == [{"function": {"name": "weather", "arguments": CITY}}]
    assert "".join(message["content"] for message in messages) == "So:"


def test_ollama_generate_raw_and_templated(post: Ask) -> None:
    options = {"num_predict": 5, "temperature": 0}
    raw = post("/api/generate", prompt="x", raw=True, stream=False, options=options).json()
    plain = post("/v1/completions", prompt="x", max_tokens=5, temperature=0).json()
    assert raw["response"] == plain["choices"][0]["text"]
    chat = post("/api/generate", prompt="x", system="s", stream=False, options=options).json()
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    whole = post("/v1/chat/completions", messages=turns, max_tokens=5, temperature=0).json()
    assert chat["response"] == whole["choices"][0]["message"]["content"]
    assert post("/api/generate", keep_alive=0).json()["done_reason"] == "unload"
    assert post("/api/chat", model="local/fake").json()["done_reason"] == "load"


def test_ollama_format(post: Ask) -> None:
    answer = post("/api/chat", messages=HI, format=SCHEMA, stream=False).json()
    assert json.loads(answer["message"]["content"]) == {"x": 1}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("chat", {"messages": HI, "options": {"num_predict": 0}}, "options.num_predict"),
        ("chat", {"messages": HI, "options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ("chat", {"messages": HI, "options": {"mirostat": 2}}, "options.mirostat"),
        ("chat", {"messages": HI, "options": []}, "options"),
        ("chat", {"messages": HI, "think": True}, "think"),
        ("chat", {"messages": HI, "format": "xml"}, "format"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["a"]}]}, "images"),
        ("chat", {"messages": "x"}, "messages"),
        ("chat", {"messages": [7]}, "messages[0]"),
        ("chat", {"messages": HI, "stream": "no"}, "stream"),
        ("generate", {"prompt": "x", "template": "y"}, "template"),
        ("generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("generate", {"prompt": 7}, "prompt"),
    ],
)
def test_ollama_refusals_are_one_sentence(path: str, body: dict[str, Any], named: str) -> None:
    answer = ask(LocalEdge(), "POST", f"/api/{path}", body=body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]


def test_ollama_errors_on_the_way() -> None:
    edge = ScriptedEdge([started(), token(0, "a"), LinkLost("the link died")])
    lines = ask(edge, "POST", "/api/chat", body={"messages": HI}).text.splitlines()
    assert json.loads(lines[-1]) == {"error": "the link died"}
    missing = ask(LocalEdge(), "POST", "/api/show", body={"model": "none"})
    assert missing.status_code == 404 and isinstance(missing.json()["error"], str)


# --- Anthropic ---------------------------------------------------------------------------------


def test_messages_whole_and_streamed() -> None:
    edge = speaker(face(HERMES), said(CALL, size=3))
    tool = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
    body = {"messages": HI, "max_tokens": 9, "tools": [tool], "system": "s"}
    whole = ask(edge, "POST", "/v1/messages", body=body).json()
    text, use = whole["content"]
    assert text == {"type": "text", "text": "So:"}
    assert (use["name"], use["input"], whole["stop_reason"]) == ("weather", CITY, "tool_use")
    assert edge.asked[0].prompt[0] == {"role": "system", "content": "s"}
    found = events(ask(edge, "POST", "/v1/messages", body={**body, "stream": True}).text)
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    pieces = [event["delta"].get("partial_json", "") for event in found if "delta" in event]
    assert json.loads("".join(pieces)) == CITY
    assert found[0]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_blocks_become_turns() -> None:
    edge = speaker(face(HERMES), said("no"))
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "b"},
            {"type": "tool_use", "id": "i", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "i", "content": [{"type": "text", "text": "r"}]},
            {"type": "text", "text": "c"}]},
    ]  # fmt: skip
    ask(edge, "POST", "/v1/messages", body={"messages": turns, "max_tokens": 1})
    turns_: Any = edge.asked[0].prompt
    first, call, result, last = turns_
    assert (first["content"], call["content"], last["content"]) == ("a", "b", "c")
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert result == {"role": "tool", "tool_call_id": "i", "content": "r", "name": "f"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content[0].type"),
        ({"messages": "x"}, "messages"),
        ({"tools": [{"type": "computer"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
    ],
)
def test_messages_refuse_in_their_envelope(change: dict[str, Any], named: str) -> None:
    body = {"messages": HI, "max_tokens": 4, **change}
    answer = ask(LocalEdge(), "POST", "/v1/messages", body=body)
    assert answer.status_code == 400
    found = answer.json()
    assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert named in found["error"]["message"]


def test_a_key_may_come_as_anthropics_clients_send_it() -> None:
    settings = ApiSettings(api_keys=frozenset({"k"}))
    for key, status in (("k", 200), ("x", 401), ("", 401)):
        body = {"messages": HI, "max_tokens": 1}
        headers = {"x-api-key": key}
        answer = ask(
            LocalEdge(), "POST", "/v1/messages", settings=settings, headers=headers, body=body
        )
        assert answer.status_code == status


# --- responses ---------------------------------------------------------------------------------


def test_responses_events() -> None:
    edge = speaker(face(HERMES), said(CALL, size=3))
    tool = {"type": "function", **WEATHER["function"]}
    body = {"input": "hi", "tools": [tool], "stream": True}
    found = events(ask(edge, "POST", "/v1/responses", body=body).text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    added = [event["item"]["type"] for event in found if event["type"].endswith("item.added")]
    assert added == ["message", "function_call"]
    message, call = found[-1]["response"]["output"]
    assert (found[-1]["type"], message["content"][0]["text"]) == ("response.completed", "So:")
    assert (call["status"], json.loads(call["arguments"])) == ("completed", CITY)
    whole = ask(edge, "POST", "/v1/responses", body={**body, "stream": False}).json()
    assert whole["output"] == found[-1]["response"]["output"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"type": "item_reference"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type"),
        ({"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)  # fmt: skip
def test_responses_refuse_their_own_fields(body: dict[str, Any], param: str) -> None:
    answer = ask(LocalEdge(), "POST", "/v1/responses", body=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


# --- forms, holes, echo, words, aliases --------------------------------------------------------

GBNF = 'root ::= "yes" | "no"'
SCHEMA = {"type": "object", "properties": {"x": {"enum": [1]}}, "required": ["x"],
          "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "texts"),
    [
        ("guided_choice", ["yes", "no"], ("yes", "no")),
        ("guided_regex", "(ab){2}", ("abab",)),
        ("guided_grammar", 'start: "q" "r"', ("qr",)),
        ("guided_json", SCHEMA, ('{"x":1}',)),
        ("guided_json", json.dumps(SCHEMA), ('{"x":1}',)),
        ("grammar", GBNF, ("yes", "no")),
        ("json_schema", SCHEMA, ('{"x":1}',)),
        ("structured_outputs", {"choice": ["z"]}, ("z",)),
        ("structured_outputs", {"regex": "7", "disable_any_whitespace": False}, ("7",)),
        ("response_format", {"type": "json_object", "schema": SCHEMA}, ('{"x":1}',)),
    ],
)
def test_forms_are_kept(post: Ask, field: str, value: Any, texts: tuple[str, ...]) -> None:
    answer = post("/v1/completions", prompt="x", seed=1, max_tokens=200, **{field: value}).json()
    choice = answer["choices"][0]
    assert "".join(choice["text"].split()) in texts and choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", 7]}, "guided_choice[1]"),
        ({"guided_regex": "(?=a)b"}, "guided_regex"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "wizard"}}, "guided_json"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema":
            {"not": {}}}}}, "response_format"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"guided_regex": "x" * 70000}, "guided_regex"),
        ({"prediction": "x"}, "prediction"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"prediction": {"content": [{"type": "image"}]}}, "prediction.content[0].type"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"suffix": "x", "prompt": [1]}, "suffix"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}},
         "stream_options.continuous_usage_stats"),
        ({"model": "edge", "outrider": {"placement": "cloud"}}, "outrider.placement"),
    ],
)  # fmt: skip
def test_wrong_forms_name_the_field(change: dict[str, Any], param: str) -> None:
    edge = LocalEdge()
    answer = ask(edge, "POST", "/v1/completions", body={"prompt": "x", **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert edge.requests() == ()


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), [257, b"ab", 258, b"c", 259]),
        (("[PREFIX]", "[SUFFIX]"), [258, b"c", 257, b"ab"]),
    ],
)
def test_a_hole_is_filled_with_the_familys_tokens(
    names: tuple[str, ...], parts: list[int | bytes]
) -> None:
    edge = speaker(marked("", *names), said("x"))
    ask(edge, "POST", "/v1/completions", body={"prompt": "ab", "suffix": "c"})
    flat = [i for part in parts for i in (part if isinstance(part, bytes) else (part,))]
    assert edge.asked[0].prompt == tuple(flat)


def test_echo(post: Ask) -> None:
    asked = {"prompt": ["ab", "c"], "max_tokens": 3, "seed": 1}
    plain = [choice["text"] for choice in post("/v1/completions", **asked).json()["choices"]]
    echoed = post("/v1/completions", echo=True, **asked).json()["choices"]
    assert [choice["text"] for choice in echoed] == ["ab" + plain[0], "c" + plain[1]]
    stream = post("/v1/completions", echo=True, stream=True, **{**asked, "prompt": [97, 98]})
    said_ = "".join(event["choices"][0]["text"] for event in events(stream.text[:-14]))
    assert said_ == "ab" + plain[0]


def test_usage_in_every_chunk(post: Ask) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    text = post("/v1/completions", prompt="x", max_tokens=5, stream=True, stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events(text.text[:-14])]
    assert counts == sorted(counts) and counts[-1] == 5


def test_words(post: Ask) -> None:
    found = post("/tokenize", prompt="hé", return_token_strs=True).json()
    assert (found["count"], found["tokens"]) == (3, [104, 195, 169])
    assert post("/detokenize", tokens=found["tokens"]).json()["prompt"] == "hé"
    assert post("/tokenize", content="a").json()["tokens"] == [97]
    chat = post("/tokenize", messages=HI).json()
    usage = post("/v1/chat/completions", messages=HI, max_tokens=1).json()["usage"]
    assert chat["count"] == usage["prompt_tokens"]
    for path, body in (("/tokenize", {}), ("/detokenize", {"tokens": [999]}),
                       ("/detokenize", {"tokens": "x"}), ("/tokenize", {"prompt": 7})):  # fmt: skip
        assert post(path, **body).status_code == 400


@pytest.mark.parametrize("alias", ["auto", "edge", "cloud", "draft", "split"])
def test_aliases_pin_the_default_model(alias: str) -> None:
    edge = ScriptedEdge(said("x"))
    ask(edge, "POST", "/v1/chat/completions", body={"messages": HI, "model": alias})
    assert (edge.asked[0].model, edge.asked[0].placement) == ("", alias)
    assert ask(LocalEdge(), "GET", f"/v1/models/{alias}").json()["id"] == alias


PARTS = [{"type": "text", "text": "te"}, {"type": "text", "text": "xt"}]


@pytest.mark.parametrize("content", ["text", PARTS])
def test_a_prediction_reaches_the_service(content: Any) -> None:
    edge = ScriptedEdge(said("x"))
    body = {"messages": HI, "prediction": {"type": "content", "content": content}}
    ask(edge, "POST", "/v1/chat/completions", body=body)
    assert edge.asked[0].prediction == "text"


def test_deep_and_odd_bodies_are_refused() -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    for body in ({"messages": HI, "tools": [CLOCK], "tool_choice": deep},
                 {"messages": HI, "response_format": deep},
                 {"messages": HI, "guided_json": deep},
                 {"messages": [{"role": "assistant", "tool_calls": [
                     {"function": {"name": "f", "arguments": deep}}]}]}):  # fmt: skip
        assert ask(LocalEdge(), "POST", "/v1/chat/completions", body=body).status_code == 400
