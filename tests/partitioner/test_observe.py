"""Links from traffic: known links come out, noise and losses are told apart, ignorance is said."""

from __future__ import annotations

import math
from random import Random

import pytest

from outrider.partitioner.observe import UNBOUNDED, Exchange, LinkObserver, measured
from outrider.testing.link import Lane, Link, Pipe


def traffic(link: Link, count: int = 300, seed: int = 1) -> list[Exchange]:
    """Exchanges of mixed sizes over an emulated link, one after the other."""
    random, now, found = Random(seed), 0.0, []
    up_lane, down_lane = Lane(Pipe(), Random(seed + 1)), Lane(Pipe(), Random(seed + 2))
    for _ in range(count):
        up, down = random.choice((60, 200, 60, 16_000)), random.choice((80, 80, 300, 60_000))
        there = sent(up_lane, now, up, link, "up")
        back = sent(down_lane, there, down, link, "down")
        found.append(Exchange(up, down, now, back))
        now = back + 0.05
    return found


def sent(lane: Lane, now: float, size: int, link: Link, direction: str) -> float:
    way = link.way("up" if direction == "up" else "down")
    return max(lane.due(now, piece, way) for piece in way.pieces(size))


@pytest.mark.parametrize(("rtt", "up", "down"), [(20, 20e6, 50e6), (80, 2e6, 20e6), (5, 5e6, 5e6)])
def test_round_trip_and_bandwidths_come_out(rtt: float, up: float, down: float) -> None:
    link = Link.of_rtt(rtt, up_bits_per_s=up, down_bits_per_s=down, jitter_ms=1.0)
    found = measured(traffic(link))
    assert found.rtt_s == pytest.approx(rtt / 1e3, rel=0.1, abs=2e-3)
    assert found.up_bytes_per_s == pytest.approx(up / 8, rel=0.1)
    assert found.down_bytes_per_s == pytest.approx(down / 8, rel=0.1)
    assert found.loss == 0.0


def test_jitter_is_told_and_does_not_hide_the_bandwidth() -> None:
    link = Link.of_rtt(40, up_bits_per_s=4e6, down_bits_per_s=8e6, jitter_ms=8.0)
    found, calm = measured(traffic(link)), measured(traffic(Link.of_rtt(40)))
    assert 2e-3 < found.jitter_s < 16e-3 and calm.jitter_s < 1e-6
    assert found.up_bytes_per_s == pytest.approx(5e5, rel=0.25)


@pytest.mark.parametrize("loss", [0.002, 0.02])
def test_losses_are_late_answers(loss: float) -> None:
    link = Link.of_rtt(30, up_bits_per_s=10e6, down_bits_per_s=10e6, loss=loss)
    found = measured(traffic(link, 512))
    assert loss / 2 < found.loss < loss * 2
    assert found.rtt_s == pytest.approx(0.03, rel=0.15)


def test_what_traffic_can_not_tell_is_unknown() -> None:
    small = [Exchange(60, 80, float(i), i + 0.02 + 1e-5 * (i % 3)) for i in range(20)]
    found = measured(small)
    assert found.up_bytes_per_s is None and found.down_bytes_per_s is None
    link = found.link("a", "b")
    assert link.up_bytes_per_s == UNBOUNDED and link.rtt_s == pytest.approx(0.02, rel=0.01)


def test_the_other_sides_work_is_not_the_links() -> None:
    busy = [Exchange(60, 80, float(i), i + 0.52, worked_s=0.5) for i in range(8)]
    assert measured(busy).rtt_s == pytest.approx(0.02)


def test_an_observer_forgets_what_is_old() -> None:
    observer = LinkObserver(window_s=10.0)
    assert observer.estimate(0.0) is None
    for i in range(20):
        observer.note_rtt(0.1, float(i))
    early = observer.estimate(19.0)
    for i in range(20, 40):
        observer.note_rtt(0.02, float(i))
    late = observer.estimate(40.0)
    assert early is not None and early.rtt_s == pytest.approx(0.1)
    assert late is not None and late.rtt_s == pytest.approx(0.02)
    assert observer.estimate(100.0) is None


@pytest.mark.parametrize(
    "exchange",
    [
        Exchange(1, 1, 1.0, 0.5),
        Exchange(1, 1, math.nan, 1.0),
        Exchange(-1, 1, 0.0, 1.0),
        Exchange(1, 1, 0.0, math.inf),
    ],
)
def test_times_that_make_no_sense_are_passed_over(exchange: Exchange) -> None:
    observer = LinkObserver()
    for i in range(5):
        observer.note_rtt(0.02, float(i))
    observer.note(exchange)
    found = observer.estimate(5.0)
    assert found is not None and found.exchanges == 5


def test_memory_is_bounded() -> None:
    observer = LinkObserver()
    for i in range(5000):
        observer.note_rtt(0.02, i / 1000)
    found = observer.estimate(5.0)
    assert found is not None and found.exchanges == 512
