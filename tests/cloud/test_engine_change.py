"""An engine that becomes another while it serves: its notes are told, its class is never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from outrider.engine import EngineInfo, EngineStatistics, Note, Picked, Span
from outrider.engines.fake import FakeEngine
from outrider.errors import EngineFailed, HandshakeRefused
from outrider.protocol import events
from outrider.worker import _Host, _Request
from tests.cloud.making import bench, session
from tests.support import CloudUnderTest, EdgeUnderTest, ask, cloud, edge, expected, fake, run


class Moving(FakeEngine):
    """Its layers move in one pass; `into` is the numeric class from then on."""

    at: int = 0
    into: str = ""
    moved: tuple[Note, ...] = ()

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        if self._passes == self.at and not self.moved:
            self._info = replace(self._info, device="b", numeric_class=self.into)
            self.moved = (Note(1, "placement", "a", "b", "a went away", binding="a is gone"),)
        return super()._pass(spans)

    def statistics(self) -> EngineStatistics:
        return replace(super().statistics(), notes=self.moved)


def moving(*, into: str = "", at: int = 9) -> Moving:
    engine = fake()
    engine.__class__ = Moving
    assert isinstance(engine, Moving)
    engine.at, engine.into = at, into or engine.info.numeric_class
    return engine


def test_a_move_within_the_class_is_told_once_and_changes_no_token() -> None:
    async def main() -> None:
        async with bench(engine=moving()) as b:
            seen: list[EngineInfo] = []
            b.verifier.changed = seen.append
            made = session()
            b.add(made)
            told = await b.finish(made)
            async with bench() as other:
                still = session()
                other.add(still)
                assert told.ids() == (await other.finish(still)).ids()
            [decision] = [e for e in b.published if isinstance(e, events.Decision)]
            assert (decision.old, decision.new, decision.reason) == ("a", "b", "a went away")
            assert [info.device for info in seen] == ["b"]

    run(main())


def test_what_another_class_computed_is_not_committed_and_the_session_is_told() -> None:
    async def main() -> None:
        async with bench(engine=moving(into="other")) as b:
            made = session()
            b.add(made)
            told = await b.finish(made)
            assert isinstance(told.error, EngineFailed) and "numeric class" in told.error.what
            assert "it is other" in told.error.why
            assert len(told.ids()) == 9, "one token for each pass before it"

    run(main())


def change_class(c: CloudUnderTest, e: EdgeUnderTest) -> None:
    """After the fifth commit."""
    commits = 0

    def publish(event: events.Event) -> None:
        nonlocal commits
        commits += isinstance(event, events.CommitReceived)
        if commits == 5:
            engine = cast(Any, c.verifier.engine)
            engine._info = replace(engine.info, numeric_class="other")

    e.daemon.fanout.publish = publish  # type: ignore[method-assign]


def test_an_answer_goes_on_under_the_other_class_labelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            change_class(c, e)
            found = await e.answer(ask(max_tokens=60))
            [host] = c.running.cloud.hosts.values()
            assert host.description.numeric_class == "other"
            found.check()
            assert found.ids() == expected(ask(max_tokens=60))
            [at] = found.done().class_changed_at
            assert 5 <= at < 60 and not found.done().exact

    run(main())


def test_an_answer_that_requires_exactness_does_not_go_on_under_another_class(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            change_class(c, e)
            with pytest.raises(HandshakeRefused, match="numeric class"):
                await e.answer(ask(max_tokens=60, exact_required=True))

    run(main())


def test_the_childs_answers_carry_a_description_that_changed_and_only_then() -> None:
    host = _Host()
    host._engine = engine = moving(at=1)
    prompt = Span(0, 0, (1, 2), 1)
    assert host.answer(_Request("open")).info is engine.info
    assert host.answer(_Request("extend", spans=(prompt,))).info is None
    later = host.answer(_Request("extend", spans=(Span(0, 2, (3,)),)))
    assert later.info is engine.info and engine.info.device == "b"
    statistics = host.answer(_Request("statistics")).statistics
    assert statistics is not None and [note.new for note in statistics.notes] == ["b"]
