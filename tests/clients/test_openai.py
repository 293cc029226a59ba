"""The `openai` package."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal

import pytest

from .talk import HI, MODEL, WEATHER

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def client(url: str, library: Callable[[str], Any]) -> Any:
    with library("openai").OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_and_stream(client: Any) -> None:
    asked = {"model": MODEL, "messages": HI, "max_tokens": 9, "seed": 1}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    parts = client.chat.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole


def test_async(url: str, library: Callable[[str], Any]) -> None:
    async def talk() -> str:
        async with library("openai").AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answer = await client.chat.completions.create(
                model=MODEL, messages=HI, max_tokens=9, seed=1, logprobs=True, top_logprobs=2
            )
            assert len(answer.choices[0].logprobs.content) == 9
            return str(answer.choices[0].message.content)

    assert len(asyncio.run(talk())) == 9


def test_tools_whole_and_streamed(client: Any) -> None:
    asked = {
        "model": MODEL,
        "messages": HI,
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "seed": 1,
        "max_tokens": 200,
    }
    choice = client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Ulm", "Rom")
    assert choice.finish_reason == "tool_calls"
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    assert final.message.tool_calls[0].function.name == "weather"
    history = [
        *HI,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = client.chat.completions.create(model=MODEL, messages=history, max_tokens=4)
    assert after.choices[0].finish_reason == "length"


def test_parse(client: Any, library: Callable[[str], Any]) -> None:
    pydantic = library("pydantic")
    fields: dict[str, Any] = {"city": (Literal["Ulm", "Rom"], ...), "warm": (bool, ...)}
    kind = pydantic.create_model("Found", **fields)
    answer = client.chat.completions.parse(
        model=MODEL, messages=HI, response_format=kind, seed=1, max_tokens=200
    )
    assert answer.choices[0].message.parsed.city in ("Ulm", "Rom")


def test_prediction_and_infill(client: Any, library: Callable[[str], Any]) -> None:
    answer = client.chat.completions.create(
        model="auto",
        messages=HI,
        max_tokens=4,
        prediction={"type": "content", "content": "hi"},
        extra_body={"outrider": {"placement": "auto"}},
    )
    assert answer.usage.completion_tokens == 4
    with pytest.raises(library("openai").BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="def f", suffix="return", max_tokens=4)
    assert refused.value.param == "suffix"


def test_responses(client: Any) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "hi", "max_output_tokens": 9}
    assert len(client.responses.create(**asked).output_text) == 9
    kinds = [event.type for event in client.responses.create(**asked, stream=True)]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    tool = {"type": "function", **WEATHER["function"]}
    asked |= {"tools": [tool], "tool_choice": "required", "max_output_tokens": 200}
    called = client.responses.create(**asked, parallel_tool_calls=False).output[0]
    assert (called.type, called.name) == ("function_call", "weather")
    with client.responses.stream(**asked, parallel_tool_calls=False) as stream:
        found = stream.get_final_response().output[0]
    assert json.loads(found.arguments)["city"] in ("Ulm", "Rom")
    item = {"call_id": called.call_id, "name": "weather", "arguments": called.arguments}
    turns = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", **item},
        {"type": "function_call_output", "call_id": called.call_id, "output": "sunny"},
    ]
    assert client.responses.create(model=MODEL, input=turns, max_output_tokens=3).output_text
