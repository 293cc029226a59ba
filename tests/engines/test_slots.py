"""The shared way from scores to picks: the short way is the long one."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.engine import EngineSpec, Span, Want
from outrider.engines.fake import FakeEngine
from outrider.engines.slots import Slot, is_step, pick
from outrider.errors import EngineFailed
from outrider.protocol.sampling import GREEDY, Sampling, SamplingParams

BIASED = SamplingParams(temperature=0.0, logit_bias=((0, 0.0),))
"""Greedy by another way: the bias changes nothing."""


def slot_of(params: SamplingParams) -> Slot:
    return Slot(0, Sampling(params, seed=3), [1, 2, 3])


@pytest.mark.parametrize("want", ["ids", "logprobs", "children", "scores"])
@pytest.mark.parametrize("first", [0, 3])
def test_plain_choices_are_those_of_the_general_way(want: Want, first: int) -> None:
    scores = np.random.default_rng(first).integers(-3, 4, (4 - first, 50)).astype(np.float32)
    scores[0, :49] = -np.inf
    span = Span(0, 3, (5, 6, 7, 8), first, want=want, top_n=2)
    assert slot_of(GREEDY).plain and not slot_of(BIASED).plain
    short, long = pick(span, slot_of(GREEDY), scores), pick(span, slot_of(BIASED), scores)
    assert short.ids == long.ids == tuple(int(np.argmax(row)) for row in scores)
    assert (short.logprobs, short.children) == (long.logprobs, long.children)
    if want == "scores":
        assert short.scores is not None and long.scores is not None
        assert short.scores.tobytes() == long.scores.tobytes() == scores.tobytes()
    else:
        assert short.scores is long.scores is None


INFO = FakeEngine(EngineSpec(model="fake", engine="fake", context=8)).info


def test_a_row_at_the_end_of_a_plain_slot_is_a_step() -> None:
    slot = slot_of(GREEDY)
    assert is_step(Span(0, 3, (5,)), slot, INFO)
    slot.tokens[:] = [1] * 7
    assert is_step(Span(0, 7, (INFO.vocabulary_size - 1,)), slot, INFO)


@pytest.mark.parametrize(
    ("span", "params"),
    [
        (Span(0, 2, (5,)), GREEDY),
        (Span(0, 4, (5,)), GREEDY),
        (Span(0, 3, ()), GREEDY),
        (Span(0, 3, (5, 6)), GREEDY),
        (Span(0, 3, (5,), first=1), GREEDY),
        (Span(0, 3, (5,), first=-1), GREEDY),
        (Span(0, 3, (5,), parents=(None,)), GREEDY),
        (Span(0, 3, (5,), want="logprobs"), GREEDY),
        (Span(0, 3, (5,), want="scores"), GREEDY),
        (Span(0, 3, (5,), want="children", top_n=1), GREEDY),
        (Span(0, 3, (-1,)), GREEDY),
        (Span(0, 3, (INFO.vocabulary_size,)), GREEDY),
        (Span(0, 3, (5,)), BIASED),
        (Span(0, 3, (5,)), SamplingParams()),
        (Span(0, 3, (5,)), SamplingParams(temperature=0.0, presence_penalty=1.0)),
    ],
)
def test_anything_else_is_no_step(span: Span, params: SamplingParams) -> None:
    assert not is_step(span, slot_of(params), INFO)


def test_a_full_slot_has_no_step() -> None:
    slot = slot_of(GREEDY)
    slot.tokens[:] = [1] * 8
    assert not is_step(Span(0, 8, (5,)), slot, INFO)


@pytest.mark.parametrize("params", [GREEDY, BIASED])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(params: SamplingParams, bad: float) -> None:
    scores = np.full((2, 9), 1.0, dtype=np.float32)
    scores[1] = -np.inf
    scores[1, 4] = bad
    with pytest.raises(EngineFailed, match="not finite"):
        pick(Span(0, 3, (5, 6)), slot_of(params), scores)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.0, presence_penalty=1.0),
        SamplingParams(temperature=0.0, frequency_penalty=1.0),
        SamplingParams(temperature=0.0, repetition_penalty=1.2),
    ],
)
def test_what_is_not_plain(params: SamplingParams) -> None:
    assert not slot_of(params).plain
