"""Layouts: as they are told, as devices can hold them, and what joins."""

from __future__ import annotations

import pytest

from outrider.engine import LayerRange
from outrider.errors import ConfigError, PlanError
from outrider.stages.replan import Placed, check, describe, told
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
