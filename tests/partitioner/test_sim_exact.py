"""The exact mode, on cases whose answer is known by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("simpy", reason="needs outrider[plan]")

from outrider.cli.committer import make
from outrider.errors import InvalidProfile
from outrider.partitioner.sim import trace as traces
from outrider.partitioner.sim.agreement import Agreement
from outrider.partitioner.sim.exact import simulate
from outrider.partitioner.sim.policies import parse
from outrider.partitioner.sim.result import Outcome, Slo, summarise
from outrider.partitioner.sim.setup import CloudSetup, Gear, Overheads, World
from outrider.partitioner.sim.trace import Ask, Change, Rider, Trace

STEP = 50.0
CLOUD = CloudSetup(((1.0, STEP), (8.0, STEP), (128.0, STEP), (256.0, 80.0)), gap_ms=0.0, slots=4)
GEAR = Gear("laptop", ((1.0, 4.0), (64.0, 4.0)), battery_wh=50.0)
NONE = Overheads(0.0, 0.0, 0.0)
WORLD = World((GEAR,), CLOUD, overheads=NONE, agreement=Agreement((0.8,), 0.0))


def ride(
    asks: tuple[Ask, ...],
    world: World = WORLD,
    policy: str = "cloud",
    rider: Rider | None = None,
    changes: tuple[Change, ...] = (),
) -> Outcome:
    riders = (rider or Rider(rtt_ms=20.0),)
    last = max(ask.at_s for ask in asks) + 1.0
    return simulate(Trace("t", 0, last, riders, asks, changes), world, parse(policy), make)


def test_one_answer_takes_round_trip_and_passes() -> None:
    (one,) = ride((Ask(1.0, 0, 32, 10),)).served
    assert one.ttft_s == pytest.approx(0.020 + STEP / 1e3)
    assert one.latency_s == pytest.approx(0.020 + 10 * STEP / 1e3)
    assert (one.passes, one.tokens, one.placement) == (10, 10, "cloud")


def test_long_prompts_take_a_pass_a_chunk() -> None:
    world = replace(WORLD, cloud=replace(CLOUD, max_rows=128))
    (one,) = ride((Ask(0.0, 0, 300, 2),), world).served
    assert one.ttft_s == pytest.approx(0.020 + 3 * STEP / 1e3)


def test_who_finds_no_slot_waits() -> None:
    world = replace(WORLD, cloud=replace(CLOUD, slots=1))
    first, second = ride((Ask(0.0, 0, 8, 10), Ask(0.001, 0, 8, 10)), world).served
    assert second.queue_s == pytest.approx(first.latency_s - 0.001 - 0.020, abs=1e-6)
    assert second.latency_s == pytest.approx(2 * 10 * STEP / 1e3 + 0.020 - 0.001, abs=1e-6)


def test_answers_share_passes() -> None:
    found = ride(tuple(Ask(0.0, 0, 8, 20) for _ in range(4)))
    assert found.clouds[0].passes == 20
    assert {round(one.latency_s, 6) for one in found.served} == {1.02}


def test_a_full_cloud_refuses_and_is_asked_again() -> None:
    world = replace(WORLD, cloud=replace(CLOUD, slots=1, most_sessions=1))
    first, second = ride((Ask(0.0, 0, 8, 10), Ask(0.0, 0, 8, 10)), world).served
    assert (first.refused, second.refused) == (0, 1)
    assert second.latency_s > 1.0


def test_drafts_that_always_hold_shorten_the_stream() -> None:
    world = replace(WORLD, agreement=Agreement((1.0,), 0.0))
    asks = (Ask(0.0, 0, 8, 200),)
    plain, drafted = (ride(asks, world, policy).served[0] for policy in ("cloud", "draft"))
    assert drafted.passes < 0.5 * plain.passes
    assert drafted.latency_s < 0.5 * plain.latency_s
    assert drafted.accepted == drafted.hint_rows
    assert drafted.device_j > 0.0 == plain.device_j


def test_drafts_that_never_hold_cost_next_to_nothing() -> None:
    world = replace(WORLD, agreement=Agreement((0.0,), 0.0))
    asks = (Ask(0.0, 0, 8, 200),)
    plain, hostile = (ride(asks, world, policy).served[0] for policy in ("cloud", "draft"))
    assert hostile.passes == plain.passes == 200
    assert hostile.latency_s < 1.05 * plain.latency_s


def test_a_cut_delays_and_loses_nothing() -> None:
    asks = (Ask(0.0, 0, 8, 100),)
    for seconds in (0.5, 6.0, 45.0):
        cut = Change(1.0, 0, cut_s=seconds)
        for policy in ("cloud", "draft"):
            (one,) = ride(asks, policy=policy, changes=(cut,)).served
            whole = ride(asks, policy=policy).served[0]
            assert one.tokens == 100
            # The cloud went on for as long as the window of what is not acknowledged allows.
            assert one.latency_s > min(1.0 + seconds, whole.latency_s)
            assert one.latency_s < whole.latency_s + seconds + 8.0


def test_an_answer_asked_for_without_a_link_waits_for_it() -> None:
    (one,) = ride((Ask(1.0, 0, 8, 4),), changes=(Change(0.5, 0, cut_s=3.0),)).served
    assert one.ttft_s == pytest.approx(2.5 + 0.020 + STEP / 1e3)


def test_a_nearly_empty_battery_stops_drafting() -> None:
    asks = tuple(Ask(20.0 * n, 0, 8, 60) for n in range(4))
    low = Rider(rtt_ms=5.0, battery=0.05, supply="battery")
    saved = ride(asks, policy="auto", rider=low)
    spent = ride(asks, policy="mains", rider=low)
    assert {one.placement for one in saved.served} == {"cloud"}
    assert sum(one.device_j for one in saved.served) == 0.0
    assert sum(one.device_j for one in spent.served) > 0.0


def test_the_small_model_answers_alone() -> None:
    (one,) = ride((Ask(0.0, 0, 8, 40),), policy="edge").served
    assert one.placement == "edge"
    assert one.latency_s == pytest.approx(40 * 0.004, rel=0.05)
    assert (one.cloud_j, one.radio_j, one.passes) == (0.0, 0.0, 0)


def test_a_seed_is_a_run() -> None:
    trace = traces.generate("bursty", devices=4, hours=0.02, seed=2, per_hour=60.0)
    gears = tuple(replace(GEAR, name=name) for name in ("laptop", "phone", "jetson"))
    world = World(gears, replace(CLOUD, noise=0.1))
    runs = [simulate(trace, world, parse("auto"), make, seed=seed).served for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert sum(one.tokens for one in runs[0]) == trace.tokens


def test_what_is_summed_up() -> None:
    found = ride((Ask(0.0, 0, 8, 10), Ask(0.0, 0, 8, 20)))
    row = summarise(found, Slo(ttft_ms=100.0, tpot_ms=51.0))
    assert (row.answers, row.tokens, row.unserved) == (2, 30, 0)
    assert row.slo_attainment == 1.0
    assert summarise(found, Slo(ttft_ms=1.0)).slo_attainment == 0.0
    assert row.passes_per_token == 1.0
    assert row.shares == {"cloud": 1.0}
    watts = CLOUD.watts
    assert row.cloud_j == pytest.approx(found.clouds[0].busy_s * watts)
    hours = found.seconds / 3600.0
    assert row.dollars == pytest.approx(CLOUD.dollars_per_hour * hours)


@pytest.mark.parametrize(
    "world",
    [
        replace(WORLD, cloud=replace(CLOUD, step=())),
        replace(WORLD, cloud=replace(CLOUD, step=((1.0, float("nan")),))),
        replace(WORLD, cloud=replace(CLOUD, step=((4.0, 1.0), (2.0, 1.0)))),
        replace(WORLD, agreement=Agreement((1.5,))),
        replace(WORLD, gears=(replace(GEAR, name="watch"),)),
        replace(WORLD, clouds=0),
    ],
)
def test_worlds_that_make_no_sense(world: World) -> None:
    with pytest.raises(InvalidProfile, match="nothing was simulated"):
        ride((Ask(0.0, 0, 8, 4),), world)
