"""What the n-gram drafter proposes, remembers and forgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.engine import EngineSpec, Picked, Span
from outrider.engines.ngram import Index, NgramEngine, build
from outrider.errors import ConfigError, LocalProtocolError
from outrider.models import vocabulary
from outrider.models.source import resolve

SPEC = EngineSpec(model="ngram", engine="ngram", context=4096, max_slots=4)
WORDS = (11, 12, 13, 14, 15, 16, 17, 18)


@pytest.fixture(autouse=True)
def _sound() -> Iterator[None]:
    """The contract suite's check of its own engine; the tests here build theirs."""
    yield


def engine(**options: object) -> NgramEngine:
    pairs = tuple((name, str(value)) for name, value in options.items())
    return build(replace(SPEC, options=pairs))


def proposals(picked: Picked) -> list[int | None]:
    assert picked.proposes is not None
    return [i if real else None for i, real in zip(picked.ids, picked.proposes, strict=True)]


def said(target: NgramEngine, tokens: tuple[int, ...]) -> list[int | None]:
    """What is proposed after the last of the tokens, in a slot of its own that stays open."""
    slot = target.open()
    return proposals(target.extend([Span(slot, 0, tokens, len(tokens) - 1)])[0])


def test_a_repeated_prompt_is_continued() -> None:
    target = engine()
    assert said(target, (*WORDS, 99, *WORDS[:4])) == [15]


def test_nothing_is_proposed_without_a_match() -> None:
    target = engine()
    slot = target.open()
    picked = target.extend([Span(slot, 0, WORDS)])[0]
    assert proposals(picked) == [None] * len(WORDS)
    assert all(0 <= token < target.info.vocabulary_size for token in picked.ids)


def test_every_row_of_a_span_is_answered() -> None:
    target = engine()
    slot = target.open()
    target.extend([Span(slot, 0, (*WORDS, 99))])
    picked = target.extend([Span(slot, 9, WORDS[2:6])])[0]
    assert proposals(picked) == [None, 15, 16, 17]


def test_the_longest_match_wins() -> None:
    """(2, 3) was followed by 8 twice, but after 1 by 4."""
    tokens = (1, 2, 3, 4, 50, 2, 3, 8, 51, 2, 3, 8, 52, 1, 2, 3)
    assert said(engine(), tokens) == [4]


def test_the_most_frequent_wins_then_the_most_recent() -> None:
    often = (2, 3, 7, 50, 2, 3, 7, 51, 2, 3, 8, 52, 2, 3)
    recent = (2, 3, 7, 50, 2, 3, 8, 52, 2, 3)
    assert said(engine(), often) == [7]
    assert said(engine(), recent) == [8]


def test_children_are_the_continuations_best_first() -> None:
    target = engine()
    slot = target.open()
    tokens = (2, 3, 7, 50, 2, 3, 7, 51, 2, 3, 8, 52, 2, 3)
    span = Span(slot, 0, tokens, len(tokens) - 1, want="children", top_n=4)
    assert target.extend([span])[0].children == ((7, 8),)


def test_past_answers_are_drafted_from_once_they_ended() -> None:
    target = engine()
    slot = target.open()
    target.extend([Span(slot, 0, WORDS)])
    assert said(target, WORDS[:3]) == [None]
    target.close(slot)
    assert said(target, WORDS[:3]) == [14]


def test_a_past_of_nothing_remembers_nothing() -> None:
    target = engine(past=0)
    slot = target.open()
    target.extend([Span(slot, 0, WORDS)])
    target.close(slot)
    assert said(target, WORDS[:3]) == [None]
    target.check_integrity()


def test_the_past_is_bounded_and_the_oldest_goes_first() -> None:
    target = engine(past=40)
    for start in (100, 200, 300, 400, 500, 600):
        slot = target.open()
        target.extend([Span(slot, 0, tuple(range(start, start + 9)))])
        target.close(slot)
        target.check_integrity()
    assert said(target, (600, 601)) == [602]
    assert said(target, (300, 301)) == [302]
    assert said(target, (200, 201)) == [None]


def test_an_answer_longer_than_the_past_leaves_its_end() -> None:
    target = engine(past=20)
    slot = target.open()
    target.extend([Span(slot, 0, tuple(range(100, 200)))])
    target.close(slot)
    target.check_integrity()
    assert said(target, (197, 198)) == [199]
    assert said(target, (100, 101)) == [None]


def test_endings_do_not_run_into_the_next_answer() -> None:
    target = engine()
    for tokens in ((1, 2, 3, 4), (5, 6, 7, 8)):
        slot = target.open()
        target.extend([Span(slot, 0, tokens)])
        target.close(slot)
    assert said(target, (3, 4)) == [None]


def test_rewound_tokens_are_forgotten() -> None:
    target = engine()
    slot = target.open()
    target.extend([Span(slot, 0, (*WORDS, 99))])
    target.rewind(slot, 4)
    assert proposals(target.extend([Span(slot, 4, (70, 15, 16), 2)])[0]) == [None]
    assert proposals(target.extend([Span(slot, 0, (1, 2, 1, 2), 3)])[0]) == [1]
    target.check_integrity()


def test_there_are_no_probabilities() -> None:
    target = engine()
    slot = target.open()
    target.extend([Span(slot, 0, WORDS)])
    with pytest.raises(LocalProtocolError):
        target.extend([Span(slot, 2, (5,), want="logprobs")])
    assert target.length(slot) == len(WORDS)


def test_the_vocabulary_is_the_target_s() -> None:
    bundled = vocabulary.load(resolve("bundled:target"))
    target = build(replace(SPEC, model="bundled:target"))
    assert target.info.vocabulary_digest == bundled.digest
    assert target.info.vocabulary_size == len(bundled)
    told = engine(size=77, digest="ab" * 32)
    assert (told.info.vocabulary_size, told.info.vocabulary_digest) == (77, "ab" * 32)


@pytest.mark.parametrize("options", [{"past": "-1"}, {"size": "many"}, {"depth": "3"}])
def test_options_that_can_not_work_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        engine(**options)


def plainly(tokens: list[int]) -> list[int | None]:
    """Ids that may be proposed after `tokens`, by looking everywhere."""
    best: list[int | None] = []
    length = 1
    for at in range(1, len(tokens)):
        grown = 0
        while grown < at and tokens[at - 1 - grown] == tokens[-1 - grown]:
            grown += 1
        if grown >= 2 and grown >= length:
            best = [*(best if grown == length else []), tokens[at]]
            length = grown
    if not best:
        return [None]
    most = max(best.count(token) for token in best)
    return [next(token for token in reversed(best) if best.count(token) == most)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=24), st.data())
def test_the_index_finds_what_a_plain_search_finds(tokens: list[int], data: st.DataObject) -> None:
    """Also after tokens were cut off and came back."""
    index = Index()
    extra = data.draw(st.lists(st.integers(0, 3), max_size=8))
    for token in (*tokens, *extra):
        index.append(token)
    index.cut(len(tokens))
    found = index.find(tokens)
    assert (found.ids[0] if found.ids else None) == plainly(tokens)[0]


def test_a_forgotten_index_holds_nothing() -> None:
    index = Index()
    for token in (*WORDS, *WORDS):
        index.append(token)
    index.cut(0)
    assert not index._places
