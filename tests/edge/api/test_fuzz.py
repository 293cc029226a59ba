"""Bodies that no client sends: every one is understood, or refused in words that name a field."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.edge.api import anthropic, grammar, ollama, parse, responses
from outrider.edge.api.fields import Fields
from outrider.edge.api.settings import ApiSettings
from outrider.errors import InvalidRequest
from outrider.models import served
from outrider.models.calls import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PLAIN

WORDS = st.sampled_from(
    """function name f tool user assistant system content text type json_schema json_object auto
    required none schema parameters object array string properties id arguments {} {"a":1} tool_use
    tool_result input messages function_call function_call_output message call_id output""".split()
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | WORDS
KEYS = WORDS | st.text(max_size=3)
VALUES: Any = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
TOOL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": WORDS}, optional={"parameters": VALUES})},
    optional={"type": WORDS},
)
TURN = st.fixed_dictionaries(
    {"role": WORDS}, optional={"content": VALUES, "tool_calls": VALUES, "tool_call_id": VALUES}
)
NAMES = """model stream stream_options max_tokens temperature stop seed n logprobs prediction
    tool_choice parallel_tool_calls response_format guided_json guided_regex guided_choice
    guided_grammar structured_outputs json_schema grammar suffix echo prompt input instructions
    system options format text outrider keep_alive think tools messages""".split()
SHAPED = st.fixed_dictionaries(
    {}, optional={"tools": st.lists(TOOL, max_size=3), "messages": st.lists(TURN, max_size=3)}
)
BODY: Any = st.builds(
    lambda odd, shaped: {**odd, **shaped},
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    SHAPED,
)
SETTINGS = ApiSettings()
VOCABULARY = served.fake("m").vocabulary


def understood(body: dict[str, Any], reader: Any) -> Any:
    """What a reader makes of a body; None when it refuses it."""
    try:
        return reader(body)
    except InvalidRequest as error:
        assert error.param and error.what and error.http_status == 400
        return None


@settings(max_examples=120, deadline=None)
@given(BODY)
def test_openai(body: dict[str, Any]) -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], **body}
    asked = understood(chat, lambda b: parse.chat(b, SETTINGS))
    understood({"prompt": "x", **body}, lambda b: parse.completion(b, SETTINGS))
    if asked is not None and asked.tools is not None:
        for form in (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PLAIN):
            content = asked.constrained[0] if asked.constrained else None
            understood({}, lambda _: grammar.of_tools(asked.tools, form, VOCABULARY, content))  # noqa: B023


@settings(max_examples=120, deadline=None)
@given(BODY)
def test_translations(body: dict[str, Any]) -> None:
    messages = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **body}
    for made in (
        understood(messages, lambda b: anthropic._body(Fields(b))),
        understood({"input": "x", **body}, lambda b: responses._body(Fields(b))),
        understood(messages, lambda b: ollama._chat(Fields(b)) | ollama._options(Fields(b))),
    ):
        if made is not None:
            understood(made, lambda b: parse.chat(b, SETTINGS))
    understood({"prompt": "x", **body}, lambda b: ollama._generate(Fields(b)))
