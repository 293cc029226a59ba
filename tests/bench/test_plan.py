"""The bench of the planner: its figures on few cases, and controls that must be red."""

from __future__ import annotations

import pytest

from bench import plan
from bench.plan_cases import fleet, small
from outrider.partitioner import price
from outrider.partitioner.plan import Problem
from outrider.partitioner.solve import dp


def test_dp_is_optimal_and_a_cost_blind_planner_is_not() -> None:
    found = plan.against_brute([small(seed) for seed in range(12)])
    assert found["cases"] == 36 and found["same"] == 36
    assert found["none"] < 20 and found["blind"] < 25
    assert found["losing"] == []


def test_a_worse_planner_loses_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(problem: Problem) -> dp.Found | None:
        parts = plan.cost_blind(problem)
        return None if parts is None else dp.Found(parts, 0.0)

    monkeypatch.setattr(dp, "best", blind)
    found = plan.against_brute([small(seed) for seed in range(12)])
    assert found["same"] == found["blind"] < 30
    assert len(found["losing"]) == found["cases"] - found["same"]


def test_the_even_split_is_even_and_beaten() -> None:
    problem = plan.hetero(20)
    sizes = [part.stop - part.start for part in plan.even(problem)]
    assert len(sizes) == len(problem.devices) and max(sizes) - min(sizes) <= 1
    found = plan.against_even(20, 12)
    assert found["figures"]["even_cases"] + found["figures"]["even_infeasible"] == 12
    assert found["figures"]["over_even"] > 1.5


def test_a_useless_device_is_left_out_and_the_even_split_takes_it() -> None:
    assert plan.against_useless(20, 4) == {"cases": 4, "left_out": 4, "control": 0}


def test_cells_tell_times_and_gaps() -> None:
    cell = plan._cell(fleet(20, 16, 4), 20, 2.0, rivals="no")
    assert cell["dp_ms"] > 0 and cell["dp_gap"] == 0 and cell["stages"] >= 1


def test_a_placement_that_breaks_a_limit_is_not_equal() -> None:
    problem = small(1)
    found = dp.best(problem)
    assert found is not None
    assert plan.equal(problem, found.parts, found.parts)
    name = found.parts[0].device
    rate = price.device_of(problem, name).rates[0]
    whole = (price.Part(name, 0, len(problem.graph.units), rate.engine, rate.dtype),)
    broken = price.violations(problem, whole)
    assert plan.equal(problem, found.parts, whole) == (not broken and len(found.parts) == 1)
