"""Joules of requests: shares add up, every awake second is paid once, kinds are honest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.partitioner.power import constants
from outrider.partitioner.power.account import Accountant, Costs, Traffic, worst
from outrider.partitioner.power.radio import NONE, Radio, Tail

RADIO = Radio("test", up_j_per_byte=1e-3, down_j_per_byte=1e-4, tail_w=2.0, tail_s=5.0, wake_j=0.5)


def accountant(radio: Radio = NONE, cloud_w: float = 100.0) -> Accountant:
    return Accountant(Costs(device_w=10.0, cloud_w=lambda device: cloud_w, radio=radio))


# --- the device --------------------------------------------------------------------------------


def test_without_a_counter_busy_time_is_taken_at_estimated_watts() -> None:
    energy = accountant()
    energy.begin("a", "edge")
    energy.worked("a", 0.5, 20)
    bill = energy.finish("a", Traffic(tokens=20))
    assert bill.joules == pytest.approx(5.0)
    assert bill.kind == "estimated"
    assert energy.joules_per_token("edge") == pytest.approx(0.25)
    assert energy.joules_per_token("draft") is None


def test_a_counters_joules_above_idle_are_shared_by_busy_time() -> None:
    energy = accountant()
    energy.counter(0.0, 100.0, "measured")
    energy.counter(10.0, 120.0, "measured")
    assert energy.idle_w == pytest.approx(2.0)
    energy.begin("a", "edge")
    energy.begin("b", "edge")
    energy.worked("a", 3.0, 10)
    energy.worked("b", 1.0, 10)
    energy.counter(20.0, 180.0, "measured")
    assert energy.busy_w == pytest.approx(10.0), "60 J less 20 J idle, over 4 s"
    one, two = energy.finish("a", Traffic(10)), energy.finish("b", Traffic(10))
    assert one.joules == pytest.approx(30.0)
    assert two.joules == pytest.approx(10.0)
    assert one.kind == two.kind == "measured"


def test_what_other_processes_took_is_not_ours() -> None:
    energy = accountant()
    energy.counter(0.0, 0.0, "measured")
    energy.counter(10.0, 20.0, "measured")
    energy.begin("a", "edge")
    energy.worked("a", 4.0, 10)
    energy.counter(20.0, 80.0, "measured", own=0.25)
    assert energy.finish("a", Traffic(10)).joules == pytest.approx(10.0)


def test_work_after_the_last_reading_makes_it_an_estimate() -> None:
    energy = accountant()
    energy.counter(0.0, 0.0, "measured")
    energy.counter(10.0, 0.0, "measured")
    energy.begin("a", "edge")
    energy.worked("a", 1.0, 10)
    energy.counter(20.0, 8.0, "measured")
    energy.worked("a", 0.5, 5)
    bill = energy.finish("a", Traffic(15))
    assert bill.joules == pytest.approx(12.0)
    assert bill.kind == "estimated"


def test_another_counter_begins_anew() -> None:
    """Unplugged: the battery tells of the whole device, the processor's counter did not."""
    energy = accountant()
    energy.counter(0.0, 0.0, "measured", source="rapl")
    energy.counter(10.0, 20.0, "measured", source="rapl")
    energy.begin("a", "edge")
    energy.worked("a", 1.0, 10)
    energy.counter(11.0, 9000.0, "measured", source="BAT0")
    assert energy.finish("a", Traffic(10)).joules == pytest.approx(10.0), "at estimated watts"


def test_requests_that_ended_keep_their_share_of_the_stretch() -> None:
    energy = accountant()
    energy.counter(0.0, 0.0, "measured")
    energy.counter(10.0, 0.0, "measured")
    energy.begin("a", "edge")
    energy.begin("b", "edge")
    energy.worked("a", 1.0, 1)
    energy.worked("b", 1.0, 1)
    energy.finish("a", Traffic(1))
    energy.counter(20.0, 16.0, "measured")
    assert energy.finish("b", Traffic(1)).joules == pytest.approx(8.0), "not all 16"


@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=6), st.floats(0.0, 500.0))
def test_shares_add_up_to_the_counter(busy: list[float], drawn: float) -> None:
    energy = accountant()
    energy.counter(0.0, 0.0, "measured")
    energy.counter(10.0, 0.0, "measured")
    for number, seconds in enumerate(busy):
        energy.begin(str(number), "edge")
        energy.worked(str(number), seconds, 1)
    energy.counter(20.0, drawn, "measured")
    bills = [energy.finish(str(number), Traffic(1)) for number in range(len(busy))]
    assert sum(bill.joules or 0.0 for bill in bills) == pytest.approx(drawn, abs=1e-9)


# --- the radio ---------------------------------------------------------------------------------


def test_a_lonely_message_pays_waking_and_tail() -> None:
    tail = Tail(RADIO)
    tail.touch("a", 100.0)
    assert tail.leave("a") == pytest.approx(0.5 + 5.0 * 2.0)


def test_many_small_messages_keep_the_radio_awake() -> None:
    """The same bytes at once and over a minute: the tail makes the difference."""
    at_once, spread = accountant(RADIO), accountant(RADIO)
    for energy, gap in ((at_once, 0.0), (spread, 4.0)):
        energy.begin("a", "cloud")
        for number in range(16):
            energy.sent("a", number * gap)
    first = at_once.finish("a", Traffic(16, 1000, 1000))
    second = spread.finish("a", Traffic(16, 1000, 1000))
    assert first.joules == pytest.approx(1.1 + 0.5 + 10.0)
    assert second.joules == pytest.approx(1.1 + 0.5 + 10.0 + 15 * 4.0 * 2.0)


messages = st.lists(
    st.tuples(st.floats(0.0, 200.0), st.sampled_from("abc")), min_size=1, max_size=40
)


@given(messages)
def test_every_awake_second_is_paid_once(found: list[tuple[float, str]]) -> None:
    found.sort()
    tail = Tail(RADIO)
    for at, request in found:
        tail.touch(request, at)
    paid = sum(tail.leave(request) for request in "abc")
    awake, wakes, until = 0.0, 0, float("-inf")
    for at, _ in found:
        wakes += at >= until
        awake += min(RADIO.tail_s, at + RADIO.tail_s - until) if at < until else RADIO.tail_s
        until = at + RADIO.tail_s
    assert paid == pytest.approx(awake * RADIO.tail_w + wakes * RADIO.wake_j)


def test_a_tail_left_behind_is_not_paid_again() -> None:
    tail = Tail(RADIO)
    tail.touch("a", 0.0)
    first = tail.leave("a")
    tail.touch("b", 2.0)
    assert first == pytest.approx(10.5)
    assert tail.leave("b") == pytest.approx(2.0 * 2.0), "from 5 s, which a paid for, to 7 s"


def test_a_cable_costs_nothing() -> None:
    energy = accountant(constants.radio("ethernet"))
    energy.begin("a", "cloud")
    energy.sent("a", 1.0)
    assert energy.finish("a", Traffic(1, 10**6, 10**6)).kind == "none"


# --- the cloud ---------------------------------------------------------------------------------


def test_a_pass_is_shared_by_rows() -> None:
    energy = accountant()
    energy.begin("a", "draft")
    energy.committed("a", 3, 1.0, step_s=0.1, rows=4, of_rows=16)
    energy.prefilled("a", 0.05)
    bill = energy.finish("a", Traffic(3))
    assert bill.parts.cloud_j == pytest.approx(100 * (0.1 * 4 / 16 + 0.05))
    assert bill.kind == "estimated"


def test_the_clouds_own_figure_stands_for_ours() -> None:
    energy = accountant()
    energy.begin("a", "cloud")
    energy.committed("a", 1, 1.0, step_s=0.1, rows=1, of_rows=1)
    energy.told("a", 3.25, "measured")
    bill = energy.finish("a", Traffic(1))
    assert bill.joules == pytest.approx(3.25)
    assert bill.kind == "measured"


def test_the_cloud_is_priced_by_its_device() -> None:
    assert constants.cloud_w("cpu") < constants.cloud_w("cuda:0")
    energy = Accountant(Costs(radio=NONE))
    energy.begin("a", "cloud")
    energy.opened("a", "cpu", 0.0)
    energy.committed("a", 1, 1.0, step_s=1.0, rows=1, of_rows=1)
    assert energy.finish("a", Traffic(1)).joules == pytest.approx(constants.cloud_w("cpu"))


# --- placements --------------------------------------------------------------------------------


def test_a_change_of_placement_parts_the_joules() -> None:
    energy = accountant()
    energy.begin("a", "draft")
    energy.worked("a", 1.0, 8)
    energy.committed("a", 4, 1.0, step_s=0.1, rows=1, of_rows=1)
    energy.placed("a", "cloud")
    energy.committed("a", 6, 2.0, step_s=0.2, rows=1, of_rows=1)
    energy.finish("a", Traffic(10, sent=8, accepted=3))
    assert energy.joules_per_token("draft") == pytest.approx((10.0 + 10.0) / 4)
    assert energy.joules_per_token("cloud") == pytest.approx(20.0 / 6)


def test_refused_drafts_are_waste() -> None:
    energy = accountant()
    energy.begin("a", "draft")
    energy.worked("a", 1.0, 10)
    energy.committed("a", 4, 1.0, step_s=0.0, rows=1, of_rows=1)
    bill = energy.finish("a", Traffic(4, sent=8, accepted=3))
    assert bill.wasted_j == pytest.approx(10.0 * 5 / 10)


def test_a_figure_per_token_forgets() -> None:
    energy = accountant()
    for seconds in (10.0, 0.1):
        for _ in range(8):
            energy.begin("a", "edge")
            energy.worked("a", seconds, 512)
            energy.finish("a", Traffic(tokens=512))
    found = energy.joules_per_token("edge")
    assert found is not None
    assert found < 0.01, "0.2 J of long ago is forgotten"
    assert energy.per_token()["edge"].tokens == 16 * 512


def test_an_unknown_request_is_no_matter() -> None:
    energy = accountant()
    energy.worked("never", 1.0, 1)
    energy.sent("never", 1.0)
    energy.placed("never", "edge")
    assert energy.finish("never", Traffic()).kind == "none"
    assert not energy.requests


def test_one_estimate_makes_an_estimate() -> None:
    assert worst("none", "measured") == "measured"
    assert worst("measured", "estimated") == "estimated"


def test_every_constant_has_a_source() -> None:
    for name, constant in constants.table().items():
        assert constant.source, name
        assert constant.value > 0, name


def test_a_clouds_figure_holds_only_its_own_part() -> None:
    energy = accountant()
    energy.begin("a", "cloud")
    energy.opened("a", "cuda", 0.0)
    energy.committed("a", 1, 1.0, step_s=0.1, rows=1, of_rows=1)
    energy.opened("a", "cuda", 2.0)
    energy.committed("a", 1, 3.0, step_s=0.2, rows=1, of_rows=1)
    energy.told("a", 4.0, "measured")
    bill = energy.finish("a", Traffic(2))
    assert bill.joules == pytest.approx(10.0 + 4.0), "the first cloud's by our estimate"
    assert bill.kind == "estimated"
