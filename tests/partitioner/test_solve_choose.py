"""The planner's front: verdict, runner-up, binding constraint, who is left out, and errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.plan_cases import device, fleet, graph, link, small, with_useless
from outrider.errors import ConfigError, PlanError, Unplannable
from outrider.partitioner import price, written
from outrider.partitioner.plan import Constraints, Problem, Workload
from outrider.partitioner.solve import brute, choose, dp
from outrider.partitioner.solve.limits import bounded

BIG = 1 << 40
MODEL = graph(8)
HALF = int(MODEL.weight_bytes * 0.6)


def three(**fields: Any) -> Problem:
    devices = (device("home", 1e9, HALF), device("near", 5e9, HALF), device("far", 5e9, BIG))
    wires = (link("home", "near", 0.002), link("home", "far", 0.3), link("near", "far", 0.3))
    load = Workload(alone="asks")
    made = Problem(MODEL, devices, wires, "home", load)
    return replace(made, **fields)


def test_the_runner_up_is_the_best_of_other_device_sets() -> None:
    compared = 0
    for seed in range(25):
        problem = small(seed)
        found = dp.best(problem)
        if found is None or not 1 < len(problem.devices) < 4:
            continue
        plan = choose.explained(problem, dp.solve(problem))
        used = {stage.device for stage in plan.stages}
        others = [_best_of(problem, names) for names in _sets(problem) if names != used]
        best = min((value for value in others if value is not None), default=None)
        if best is None:
            assert plan.runner_up is None
        else:
            assert plan.runner_up is not None
            assert plan.runner_up.value == pytest.approx(best)
            assert plan.margin == pytest.approx(best / plan.value - 1, abs=1e-9)
        compared += 1
    assert compared > 5


def _sets(problem: Problem) -> list[set[str]]:
    names = [device.name for device in problem.devices]
    return [
        {name for place, name in enumerate(names) if code >> place & 1}
        for code in range(1, 1 << len(names))
    ]


def _best_of(problem: Problem, names: set[str]) -> float | None:
    limits = problem.constraints
    if not set(limits.include) <= names or (limits.stay and problem.home not in names):
        return None
    rest = tuple(device.name for device in problem.devices if device.name not in names)
    asked = bounded(bounded(problem, "include", tuple(sorted(names))), "exclude", rest)
    found = brute.best(asked)
    return None if found is None else price.value(problem, price.price(problem, found))


def test_do_not_split_is_an_answer() -> None:
    plan = choose.solve(three(devices=(device("home", 6e9, BIG), *three().devices[1:])))
    assert plan.verdict == "one device"
    assert plan.reasons[0].startswith("Do not split: home alone is best")


def test_a_split_names_memory_and_the_far_device_its_link() -> None:
    plan = choose.solve(three())
    assert plan.verdict == "split" and plan.binding == "memory of near"
    why = dict(plan.dropped)["far"]
    assert "on links" in why and "worse" in why


def test_lifting_what_binds_gains_and_lifting_another_does_not() -> None:
    problem = three(constraints=Constraints(exclude=("near",)))
    plan = choose.solve(problem)
    assert plan.binding == "exclude"
    assert dict(plan.dropped)["near"] == "excluded by the caller"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"constraints": Constraints(max_watts=(("far", 2.0),))}, "idle draw"),
        ({"links": three().links[:1]}, "no link"),
        ({"devices": (*three().devices[:2], device("far", 5e9, 5))}, "hold no unit"),
    ],
)
def test_why_a_device_is_left_out(changed: dict[str, Any], why: str) -> None:
    assert why in dict(choose.solve(three(**changed)).dropped)["far"]


def test_useless_devices_are_left_out() -> None:
    for seed in range(8):
        problem, name = with_useless(seed)
        plan = choose.solve(problem)
        assert name not in {stage.device for stage in plan.stages}, seed
        assert name in dict(plan.dropped)


def test_a_device_that_gains_next_to_nothing_is_left_out() -> None:
    """Home could take the embedding off the fast device, which is a millionth of its work."""
    load = Workload(sequences=64)
    fast = device("fast", 1e12, BIG)
    fast = replace(fast, rates=(replace(fast.rates[0], layer_s=1e-8),))
    devices = (device("home", 1e9, BIG), fast)
    problem = Problem(MODEL, devices, (link("home", "fast", 0.001),), "home", load, "throughput")
    exact, lean = dp.solve(problem), choose.solve(problem)
    assert len(exact.stages) == 2 and exact.value < lean.value
    assert len(lean.stages) == 1 and lean.value <= exact.value * (1 + choose.THRIFT)
    assert lean.gap is not None and 0 < lean.gap <= choose.THRIFT


def test_many_devices_are_left_to_the_inexact_solvers() -> None:
    pytest.importorskip("highspy", reason="the extra plan is not installed")
    problem = fleet(0, 12, choose.MANY + 1, 2.0)
    assert choose._picked(problem).solver in ("milp", "genetic")
    assert choose._picked(fleet(0, 12, 4)).solver == "dp"


def test_unknown_solvers_are_refused() -> None:
    with pytest.raises(ConfigError, match="simplex"):
        choose.solve(three(), "simplex")


# --- nearest -----------------------------------------------------------------------------------


def unmet(problem: Problem) -> Unplannable:
    with pytest.raises(Unplannable) as caught:
        choose.solve(problem)
    return caught.value


NEAREST = {
    "max_tpot_s": Constraints(max_tpot_s=1e-6),
    "max_ttft_s": Constraints(max_ttft_s=1e-6),
    "max_joules_per_token": Constraints(max_joules_per_token=1e-6),
}


@pytest.mark.parametrize("name", NEAREST)
def test_the_nearest_limit_is_met_and_the_error_says_which(name: str) -> None:
    problem = three(constraints=NEAREST[name])
    error = unmet(problem)
    assert error.constraint.startswith(name)
    limit = float(error.nearest.split()[1].rstrip(";"))
    assert dp.best(bounded(problem, name, limit)) is not None
    assert dp.best(bounded(problem, name, limit * 0.98)) is None


def test_memory_that_would_do() -> None:
    devices = tuple(device(name, 1e9, HALF // 4) for name in ("home", "near", "far"))
    error = unmet(three(devices=devices))
    assert "memory" in error.constraint
    factor = float(error.nearest.split()[0])
    for scale, met in ((factor, True), (factor * 0.98, False)):
        grown = tuple(replace(d, memory_bytes=int(d.memory_bytes * scale)) for d in devices)
        assert (dp.best(three(devices=grown)) is not None) == met


def test_more_devices_would_do() -> None:
    devices = (device("home", 1e9, HALF), device("near", 5e9, HALF), device("far", 5e9, HALF))
    error = unmet(three(devices=devices, constraints=Constraints(max_devices=1)))
    assert (error.constraint, error.nearest) == ("max_devices 1", "max_devices 2")


def test_watts_that_would_do() -> None:
    alone = three(devices=(device("home", 1e9, BIG),), links=())
    error = unmet(replace(alone, constraints=Constraints(max_watts=(("home", 1.5),))))
    assert "max_watts" in error.constraint
    watts = float(error.nearest.split()[-1])
    capped = replace(alone, constraints=Constraints(max_watts=(("home", watts),)))
    assert dp.best(capped) is not None


def test_no_way_from_home() -> None:
    far = (device("far", 1e9, BIG), device("home", 1e9, BIG))
    problem = Problem(MODEL, far, (), "home", constraints=Constraints(include=("far",)))
    assert "include" in unmet(problem).constraint


# --- files -------------------------------------------------------------------------------------


def test_plans_are_written_and_read_back() -> None:
    plan = choose.solve(three())
    assert written.read_plan(written.write_plan(plan)) == plan


@pytest.mark.parametrize("data", [b"", b"[]", b'{"schema": 99}', b'{"schema": 1}', b"[" * 9000])
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(PlanError):
        written.read_plan(data)
