"""The battery day: its trace, its emulation against sums by hand, and its sabotages."""

from __future__ import annotations

import msgspec
import pytest

from bench import battery_day, power
from bench.battery_day import Ask, Day

WORLD = power.World()
DAY = battery_day.load()
OFFICE = next(part for part in DAY.segments if part.name == "office")
CHAT = Ask(OFFICE.start + 60.0, "chat", 400, 120, 14.5, small_allowed=False, holds=0.75)


def day(*asks: Ask) -> Day:
    return msgspec.structs.replace(DAY, asks=list(asks))


def test_the_kept_trace_is_what_its_construction_says() -> None:
    assert battery_day.make(DAY.seed) == DAY
    assert "not recorded" in DAY.made


def test_streaming_costs_its_share_of_each_pass() -> None:
    found = power.live(day(CHAT), WORLD, power.always("cloud"), power.at_once)
    step_s = WORLD.pass_ms(1 + OFFICE.others) / 1e3
    expected = WORLD.cloud_w * (0.4 * WORLD.prefill_ms + 120 * step_s / (1 + OFFICE.others))
    assert found.cloud_j == pytest.approx(expected)
    awake = 120 * step_s + 0.4 * WORLD.prefill_ms + OFFICE.rtt_ms / 1e3 + WORLD.wifi.tail_s
    assert found.radio_j == pytest.approx(awake * WORLD.wifi.tail_w, rel=0.15)
    assert found.device_j == 0.0


def test_the_target_on_the_device_costs_its_busy_time() -> None:
    found = power.live(day(CHAT), WORLD, power.always("target"), power.at_once)
    busy_s = (400 * WORLD.target_prefill_ms + 120 * WORLD.target_ms) / 1e3
    assert found.joules == pytest.approx(busy_s * WORLD.device_w)
    assert found.deadlines == 0.0


@pytest.mark.parametrize(("holds", "least", "most"), [(0.0, 1.0, 1.01), (1.0, 2.5, 9.0)])
def test_hints_save_passes_as_often_as_they_hold(holds: float, least: float, most: float) -> None:
    ask = msgspec.structs.replace(CHAT, holds=holds)
    plain = power.plain(WORLD, ask, ask.at, OFFICE, "cloud")
    found = power.with_drafts(WORLD, ask, ask.at, OFFICE, depth=10, most=6)
    # The target alone would have taken so much longer.
    assert least - 0.05 <= (plain.finish - ask.at) / (found.finish - ask.at) <= most
    assert found.accepted <= found.drafted
    assert (found.accepted > 0) == (holds > 0)


def test_hints_are_stale_after_a_wrong_token() -> None:
    chain = power._Chain([1, 1, 9, 9, 9, 9, 9, 9, 9, 9], 0.001, 0.0, 8)
    chain.grow(0, 1.0, 0.0)
    assert chain.waiting(0, 1.0, 4) == 4
    assert chain.waiting(1, 1.0, 4) == 4, "the wrong one is offered, and refused"
    assert chain.waiting(2, 1.0, 4) == 0, "what follows it is not"
    assert chain.broken(2)
    assert not chain.broken(1)


def test_thinned_messages_keep_the_radio_awake_as_long() -> None:
    times = [n * 0.026 for n in range(400)]
    thin = power._thin(times)
    assert len(thin) < 140
    assert (thin[0], thin[-1]) == (times[0], times[-1])
    gaps = [b - a for a, b in zip(thin, thin[1:], strict=False)]
    assert max(gaps) <= power.THIN_S + 1e-9


def test_deferring_everything_breaks_deadlines() -> None:
    some = day(*DAY.asks[::12])
    kept = power.live(some, WORLD, power.Chooser(), power.at_once)
    late = power.live(some, WORLD, power.Chooser(), power.later(some))
    assert kept.deadlines >= power.DEADLINES > late.deadlines


def test_a_low_battery_computes_elsewhere() -> None:
    laptop = power.Laptop(OFFICE.start)
    laptop.wh = 0.1 * laptop.CAPACITY_WH
    ask = msgspec.structs.replace(CHAT, small_allowed=True)
    chooser = power.Chooser()
    assert chooser(WORLD, laptop, ask, OFFICE, ask.at)[0] == "cloud"
    assert laptop.governor.bounds.reason == "battery 10 % < floor 20 %"
    full = power.Laptop(OFFICE.start)
    assert chooser(WORLD, full, ask, OFFICE, ask.at)[0] == "edge"


def test_a_link_that_is_away_leaves_what_may_stay() -> None:
    tunnel = next(part for part in DAY.segments if not part.reachable)
    ask = msgspec.structs.replace(CHAT, at=tunnel.start + 1.0, small_allowed=True)
    found = power.live(day(ask), WORLD, power.Chooser(), power.at_once)
    assert found.where == {"edge": 1}
    waits = power.live(day(ask), WORLD, power.always("cloud"), power.at_once)
    assert waits.deadlines == 0.0
