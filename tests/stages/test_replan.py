"""Layouts: as they are told, as devices can hold them, and what joins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.engine import LayerRange
from outrider.errors import ConfigError, PlanError
from outrider.stages.replan import Member, Placed, by_speed, check, describe, told
from tests.stages.tiny import info


def test_ranges_are_dealt_to_devices_in_turn() -> None:
    assert describe(told("0:3,3:6", ["a", "b"], 6)) == "a=0:3 b=3:6"
    virtual = told("0:1,1:3,3:4,4:6", ["a", "b"], 6)
    assert describe(virtual) == "a=0:1 b=1:3 a=3:4 b=4:6"
    assert [p.layers.embedding for p in virtual] == [True, False, False, False]
    assert [p.layers.head for p in virtual] == [False, False, False, True]


@pytest.mark.parametrize(
    "text", ["0:3", "0:3,4:6", "1:3,3:6", "0:3,3:7", "0:3,3:3,3:6", "x", "0:6", "0:3,3:6,", ""]
)
def test_ranges_that_are_not_the_whole_model_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--layers does not spell the whole model") as caught:
        told(text, ["a", "b"], 6)
    assert "from 0 to 6" in caught.value.todo


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0.1, 10)), min_size=1, max_size=6),
    st.integers(1, 20),
)
def test_layers_go_by_speed_within_memory(given: list[tuple[int, float]], layers: int) -> None:
    members = [Member(f"d{i}", fits, speed) for i, (fits, speed) in enumerate(given)]
    if sum(fits for fits, _ in given) < layers:
        with pytest.raises(PlanError, match=f"{layers} layers do not fit"):
            by_speed(members, layers)
        return
    layout = by_speed(members, layers)
    held = {p.device: p.layers.stop - p.layers.start for p in layout}
    assert all(held[m.name] <= m.layers_that_fit for m in members if m.name in held)
    check(layout, [info(p.device, p.layers, model_layers=layers) for p in layout])
    slowest = max(n / next(m.speed for m in members if m.name == d) for d, n in held.items())
    for member in members:
        if held.get(member.name, 0) < member.layers_that_fit:
            assert (held.get(member.name, 0) + 1) / member.speed >= slowest - 1e-9


def test_a_fast_device_gets_more() -> None:
    assert describe(by_speed([Member("a", 6, 2.0), Member("b", 6)], 6)) == "a=0:4 b=4:6"


def test_embedding_and_head_may_stay_at_home() -> None:
    found = told("0:0,0:6,6:6", ["home", "away"], 6)
    assert describe(found) == "home=0:0 away=0:6 home=6:6"
    assert [(p.layers.embedding, p.layers.head) for p in found] == [
        (True, False),
        (False, False),
        (False, True),
    ]


def test_stages_that_do_not_make_a_whole_model_are_refused() -> None:
    a, b = LayerRange(0, 3, True, False), LayerRange(3, 6, False, True)
    layout = (Placed("a", a), Placed("b", b))
    check(layout, [info("", a), info("", b)])
    with pytest.raises(ConfigError):
        check(layout, [info("", LayerRange(0, 2, True, False)), info("", b)])
    with pytest.raises(PlanError, match="do not make a whole model"):
        check(layout, [info("", a), info("", LayerRange(3, 6, False, False))])
    with pytest.raises(PlanError, match="needs a stage"):
        check((), [])
