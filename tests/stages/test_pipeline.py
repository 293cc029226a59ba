"""Cutting a pass into micro-batches, and how finely."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.engine import Picked, Span, StageSpan
from outrider.errors import EngineFull, StageLost
from outrider.stages.pipeline import Pace, Pipeline, best_pieces, cut, join, pass_s, run
from tests.stages.tiny import TinyChain, TinyFleet


@st.composite
def passes(draw: st.DrawFn) -> list[Span]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    spans = []
    for slot, size in enumerate(sizes):
        first = draw(st.integers(0, size - 1))
        base = draw(st.integers(0, 9))
        spans.append(Span(slot, base, tuple(range(100 * slot, 100 * slot + size)), first))
    return spans


def echo(span: StageSpan) -> Picked:
    return Picked(span.tokens[span.first :])


@given(passes(), st.integers(1, 24))
def test_pieces_hold_every_row_once_in_order_and_join_to_what_was_asked(
    spans: list[Span], rows: int
) -> None:
    batches = cut(spans, rows)
    assert all(sum(p.span.rows for p in batch) <= rows for batch in batches)
    assert all(len({p.span.slot for p in batch}) == len(batch) for batch in batches)
    for number, span in enumerate(spans):
        pieces = [p for batch in batches for p in batch if p.of == number]
        assert tuple(t for p in pieces for t in p.span.tokens) == span.tokens
        assert [p.span.base for p in pieces] == [span.base + p.start for p in pieces]
    found = [(batch, [echo(piece.span) for piece in batch]) for batch in batches]
    assert [picked.ids for picked in join(spans, found)] == [s.tokens[s.first :] for s in spans]


# --- how finely --------------------------------------------------------------------------------


def learnt(fixed: float, row: float) -> Pace:
    pace = Pace()
    for rows in (1, 64, 16):
        pace.note(2, 2 * rows, 2 * (fixed + row * rows))
    return pace


def test_a_pace_is_learnt_from_passes_of_unlike_sizes() -> None:
    assert learnt(2e-3, 1e-4).parts == pytest.approx((2e-3, 1e-4), rel=1e-3)
    same = Pace()
    same.note(4, 64, 0.4)
    assert same.seconds(16) == pytest.approx(0.1)
    assert learnt(0.0, 1e-4).parts == pytest.approx((0.0, 1e-4), abs=1e-9)


def test_pieces_pay_where_rows_cost_and_not_where_a_pass_does() -> None:
    devices = ("a", "b", "c", "d")
    rows_cost, pass_costs = [learnt(1e-4, 1e-3)] * 4, [learnt(5e-2, 1e-6)] * 4
    assert best_pieces(512, rows_cost, devices, 4) > 8
    assert best_pieces(512, pass_costs, devices, 4) == 1
    assert best_pieces(8, rows_cost, devices, 4) <= 2
    one = pass_s(512, 1, rows_cost, devices)
    assert one / pass_s(512, 8, rows_cost, devices) > 2.5


def test_two_chunks_on_one_device_share_it() -> None:
    paces = [learnt(0.0, 1e-3)] * 4
    apart = pass_s(64, 4, paces, ("a", "b", "c", "d"))
    shared = pass_s(64, 4, paces, ("a", "b", "a", "b"))
    assert shared > apart


def test_the_engines_pieces_go_by_what_was_measured_and_keep_the_row_rule() -> None:
    pipeline = Pipeline(("a", "b"), most=128, multiple=4)
    assert pipeline.rows(500) == 64, "nothing is known yet"
    pipeline.paces = [learnt(1e-4, 1e-3)] * 2
    assert pipeline.rows(500) % 4 == 0 and pipeline.rows(500) < 64
    pipeline.paces = [learnt(1.0, 1e-6)] * 2
    assert pipeline.rows(500) == 128, "no more than the stages take"
    assert Pipeline(("a",), most=128, chunk=10).rows(500) == 10


def test_what_a_pass_took_is_learnt_once() -> None:
    fleet = TinyFleet({"a": 6, "b": 6})
    chain = fleet.chain(fleet.plan().layout)
    pipeline = Pipeline(("a", "b"), most=64)
    chain.open(0)
    for base, size in ((0, 40), (40, 1), (41, 8)):
        pipeline.run(chain, [Span(0, base, tuple(range(size)), size - 1)])
    # What `TinyChain.times` says that a stage takes.
    assert pipeline.paces[0].parts == pytest.approx((1e-3, 1e-4), rel=1e-3)


# --- running -----------------------------------------------------------------------------------


class InThrees(TinyChain):
    """Passes end three at a time: with a window of three, and no later."""

    def __init__(self) -> None:
        super().__init__([])
        self.waiting: list[Future[list[Picked]]] = []
        self.ended = 0

    def submit(self, spans: object) -> Future[list[Picked]]:
        self.waiting.append(Future())
        last = self.waiting[-1]
        while len(self.waiting) == 3:
            for one in self.waiting:
                one.set_result([Picked((self.ended,))])
                self.ended += 1
            self.waiting = []
        return last


def test_passes_are_submitted_ahead_and_no_more_are_under_way_than_the_window() -> None:
    [found] = run(InThrees(), [Span(0, 0, tuple(range(9)))], rows=1, window=3)
    assert found.ids == tuple(range(9))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_lost_device_is_the_cause_of_whatever_else_failed(order: tuple[int, int]) -> None:
    errors = [EngineFull("no room"), StageLost("b went away", device="b")]
    futures: list[Future[list[Picked]]] = []

    class Failing(TinyChain):
        def submit(self, spans: object) -> Future[list[Picked]]:
            future: Future[list[Picked]] = Future()
            future.set_exception(errors[order[len(futures)]])
            futures.append(future)
            return future

    with pytest.raises(StageLost):
        run(Failing([]), [Span(0, 0, (1, 2))], rows=1, window=2)
    assert len(futures) == 2
