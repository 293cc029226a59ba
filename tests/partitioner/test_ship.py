"""Ship or recompute, against every way there is; and which rung."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import InvalidRequest
from outrider.partitioner.ship import (
    Piece,
    Prefill,
    Rung,
    Throughput,
    Wire,
    break_even,
    choose,
    plan,
)

FAST = Rung("int4", 1000.0, 0.002, 1e-6, 1e-6)
RUNGS = (
    Rung("fp16", 4000.0, 0.0, 1e-5, 1e-5),
    Rung("int8", 2000.0, 0.0005, 1e-5, 1e-5),
    FAST,
    Rung("int2", 600.0, 0.04, 1e-5, 1e-5),
)


def pieces(sizes: list[int], held: list[bool] | None = None) -> list[Piece]:
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    flags = held or [False] * len(sizes)
    return [Piece(a, b, h) for a, b, h in zip(ends[:-1], ends[1:], flags, strict=True)]


def replayed(
    given_: list[Piece], ships: tuple[bool, ...], rung: Rung, wire: Wire, prefill: Prefill
) -> float:
    """One way as a run of events: when the last piece is present."""
    present = [0.0] * len(given_)
    coder = link = decoder = 0.0
    for i, piece in enumerate(given_):
        if piece.held or not ships[i]:
            continue
        coder += piece.tokens * rung.encode_s
        link = max(link, coder) + piece.tokens * rung.token_bytes / wire.bytes_per_s
        decoder = max(decoder, link + wire.delay_s) + piece.tokens * rung.decode_s
        present[i] = decoder
    processor = 0.0
    for i, piece in enumerate(given_):
        if piece.held or ships[i]:
            continue
        one_by_one = sum(
            prefill.token_s + p * prefill.position_s for p in range(piece.start, piece.stop)
        )
        processor = max([processor, *present[:i]]) + one_by_one
        present[i] = processor
    return max(present, default=0.0)


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=7)
SPEED = st.floats(-6, -2).map(lambda p: 10.0**p)


@given(SIZES, st.data())
@settings(max_examples=150, deadline=None)
def test_no_way_is_faster_than_the_plan(sizes: list[int], data: st.DataObject) -> None:
    held = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    rung = Rung("x", data.draw(st.floats(1, 5000)), 0, data.draw(SPEED), data.draw(SPEED))
    wire = Wire(data.draw(st.floats(1e5, 1e8)), data.draw(st.floats(0, 0.2)))
    prefill = Prefill(data.draw(SPEED), data.draw(st.sampled_from([0.0, 1e-6, 1e-4])))
    given_ = pieces(sizes, held)
    found = plan(given_, rung, wire, prefill)
    ways = product((False, True), repeat=len(sizes))
    best = min(replayed(given_, ships, rung, wire, prefill) for ships in ways)
    assert found.finish_s == pytest.approx(best, rel=1e-9, abs=1e-12)
    ships = tuple(i in found.shipped for i in range(len(sizes)))
    assert replayed(given_, ships, rung, wire, prefill) == pytest.approx(found.finish_s, abs=1e-12)
    wanted = {i for i, piece in enumerate(given_) if not piece.held}
    assert {*found.shipped, *found.recomputed} == wanted
    assert not {*found.shipped} & {*found.recomputed}


@given(SIZES, st.floats(1e5, 1e8))
@settings(max_examples=50, deadline=None)
def test_a_faster_link_is_never_later(sizes: list[int], rate: float) -> None:
    prefill = Prefill(1e-3)
    slow, fast = (plan(pieces(sizes), FAST, Wire(r), prefill) for r in (rate, rate * 1.7))
    assert fast.finish_s <= slow.finish_s + 1e-12
    assert slow.finish_s <= min(slow.ship_all_s, slow.recompute_all_s) + 1e-12


def test_the_head_is_recomputed_while_the_tail_streams_in() -> None:
    found = plan(pieces([64] * 10), FAST, Wire(1e6), Prefill(1e-3))
    assert found.recomputed == (0, 1, 2, 3, 4)
    assert found.shipped == (5, 6, 7, 8, 9)
    assert found.finish_s == pytest.approx(0.32, rel=0.01)
    assert found.ship_all_s == pytest.approx(0.64, rel=0.01) == found.recompute_all_s


def test_a_dead_slow_link_ships_nothing_and_a_fast_one_all() -> None:
    given_ = pieces([64] * 6)
    assert plan(given_, FAST, Wire(10.0), Prefill(1e-3)).shipped == ()
    assert plan(given_, FAST, Wire(1e9), Prefill(1.0)).recomputed == ()


def test_a_missing_piece_is_planned_alone() -> None:
    given_ = pieces([64] * 5, [True, True, False, True, True])
    assert plan(given_, FAST, Wire(1e9), Prefill(1.0)).shipped == (2,)
    assert plan(pieces([64], [True]), FAST, Wire(1e9), Prefill(1.0)).finish_s == 0


def test_many_pieces_of_odd_sizes_stay_near_a_prefix() -> None:
    """Beyond what is searched in full, the plan is no worse than the best head and tail."""
    sizes = [17 + (i * 37) % 64 for i in range(48)]
    given_, prefill, wire = pieces(sizes), Prefill(1e-3, 1e-7), Wire(1e6, 0.02)
    heads = [tuple(i >= k for i in range(48)) for k in range(49)]
    best = min(replayed(given_, ships, FAST, wire, prefill) for ships in heads)
    assert plan(given_, FAST, wire, prefill).finish_s <= best + 1e-9


@pytest.mark.parametrize("ends", [[(0, 0)], [(4, 8), (0, 4)], [(0, 4), (3, 8)]])
def test_pieces_out_of_order_are_refused(ends: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidRequest):
        plan([Piece(*end) for end in ends], FAST, Wire(1e6), Prefill(1e-3))


@pytest.mark.parametrize(
    ("rate", "most_loss", "within_s", "name"),
    [
        (1e6, 0.01, None, "int4"),
        (1e6, 1.0, None, "int2"),
        (1e6, 0.0, None, "fp16"),
        (1e6, 0.01, 5.0, "fp16"),
        (1e6, 0.01, 2.5, "int8"),
        (1e6, 0.01, 0.1, "int4"),
        (1e6, 1.0, 0.7, "int2"),
        (1e5, 1.0, 1.0, "int2"),
    ],
)
def test_the_rung_follows_link_and_allowance(
    rate: float, most_loss: float, within_s: float | None, name: str
) -> None:
    assert choose(RUNGS, Wire(rate), 1000, most_loss, within_s).name == name


def test_where_nothing_is_faithful_enough_it_says_so() -> None:
    with pytest.raises(InvalidRequest, match=r"0\.0005"):
        choose(RUNGS[1:], Wire(1e6), 10, 0.0)


def test_break_even_is_where_both_take_as_long() -> None:
    prefill, tokens = Prefill(1e-3, 1e-7), 640
    rate = break_even(FAST, prefill, tokens, Wire(1.0, 0.01))
    found = plan(pieces([10] * 64), FAST, Wire(rate, 0.01), prefill)
    assert found.ship_all_s == pytest.approx(found.recompute_all_s, rel=0.02)
    assert break_even(Rung("x", 1.0, 0, 1.0, 0), prefill, tokens, Wire(1.0)) == math.inf


def test_throughput_is_that_of_the_latest_sendings() -> None:
    rate = Throughput(5e6)
    assert rate.bytes_per_s == 5e6
    rate.sent(0, 1.0)
    rate.sent(1.0, 0.0)
    assert rate.bytes_per_s == 5e6
    rate.sent(3e6, 3.0)
    rate.sent(1e6, 0.5)
    assert rate.bytes_per_s == pytest.approx(4e6 / 3.5)
    for _ in range(8):
        rate.sent(1e5, 1.0)
    assert rate.bytes_per_s == pytest.approx(1e5)
