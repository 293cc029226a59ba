"""The reader of calls under texts that no test thought of: no crash, nothing lost, one truth."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.edge.api.calls import CallDelta, Listening
from outrider.models.calls import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PLAIN, CallForm
from outrider.protocol.stream import Token

FORMS = (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, PLAIN)
SPECIAL = {"[TOOL_CALLS]": 1, "[ARGS]": 2, "<|python_tag|>": 3}
CRUMBS = (
    *"{}[]\":,; \n\\",
    "<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[ARGS]", '"name"', '"arguments"',
    '"parameters"', '{"name": "f", "arguments": {', '{"name": "f", "arguments": {}}', "f", "é",
    '"x": "{\\"', "null", "17",
)  # fmt: skip
VALUES: Any = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


def read(
    form: CallForm, tokens: list[Token], *, streams: bool, special: dict[str, int] | None = None
) -> tuple[str, list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, calls that were told of in deltas, calls that are whole)."""
    reader = Listening(form, frozenset({"f"}), special or {}, streams).reader("a")
    pieces = [piece for token in tokens for piece in reader.say([token])] + reader.end()
    told: dict[int, list[str]] = {}
    for piece in pieces:
        if isinstance(piece, CallDelta):
            told.setdefault(piece.index, ["", ""])[0] += piece.name
            told[piece.index][1] += piece.arguments
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    whole = [(call.name, call.arguments) for call in reader.calls]
    return text, [(name, arguments) for name, arguments in told.values()], whole


def spell(parts: list[str | int]) -> list[Token]:
    return [
        Token(position=i, id=part, text="", source="cloud", t_ms=0.0)
        if isinstance(part, int)
        else Token(position=i, id=99, text=part, source="cloud", t_ms=0.0)
        for i, part in enumerate(parts)
    ]


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    parts=st.lists(st.sampled_from(CRUMBS) | st.text(max_size=4) | st.sampled_from([1, 2, 3])),
)
def test_any_text_is_read(form: CallForm, parts: list[str | int]) -> None:
    tokens = spell(parts)
    text, told, whole = read(form, tokens, streams=False, special=SPECIAL)
    assert told == whole
    for name, arguments in whole:
        assert name == "f" and isinstance(json.loads(arguments), dict)
    if not whole:
        said = "".join(part for part in parts if isinstance(part, str))
        named = "".join(part for part in text)
        for word in SPECIAL:
            named, said = named.replace(word, ""), said.replace(word, "")
        assert "".join(named.split()) == "".join(said.split()), "nothing is lost"
    assert read(form, tokens, streams=True, special=SPECIAL)[2] == whole


@settings(max_examples=100, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    arguments=st.lists(OBJECTS, min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_calls_survive_any_cut_into_tokens(
    form: CallForm, arguments: list[dict[str, Any]], cuts: list[int]
) -> None:
    if form in (LLAMA, PLAIN):
        del arguments[1:]
    written = [json.dumps(each, ensure_ascii=False) for each in arguments]
    text = _written(form, written)
    parts: list[str | int] = []
    while text:
        size = cuts[len(parts) % len(cuts)]
        parts.append(text[:size])
        text = text[size:]
    for streams in (False, True):
        said, told, whole = read(form, spell(parts), streams=streams)
        assert said == "" and told == whole
        assert [json.loads(a) for _, a in whole] == arguments


def _written(form: CallForm, arguments: list[str]) -> str:
    calls = [f'{{"name": "f", "{form.key}": {each}}}' for each in arguments]
    if form.style == "named":
        return "".join(f"[TOOL_CALLS]f[ARGS]{each}" for each in arguments)
    if form.style == "list":
        return f"[TOOL_CALLS][{', '.join(calls)}]"
    return form.gap.join(f"{form.opener}{form.gap}{c}{form.gap}{form.closer}" for c in calls)
