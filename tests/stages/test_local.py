"""Stages in threads of one process: the same text, order, overlap, and errors that stay small."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from outrider.engine import Stage, StageSpan
from outrider.errors import EngineFailed, EngineFull, LocalProtocolError, ModelCorrupt
from outrider.stages.local import LocalChain
from tests.stages.tiny import LAYERS, WIDTH
from tests.stages.town import PATIENCE_S, ToyStage, alone, ask, ranges, said, toy


def chain_of(*bounds: int, **options: Any) -> tuple[LocalChain, list[ToyStage]]:
    stages = [toy(f"d{n}", part) for n, part in enumerate(ranges(*bounds))]
    builds = [(lambda stage=stage: stage) for stage in stages]
    return LocalChain(builds, **options), stages


@pytest.mark.parametrize("bounds", [(0, 6), (0, 3, 6), (0, 1, 2, 5, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_any_cut_says_the_same(bounds: tuple[int, ...]) -> None:
    chain, stages = chain_of(*bounds)
    assert [info.layers for info in chain.infos] == list(ranges(*bounds))
    assert said(chain) == alone()
    assert said(chain, slot=3) == alone()
    chain.shutdown()
    assert all(stage.down and not stage.kv for stage in stages)


def test_slots_do_not_meet() -> None:
    chain, _ = chain_of(0, 2, 6)
    for slot in range(3):
        chain.open(slot)
    spans = [StageSpan(slot, 0, 3, (slot, 5, 6)) for slot in range(3)]
    together = chain.submit(spans).result(PATIENCE_S)
    chain.open(3)
    for slot, picked in enumerate(together):
        assert ask(chain, 3, 0, (slot, 5, 6)).result(PATIENCE_S) == [picked]
    assert len({picked.ids for picked in together}) == 3
    chain.shutdown()


def test_a_stage_computes_while_the_next_one_does() -> None:
    """The first stage takes the second piece while the first piece waits in the last stage."""
    chain, stages = chain_of(0, 3, 6)
    stages[1].gate.clear()
    chain.open(0)
    first = ask(chain, 0, 0, (1, 2))
    assert stages[1].began.wait(PATIENCE_S)
    second = ask(chain, 0, 2, (3, 4))
    while stages[0].passes < 2:
        assert not first.done() and not second.done()
    stages[1].gate.set()
    assert len(first.result(PATIENCE_S)[0].ids) == len(second.result(PATIENCE_S)[0].ids) == 2
    chain.shutdown()


def test_times_add_up() -> None:
    chain, _ = chain_of(0, 2, 6, names=("a", "b"))
    chain.open(0)
    ask(chain, 0, 0, (1, 2, 3)).result(PATIENCE_S)
    ask(chain, 0, 3, (4,)).result(PATIENCE_S)
    one, two = chain.times()
    assert (one.device, one.passes, one.rows) == ("a", 2, 4)
    assert (two.device, two.passes, two.rows) == ("b", 2, 4)
    assert one.bytes_in == two.bytes_out == 0
    assert one.bytes_out == two.bytes_in == 2 * 6 + 4 * 4 * WIDTH
    assert one.compute_s > 0 and two.compute_s > 0
    chain.shutdown()


def test_a_lossy_code_changes_what_the_next_stage_sees() -> None:
    chain, stages = chain_of(0, 2, 6, codec="int8")
    chain.open(0)
    ask(chain, 0, 0, (1, 2, 3)).result(PATIENCE_S)
    exact, exact_stages = chain_of(0, 2, 6)
    exact.open(0)
    ask(exact, 0, 0, (1, 2, 3)).result(PATIENCE_S)
    coded, whole = stages[1].kv[0][2], exact_stages[1].kv[0][2]
    assert not np.array_equal(coded, whole)
    assert np.abs(coded - whole).max() <= whole.max() / 127
    assert chain.times()[0].bytes_out < exact.times()[0].bytes_out
    for each in (chain, exact):
        each.shutdown()


# --- errors ------------------------------------------------------------------------------------


def test_a_pass_that_fails_leaves_the_next_ones_alone() -> None:
    chain, stages = chain_of(0, 2, 4, 6)
    stages[1].fails = lambda spans: spans[0].tokens[0] == 9
    chain.open(0)
    ask(chain, 0, 0, (1, 2)).result(PATIENCE_S)
    with pytest.raises(EngineFailed, match="the toy broke"):
        ask(chain, 0, 2, (9, 9)).result(PATIENCE_S)
    assert stages[2].passes == 1
    again = ask(chain, 0, 2, (3, 4)).result(PATIENCE_S)
    fresh, _ = chain_of(0, 6)
    fresh.open(0)
    assert ask(fresh, 0, 0, (1, 2, 3, 4)).result(PATIENCE_S)[0].ids[2:] == again[0].ids
    for each in (chain, fresh):
        each.shutdown()


def test_a_failed_open_fails_the_slots_passes_until_it_is_closed() -> None:
    chain, stages = chain_of(0, 3, 6)

    def full(slot: int, sampling: object = None) -> None:
        raise EngineFull("no room")

    stages[1].open = full  # type: ignore[method-assign]
    chain.open(0)
    for _ in range(2):
        with pytest.raises(EngineFull, match="no room"):
            ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    chain.close(0)
    del stages[1].open
    chain.open(0)
    assert ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    chain.shutdown()


def test_what_a_library_raises_becomes_typed_and_says_nothing_of_its_input() -> None:
    chain, stages = chain_of(0, 6)

    def broken(spans: object) -> Any:
        raise ValueError("secret words")

    stages[0].run = broken  # type: ignore[method-assign]
    chain.open(0)
    with pytest.raises(EngineFailed, match="ValueError") as found:
        ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    assert "secret" not in str(found.value)
    chain.shutdown()


def test_hidden_states_that_are_not_finite_stop_where_they_arise() -> None:
    chain, stages = chain_of(0, 3, 6)
    stages[0].run = lambda spans: [np.full((1, WIDTH), np.nan, np.float32)]  # type: ignore[method-assign]
    chain.open(0)
    with pytest.raises(EngineFailed, match="not finite"):
        ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    assert stages[1].passes == 0
    chain.shutdown()


SPANS: dict[str, list[StageSpan]] = {
    "none": [],
    "no rows": [StageSpan(0, 0, 0)],
    "too few tokens": [StageSpan(0, 0, 2, (1,))],
    "hidden states": [StageSpan(0, 0, 1, (1,), np.zeros((1, WIDTH), np.float32))],
    "a slot twice": [StageSpan(0, 0, 1, (1,)), StageSpan(0, 1, 1, (1,))],
}


@pytest.mark.parametrize("name", SPANS)
def test_spans_that_no_chain_takes(name: str) -> None:
    chain, _ = chain_of(0, 6)
    chain.open(0)
    with pytest.raises(LocalProtocolError):
        chain.submit(SPANS[name])
    chain.shutdown()


def test_loading_that_fails_leaves_nothing_running() -> None:
    def broken() -> Stage:
        raise ModelCorrupt("bad file")

    good = toy("a", ranges(0, 3, LAYERS)[0])
    before = threading.active_count()
    with pytest.raises(ModelCorrupt, match="bad file"):
        LocalChain([lambda: good, broken])
    assert good.down
    assert threading.active_count() <= before


def test_shutdown_ends_what_is_under_way() -> None:
    chain, stages = chain_of(0, 6)
    stages[0].gate.clear()
    chain.open(0)
    waiting: list[Future[Any]] = [ask(chain, 0, n, (1,)) for n in range(3)]
    ended = threading.Thread(target=chain.shutdown)
    ended.start()
    for future in waiting:
        with pytest.raises(EngineFailed, match="shut down"):
            future.result(PATIENCE_S)
    stages[0].gate.set()
    ended.join(PATIENCE_S)
    assert stages[0].down and stages[0].passes <= 1
    with pytest.raises(LocalProtocolError):
        chain.open(1)
