"""The schedule of an emulated link, on a virtual clock."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from statistics import mean

import pytest

from outrider.errors import ConfigError
from outrider.testing.link import SEGMENT_BYTES, Lane, Link, Pipe, Way
from outrider.testing.mangle import BitFlip, Slicer, mangle


def lane(seed: int = 0, pipe: Pipe | None = None, opens_at: float = 0.0) -> Lane:
    return Lane(pipe or Pipe(), Random(seed), opens_at)


def test_delay_is_added_to_each_piece_and_pieces_do_not_queue() -> None:
    one = lane()
    dues = [one.due(now, 10_000_000, Way(delay_s=0.02)) for now in (1.0, 1.0, 1.5)]
    assert dues == pytest.approx([1.02, 1.02, 1.52])


def test_bandwidth_sends_one_piece_after_the_other_and_idles_between() -> None:
    one, way = lane(), Way(delay_s=0.1, bytes_per_s=1000)
    dues = [one.due(now, 500, way) for now in (0.0, 0.0, 0.2, 9.0)]
    assert dues == pytest.approx([0.6, 1.1, 1.6, 9.6])


def test_connections_share_the_bandwidth_of_their_direction() -> None:
    pipe, way = Pipe(), Way(bytes_per_s=1000)
    assert lane(pipe=pipe).due(0.0, 1000, way) == pytest.approx(1.0)
    assert lane(pipe=pipe).due(0.0, 1000, way) == pytest.approx(2.0)


def test_order_is_kept_when_the_delay_shrinks() -> None:
    one = lane()
    slow = one.due(0.0, 1, Way(delay_s=2.0))
    assert one.due(0.1, 1, Way(delay_s=0.01)) == slow
    assert one.due(3.0, 1, Way(delay_s=0.01)) == pytest.approx(3.01)


def test_jitter_lies_around_the_delay_in_order_and_repeats_with_its_seed() -> None:
    way = Way(delay_s=0.05, jitter_s=0.02)
    apart = [lane(seed).due(0.0, 1, way) for seed in range(400)]
    assert min(apart) >= 0.03
    assert max(apart) <= 0.07
    assert mean(apart) == pytest.approx(0.05, abs=0.003)
    assert max(apart) - min(apart) > 0.03
    first, second = lane(7), lane(7)
    row = [first.due(i / 1000, 1, way) for i in range(50)]
    assert row == [second.due(i / 1000, 1, way) for i in range(50)]
    assert row == sorted(row)


def test_jitter_never_delivers_before_it_was_sent() -> None:
    assert all(lane(s).due(5.0, 1, Way(delay_s=0.001, jitter_s=1.0)) >= 5.0 for s in range(50))


def test_loss_delays_the_lost_share_by_retransmissions() -> None:
    way = Way(loss=0.1, retransmit_s=0.2)
    waits = [lane(seed).due(0.0, 100, way) for seed in range(4000)]
    assert sum(w > 0 for w in waits) / len(waits) == pytest.approx(0.1, abs=0.015)
    possible = {round(0.2 * (2**n - 1), 6) for n in range(1, 9)}
    assert {round(w, 6) for w in waits if w} <= possible


def test_loss_grows_with_the_segments_of_a_piece_and_holds_up_what_follows() -> None:
    way = Way(loss=0.02)
    share = mean(lane(s).due(0.0, 20 * SEGMENT_BYTES, way) > 0 for s in range(2000))
    assert share == pytest.approx(1 - 0.98**20, abs=0.04)
    one = next(one for one in map(lane, range(1000)) if one.due(0.0, 1, way) > 0)
    assert one.due(0.01, 1, Way()) == one.last_due > 0.01


def test_nothing_enters_before_the_handshake_is_over() -> None:
    one = lane(opens_at=1.0)
    assert one.due(0.2, 10, Way(delay_s=0.5)) == pytest.approx(1.5)
    assert one.due(2.0, 10, Way(delay_s=0.5)) == pytest.approx(2.5)


@pytest.mark.parametrize("size", [1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 100_000])
def test_limited_ways_cut_chunks_into_pieces_and_lose_no_byte(size: int) -> None:
    assert list(Way().pieces(size)) == [size]
    slow = list(Way(bytes_per_s=8000).pieces(size))
    assert sum(slow) == size
    assert max(slow) <= SEGMENT_BYTES
    fast = list(Way(bytes_per_s=1e8).pieces(size))
    assert len(fast) == math.ceil(size / 1e5)


def test_buffers_hold_twice_the_link_within_bounds() -> None:
    assert Way().buffer_bytes(10, 1000) == 1000
    assert Way(bytes_per_s=100, delay_s=1).buffer_bytes(10, 1000) == 200
    assert Way(bytes_per_s=1, delay_s=1).buffer_bytes(10, 1000) == 10
    assert Way(bytes_per_s=1e9, delay_s=1).buffer_bytes(10, 1000) == 1000


def test_link_gives_each_direction_its_own_numbers() -> None:
    link = Link.of_rtt(40, up_bits_per_s=8e6, loss=0.01)
    assert link.rtt_ms == 40
    assert link.way("up") == Way(delay_s=0.02, bytes_per_s=1e6, loss=0.01)
    assert replace(link, down_delay_ms=5).way("down") == Way(delay_s=0.005, loss=0.01)


@pytest.mark.parametrize(
    "bad",
    [
        {"up_delay_ms": -1},
        {"jitter_ms": math.nan},
        {"up_bits_per_s": 0},
        {"loss": 1.0},
        {"down_delay_ms": math.inf},
    ],
)
def test_impossible_links_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Link(**bad)  # type: ignore[arg-type]


def test_manglers_compose() -> None:
    flip = BitFlip(offset=4, bit=1)
    assert b"".join(mangle(b"abc", [flip])) == b"abc"
    assert list(mangle(b"def", [flip, Slicer(2)])) == [b"dg", b"f"]
    assert list(mangle(b"abc", [])) == [b"abc"]
