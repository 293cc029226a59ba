"""Masks: what may follow a prefix depends on its bytes alone, however the matcher came there."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import InvalidRequest
from outrider.models import grammar, source, vocabulary
from outrider.models.grammar import Grammar, Guide
from outrider.protocol.constraint import MAX_BYTES, Constraint, constrained_class
from outrider.protocol.vocabulary import Vocabulary

pytest.importorskip("llguidance", reason="masks need llguidance")

BUNDLED = vocabulary.load(source.resolve("bundled:target"))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "number", "minimum": 0, "maximum": 10},
        "kind": {"enum": ["small", "large"]},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
CONSTRAINTS = (
    Constraint("json_schema", json.dumps(SCHEMA)),
    Constraint("json_object"),
    Constraint("regex", r"[a-z]{2,5}(-[0-9]{1,3}){0,4}"),
    Constraint(
        "lark", 'start: call+\ncall: NAME "(" args? ")"\nargs: NAME ("," NAME)*\nNAME: /[a-z]+/'
    ),
)


def compiled(constraint: Constraint, found: Vocabulary = BUNDLED) -> Grammar:
    return grammar.grammars(found.digest, lambda: found).compile(constraint)


def mask(made: Grammar, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """By a matcher that has seen nothing else."""
    return Guide(made).masks(tokens, [[]])[0]


def walk(made: Grammar, seed: int, most: int = 40) -> list[int]:
    """A text of the constraint, or its beginning, in tokens drawn from the masks."""
    draw, guide, tokens = Random(seed), Guide(made), list[int]()
    while len(tokens) < most:
        ids = np.flatnonzero(guide.masks(tokens, [[]])[0]).tolist()
        tokens.append(draw.choice(ids))
        if tokens[-1] in made.ends:
            break
    return tokens


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CONSTRAINTS), st.integers(0, 10**6), st.data())
def test_a_mask_is_a_function_of_the_prefix(
    constraint: Constraint, seed: int, data: st.DataObject
) -> None:
    """Forwards, back, along hints that are forbidden, and from anywhere."""
    made = compiled(constraint)
    tokens = walk(made, seed)
    guide = Guide(made)
    for _ in range(6):
        answer = tokens[: data.draw(st.integers(0, len(tokens)))]
        hints = tokens[len(answer) : len(answer) + data.draw(st.integers(0, 5))]
        hints += data.draw(st.lists(st.integers(0, len(BUNDLED) - 1), max_size=2))
        paths = [hints[:i] for i in range(len(hints) + 1)]
        for path, got in zip(paths, guide.masks(answer, paths), strict=True):
            assert np.array_equal(got, mask(made, answer + path))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CONSTRAINTS), st.integers(0, 10**6))
def test_every_allowed_token_goes_on_and_no_other_does(constraint: Constraint, seed: int) -> None:
    """The mask against the matcher's own word for single tokens."""
    made = compiled(constraint)
    tokens = [token for token in walk(made, seed, 12) if token not in made.ends]
    matcher = made.matcher()
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    allowed = mask(made, tokens)
    for token in Random(seed).sample(range(len(BUNDLED)), 200):
        if token not in made.ends:
            assert bool(matcher.validate_tokens([token])) == allowed[token]
    assert matcher.is_accepting() == allowed[sorted(made.ends)[0]]


def test_tokens_of_any_length_may_spell_what_is_next() -> None:
    """Nothing is forced: every way to write the bytes is the model's."""
    made = compiled(Constraint("regex", "return None"))
    ids = np.flatnonzero(mask(made, []))
    spelled = {BUNDLED.tokens[i] for i in ids}
    assert {b"r", b"return"} <= spelled
    assert all(b"return None".startswith(word) for word in spelled)


def test_an_end_is_allowed_where_the_text_may_end_and_alone_where_it_must() -> None:
    made = compiled(Constraint("regex", "ab?"))
    end = BUNDLED.end[0]
    a, b = BUNDLED.tokens.index(b"a"), BUNDLED.tokens.index(b"b")
    assert not mask(made, [])[end]
    assert set(np.flatnonzero(mask(made, [a]))) == {end, b}
    assert set(np.flatnonzero(mask(made, [a, b]))) == {end}


@pytest.mark.parametrize("tail", ["forbidden", "end", "both"])
def test_behind_what_no_text_begins_with_only_an_end_is_allowed(tail: str) -> None:
    made = compiled(CONSTRAINTS[2])
    a = BUNDLED.tokens.index(b"a")
    b, end = BUNDLED.tokens.index(b"("), BUNDLED.end[0]
    path = {"forbidden": [b, a], "end": [end, a], "both": [end, b]}[tail]
    found = Guide(made).masks([a, a], [path[:1], path, []])
    assert [set(np.flatnonzero(m)) for m in found[:2]] == [{end}, {end}]
    assert np.array_equal(found[2], mask(made, [a, a]))


def test_an_end_id_that_is_spelled_as_text_is_no_text() -> None:
    words = Vocabulary((b"<", b"/s>", b"</s>", b"a"), frozenset(), None, (2,))
    made = compiled(Constraint("regex", "[a</s>]+"), words)
    assert mask(made, []).tolist() == [True, True, False, True]
    assert mask(made, [0]).tolist() == [True, True, True, True]


def test_special_ids_are_allowed_only_where_a_grammar_names_them() -> None:
    words = Vocabulary((b"a", b"<|call|>", b"<|end|>"), frozenset({1, 2}), None, (2,))
    assert mask(compiled(Constraint("regex", ".*"), words), []).tolist() == [True, False, True]
    named = compiled(Constraint("lark", 'start: <|call|> "a"'), words)
    assert mask(named, []).tolist() == [False, True, False]
    assert mask(named, [1]).tolist() == [True, False, False]


def test_two_ids_of_the_same_bytes_are_allowed_alike() -> None:
    words = Vocabulary((b"a", b"b", b"a", b"<|end|>"), frozenset({3}), None, (3,))
    made = compiled(Constraint("regex", "ab"), words)
    assert mask(made, []).tolist() == [True, False, True, False]
    assert mask(made, [2]).tolist() == mask(made, [0]).tolist() == [False, True, False, False]


def test_what_no_token_can_spell_ends_the_answer() -> None:
    words = Vocabulary((b"a", b"b", b"<|end|>"), frozenset({2}), None, (2,))
    guide = Guide(compiled(Constraint("regex", "ac|b"), words))
    found = guide.masks([], [[], [0], [1]])
    assert [m.tolist() for m in found] == [
        [True, True, False],
        [False, False, True],
        [False, False, True],
    ]


def test_models_of_one_vocabulary_that_end_otherwise_have_masks_of_their_own() -> None:
    words = Vocabulary((b"a", b"<|one|>", b"<|two|>"), frozenset({1, 2}), None, (1,))
    other = replace(words, end=(1, 2))
    assert words.digest == other.digest
    regex = Constraint("regex", "a")
    assert mask(compiled(regex, words), [0]).tolist() == [False, True, False]
    assert mask(compiled(regex, other), [0]).tolist() == [False, True, True]


def test_white_space_in_json_has_an_end() -> None:
    made = compiled(Constraint("json_object"))
    blank = BUNDLED.tokens.index(b" ")
    brace = BUNDLED.tokens.index(b"{")
    assert mask(made, [brace, *[blank] * 39])[blank]
    assert not mask(made, [brace, *[blank] * 40])[blank]


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[1]", "object or boolean"),
        ("json_schema", '{"type":"object","properties":3}', "properties must be an object"),
        ("json_schema", '{"minLength":5,"maxLength":3,"type":"string"}', "Unsatisfiable"),
        ("json_schema", "[" * 3000, "nested too deeply"),
        ("json_schema", '{"not":' * 65 + "{}" + "}" * 65, "64 levels"),
        ("json_schema", '{"type":"string","pattern":"(?<!a)b"}', "look-around"),
        ("regex", r"(a)\1", "backreferences"),
        ("lark", "start: a b", "unknown name"),
        ("lark", "begin: /a/", "start"),
    ],
)
def test_what_can_not_be_compiled_is_refused_with_the_reason(
    kind: Any, text: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compiled(Constraint(kind, text))
    error = caught.value
    assert error.param == "response_format"
    assert says.lower() in f"{error.what} {error.why}".lower()
    assert "no_forcing" not in error.why and "\n" not in error.why


def test_a_model_without_an_end_can_not_be_kept_to_anything() -> None:
    words = Vocabulary((b"a",), frozenset(), None, ())
    with pytest.raises(InvalidRequest, match="can not be kept"):
        compiled(Constraint("regex", "a"), words)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", ""),
        ("json_object", "{}"),
        ("gbnf", "root ::= a"),
        ("regex", "a" * (MAX_BYTES + 1)),
        ("regex", "\ud800"),
    ],
)
def test_a_constraint_of_no_sense_can_not_be_made(kind: Any, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Constraint(kind, text)
    assert caught.value.param == "response_format"


def test_a_constraint_that_takes_too_long_ends_typed_and_harms_no_other_answer() -> None:
    """Ambiguous repetition: the parser's rows grow with every token."""
    bad = compiled(Constraint("lark", 'start: x\nx: x x x x | "a" | "a" x "a" | '))
    a = BUNDLED.tokens.index(b"a")
    guide = Guide(bad)
    with pytest.raises(InvalidRequest) as caught:
        for count in range(200):
            guide.masks([a] * count, [[]])
    assert caught.value.param == "response_format"
    assert mask(compiled(CONSTRAINTS[0]), []).any()


def test_the_class_of_a_constrained_answer_needs_all_its_parts() -> None:
    assert constrained_class("", "masks 1") == ""
    made = {constrained_class(a, b) for a in ("x", "y") for b in ("masks 1", "masks 2")}
    assert len(made) == 4
