"""The 200 cases of the bench on engines of a kind, without a network, and its checker."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from bench.use_schema import CASES, Case, Schema, cases, fits
from outrider.cloud.accept import accepted
from outrider.engine import Engine, Span
from outrider.engines.fake import END
from outrider.protocol.sampling import Sampling
from tests.support import fake

pytest.importorskip("llguidance", reason="masks need llguidance")

PROMPT = tuple(b"DATA = ")
MOST = 2000
DEPTH = 6


def answered(target: Engine, drafter: Engine | None, case: Case) -> tuple[list[int], int]:
    """The target's answer by passes over a chain of drafts, and how many of those held."""
    request = case.request("draft")
    sampling = Sampling(request.sampling, case.number, 0, len(PROMPT), request.constraint)
    slot, answer, held = target.open(sampling), list[int](), 0
    own = drafter.open(sampling) if drafter is not None else 0
    while END not in answer and len(answer) < MOST:
        known = (*PROMPT, *answer)
        hints = _draft(drafter, own, known) if drafter is not None else ()
        base = max(0, len(known) - 1)
        rows = (*(known if not answer else known[base:]), *hints)
        base = 0 if not answer else base
        found = target.extend([Span(slot, base, rows, len(rows) - len(hints) - 1)])[0].ids
        count = accepted(hints, found)
        held += count
        answer += found[: count + 1]
    target.close(slot)
    if drafter is not None:
        drafter.close(own)
    return answer[: answer.index(END)] if END in answer else answer, held


def _draft(drafter: Engine, slot: int, known: tuple[int, ...]) -> tuple[int, ...]:
    base = min(drafter.length(slot), len(known) - 1)
    hints: list[int] = []
    rows = known[base:]
    while len(hints) < DEPTH:
        hints.append(drafter.extend([Span(slot, base, rows, len(rows) - 1)])[0].ids[0])
        base, rows = base + len(rows), (hints[-1],)
    drafter.rewind(slot, len(known))
    return tuple(hints)


def test_200_answers_are_valid_with_drafts_and_the_same_without() -> None:
    target, drafter = fake("t"), fake("d", agreement="0.8")
    held = 0
    for case in cases(CASES, 20):
        answer, right = answered(target, drafter, case)
        held += right
        assert case.valid(bytes(answer).decode()), case.number
        if case.number % 10 == 0:
            assert answered(target, None, case) == (answer, 0), case.number
    assert held > CASES


def test_the_cases_hold_every_kind_of_thing() -> None:
    text = json.dumps([case.schema for case in cases(CASES, 20)])
    words = ("enum", "const", "pattern", "maxLength", "multipleOf", "anyOf", "items", "boolean")
    assert all(text.count(f'"{word}"') >= 10 for word in words)
    kinds = Counter(case.tool for case in cases(CASES, 20))
    assert kinds[True] == CASES // 5
    assert cases(5, 20) == cases(5, 20) != cases(5, 21)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"enum": [1, True, "a"]}, [1, True, "a"], [0, 1.0, False, "b", None]),
        ({"const": None}, [None], [0, ""]),
        ({"type": "integer", "minimum": 2, "maximum": 4}, [2, 4.0], [1, 2.5, "2", True]),
        ({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}, [0.75], [0.3, -1]),
        ({"type": "string", "pattern": "^a$"}, ["a"], ["a\n", "ba", 1]),
        ({"type": "string", "minLength": 1, "maxLength": 2}, ["é", "ab"], ["", "abc"]),
        ({"anyOf": [{"type": "null"}, {"const": 3}]}, [None, 3], [4]),
        (
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
            [[True]],
            [[], [1], [True] * 3, {}],
        ),
        (
            {"type": "object", "properties": {"a": {"const": 1}, "b": {}}, "required": ["a"]},
            [{"a": 1}],
            [{}, {"a": 2}, {"a": 1, "c": 1}, []],
        ),
    ],
)
def test_the_checker_tells_right_from_wrong(
    schema: Schema, good: list[object], bad: list[object]
) -> None:
    assert all(fits(each, schema) for each in good)
    assert not any(fits(each, schema) for each in bad)
