"""The exact search: equal to brute force, on tables that are equal to prices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.plan_cases import device, fleet, graph, link, small
from outrider.errors import Unplannable
from outrider.partitioner import price
from outrider.partitioner.plan import Constraints, Objective, Problem, Workload
from outrider.partitioner.price import Part
from outrider.partitioner.solve import brute, dp, search, tables

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "energy", "cost")
BIG = 1 << 40


def valued(problem: Problem, parts: tuple[Part, ...]) -> float:
    return price.value(problem, price.price(problem, parts))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_equals_brute_force(objective: Objective) -> None:
    planned = 0
    for seed in range(40):
        problem = small(seed, objective)
        best, found = brute.best(problem), dp.best(problem)
        assert (best is None) == (found is None), seed
        if best is None or found is None:
            continue
        planned += 1
        assert price.violations(problem, found.parts) == (), seed
        assert valued(problem, found.parts) == pytest.approx(valued(problem, best), rel=1e-8), seed
        assert found.gap == 0
    assert planned > 20


def test_brute_force_prices_as_price_does() -> None:
    for seed in range(30):
        problem = small(seed, OBJECTIVES[seed % 4])
        found = brute.best(problem)
        if found is None:
            continue
        cuts = np.array([[0, *(part.stop for part in found)]])
        order = tuple((part.device, part.engine, part.dtype) for part in found)
        ready = price.prepared(problem)
        assert brute._Book(ready).values(order, cuts)[0] == pytest.approx(valued(problem, found))
        assert price.violations(problem, found) == ()


def test_tables_are_prices() -> None:
    for seed in range(12):
        problem = replace(small(seed), constraints=Constraints())
        arrays = tables.build(problem)
        prefill = tables.prefill(arrays)
        count = price.chunks(problem.workload, 2)
        for option, owner in enumerate(arrays.owner):
            rate = arrays.rates[option]
            for start in range(arrays.units):
                for stop in range(start + 1, arrays.units + 1):
                    part = Part(arrays.devices[owner].name, start, stop, rate.engine, rate.dtype)
                    place = (option, start, stop)
                    ready = arrays.problem
                    assert arrays.pass_s[place] == pytest.approx(price.decode_s(ready, part))
                    assert arrays.memory[place] == price.memory_bytes(ready, part)
                    if stop - start < arrays.units:
                        each, last = price.chunk_s(ready, part, count)
                        assert prefill.slowest.stage[place] == pytest.approx(each)
                        assert prefill.total.stage[place] == pytest.approx(each + last)


def test_sums_of_tables_are_the_price_of_a_plan() -> None:
    for seed in range(20):
        problem = replace(small(seed), constraints=Constraints())
        found = dp.best(problem)
        if found is None:
            continue
        arrays = tables.build(problem)
        verdict = search.solve(search.Question(arrays, tables.decode(arrays)))
        assert verdict.answer is not None
        cycle = valued(problem, found.parts) * problem.workload.tokens_per_pass
        assert verdict.answer.cost == pytest.approx(cycle)


def test_a_split_where_memory_asks_for_it_and_one_device_where_not() -> None:
    model = graph(8)
    half = int(model.weight_bytes * 0.6)
    devices = (device("home", 1e10, half), device("other", 1e10, half))
    problem = Problem(model, devices, (link("home", "other", 0.002),), "home")
    assert len(dp.solve(problem).stages) == 2
    roomy = replace(problem, devices=(device("home", 1e10, BIG), devices[1]))
    plan = dp.solve(roomy)
    assert plan.verdict == "one device" and plan.stages[0].device == "home"


def test_home_holds_both_ends_where_they_must_stay() -> None:
    model = graph(6)
    devices = (device("home", 1e9, BIG), device("fast", 1e12, BIG))
    limits = Constraints(stay=(0, 7))
    problem = Problem(model, devices, (link("home", "fast", 0.001),), "home", constraints=limits)
    stages = dp.solve(problem).stages
    spans = [(stage.device, stage.start, stage.stop) for stage in stages]
    assert spans == [("home", 0, 1), ("fast", 1, 7), ("home", 7, 8)]


def test_mixed_precisions_within_a_budget_beat_one_precision() -> None:
    """LLM-PQ's case: a budget of half the layers."""
    for seed in range(200):
        problem = small(seed)
        if problem.constraints.max_loss is not None and len(problem.devices) > 1:
            found = dp.best(problem)
            if found is not None and len({part.dtype for part in found.parts}) == 2:
                break
    else:
        pytest.fail("no seed mixes precisions")
    uniform = dp.best(replace(problem, constraints=replace(problem.constraints, dtype="float16")))
    assert uniform is None or valued(problem, found.parts) <= valued(problem, uniform.parts)
    spent = price.loss(problem.constraints, found.parts)
    assert 0 < spent <= (problem.constraints.max_loss or 0) + 1e-6


def test_twins_are_planned_as_one_kind() -> None:
    """Equal devices are exchanged freely, so that order costs no time."""
    problem = fleet(3, 40, 6, 2.0)
    one = problem.devices[1]
    twins = tuple(replace(one, name=f"t{i}") for i in range(5))
    names = ["home", *(twin.name for twin in twins)]
    devices = (replace(problem.devices[0], name="home"), *twins)
    links = tuple(link(a, b, 0.002) for i, a in enumerate(names) for b in names[i + 1 :])
    alike = replace(problem, devices=devices, links=links, home="home")
    arrays = tables.build(alike)
    arena = search.prepare(search.Question(arrays, tables.decode(arrays)))
    assert [int(bits) for bits in arena.twin] == [0, 0, 2, 4, 8, 16]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_a_large_fleet_is_proven_best(objective: Objective) -> None:
    load = Workload(sequences=32 if objective == "throughput" else 1)
    problem = fleet(22, 80, 16, 3.0, objective, load)
    found = dp.best(problem)
    assert found is not None and found.gap == 0
    assert price.violations(problem, found.parts) == ()


def test_a_search_that_ends_early_says_how_far_it_may_be() -> None:
    problem = fleet(23, 80, 16, 1.5)
    narrow, wide = dp.best(problem, widest=6), dp.best(problem)
    assert narrow is not None and wide is not None
    assert wide.gap == 0
    low, high = valued(problem, wide.parts), valued(problem, narrow.parts)
    assert low <= high
    assert high * (1 - narrow.gap) <= low * (1 + 1e-9)


def test_the_relaxed_problem_bounds_every_cost_to_go() -> None:
    """With and without devices that may be used once only, and whatever the prices are."""
    problem = replace(small(26), constraints=Constraints())
    found = dp.best(problem)
    assert found is not None
    arrays = tables.build(problem)
    arena = search.prepare(search.Question(arrays, tables.decode(arrays)))
    cycle = price.price(problem, found.parts).tpot_s * problem.workload.tokens_per_pass
    random = np.random.default_rng(0)
    loose = search.relax(arena, 0, np.zeros(arena.devices)).whole
    tight = search.relax(arena, 0, np.zeros(arena.devices), tuple(range(arena.devices))).whole
    assert loose <= tight == pytest.approx(cycle)
    for _ in range(20):
        prices = random.uniform(0, cycle, arena.devices)
        assert search.relax(arena, 0, prices, (0,)).whole <= cycle * (1 + 1e-12)


def test_nothing_fits_and_it_says_what_would() -> None:
    problem = Problem(graph(8), (device("home", 1e10, 1000),), (), "home")
    with pytest.raises(Unplannable, match="memory") as caught:
        dp.solve(problem)
    assert "GiB on home" in caught.value.nearest
