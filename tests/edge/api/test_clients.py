"""Real clients over a real socket: the unmodified `openai` package, and curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import pytest

from outrider.errors import EngineFailed, LinkLost, Overloaded
from outrider.testing.scripted_edge import ScriptedEdge, started, token
from outrider.testing.served import Served

openai = pytest.importorskip("openai", reason="the openai package is not installed")

HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(url: str) -> Any:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(
        model="local/fake", messages=HI, max_tokens=6, seed=1, logprobs=True, top_logprobs=1
    )
    assert len(answer.choices[0].message.content) == 6
    assert answer.usage.completion_tokens == 6
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens == 0
    assert answer.model_extra["outrider"]["seed"] == "1"
    assert len(answer.choices[0].logprobs.content) == 6


def test_stream_equals_whole(client: Any) -> None:
    asked = {"model": "local/fake", "messages": HI, "max_tokens": 20, "seed": 3}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole
    assert parts[-1].usage.completion_tokens == 20
    assert parts[-1].model_extra["metrics"]["speculative_decoding"]["num_spec_steps"] == 0


def test_naive_loops_find_a_choice_in_every_chunk(client: Any) -> None:
    stream = client.completions.create(model="local/fake", prompt="x", max_tokens=5, stream=True)
    assert len("".join(part.choices[0].text for part in stream)) == 5


def test_extra_body(client: Any) -> None:
    answer = client.completions.create(
        model="local/fake",
        prompt="x",
        max_tokens=3,
        extra_body={"top_k": 1, "outrider": {"exact": "required"}},
    )
    greedy = client.completions.create(model="local/fake", prompt="x", max_tokens=3, temperature=0)
    assert answer.choices[0].text == greedy.choices[0].text


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["local/fake"]
    assert client.models.retrieve("local/fake").owned_by == "outrider"


def test_errors_become_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="local/fake", messages=HI, n=99)
    assert (refused.value.param, refused.value.request_id[:4]) == ("n", "req-")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=HI)


def test_async_stream(url: str) -> None:
    async def run() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model="local/fake", messages=HI, max_tokens=7, stream=True
            )
            return "".join([p.choices[0].delta.content or "" async for p in stream])

    assert len(asyncio.run(run())) == 7


def test_leaving_a_stream_frees_the_service(edge: Any, client: Any) -> None:
    with client.chat.completions.create(model="local/fake", messages=HI, stream=True) as stream:
        next(iter(stream))
    for _ in range(1000):
        if not edge.engine.statistics().slots_open:
            break
        client.models.list()
    assert edge.engine.statistics().slots_open == 0


def test_an_error_in_a_stream_raises() -> None:
    with (
        Served(ScriptedEdge([started(), token(0, "a"), LinkLost("the link died")])) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client,
    ):
        stream = client.chat.completions.create(model="m", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="the link died"):
            list(stream)


@pytest.mark.parametrize(
    ("error", "tries"), [(EngineFailed("no"), 1), (Overloaded("full", retry_after_s=0.001), 3)]
)
def test_only_what_may_pass_is_tried_again(error: Exception, tries: int) -> None:
    edge = ScriptedEdge([error])
    with (
        Served(edge) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=2) as client,
    ):
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(model="m", messages=HI)
    assert len(edge.asked) == tries


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(url: str) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 5, "stream": True})
    address = f"{url}/v1/completions"
    command = ["curl", "-sN", "--noproxy", "*", "-d", body, address]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.count('"text":') >= 2
    assert out.endswith("data: [DONE]\n\n")
