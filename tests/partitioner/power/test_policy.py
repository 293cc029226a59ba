"""What follows from power and heat, in words, and that it does not flap."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest

from outrider.partitioner.power.policy import Governor, Policy
from outrider.partitioner.power.state import Bounds, PowerState


def battery(at_s: float, level: float, supply: str = "battery") -> PowerState:
    charging = supply == "ac"
    return PowerState(at_s, supply, level, charging)  # type: ignore[arg-type]


def warm(at_s: float, celsius: float, limit: float = 95.0) -> PowerState:
    return PowerState(at_s, temperature_c=celsius, limit_c=limit, zone="cpu")


def steps(governor: Governor, states: Iterable[PowerState]) -> list[Bounds]:
    return [governor.step(state) for state in states]


def changes(found: list[Bounds]) -> int:
    return sum(a.draft != b.draft for a, b in zip(found, found[1:], strict=False))


def test_below_the_floor_nothing_is_computed_here() -> None:
    bounds = Governor().step(battery(0.0, 0.18))
    assert (bounds.draft, bounds.compute) == ("off", "avoid")
    assert bounds.reason == "battery 18 % < floor 20 %"


def test_on_battery_drafts_get_shallow_with_the_charge() -> None:
    governor = Governor()
    found = steps(governor, [battery(at, (100 - at) / 100) for at in range(90)])
    levels = [bounds.draft for bounds in found]
    assert levels[0] == levels[50] == "free"
    assert levels[51] == levels[80] == "shallow"
    assert levels[81] == "off"
    assert changes(found) == 2


def test_the_charger_frees_it_once_it_stays_plugged_in() -> None:
    governor = Governor()
    assert governor.step(battery(0.0, 0.4)).draft == "shallow"
    assert governor.step(battery(1.0, 0.4, "ac")).draft == "shallow", "the contact may chatter"
    assert governor.step(battery(7.0, 0.4, "ac")).draft == "free"
    assert governor.step(battery(8.0, 0.4)).draft == "shallow", "unplugging acts at once"


def test_a_nearly_empty_battery_is_charged_first() -> None:
    governor = Governor()
    assert governor.step(battery(0.0, 0.1, "ac")).draft == "shallow"
    assert governor.bounds.reason == "charging from 10 %, floor 20 %"
    assert governor.step(battery(1.0, 0.22, "ac")).draft == "shallow", "within the margin"
    governor.step(battery(2.0, 0.3, "ac"))
    assert governor.step(battery(9.0, 0.31, "ac")).draft == "free"


def test_save_spares_a_full_battery_too() -> None:
    governor = Governor(Policy("save"))
    assert governor.step(battery(0.0, 0.99)).draft == "off"
    assert "--power save" in governor.bounds.reason


def test_off_never_minds() -> None:
    governor = Governor(Policy("off"))
    states = [battery(0.0, 0.01), warm(1.0, 200.0)]
    assert [bounds.draft for bounds in steps(governor, states)] == ["free", "free"]


def test_a_gauge_that_wavers_about_the_floor_changes_nothing_twice() -> None:
    rng = random.Random(5)
    states = [battery(float(at), 0.2 + rng.uniform(-0.012, 0.012)) for at in range(2000)]
    found = steps(Governor(), states)
    assert changes(found) <= 1
    assert found[-1].draft == "off"


# --- watts -------------------------------------------------------------------------------------


def drawing(at_s: float, watts: float) -> PowerState:
    return PowerState(at_s, watts=watts, watts_kind="measured", watts_source="rapl package-0")


def test_a_cap_makes_drafts_shallow_and_then_stops_them() -> None:
    governor = Governor(Policy(watt_cap=10.0))
    assert governor.step(drawing(0.0, 9.0)).draft == "free"
    assert governor.step(drawing(1.0, 11.0)).draft == "shallow"
    assert governor.bounds.reason == "11.0 W of 10 W (rapl package-0)"
    assert governor.step(drawing(2.0, 13.0)).draft == "off"
    assert governor.bounds.watt_cap == 10.0


def test_without_drafts_watts_fall_and_that_is_no_reason_to_begin_at_once() -> None:
    """Closed loop: drafting draws 15 W, not drafting 5 W; the cap is 10 W."""
    governor = Governor(Policy(watt_cap=10.0))
    found: list[Bounds] = []
    for at in range(300):
        free = not found or found[-1].draft == "free"
        found.append(governor.step(drawing(float(at), 15.0 if free else 5.0)))
    # A trial every 30 s is the least that can be known without drafting.
    assert changes(found) <= 2 * 300 / 30
    assert sum(bounds.draft == "free" for bounds in found) < 15


# --- heat --------------------------------------------------------------------------------------


def test_it_backs_off_before_the_trip_point_by_the_slope() -> None:
    """0.5 degrees a second: at 80 °C the limit is 30 s away."""
    governor = Governor()
    found = steps(governor, [warm(float(at), 60.0 + at / 2) for at in range(68)])
    first = next(at for at, bounds in enumerate(found) if bounds.draft != "free")
    assert 38 <= first <= 42
    assert found[first].draft == "shallow"
    assert found[first].reason == "cpu 80 °C, throttles at 95 °C, there in 30 s"
    assert found[-1].draft == "off", "2 °C below the limit"


def test_a_steady_temperature_near_the_limit_is_no_alarm() -> None:
    found = steps(Governor(), [warm(float(at), 86.0) for at in range(100)])
    assert {bounds.draft for bounds in found} == {"free"}


def test_it_comes_back_only_when_it_is_cool_for_a_while() -> None:
    governor = Governor()
    governor.step(warm(0.0, 94.0))
    assert governor.bounds.draft == "off"
    cooling = steps(governor, [warm(float(at), max(70.0, 94.0 - at)) for at in range(1, 60)])
    assert cooling[20].draft == "off", "not yet for 30 s"
    assert cooling[-1].draft == "free"
    assert changes(cooling) <= 2


def test_a_device_that_heats_and_cools_does_not_flap() -> None:
    """Closed loop with a heat sink: drafting heats towards 101 °C, resting cools to 50 °C."""
    governor = Governor()
    heat, found = 50.0, [Bounds()]
    goal = {"free": 101.0, "shallow": 88.0, "off": 50.0}
    for at in range(3600):
        heat += (goal[found[-1].draft] - heat) / 60.0
        noisy = heat + math.sin(at * 1.7)
        found.append(governor.step(warm(float(at), noisy)))
    assert max(changes(found[i : i + 60]) for i in range(0, 3600, 60)) <= 2, "per minute"
    assert changes(found) <= 60, "an hour"


def test_a_throttled_machine_says_so() -> None:
    bounds = Governor().step(PowerState(0.0, throttled=True))
    assert (bounds.draft, bounds.reason) == ("off", "the machine is throttled now")


def test_another_zone_has_another_slope() -> None:
    governor = Governor()
    for at in range(10):
        governor.step(warm(float(at), 50.0))
    jumped = PowerState(10.0, temperature_c=70.0, limit_c=95.0, zone="gpu")
    assert governor.step(jumped).draft == "free", "20 °C between two zones are no slope"


# --- together ----------------------------------------------------------------------------------


def test_a_low_power_profile_keeps_drafts_shallow() -> None:
    assert Governor().step(PowerState(0.0, profile="low-power")).draft == "shallow"


def test_the_strictest_rule_gives_the_reason() -> None:
    state = PowerState(
        0.0, "battery", 0.1, False, temperature_c=94.0, limit_c=95.0, zone="cpu",
        profile="low-power",
    )  # fmt: skip
    bounds = Governor().step(state)
    assert bounds.reason == "battery 10 % < floor 20 %; cpu 94 °C, throttles at 95 °C"


@pytest.mark.parametrize("at", [0.0, 5.0])
def test_a_machine_without_readers_is_free(at: float) -> None:
    assert Governor().step(PowerState(at)) == Bounds()
