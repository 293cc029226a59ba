"""The virtual half of `bench placement`: its cells and controls mean what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench import placement
from bench.placement import BAR_FLIPS, BAR_REGRET, OFF, PLAIN, Cell, oracle, thirds
from bench.virtual import Ride, World, best_fixed, cost_of

SEED = 3


@pytest.fixture(scope="module")
def cell() -> dict[str, Any]:
    usual = World()
    return placement.ride(Cell("c", thirds(usual, replace(usual, rtt_ms=300.0), 12.0), SEED))


def test_a_cell_compares_with_the_better_fixed_placement(cell: dict[str, Any]) -> None:
    assert cell["best"] == min(("cloud", "draft"), key=lambda name: cell[name])
    assert cell["regret"] == pytest.approx(cell["auto"] / cell[cell["best"]] - 1.0)
    assert cell["regret"] < 0.25 and not cell["steady"]


def test_the_oracle_is_never_behind_a_fixed_placement() -> None:
    trace = thirds(World(holds=0.8), World(holds=0.05), 8.0)
    best, fixed = best_fixed(trace, SEED)
    assert oracle(trace, fixed.values(), PLAIN) <= fixed[best].cost(PLAIN) * 1.02


def test_runs_repeat_by_their_seed() -> None:
    trace = [(10.0, World())]
    one, two = (Ride(trace, seed=SEED).run() for _ in range(2))
    assert (one.tokens, one.busy_s) == (two.tokens, two.busy_s)
    assert Ride(trace, seed=SEED + 1).run().tokens != one.tokens


def test_drafts_help_there_as_they_do_in_earnest() -> None:
    runs = best_fixed([(20.0, World(holds=0.8, rtt_ms=5.0))], SEED)[1]
    assert runs["draft"].tokens > 1.3 * runs["cloud"].tokens
    assert runs["cloud"].hints == 0 and runs["cloud"].busy_s == 0.0


def test_what_takes_drafting_away_takes_it_from_all() -> None:
    trace = [(5.0, World(bounds=OFF))]
    _, fixed = best_fixed(trace, SEED)
    ours = Ride(trace, seed=SEED).run()
    assert all(run.hints == 0 for run in (*fixed.values(), ours))
    assert [d.reason for d in ours.made("placement")] == [OFF.reason]


def test_the_controls_turn_red() -> None:
    even, pays = placement.control_cells(SEED)
    assert placement.restless(even) > BAR_FLIPS
    assert placement.always_wrong(pays) > BAR_REGRET


def test_a_quick_run_has_every_kind_of_cell() -> None:
    cells = placement.virtual_cells(SEED, quick=True)
    assert any(cell.steady for cell in cells) and any(not cell.steady for cell in cells)
    full = placement.virtual_cells(SEED, quick=False)
    assert len(full) > 15 and len({cell.name for cell in full}) == len(full)


def test_figures_take_the_worst_cell(cell: dict[str, Any]) -> None:
    steady = {**cell, "steady": True, "flips_per_min": 1.5, "regret": 0.3}
    real = {
        "kind": "real",
        "regret": 0.5,
        "regret_low": 0.4,
        "pairs": [1.4, 1.6],
        "steady": False,
        "identical": True,
    }
    found = placement.figures([cell, steady, real])
    assert found["regret_vs_best_fixed"] == 0.4 and found["regret_virtual_worst"] == 0.3
    assert found["flips_per_min"] == 1.5 and found["regret_real_pooled"] == pytest.approx(0.5)


def test_cost_prices_joules_in() -> None:
    assert cost_of(1.0, 0.0, 10, PLAIN) < cost_of(1.0, 0.5, 10, PLAIN)
