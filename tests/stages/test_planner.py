"""From devices that answered to layers: whole where one device is best, apart where it is full."""

from __future__ import annotations

import pytest

from outrider.errors import PlanError
from outrider.models import graph
from outrider.partitioner.cost import stage_bytes
from outrider.stages.chain import StageTimes
from outrider.stages.planner import Demand, Member, choose, slowdowns
from outrider.stages.replan import check, describe, told
from tests.stages.tiny import info

DEMAND = Demand(graph.read("bundled:target"), tokens=5 * 1024, item=4.0)
WHOLE = stage_bytes(DEMAND.graph, 0, 8, DEMAND.rate, DEMAND.tokens)
NEAR, FAR = 0.002, 0.08


def layout(*members: Member) -> str:
    chosen = choose(DEMAND, members).layout
    stages = [info(p.device, p.layers, model_layers=DEMAND.graph.decoders) for p in chosen]
    check(chosen, stages)
    return describe(chosen)


def test_one_device_holds_all_where_that_is_fastest() -> None:
    assert layout(Member("a"), Member("b")) == "a=0:6"
    assert layout(Member("slow", slowdown=4.0), Member("fast")) == "fast=0:6"
    assert layout(Member("far", rtt_s=FAR), Member("near", rtt_s=NEAR, slowdown=1.5)) == "near=0:6"


def test_a_model_too_large_for_one_lies_on_as_few_as_hold_it() -> None:
    room = int(0.7 * WHOLE)
    parts = layout(Member("a", room), Member("b", room), Member("c", room)).split()
    assert len(parts) == 2
    assert {part.split("=")[0] for part in parts} <= set("abc")


def test_of_devices_that_hold_parts_the_near_and_the_fast_are_taken() -> None:
    room = int(0.7 * WHOLE)
    members = [
        Member("far", room, FAR),
        Member("a", room, NEAR),
        Member("slow", room, NEAR, 50.0),
        Member("b", room, NEAR),
    ]
    found = layout(*members)
    assert "a=" in found and "b=" in found and "far" not in found and "slow" not in found


def test_devices_that_are_too_small_together_are_told_how_much_is_missing() -> None:
    room = WHOLE // 4
    with pytest.raises(PlanError) as caught:
        choose(DEMAND, [Member("a", room), Member("b", room)])
    assert "memory" in caught.value.why and "times the memory" in caught.value.todo
    with pytest.raises(PlanError, match="no device answers"):
        choose(DEMAND, [])


def test_how_slow_a_device_is_comes_from_what_its_stages_took() -> None:
    placed = told("0:3,3:6", ["a", "b"], 6)

    def times(a: float, b: float) -> list[StageTimes]:
        return [StageTimes("a", 10, 40, a, 0, 0), StageTimes("b", 10, 40, b, 0, 0)]

    found = slowdowns(DEMAND, placed, times(0.1, 0.4))
    assert found["b"] / found["a"] == pytest.approx(4.0, rel=0.3)
    again = slowdowns(DEMAND, placed, times(0.2, 0.8))
    assert again["a"] == pytest.approx(2 * found["a"])
    assert slowdowns(DEMAND, placed, [StageTimes("a", 0, 0, 0.0, 0, 0)] * 2) == {}
    virtual = told("0:2,2:3,3:4,4:6", ["a", "b"], 6)
    assert set(slowdowns(DEMAND, virtual, times(0.1, 0.1) * 2)) == {"a", "b"}
