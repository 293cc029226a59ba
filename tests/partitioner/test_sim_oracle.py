"""The schedule oracle: optima known by hand, and no policy beats it."""

from __future__ import annotations

import pytest

pytest.importorskip("simpy", reason="needs outrider[plan]")

from outrider.cli.committer import make
from outrider.errors import Unplannable
from outrider.partitioner.sim import oracle
from outrider.partitioner.sim.oracle import Case, Small
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.setup import CloudSetup

FLAT = CloudSetup(((1.0, 10.0), (512.0, 10.0)), gap_ms=0.0, slots=2)
STEEP = CloudSetup(((1.0, 10.0), (2.0, 20.0), (512.0, 5120.0)), gap_ms=0.0, slots=2)


def test_rows_that_cost_nothing_are_shared() -> None:
    case = Case((Small(0, 1, 3), Small(0, 1, 3)), FLAT)
    assert oracle.optimum(case, "makespan") == pytest.approx(30.0)
    assert oracle.optimum(case, "completion") == pytest.approx(30.0)


def test_rows_that_cost_in_full_are_not() -> None:
    """One after another: the first is ready early, and nobody is later."""
    case = Case((Small(0, 1, 2), Small(0, 1, 2)), STEEP)
    assert oracle.optimum(case, "makespan") == pytest.approx(40.0)
    assert oracle.optimum(case, "completion") == pytest.approx((20.0 + 40.0) / 2)


def test_the_short_one_goes_first() -> None:
    one_slot = CloudSetup(((1.0, 10.0), (512.0, 10.0)), gap_ms=0.0, slots=1)
    case = Case((Small(0, 1, 5), Small(0, 1, 1)), one_slot)
    assert oracle.optimum(case, "completion") == pytest.approx((10.0 + 60.0) / 2)
    played = oracle.play(case, make(one_slot, Policy()))
    assert played.completion_ms == pytest.approx((50.0 + 60.0) / 2)


def test_it_waits_for_nobody_who_does_not_come() -> None:
    case = Case((Small(100.0, 1, 1),), FLAT)
    assert oracle.optimum(case, "makespan") == pytest.approx(110.0)
    assert oracle.optimum(case, "completion") == pytest.approx(10.0)


def brute(case: Case, goal: oracle.Goal) -> float:
    """All schedules, pass by pass, without bounds or memory."""
    search = oracle._Search(case, goal)
    best = float("inf")
    stack = [(0.0, 0.0, search._admit(0.0, (), 0))]
    while stack:
        now, spent, (here, came) = stack.pop()
        if not here and came == len(case.requests):
            value = now if goal == "makespan" else spent / len(case.requests)
            best = min(best, value)
            continue
        stack += search._next(now, spent, here, came)
    return best


@pytest.mark.parametrize("goal", oracle.GOALS)
def test_it_equals_brute_force(goal: oracle.Goal) -> None:
    curve = CloudSetup(((1.0, 10.0), (2.0, 13.0), (4.0, 22.0), (8.0, 60.0)), gap_ms=1.0, slots=2)
    for seed in range(12):
        case = oracle.cases(1, curve, seed)[0]
        small = Case(tuple(Small(r.at_ms, 2, min(2, r.tokens)) for r in case.requests[:3]), curve)
        assert oracle.optimum(small, goal) == pytest.approx(brute(small, goal))


def test_no_policy_beats_it() -> None:
    curve = CloudSetup(((1.0, 26.0), (8.0, 27.0), (64.0, 40.0), (256.0, 90.0)), slots=3)
    found = oracle.study(oracle.cases(8, curve, 3), make)
    assert {(s.policy, s.goal) for s in found} == {
        (policy, goal) for policy in ("runtime", "one by one") for goal in oracle.GOALS
    }
    assert all(s.worst >= s.mean >= 1.0 - 1e-9 for s in found)
    by = {(s.policy, s.goal): s.mean for s in found}
    assert by["runtime", "makespan"] < 1.2 < by["one by one", "makespan"]


def test_what_is_too_large() -> None:
    with pytest.raises(Unplannable, match="9 requests"):
        oracle.optimum(Case(tuple(Small(0, 1, 1) for _ in range(9)), FLAT), "makespan")
    many = Case(tuple(Small(3.0 * n, 1, 5) for n in range(8)), STEEP)
    with pytest.raises(Unplannable, match="states"):
        oracle.optimum(many, "completion", most_states=50)
