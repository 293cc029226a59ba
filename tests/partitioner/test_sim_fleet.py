"""The fleet mode against the exact one, and on cases known by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

pytest.importorskip("simpy", reason="needs outrider[plan]")

from outrider.cli.committer import make
from outrider.partitioner.bandit import Estimate
from outrider.partitioner.sim import exact, fleet
from outrider.partitioner.sim import trace as traces
from outrider.partitioner.sim.agreement import Agreement
from outrider.partitioner.sim.policies import parse
from outrider.partitioner.sim.result import Outcome, Slo, Summary, summarise
from outrider.partitioner.sim.setup import CloudSetup, Gear, Overheads, World
from outrider.partitioner.sim.trace import Ask, Change, Rider, Trace

STEP = ((1.0, 60.0), (8.0, 62.0), (32.0, 70.0), (128.0, 110.0), (256.0, 140.0))
GEARS = tuple(
    Gear(name, ((1.0, 5.0), (64.0, 25.0)), battery_wh=40.0)
    for name in ("laptop", "phone", "jetson")
)
WORLD = World(GEARS, CloudSetup(STEP, noise=0.02))
TRACE = traces.generate("bursty", devices=24, hours=0.04, seed=7, per_hour=60.0)


@cache
def both(policy: str) -> tuple[Summary, Summary]:
    found = (
        exact.simulate(TRACE, WORLD, parse(policy), make, seed=1),
        fleet.simulate(TRACE, WORLD, parse(policy), seed=1),
    )
    first, second = (summarise(run, Slo(500.0, 60.0)) for run in found)
    return first, second


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("cloud", 0.02), ("draft/free", 0.12), ("auto", 0.2)]
)
def test_it_agrees_with_the_exact_mode(policy: str, tolerance: float) -> None:
    one, lean = both(policy)
    assert (one.mode, lean.mode) == ("exact", "fleet")
    assert lean.tokens == one.tokens == TRACE.tokens
    for name in ("latency_p50_s", "latency_p95_s", "tpot_p50_ms", "passes_per_token", "cloud_j"):
        assert getattr(lean, name) == pytest.approx(getattr(one, name), rel=tolerance), name
    assert lean.ttft_p50_ms == pytest.approx(one.ttft_p50_ms, rel=0.15)


def test_hints_that_hold_are_as_many() -> None:
    one, lean = both("draft/free")
    assert lean.hint_yield == pytest.approx(one.hint_yield, abs=0.06)
    assert lean.device_j == pytest.approx(one.device_j, rel=0.25)


def run(asks: tuple[Ask, ...], policy: str = "cloud", **fields: object) -> Outcome:
    cloud = CloudSetup(((1.0, 50.0), (512.0, 50.0)), gap_ms=0.0, **fields)  # type: ignore[arg-type]
    world = World(GEARS, cloud, overheads=Overheads(0.0, 0.0, 0.0))
    return fleet.simulate(Trace("t", 0, 9.0, (Rider(rtt_ms=20.0),), asks), world, parse(policy))


def test_one_answer_takes_round_trip_and_passes() -> None:
    (one,) = run((Ask(1.0, 0, 32, 10),)).served
    assert one.ttft_s == pytest.approx(0.020 + 0.050)
    assert one.latency_s == pytest.approx(0.020 + 0.500)
    assert (one.passes, one.tokens) == (10, 10)


def test_who_finds_no_slot_waits() -> None:
    _, second = run((Ask(0.0, 0, 8, 10), Ask(0.0, 0, 8, 10)), slots=1).served
    assert second.latency_s == pytest.approx(1.020)
    assert second.queue_s == pytest.approx(0.5)


def test_joules_of_a_cloud_add_up() -> None:
    found = run(tuple(Ask(0.1 * n, 0, 8 + n, 20) for n in range(6)), policy="draft")
    busy_j = found.clouds[0].busy_s * CloudSetup(STEP).watts
    assert sum(one.cloud_j for one in found.served) == pytest.approx(busy_j)


def test_a_cut_delays() -> None:
    trace = Trace("t", 0, 9.0, (Rider(),), (Ask(0.0, 0, 8, 40),), (Change(1.0, 0, cut_s=5.0),))
    world = replace(WORLD, agreement=Agreement((0.5,), 0.0))
    (one,) = fleet.simulate(trace, world, parse("cloud")).served
    (whole,) = fleet.simulate(replace(trace, changes=()), world, parse("cloud")).served
    assert one.latency_s == pytest.approx(whole.latency_s + 5.5, abs=0.7)


def test_every_answer_is_served_under_load() -> None:
    trace = traces.generate("bursty", devices=100, hours=0.03, seed=3, per_hour=60.0)
    world = replace(WORLD, clouds=2, cloud=replace(WORLD.cloud, slots=16))
    found = fleet.simulate(trace, world, parse("auto"))
    assert (len(found.served), found.unserved) == (len(trace.asks), 0)
    assert [one.ask for one in found.served] == list(range(len(trace.asks)))
    assert sum(one.tokens for one in found.served) == trace.tokens
    assert all(use.committed > 0 for use in found.clouds)


def test_a_mean_that_was_long_not_told_anything_has_a_spread() -> None:
    """A device of a fleet that asked nothing for half an hour: rounding made it negative."""
    found = Estimate(fade=0.7, half_life_s=30.0)
    found.note(1.6025958718111861, 1.0, 2.5)
    found.note(0.5442433905202603, 2001.0, 20.0)
    assert found.spread >= 0.0
    assert found.error(0.0) >= 0.0
