"""The parts of `bench split` that decide what counts as the same."""

from __future__ import annotations

import pytest

from bench.split import Case, Counted, agreed, agreement, answer, evenly, hints_of, rate
from outrider.engine import EngineSpec
from outrider.engines.fake import FakeEngine
from outrider.protocol.sampling import SamplingParams


def test_hints_are_the_answer_with_the_last_one_spoilt() -> None:
    assert hints_of((10, 11, 12, 13), 1, 2) == (11, 12 ^ 1)
    assert hints_of((10,), 1, 3) == ()
    assert agreed((5, 6, 9), (5, 6, 7, 8)) == 2
    assert agreed((), (4,)) == 0


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0.0), SamplingParams()])
def test_an_answer_is_the_same_with_hints_and_they_save_passes(sampling: SamplingParams) -> None:
    engine = FakeEngine(EngineSpec("fake", "fake", max_slots=2))
    plain = answer(engine, Case(tuple(b"The rider"), sampling))
    passes = engine.statistics().passes
    hinted = answer(engine, Case(tuple(b"The rider"), sampling, 3), plain.ids)
    assert hinted.ids == plain.ids and len(plain.ids) == 48
    assert engine.statistics().passes - passes == passes / 3
    assert engine.statistics().slots_open == 0 and rate([plain]) > 0


def test_ranges_cover_the_model_and_answers_are_compared_place_by_place() -> None:
    assert evenly(6, 4) == "0:1,1:3,3:4,4:6"
    assert agreement((1, 2, 3, 4), (1, 2, 9, 4)) == (2, 0.75)
    assert agreement((1, 2), (1, 2)) == (2, 1.0)
    counted = Counted()
    counted.note(same=True)
    counted.note(same=False)
    assert counted.share == 0.5
