"""HiGHS, the genetic search, parted phases and the minimum cut, each against what is exact."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bench.plan_cases import device, fleet, graph, link, small
from outrider.errors import ConfigError, InvalidProfile, Unplannable
from outrider.partitioner import price
from outrider.partitioner.device import DeviceProfile, Rate
from outrider.partitioner.plan import Constraints, Objective, Problem, Workload
from outrider.partitioner.solve import dp, genetic, milp, mincut, phases
from outrider.partitioner.solve.mincut import Flow, Operator

pytest.importorskip("highspy", reason="the extra plan is not installed")
BIG = 1 << 40


def plannable(count: int, objective: Objective) -> list[tuple[Problem, float]]:
    """Small problems without home at both ends, and their best values."""
    found = []
    for seed in range(200):
        problem = small(seed, objective)
        best = None if price.both_ends_stay(problem) else dp.best(problem)
        if best is not None and problem.constraints.max_ttft_s is None:
            value = price.value(problem, price.price(problem, best.parts))
            found.append((problem, value))
        if len(found) == count:
            break
    return found


# --- milp --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["latency", "throughput", "energy"])
def test_highs_finds_what_dp_finds(objective: Objective) -> None:
    for problem, value in plannable(5, objective):
        plan = milp.solve(problem)
        assert price.violations(problem, plan.stages) == ()
        assert plan.value == pytest.approx(value, rel=1e-3)
        assert plan.gap is not None and plan.value * (1 - plan.gap) <= value * (1 + 1e-6)


def test_highs_proves_throughput_of_a_fleet() -> None:
    problem = fleet(2, 32, 8, 2.0, "throughput", Workload(sequences=32))
    plan, best = milp.solve(problem), dp.solve(problem)
    assert plan.value == pytest.approx(best.value, rel=1e-4)
    assert plan.gap is not None and plan.gap <= 0.01


def test_highs_leaves_home_at_both_ends_to_dp() -> None:
    problem = replace(small(0), constraints=Constraints(stay=(0, len(small(0).graph.units) - 1)))
    with pytest.raises(Unplannable, match="dp"):
        milp.solve(problem)


# --- genetic -----------------------------------------------------------------------------------


def test_the_genetic_search_comes_close_and_never_below() -> None:
    ratios = []
    for problem, value in [*plannable(5, "latency"), *plannable(5, "throughput")]:
        parts = genetic.best(problem, generations=40)
        if parts is None:
            continue
        assert price.violations(problem, parts) == ()
        ratios.append(price.value(problem, price.price(problem, parts)) / value)
    assert min(ratios) >= 1 - 1e-9
    assert len(ratios) >= 8 and float(np.mean(np.log(ratios))) < 0.1


def test_equal_seeds_breed_equal_plans() -> None:
    problem = fleet(1, 16, 5)
    assert genetic.best(problem, 3, 20) == genetic.best(problem, 3, 20)


def test_it_says_when_it_met_nothing() -> None:
    problem = Problem(graph(4), (device("home", 1e10, 1000),), (), "home")
    with pytest.raises(Unplannable, match="genetic"):
        genetic.solve(problem)


# --- phases ------------------------------------------------------------------------------------


def unlike(rtt_s: float, speed: float) -> Problem:
    """One device computes, the other reads memory; each fits the model."""
    model = graph(8)

    def made(name: str, flops: float, speed: float) -> DeviceProfile:
        rate = Rate("torch", "float16", flops, speed)
        return DeviceProfile(name, "server", BIG, (rate,))

    devices = (made("reads", 2e11, 1e12), made("computes", 2e13, 1e10))
    load = Workload(prompt_tokens=2048, new_tokens=64, sequences=16)
    wires = (link("reads", "computes", rtt_s, speed),)
    return Problem(model, devices, wires, "reads", load, "latency")


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_phases_part_where_devices_differ_and_kv_is_cheap(objective: Objective) -> None:
    problem = replace(unlike(1e-4, 1e10), objective=objective)
    plan = phases.solve(problem)
    assert {stage.device for stage in plan.prefill} == {"computes"}
    assert {stage.device for stage in plan.stages} == {"reads"}
    assert plan.margin is not None and plan.margin > 0.2
    assert plan.estimate.kv_s == pytest.approx(5e-5 + 2048 * 8 * 512 / 1e10)
    if objective == "latency":
        steps = (problem.workload.new_tokens - 1) * plan.estimate.tpot_s
        whole = (plan.estimate.ttft_s + steps) / problem.workload.new_tokens
        assert plan.value == pytest.approx(whole)


def test_phases_stay_together_where_kv_travels_slowly() -> None:
    plan = phases.solve(unlike(0.1, 1e4))
    assert plan.prefill == () and "gains nothing" in plan.reasons[0]


def test_phases_weigh_time_only() -> None:
    with pytest.raises(ConfigError, match="energy"):
        phases.solve(replace(unlike(1e-4, 1e10), objective="energy"))


# --- minimum cut -------------------------------------------------------------------------------


def random_dag(seed: int) -> tuple[list[Operator], list[Flow]]:
    random = np.random.default_rng(seed)
    count = int(random.integers(3, 9))
    costs = random.uniform((0, 0, 1), (5, 5, 4), (count, 3)).tolist()
    operators = [Operator(f"o{i}", a, b, size) for i, (a, b, size) in enumerate(costs)]
    operators[0] = replace(operators[0], pinned="device")
    operators[-1] = replace(operators[-1], pinned="host")
    flows = [
        Flow(f"o{a}", f"o{b}", float(random.uniform(0, 6)))
        for a in range(count)
        for b in range(a + 1, count)
        if random.random() < 0.5
    ]
    return operators, flows


def every_cut(operators: list[Operator], flows: list[Flow], budget: float) -> float:
    best = float("inf")
    for sides in product(("device", "host"), repeat=len(operators)):
        side = dict(zip((op.name for op in operators), sides, strict=True))
        if any(op.pinned not in (None, side[op.name]) for op in operators):
            continue
        if sum(op.memory_bytes for op in operators if side[op.name] == "device") > budget:
            continue
        cost = sum(flow.cost for flow in flows if side[flow.a] != side[flow.b])
        cost += sum(op.on_device if side[op.name] == "device" else op.on_host for op in operators)
        best = min(best, cost)
    return best


def test_the_cut_is_the_cheapest_of_all() -> None:
    for seed in range(30):
        operators, flows = random_dag(seed)
        found = mincut.solve(operators, flows)
        assert found.cost == pytest.approx(every_cut(operators, flows, float("inf")))
        assert found.bound == found.cost
        assert found.device | found.host == {op.name for op in operators}


def test_a_budget_is_kept_and_its_bound_is_one() -> None:
    exact = 0
    for seed in range(40):
        operators, flows = random_dag(seed)
        budget = 1.01 * operators[0].memory_bytes + 4
        found = mincut.solve(operators, flows, budget)
        best = every_cut(operators, flows, budget)
        assert found.memory_bytes <= budget
        assert found.bound <= best * (1 + 1e-9) and found.cost >= best * (1 - 1e-9)
        exact += found.cost == pytest.approx(best)
    assert exact >= 30


def test_cuts_that_make_no_sense() -> None:
    a, b = Operator("a", pinned="device", memory_bytes=9.0), Operator("b")
    with pytest.raises(InvalidProfile, match="moon"):
        mincut.solve([a, b], [Flow("a", "moon", 1.0)])
    with pytest.raises(InvalidProfile, match="one name"):
        mincut.solve([a, a], [])
    with pytest.raises(InvalidProfile, match="finite"):
        mincut.solve([a, b], [Flow("a", "b", float("nan"))])
    with pytest.raises(Unplannable, match="9 bytes"):
        mincut.solve([a, b], [], 5.0)
