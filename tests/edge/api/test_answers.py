"""Whole answers of both OpenAI endpoints, made by a real engine with real sampling."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.engine import EngineSpec, Span
from outrider.engines.fake import FakeEngine
from outrider.protocol.sampling import GREEDY, Sampling, SamplingParams
from outrider.testing.local_edge import LocalEdge
from outrider.testing.scripted_edge import ScriptedEdge, Step, done, started, token

from .conftest import Ask, ask

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def alone(prompt: str, length: int, sampling: Sampling) -> str:
    """What the engine says by itself, without any of the house around it."""
    engine = FakeEngine(EngineSpec(model="fake", engine="fake"))
    slot = engine.open(sampling)
    pending, said = tuple(prompt.encode()), b""
    for _ in range(length):
        span = Span(slot, engine.length(slot), pending, first=len(pending) - 1)
        pending = engine.extend([span])[0].ids
        said += bytes(pending)
    return said.decode()


def test_greedy_text_is_the_engines_own(post: Ask) -> None:
    answer = post(TEXT, prompt="def f", max_tokens=20, temperature=0).json()
    assert answer["choices"][0]["text"] == alone("def f", 20, Sampling(GREEDY, 0))


def test_a_long_prompt_is_read_in_several_passes(post: Ask) -> None:
    answer = post(TEXT, prompt=["ab" * 800] * 2, n=2, max_tokens=9, seed=3, temperature=0).json()
    said = alone("ab" * 200, 9, Sampling(GREEDY, 0))
    assert [choice["text"] for choice in answer["choices"]] == [said] * 4


def test_sampling_parameters_and_seed_reach_the_engine(post: Ask) -> None:
    sampled = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.01}
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.1}
    answer = post(
        TEXT,
        prompt="x",
        max_tokens=30,
        seed=5,
        top_k=9,
        logit_bias={"101": 2},
        **sampled,
        **penalties,
    ).json()
    params = SamplingParams(top_k=9, logit_bias=((101, 2.0),), **sampled, **penalties)
    assert answer["choices"][0]["text"] == alone("x", 30, Sampling(params, 5, 0, 1))


def test_the_returned_seed_makes_the_text_again(post: Ask) -> None:
    first = post(TEXT, prompt="x", max_tokens=12).json()
    seed = first["outrider"]["seed"]
    assert int(seed) >= 2**64
    again = post(TEXT, prompt="x", max_tokens=12, seed=seed).json()
    assert again["choices"][0]["text"] == first["choices"][0]["text"]


def test_chat_shape(post: Ask) -> None:
    answer = post(CHAT, messages=HI, max_tokens=4, seed=1).json()
    assert answer["object"] == "chat.completion"
    assert answer["created"] == 1700000000
    assert answer["id"] == "chatcmpl-local-1"
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 4
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 4


def test_text_parts_are_one_message(post: Ask) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    joined = post(CHAT, messages=[{"role": "user", "content": "h\ni"}], max_tokens=9, seed=2)
    split = post(CHAT, messages=[{"role": "user", "content": parts}], max_tokens=9, seed=2)
    assert split.json()["choices"] == joined.json()["choices"]


def test_several_choices_differ_and_count_the_prompt_once(post: Ask) -> None:
    answer = post(CHAT, messages=HI, max_tokens=8, n=3, seed=1).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer["usage"]["completion_tokens"] == 24
    assert len(answer["outrider"]["choices"]) == 3
    one = post(CHAT, messages=HI, max_tokens=8, seed=1).json()
    assert one["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert one["choices"][0] == answer["choices"][0]


def test_several_prompts_are_answered_side_by_side(post: Ask) -> None:
    both = post(TEXT, prompt=["x", "yy"], max_tokens=6, n=2, seed=3).json()
    apart = [post(TEXT, prompt=p, max_tokens=6, n=2, seed=3).json() for p in ("x", "yy")]
    texts = [choice["text"] for answer in apart for choice in answer["choices"]]
    assert [choice["text"] for choice in both["choices"]] == texts
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert both["usage"]["prompt_tokens"] == 3


def test_token_ids_are_a_prompt(post: Ask) -> None:
    ids = post(TEXT, prompt=[120, 121], max_tokens=5, seed=3).json()
    text = post(TEXT, prompt="xy", max_tokens=5, seed=3).json()
    lists = post(TEXT, prompt=[[120, 121]], max_tokens=5, seed=3).json()
    assert ids["choices"] == text["choices"] == lists["choices"]


def test_a_stop_string_ends_the_answer_before_it(post: Ask) -> None:
    whole = post(TEXT, prompt="x", max_tokens=40, seed=3).json()["choices"][0]["text"]
    stop = whole[10:13]
    cut = post(TEXT, prompt="x", max_tokens=40, seed=3, stop=stop).json()["choices"][0]
    assert cut == {
        "index": 0,
        "text": whole[: whole.index(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }
    several = post(TEXT, prompt="x", max_tokens=40, seed=3, stop=["\x00", stop]).json()
    assert several["choices"][0] == cut


def test_the_newer_limit_wins(post: Ask) -> None:
    answer = post(CHAT, messages=HI, max_tokens=9, max_completion_tokens=3).json()
    assert answer["usage"]["completion_tokens"] == 3


def test_chat_logprobs(post: Ask) -> None:
    answer = post(CHAT, messages=HI, max_tokens=3, seed=1, logprobs=True, top_logprobs=2).json()
    choice = answer["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]
    for entry in entries:
        assert entry["bytes"] == list(entry["token"].encode())
        assert entry["logprob"] < 0
        best = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(best) == 2 and best == sorted(best, reverse=True)
        assert entry["logprob"] <= best[0]


def test_logprobs_alone_name_no_others(post: Ask) -> None:
    answer = post(CHAT, messages=HI, max_tokens=1, logprobs=True).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_completion_logprobs(post: Ask) -> None:
    answer = post(TEXT, prompt="x", max_tokens=4, seed=1, logprobs=2).json()
    found = answer["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == answer["choices"][0]["text"]
    assert found["text_offset"] == [0, 1, 2, 3]
    assert len(found["token_logprobs"]) == 4
    assert all(len(best) == 2 for best in found["top_logprobs"])


def test_a_token_that_is_no_character_is_spelt_in_bytes() -> None:
    force = {"195": 900}
    answer = ask(
        LocalEdge(),
        "POST",
        CHAT,
        body={"messages": HI, "max_tokens": 1, "logprobs": True, "logit_bias": force},
    ).json()["choices"][0]
    assert answer["message"]["content"] == "\N{REPLACEMENT CHARACTER}"
    assert answer["logprobs"]["content"][0]["token"] == "bytes:\\xc3"
    assert answer["logprobs"]["content"][0]["bytes"] == [195]


def test_a_character_of_several_tokens_is_whole_in_text() -> None:
    steps: list[Step] = [started(), token(0, "caf"), token(1, ""), token(2, "é"), done(3)]
    answer = ask(ScriptedEdge(steps), "POST", TEXT, body={"prompt": "x"}).json()
    assert answer["choices"][0]["text"] == "café"


# --- provenance --------------------------------------------------------------------------------

EVENTS: list[Step] = [started(), token(0, "a"), token(1, "b", source="accepted"), done(2)]


@pytest.fixture
def scripted() -> dict[str, Any]:
    answer: dict[str, Any] = ask(
        ScriptedEdge(EVENTS), "POST", TEXT, body={"prompt": "x", "user": "u", "made_up": 1}
    ).json()
    return answer


def test_metrics_have_the_shape_of_vllm(scripted: dict[str, Any]) -> None:
    assert scripted["metrics"] == {
        "time_to_first_token_ms": 21.0,
        "generation_time_ms": 90.0,
        "queue_time_ms": 1.0,
        "mean_itl_ms": 90.0,
        "tokens_per_second": pytest.approx(2000 / 111),
        "speculative_decoding": {
            "mean_acceptance_length": 1.75,
            "draft_acceptance_rate": pytest.approx(3 / 7),
            "acceptance_histogram": {"0": 2, "1": 1, "2": 1},
            "num_spec_steps": 4,
            "num_accepted_draft_tokens": 3,
            "num_draft_tokens": 7,
            "num_spec_tokens": 2,
        },
    }


def test_timings_have_the_shape_of_llama_cpp(scripted: dict[str, Any]) -> None:
    assert scripted["timings"] == {
        "prompt_n": 5,
        "prompt_ms": 10.0,
        "prompt_per_token_ms": 2.0,
        "prompt_per_second": 500.0,
        "predicted_n": 2,
        "predicted_ms": 100.0,
        "predicted_per_token_ms": 50.0,
        "predicted_per_second": 20.0,
        "draft_n": 7,
        "draft_n_accepted": 3,
    }


def test_the_outrider_block_says_how_it_was_made(scripted: dict[str, Any]) -> None:
    assert scripted["outrider"] == {
        "request": "r1",
        "placement": "draft",
        "placement_ended": "cloud",
        "placement_reason": "drafting does not pay",
        "decisions": 1,
        "model_served": "big",
        "exact": True,
        "numeric_class": "0123456789abcdef0123456789abcdef",
        "mixed": False,
        "mixed_from": None,
        "class_changed_at": [],
        "seed": "7",
        "rtt_ms": 40.0,
        "bytes_up": 300,
        "bytes_down": 500,
        "energy_kind": "estimated",
        "energy_j": 1.5,
        "energy_j_per_token": 0.75,
        "passes": 6,
        "sent_draft_tokens": 9,
        "stale_draft_tokens": 2,
        "discarded_target_tokens": 1,
        "ignored": ["made_up", "user"],
    }


def test_usage_tells_accepted_predictions(scripted: dict[str, Any]) -> None:
    details = scripted["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == 3
    assert details["rejected_prediction_tokens"] == 4


def test_models_are_listed_and_found(edge: LocalEdge) -> None:
    listed = ask(edge, "GET", "/v1/models").json()
    (card,) = listed["data"]
    assert listed["object"] == "list"
    assert card["object"] == "model"
    assert (card["id"], card["created"], card["owned_by"]) == ("local/fake", 0, "outrider")
    assert card["max_model_len"] == 4096
    assert ask(edge, "GET", "/v1/models/local/fake").json() == card
    missing = ask(edge, "GET", "/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
