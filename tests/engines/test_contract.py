"""What every engine promises, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from outrider.engine import Engine, Picked, Span
from outrider.engines.base import BaseEngine
from outrider.engines.slots import Slot
from outrider.errors import (
    ContextExceeded,
    EngineFailed,
    EngineFull,
    InvalidRequest,
    LocalProtocolError,
)
from outrider.protocol.sampling import GREEDY, Sampling, SamplingParams, choose, prepare

PROMPT = (10, 45, 88, 120, 33, 7, 99)
SAMPLED = Sampling(SamplingParams(temperature=0.8, top_p=0.95), seed=5, prompt_length=len(PROMPT))


def decode(engine: Engine, slot: int, count: int) -> list[int]:
    """One by one."""
    answer = list(engine.extend([Span(slot, 0, PROMPT, len(PROMPT) - 1)])[0].ids)
    while len(answer) < count:
        base = len(PROMPT) + len(answer) - 1
        answer += engine.extend([Span(slot, base, (answer[-1],))])[0].ids
    return answer


@pytest.fixture(params=["greedy", "sampled"])
def sampling(request: pytest.FixtureRequest) -> Sampling:
    if request.param == "greedy":
        return Sampling(GREEDY, seed=0, prompt_length=len(PROMPT))
    return SAMPLED


def test_picks_are_a_function_of_the_prefix(engine: Engine, sampling: Sampling) -> None:
    first, second = engine.open(sampling), engine.open(sampling)
    assert decode(engine, first, 12) == decode(engine, second, 12)
    engine.close(first)
    engine.close(second)


def test_verifying_agrees_with_decoding(engine: Engine, sampling: Sampling) -> None:
    """One pass over prompt and answer picks what token-by-token decoding picked."""
    slot = engine.open(sampling)
    answer = decode(engine, slot, 12)
    rows = (*PROMPT, *answer[:-1])
    picked = engine.extend([Span(slot, 0, rows, len(PROMPT) - 1)])[0]
    engine.close(slot)
    if engine.info.exact:
        assert list(picked.ids) == answer
    else:
        assert sum(a == b for a, b in zip(picked.ids, answer, strict=True)) >= 9


def test_company_does_not_matter(engine: Engine, sampling: Sampling) -> None:
    alone = engine.open(sampling)
    expected = decode(engine, alone, 8)
    others = [engine.open(Sampling(GREEDY, seed=0)) for _ in range(2)]
    engine.extend([Span(others[0], 0, (3, 1, 4, 1, 5), 4), Span(others[1], 0, (9, 2), 1)])
    got: list[int] = []
    for step in range(8):
        base = 0 if step == 0 else len(PROMPT) + step - 1
        rows = PROMPT if step == 0 else (got[-1],)
        spans = [
            Span(others[0], 5 + step, (6,)),
            Span(alone, base, rows, len(rows) - 1),
            Span(others[1], 2, (8, 7, 6)),
        ]
        got += engine.extend(spans)[1].ids
    for slot in (alone, *others):
        engine.close(slot)
    if engine.info.exact:
        assert got == expected
    else:
        assert got[0] == expected[0]


def test_a_step_is_the_general_way_made_short(engine: Engine, sampling: Sampling) -> None:
    """Row by row through `extend`, and through the checks and plans of any pass."""
    assert isinstance(engine, BaseEngine)
    quick, plain = engine.open(sampling), engine.open(sampling)
    before = counted(engine)
    answer = decode(engine, quick, 10)
    between = counted(engine)
    assert [engine.extend([Span(plain, 0, PROMPT, len(PROMPT) - 1)])[0].ids[0]] == answer[:1]
    for at, token in enumerate(answer[:-1]):
        base = len(PROMPT) + at
        assert engine._extended([Span(plain, base, (token,))])[0].ids == (answer[at + 1],)
    assert np.array_equal(between - before, counted(engine) - between)
    assert engine.length(quick) == engine.length(plain) == len(PROMPT) + 9
    engine.close(quick)
    engine.close(plain)


def counted(engine: Engine) -> NDArray[np.int64]:
    found = engine.statistics()
    return np.array([found.passes, found.rows, found.padded_rows])


def test_a_step_that_fails_leaves_the_slot_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(engine, BaseEngine)
    slot = engine.open()
    expected = decode(engine, slot, 4)
    with monkeypatch.context() as broken:
        broken.setattr(engine, "_step", torn(engine._step))
        with pytest.raises(EngineFailed):
            engine.extend([Span(slot, len(PROMPT) + 3, (5,))])
    assert engine.length(slot) == len(PROMPT) + 3
    engine.check_integrity()
    engine.rewind(slot, len(PROMPT))
    assert engine.extend([Span(slot, len(PROMPT), (expected[0],))])[0].ids == (expected[1],)
    engine.close(slot)


def torn(step: Callable[[Span, Slot], Picked]) -> Callable[[Span, Slot], Picked]:
    """A step that runs, and fails before anyone has its result."""

    def fail(span: Span, slot: Slot) -> Picked:
        step(span, slot)
        raise EngineFailed("torn")

    return fail


def test_rewind_forgets(engine: Engine, sampling: Sampling) -> None:
    slot = engine.open(sampling)
    expected = decode(engine, slot, 6)
    engine.extend([Span(slot, len(PROMPT), (50, 60, 70))])
    assert engine.length(slot) == len(PROMPT) + 3
    engine.rewind(slot, len(PROMPT) - 1)
    picked = engine.extend([Span(slot, len(PROMPT) - 1, PROMPT[-1:])])[0]
    assert picked.ids[0] == expected[0]
    engine.close(slot)


def test_submit_and_collect_agree_with_extend(engine: Engine) -> None:
    slot, twin = engine.open(SAMPLED), engine.open(SAMPLED)
    ticket = engine.submit([Span(slot, 0, PROMPT, 2)])
    assert engine.collect(ticket) == engine.extend([Span(twin, 0, PROMPT, 2)])
    with pytest.raises(LocalProtocolError):
        engine.collect(ticket)
    engine.close(slot)
    engine.close(twin)


def test_logprobs_are_those_of_the_unprocessed_scores(engine: Engine) -> None:
    if engine.info.engine == "ngram":
        pytest.skip("an n-gram drafter has no probabilities")
    slot = engine.open(SAMPLED)
    picked = engine.extend([Span(slot, 0, PROMPT, len(PROMPT) - 2, want="logprobs", top_n=3)])[0]
    engine.close(slot)
    assert picked.logprobs is not None
    for chosen, found in zip(picked.ids, picked.logprobs, strict=True):
        assert len(found.top) == 3
        values = [value for _, value in found.top]
        assert values == sorted(values, reverse=True)
        assert dict(found.top).get(chosen, found.chosen) == found.chosen
        assert sum(np.exp(values)) <= 1.0 + 1e-9


def test_scores_lead_to_the_same_choice(engine: Engine) -> None:
    if not engine.info.scores:
        pytest.skip("this engine keeps its scores to itself")
    slot = engine.open(SAMPLED)
    picked = engine.extend([Span(slot, 0, PROMPT, len(PROMPT) - 1, want="scores")])[0]
    engine.close(slot)
    assert picked.scores is not None
    assert picked.scores.shape == (1, engine.info.vocabulary_size)
    chosen = choose(prepare(picked.scores[0], SAMPLED, None), SAMPLED, len(PROMPT))
    assert chosen == picked.ids[0]


def test_children_start_with_the_choice(engine: Engine) -> None:
    slot = engine.open(SAMPLED)
    span = Span(slot, 0, PROMPT, len(PROMPT) - 1, want="children", top_n=3)
    picked = engine.extend([span])[0]
    engine.close(slot)
    if engine.info.engine == "ngram":
        pytest.skip("an n-gram drafter knows one continuation")
    assert picked.children is not None
    assert picked.children[0][0] == picked.ids[0]
    assert len(set(picked.children[0])) == len(picked.children[0]) <= 3


def test_penalties_follow_the_path(engine: Engine) -> None:
    """A row's penalties count the rows before it in the same span."""
    params = SamplingParams(temperature=0.0, frequency_penalty=50.0)
    strict = Sampling(params, seed=0, prompt_length=len(PROMPT))
    slot = engine.open(strict)
    answer = decode(engine, slot, 8)
    if engine.info.engine != "ngram":
        assert len(set(answer)) == len(answer)
    picked = engine.extend([Span(slot, 0, (*PROMPT, *answer[:-1]), len(PROMPT) - 1)])[0]
    if engine.info.exact:
        assert list(picked.ids) == answer
    engine.close(slot)


@pytest.mark.parametrize(
    ("tokens", "first", "error"),
    [
        ((-1,), 0, InvalidRequest),
        ((10**9,), 0, InvalidRequest),
        ((), 0, LocalProtocolError),
        ((1, 2), 2, LocalProtocolError),
        (tuple([1] * 257), 0, ContextExceeded),
    ],
)
def test_bad_spans_change_nothing(
    engine: Engine, tokens: tuple[int, ...], first: int, error: type[Exception]
) -> None:
    slot = engine.open()
    engine.extend([Span(slot, 0, PROMPT)])
    with pytest.raises(error):
        engine.extend([Span(slot, 3, tokens, first)])
    assert engine.length(slot) == len(PROMPT)
    engine.close(slot)


def test_slots_end_and_are_reused(engine: Engine) -> None:
    slots = [engine.open() for _ in range(engine.info.max_slots)]
    with pytest.raises(EngineFull):
        engine.open()
    for slot in slots:
        engine.close(slot)
    with pytest.raises(LocalProtocolError):
        engine.close(slots[0])
    again = engine.open()
    assert engine.length(again) == 0
    engine.close(again)


def test_kv_moves_where_offered(engine: Engine) -> None:
    if engine.info.kv == "none":
        pytest.skip("this engine does not export KV")
    slot = engine.open(SAMPLED)
    expected = decode(engine, slot, 6)
    length = engine.length(slot)
    segment = engine.export_kv(slot, 0, length)
    engine.close(slot)
    other = engine.open(SAMPLED)
    engine.import_kv(other, segment)
    assert engine.length(other) == length
    picked = engine.extend([Span(other, length - 1, (expected[-2],))])[0]
    assert picked.ids[0] == expected[-1]
    engine.close(other)
