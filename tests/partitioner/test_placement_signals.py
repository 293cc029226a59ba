"""What placement learns: curves, acceptance, paces, and the two formulas."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.partitioner.acceptance import DEPTHS, LENT, PRIOR, Acceptance
from outrider.partitioner.bandit import Estimate, optimistic
from outrider.partitioner.book import WINDOW, Book, Heard, Track, pace
from outrider.partitioner.pace import drafted, plain_ms
from outrider.partitioner.signals import Curve, DraftMeter, Pace, PeerMeter, PeerSignals

# --- curves ------------------------------------------------------------------------------------


def test_a_curve_lies_between_what_was_seen_and_never_falls() -> None:
    curve = Curve(growth=0.0)
    for rows, ms in ((1, 50.0), (8, 64.0), (4, 30.0)):
        curve.note(rows, ms)
    assert curve.ms(1) == curve.ms(4) == 50.0, "a dip is noise: more rows are never cheaper"
    assert curve.ms(6) == pytest.approx((50.0 + curve.ms(8)) / 2)
    assert curve.ms(12) > curve.ms(8)


def test_a_burst_costs_in_proportion_where_nothing_was_seen() -> None:
    curve = Curve(growth=1.0)
    curve.note(8, 40.0)
    assert curve.ms(4) == pytest.approx(20.0)
    assert Curve(growth=1.0).ms(4) == 0.0


def test_what_slows_all_counts_is_learnt_for_those_that_are_not_seen() -> None:
    curve = Curve(growth=0.0)
    for _ in range(20):
        curve.note(1, 50.0)
        curve.note(8, 65.0)
    for _ in range(40):
        curve.note(8, 130.0)
    assert curve.ms(8) == pytest.approx(130.0, rel=0.1)
    assert curve.ms(1) > 70.0


def test_noise_moves_a_curve_little() -> None:
    noise, curve = random.Random(1), Curve(growth=0.0)
    for _ in range(400):
        curve.note(1, 50.0 * math.exp(noise.gauss(0.0, 0.2)))
    found = []
    for _ in range(200):
        curve.note(1, 50.0 * math.exp(noise.gauss(0.0, 0.2)))
        found.append(curve.ms(1))
    assert min(found) > 42.0 and max(found) < 58.0


# --- acceptance --------------------------------------------------------------------------------


def test_acceptance_counts_each_depth_where_all_before_held() -> None:
    acceptance = Acceptance()
    for _ in range(60):
        acceptance.follow(2, 0, broke=True)
    assert acceptance.rate(0) > 0.95 and acceptance.rate(1) > 0.9 and acceptance.rate(2) < 0.05
    assert acceptance.tried[3] == 0.0
    assert Acceptance().rate(0) == PRIOR


def test_an_answer_begins_with_what_the_device_knows_and_soon_goes_by_its_own() -> None:
    device = Acceptance()
    for _ in range(300):
        device.follow(0, 0, broke=True)
    answer = Acceptance(base=device)
    assert answer.rate(0) == pytest.approx(device.rate(0))
    before = device.rate(0)
    for _ in range(3 * int(LENT)):
        answer.follow(1, 0, broke=False)
    assert answer.rate(0) > 0.7 and device.rate(0) > before


def test_old_news_is_believed_less_surely() -> None:
    acceptance = Acceptance()
    acceptance.age(10.0)
    for _ in range(50):
        acceptance.follow(1, 0, broke=False)
    sure = acceptance.rates(1.0)[0] - acceptance.rates(-1.0)[0]
    acceptance.age(1000.0)
    assert acceptance.rates(1.0)[0] - acceptance.rates(-1.0)[0] > sure
    assert acceptance.rate(0) > PRIOR


# --- estimates ---------------------------------------------------------------------------------


def test_an_estimate_follows_and_tells_how_sure_it_is() -> None:
    estimate, noise = Estimate(), random.Random(2)
    unsure = estimate.error(0.4)
    for second in range(200):
        estimate.note(10.0 + noise.gauss(0.0, 1.0), float(second))
    assert estimate.mean == pytest.approx(10.0, abs=0.8)
    assert estimate.error(0.4) < unsure
    fresh = estimate.error(0.4)
    estimate.age(10_000.0)
    assert estimate.error(0.4) > fresh


def test_optimism_grows_with_doubt() -> None:
    assert optimistic(10.0, 2.0, 5) < optimistic(10.0, 1.0, 5) < 10.0


def test_a_pace_that_jumps_is_a_surprise_and_noise_is_none() -> None:
    known, noise = Pace(), random.Random(3)
    calm = [known.note(1.0 + noise.gauss(0.0, 0.1), float(t), 1.0) for t in range(200)]
    assert not any(calm)
    jump = [known.note(2.0 + noise.gauss(0.0, 0.1), 200.0 + t, 1.0) for t in range(8)]
    assert any(jump) and known.bias(210.0).ratio > 1.5


# --- tracks ------------------------------------------------------------------------------------


def heard(tokens: int = 1, hint_rows: int = 0) -> Heard:
    return Heard(tokens, 1 + hint_rows, hint_rows, 50.0, 4)


def test_a_window_is_measured_over_its_tokens() -> None:
    meter, track = PeerMeter(), Track()
    found = [track.heard(heard(), meter, "plain", 0.06 * n) for n in range(WINDOW + 1)]
    assert found[:-1] == [None] * WINDOW and found[-1] is not None
    assert found[-1][0] == pytest.approx(60.0) and found[-1][1] == WINDOW
    assert meter.wait.mean == pytest.approx(10.0), "what lies between passes beside the step"


def test_what_another_placement_left_under_way_is_not_counted() -> None:
    meter, track = PeerMeter(), Track()
    track.heard(heard(), meter, "plain", 0.0)
    for n in range(20):
        assert track.heard(heard(4, hint_rows=4), meter, "plain", 0.1 * n) is None
    late = Track()
    late.heard(heard(), meter, "drafted", 0.0)
    assert late.heard(heard(), meter, "drafted", 0.1) is None
    assert late.heard(heard(8, hint_rows=7), meter, "drafted", 0.2) is not None


def test_a_restart_forgets_the_gap() -> None:
    meter, track = PeerMeter(), Track()
    track.heard(heard(), meter, "plain", 0.0)
    track.restart()
    track.heard(heard(), meter, "plain", 30.0)
    assert track.total_ms == 0.0
    track.heard(heard(), meter, "plain", 30.05)
    assert track.total_ms == pytest.approx(50.0)


def test_a_pace_is_learnt_against_the_prediction() -> None:
    book = Book()
    meter, drafter = book.meter("cloud", "m"), book.drafter("m")
    meter.passed(1, 0, 50.0, 0.0)
    for second in range(30):
        peer = meter.signals("cloud", float(second))
        rates = drafter.acceptance.rates()
        pace(peer, meter, drafter, rates, (75.0, 8.0), "plain", float(second))
    assert meter.plain.bias(30.0).ratio == pytest.approx(1.5, rel=0.1)
    assert book.answer("m").base is drafter.acceptance


# --- the formulas ------------------------------------------------------------------------------

CLOUD = PeerSignals("cloud", step=((1.0, 30.0), (8.0, 36.0)))
TABLE = (
    # Step ms, RTT ms, draft ms, acceptance, never-stall ms of the event simulation in the notes.
    (15.0, 20.0, 8.0, 0.90, 10.8),
    (15.0, 100.0, 8.0, 0.75, 15.0),
    (30.0, 20.0, 8.0, 0.75, 18.3),
    (30.0, 50.0, 8.0, 0.75, 22.1),
    (30.0, 100.0, 8.0, 0.90, 18.4),
    (60.0, 50.0, 8.0, 0.90, 19.9),
    (20.0, 30.0, 20.0, 0.80, 20.0),
    (40.0, 80.0, 35.0, 0.80, 40.0),
)


@pytest.mark.parametrize(("step", "rtt", "draft", "holds", "simulated"), TABLE)
def test_the_formulas_are_near_the_event_simulation(
    step: float, rtt: float, draft: float, holds: float, simulated: float
) -> None:
    """Passes cost the same whatever their rows there; 20 % is what the notes' own formula has."""
    peer = PeerSignals("cloud", step=((1.0, step), (8.0, step)), rtt_ms=rtt)
    found = drafted(peer, (holds,) * DEPTHS, ((1.0, draft),), 15)
    assert found.ms == pytest.approx(simulated, rel=0.20)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.1, 500.0),
    st.floats(1.0, 3.0),
    st.floats(0.0, 1000.0),
    st.floats(0.1, 200.0),
    st.floats(0.0, 1.0),
    st.integers(0, 15),
    st.floats(1.0, 20.0),
)
def test_hints_never_slow_a_stream_down(
    step: float, growth: float, rtt: float, draft: float, holds: float, cap: int, rows: float
) -> None:
    peer = PeerSignals("c", step=((1.0, step), (40.0, step * growth)), rtt_ms=rtt, rows=rows)
    found = drafted(peer, (holds,) * DEPTHS, ((8.0, 8 * draft),), cap)
    assert 0.0 < found.ms <= plain_ms(peer) * (1 + 1e-9)
    assert found.depth <= cap and found.busy_ms >= 0.0


def test_drafting_deeper_pays_more_where_more_holds() -> None:
    draft = ((8.0, 24.0),)
    depths = [drafted(CLOUD, (p,) * DEPTHS, draft, 15).depth for p in (0.2, 0.5, 0.9)]
    assert depths == sorted(depths) and depths[0] < depths[-1]


def test_a_price_on_drafting_time_makes_drafts_shallower() -> None:
    free = drafted(CLOUD, (0.6,) * DEPTHS, ((8.0, 24.0),), 15)
    dear = drafted(CLOUD, (0.6,) * DEPTHS, ((8.0, 24.0),), 15, ms_per_busy=5.0)
    assert dear.depth < free.depth and dear.ms >= free.ms


def test_a_drafter_slower_than_the_target_brings_nothing() -> None:
    far = PeerSignals("c", step=((1.0, 20.0),), rtt_ms=50.0)
    assert drafted(far, (0.9,) * DEPTHS, ((8.0, 8 * 40.0),), 15).ms == plain_ms(far)


def test_bursts_are_told_to_the_drafter_s_curve() -> None:
    meter = DraftMeter()
    meter.burst(4, 20.0)
    given_ = meter.signals(1.0, ())
    assert given_.draft == ((4.0, 20.0),) and len(given_.rates) == DEPTHS
