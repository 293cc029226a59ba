"""Questions that make no sense: each is refused by name, with what can be asked instead."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from bench.plan_cases import device, graph, link
from outrider.errors import InvalidProfile, PlanError, Unplannable
from outrider.partitioner.check import check
from outrider.partitioner.plan import Constraints, Problem, Workload

GOOD = Problem(
    graph(4),
    (device("home", 1e10, 1 << 40), device("fast", 1e11, 1 << 40)),
    (link("home", "fast"),),
    "home",
)
NAN = float("nan")


def unit(**fields: Any) -> Problem:
    units = (GOOD.graph.units[0], replace(GOOD.graph.units[1], **fields), *GOOD.graph.units[2:])
    return replace(GOOD, graph=replace(GOOD.graph, units=units))


def edges(*pairs: tuple[int, int]) -> Problem:
    return replace(GOOD, graph=replace(GOOD.graph, edges=pairs))


def rate(**fields: Any) -> Problem:
    home = GOOD.devices[0]
    changed = replace(home, rates=(replace(home.rates[0], **fields),))
    return replace(GOOD, devices=(changed, GOOD.devices[1]))


def home(**fields: Any) -> Problem:
    return replace(GOOD, devices=(replace(GOOD.devices[0], **fields), GOOD.devices[1]))


def wire(**fields: Any) -> Problem:
    return replace(GOOD, links=(replace(GOOD.links[0], **fields),))


def limits(**fields: Any) -> Problem:
    return replace(GOOD, constraints=Constraints(**fields))


def load(**fields: Any) -> Problem:
    return replace(GOOD, workload=Workload(**fields))


def test_a_sensible_question_passes() -> None:
    check(GOOD)


INVALID = {
    "nan flops": (unit(flops=NAN), "flops"),
    "negative weight": (unit(weight_bytes=-1), "weight_bytes"),
    "no units": (replace(GOOD, graph=replace(GOOD.graph, units=())), "empty"),
    "disconnected": (edges((0, 1), (1, 2), (3, 4), (4, 5)), "disconnected"),
    "unread": (edges((0, 1), (1, 2), (1, 3), (3, 4), (4, 5)), "disconnected"),
    "backward edge": (edges((1, 0), (1, 2), (2, 3), (3, 4), (4, 5)), "edge"),
    "nan rate": (rate(bytes_per_s=NAN), "bytes_per_s"),
    "zero rate": (rate(flops_per_s=0.0), "flops_per_s"),
    "infinite pass": (rate(pass_s=math.inf), "pass_s"),
    "no rates": (home(rates=()), "rates"),
    "two rates alike": (home(rates=GOOD.devices[0].rates * 2), "twice"),
    "no memory": (home(memory_bytes=0), "memory_bytes"),
    "nan slowdown": (home(slowdown=NAN), "slowdown"),
    "zero bandwidth": (wire(up_bytes_per_s=0.0), "up_bytes_per_s"),
    "nan rtt": (wire(rtt_s=NAN), "rtt_s"),
    "negative rtt": (wire(rtt_s=-0.1), "rtt_s"),
    "all lost": (wire(loss=1.0), "loss"),
    "to itself": (wire(b="home"), "itself"),
    "link to nowhere": (wire(b="moon"), "moon"),
    "no such home": (replace(GOOD, home="moon"), "moon"),
    "two of a name": (replace(GOOD, devices=GOOD.devices[:1] * 2, links=()), "twice"),
    "two links": (replace(GOOD, links=GOOD.links * 2), "twice"),
    "no rows": (load(rows=0.0), "rows"),
    "nan tokens": (load(tokens_per_pass=NAN), "tokens_per_pass"),
    "unknown excluded": (limits(exclude=("moon",)), "moon"),
    "unknown capped": (limits(max_watts=(("moon", 3.0),)), "moon"),
    "nan limit": (limits(max_tpot_s=NAN), "max_tpot_s"),
    "zero watts": (limits(max_watts=(("home", 0.0),)), "max_watts"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    problem, word = INVALID[name]
    with pytest.raises(InvalidProfile, match=word) as caught:
        check(problem)
    assert caught.value.effect and caught.value.todo


CONTRADICTIONS = {
    "stay and exclude": (limits(stay=(0,), exclude=("home",)), "exclude"),
    "include and exclude": (limits(include=("fast",), exclude=("fast",)), "fast"),
    "too few devices": (limits(include=("fast", "home"), max_devices=1), "max_devices 2"),
    "no devices": (limits(max_devices=0), "max_devices 1"),
    "all excluded": (limits(exclude=("home", "fast")), "not excluded"),
    "no such unit": (limits(stay=(6,)), "0 to 5"),
    "no such precision": (limits(dtype="int3"), "float16"),
    "too long": (load(prompt_tokens=4000, new_tokens=97), "4096"),
    "batch above sequences": (load(sequences=2, batch=3), "batch 2"),
    "more tokens than rows": (load(rows=2.0, tokens_per_pass=2.5), "tokens_per_pass 2"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions_name_the_nearest_that_can_be(name: str) -> None:
    problem, nearest = CONTRADICTIONS[name]
    with pytest.raises(Unplannable) as caught:
        check(problem)
    assert nearest in caught.value.nearest
    assert caught.value.constraint and isinstance(caught.value, PlanError)
