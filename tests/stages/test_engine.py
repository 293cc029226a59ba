"""The engine of a split model: one text with the unsplit one, also when devices go away."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from outrider.engine import Span
from outrider.errors import EngineFailed, EngineFull, PlanError
from outrider.protocol.sampling import Sampling, SamplingParams
from outrider.stages.engine import SplitEngine
from outrider.stages.replan import Layout, told
from tests.stages.tiny import LAYERS, TinyFleet

PROMPT = tuple((7 * i + 3) % 97 for i in range(50))
SAMPLINGS = (
    None,
    Sampling(SamplingParams(temperature=0.9, top_p=0.9), seed=5),
    Sampling(SamplingParams(temperature=0.7, frequency_penalty=0.5), seed=6, prompt_length=50),
)


def make(fleet: TinyFleet, layers: str = "", **more: Any) -> SplitEngine:
    layout: Layout | None = told(layers, list(fleet.fits), LAYERS) if layers else None
    ticks = itertools.count()
    return SplitEngine(fleet, layout, clock=lambda: float(next(ticks)), **more)


def whole() -> SplitEngine:
    return make(TinyFleet({"one": LAYERS}))


def answer(engine: SplitEngine, sampling: Sampling | None, count: int, hints: int = 0) -> list[int]:
    """Decode, with `hints` wrong rows behind each right one."""
    slot = engine.open(sampling)
    tokens = list(PROMPT)
    pending = PROMPT
    while len(tokens) < len(PROMPT) + count:
        base = len(tokens) - len(pending)
        rows = (*pending, *range(1, 1 + hints))
        [found] = engine.extend([Span(slot, base, rows, first=len(pending) - 1)])
        tokens.append(found.ids[0])
        pending = (found.ids[0],)
    engine.close(slot)
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("layers", ["0:3,3:6", "0:1,1:2,2:6", "0:1,1:3,3:4,4:6"])
def test_a_split_model_says_what_the_unsplit_one_says(
    layers: str, sampling: Sampling | None
) -> None:
    fleet = (
        TinyFleet({"a": 6, "b": 6})
        if layers != "0:1,1:2,2:6"
        else TinyFleet(dict.fromkeys("abc", 6))
    )
    expected = answer(whole(), sampling, 20)
    assert answer(make(fleet, layers), sampling, 20) == expected
    assert answer(make(fleet, layers, chunk=7), sampling, 20, hints=3) == expected


def test_four_ranges_on_two_devices_give_each_two_chunks() -> None:
    engine = make(TinyFleet({"a": 6, "b": 6}), "0:1,1:3,3:4,4:6")
    assert [placed.device for placed in engine.layout] == ["a", "b", "a", "b"]
    assert engine.info.device == "a=0:1 b=1:3 a=3:4 b=4:6"


def test_several_slots_share_a_pass_and_logprobs_come_through() -> None:
    spans = [Span(0, 0, PROMPT, 48, want="logprobs", top_n=2), Span(1, 0, PROMPT[:5], 4)]
    found = []
    for engine in (whole(), make(TinyFleet({"a": 6, "b": 6}), chunk=8)):
        assert [engine.open(), engine.open()] == [0, 1]
        found.append(engine.extend(spans))
    assert found[0] == found[1]
    assert len(found[1][0].logprobs or ()) == 2


def test_numeric_class_is_the_unsplit_ones_unless_bits_are_lost() -> None:
    plain = whole().info.numeric_class
    split = make(TinyFleet({"a": 6, "b": 6}), "0:3,3:6")
    assert split.info.numeric_class == plain and split.info.exact
    lossy = make(TinyFleet({"a": 6, "b": 6}), "0:3,3:6", codec="int8")
    elsewhere = make(TinyFleet({"a": 6, "b": 6}), "0:2,2:6", codec="int8")
    other = make(TinyFleet({"a": 6, "b": 6}, changed={"b": {"numeric_class": "x"}}), "0:3,3:6")
    classes = {e.info.numeric_class for e in (split, lossy, elsewhere, other)}
    assert len(classes) == 4
    inexact = make(TinyFleet({"a": 6, "b": 6}, changed={"b": {"exact": False}}))
    assert not inexact.info.exact


@pytest.mark.parametrize("what", ["weights_digest", "vocabulary_digest", "hidden_size"])
def test_a_stage_of_another_model_is_refused(what: str) -> None:
    other: dict[str, dict[str, object]] = {"b": {what: 8 if what == "hidden_size" else "other"}}
    with pytest.raises(PlanError, match="b holds a stage of another model") as caught:
        make(TinyFleet({"a": 6, "b": 6}, changed=other))
    assert what.replace("_", " ") in caught.value.why


# --- devices that go away ----------------------------------------------------------------------


@pytest.mark.parametrize("after", [4, 9, 10, 11, 23])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_device_lost_in_the_middle_changes_no_token(
    after: int, sampling: Sampling | None
) -> None:
    expected = answer(whole(), sampling, 20)
    fleet = TinyFleet({"a": 6, "b": 6, "c": 6}, loses={"b": after})
    engine = make(fleet, chunk=16)
    before = engine.info
    assert answer(engine, sampling, 20, hints=2) == expected
    assert fleet.gone == {"b"}
    assert engine.info is not before and engine.info.numeric_class == before.numeric_class
    [note] = engine.statistics().notes
    assert "b=2:4" in note.old and "b=" not in note.new and "b went away" in note.reason
    assert all(chain.closed for chain in fleet.chains[:-1])


def test_two_devices_may_go_one_after_the_other_or_in_the_same_call() -> None:
    expected = answer(whole(), None, 20)
    for loses in ({"a": 6, "b": 20}, {"b": 8, "c": 8}):
        fleet = TinyFleet({"a": 6, "b": 6, "c": 6}, loses=dict(loses))
        engine = make(fleet)
        assert answer(engine, None, 20) == expected
        assert fleet.gone == set(loses)


def test_a_loss_while_nothing_runs_is_found_by_the_next_open_or_pass() -> None:
    fleet = TinyFleet({"a": 6, "b": 6})
    engine = make(fleet)
    slot = engine.open()
    engine.extend([Span(slot, 0, PROMPT, 49)])
    fleet.gone.add("b")
    engine.close(slot)
    assert answer(engine, None, 10) == answer(whole(), None, 10)
    fleet.gone = {"a"}
    other = engine.open()
    assert other == 0 and engine.layout[0].device == "b"


def test_a_device_that_comes_back_is_used_when_planned_anew() -> None:
    fleet = TinyFleet({"a": 6, "b": 6})
    engine = make(fleet)
    fleet.gone.add("a")
    assert answer(engine, None, 5) == answer(whole(), None, 5)
    fleet.gone = {"b"}
    assert answer(engine, None, 5) == answer(whole(), None, 5)
    assert [placed.device for placed in engine.layout] == ["a"]
    assert [note.number for note in engine.statistics().notes] == [1, 2]


def test_too_little_memory_left_is_named_and_the_slots_live_until_more_joins() -> None:
    fleet = TinyFleet({"a": 3, "b": 3, "c": 2})
    engine = make(fleet)
    slot = engine.open()
    [first] = engine.extend([Span(slot, 0, PROMPT, 49)])
    fleet.gone.add("a")
    with pytest.raises(EngineFailed, match="no devices are left that can hold the model") as caught:
        engine.extend([Span(slot, 50, (first.ids[0],))])
    assert "6 layers do not fit" in caught.value.why and "'b': 3, 'c': 2" in caught.value.why
    assert engine.length(slot) == 50
    with pytest.raises(EngineFailed):
        engine.open()
    engine.check_integrity()
    fleet.gone.clear()
    [again] = engine.extend([Span(slot, 49, (PROMPT[49],))])
    assert again == first


def test_another_class_after_a_loss_is_told() -> None:
    fleet = TinyFleet(
        {"a": 6, "b": 6, "c": 6}, loses={"b": 9}, changed={"c": {"numeric_class": "other"}}
    )
    engine = make(fleet, "0:2,2:4,4:6")
    mixed = engine.info.numeric_class
    answer(engine, None, 10)
    assert engine.info.numeric_class not in (mixed, whole().info.numeric_class)


def test_a_full_engine_and_one_whose_open_failed_keep_their_books() -> None:
    engine = make(TinyFleet({"a": 6, "b": 6}))
    for _ in range(4):
        engine.open()
    with pytest.raises(EngineFull):
        engine.open()
    engine.check_integrity()
    engine.shutdown()
