"""The shared way from scores to picks: the short way is the long one."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.engine import Span, Want
from outrider.engines.slots import Slot, pick
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
