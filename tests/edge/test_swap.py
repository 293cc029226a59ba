"""Another draft model in the place of one that answers still use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from outrider.edge.daemon import Small
from outrider.edge.drafter import Drafter
from outrider.edge.swap import Later, Seat, Swap
from outrider.engine import EngineSpec
from outrider.engines import registry
from outrider.errors import NotFound
from outrider.models import served
from outrider.models.kept import Kept
from outrider.protocol import events
from outrider.protocol.stream import StreamEvent, Token
from outrider.worker import EngineThread
from tests.support import EdgeUnderTest, ask, cloud, edge, expected, run, until


@dataclass
class Stage:
    """A daemon with a swap whose clock the test turns."""

    device: EdgeUnderTest
    swap: Swap
    now: list[float] = field(default_factory=lambda: [0.0])

    async def pass_s(self, seconds: float) -> None:
        await self.swap.look()
        self.now[0] += seconds
        await self.swap.look()

    def state(self) -> list[tuple[str, str]]:
        return [(one.model, one.state) for one in self.device.daemon.status().loaded]


@asynccontextmanager
async def stage(device: EdgeUnderTest) -> AsyncIterator[Stage]:
    """The daemon's draft model as `outrider edge` makes it, of the fake engine."""
    now, publish = [0.0], device.published.append

    async def make(draft: str, ends: AsyncExitStack) -> tuple[Small | None, Later | None]:
        if draft == "none":
            return None, None
        if draft == "absent":
            raise NotFound("there is no such model", param="model")
        spec = EngineSpec(draft, "fake", max_slots=8, context=4096, options=(("agreement", "0.8"),))
        engine = await Kept.load(
            lambda: EngineThread.start(lambda: registry.build(spec)),
            lambda info, took_s: publish(_loaded(draft, took_s)),
            lambda: publish(events.ModelUnloaded(model=draft, role="draft", reason="idle")),
            lambda: now[0],
        )
        ends.push_async_callback(engine.shutdown)
        drafter = Drafter(engine, lambda: now[0])
        ends.callback(asyncio.create_task(drafter.run()).cancel)
        return Small(draft, drafter, served.load(spec), 0.0), None

    ends = AsyncExitStack()
    swap = Swap(make, publish, lambda: now[0], Seat("one", None, ends))
    device.daemon.small, _ = await make("one", ends)
    swap.daemon, device.daemon.loaded = device.daemon, swap.loaded
    try:
        yield Stage(device, swap, now)
    finally:
        await device.daemon.close()
        await swap.close()


def _loaded(draft: str, took_s: float) -> events.ModelLoaded:
    return events.ModelLoaded(draft, "draft", "fake", "cpu", "int", True, "any", "c", took_s * 1e3)


def test_a_swap_waits_for_no_answer_and_ends_none(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as target, edge(target.address, draft=None) as device:
            async with stage(device) as play:
                request = ask(max_tokens=120, placement="draft")
                running = device.daemon.generate(request)
                said: list[StreamEvent] = [await anext(running)]
                old = device.daemon.small
                assert old is not None
                loaded = await play.swap.use("two")
                assert loaded is not None and (loaded.model, loaded.state) == ("two", "loaded")
                assert play.state() == [("two", "loaded"), ("one", "retiring")]
                assert old.drafter.engine.alive, "the answer under way still drafts with it"
                said += [event async for event in running]
                ids = tuple(e.id for e in said if isinstance(e, Token))
                assert ids == expected(request)
                await play.swap.look()
                assert play.state() == [("two", "loaded")] and not old.drafter.engine.alive
                gone = device.kinds(events.ModelUnloaded)
                assert [(e.model, e.reason) for e in gone] == [("one", "replaced")]
                assert (await device.answer(request)).ids() == expected(request)

    run(main())


def test_a_model_that_can_not_be_loaded_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as target, edge(target.address, draft=None) as device:
            async with stage(device) as play:
                with pytest.raises(NotFound):
                    await play.swap.use("absent")
                assert play.state() == [("one", "loaded")]
                assert await play.swap.use("none") is None
                assert device.daemon.small is None and play.state() == []
                request = ask(max_tokens=20)
                assert (await device.answer(request)).ids() == expected(request)

    run(main())


def test_an_idle_draft_goes_and_comes_back_at_the_next_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as target:
            async with edge(target.address, draft=None, keep_alive_s=300.0) as device:
                async with stage(device) as play:
                    request = ask(max_tokens=60, placement="draft")
                    await device.answer(request)
                    await play.pass_s(299.0)
                    assert play.state() == [("one", "loaded")]
                    await play.pass_s(2.0)
                    assert play.state() == [("one", "away")]
                    assert [e.reason for e in device.kinds(events.ModelUnloaded)] == ["idle"]
                    assert (await device.answer(request)).ids() == expected(request)
                    await until(lambda: play.state() == [("one", "loaded")], "it drafts again")
                    assert len(device.kinds(events.ModelLoaded)) == 2

    run(main())


def test_alone_it_answers_after_it_was_away() -> None:
    async def main() -> None:
        async with edge(draft=None, fallback="local") as device, stage(device) as play:
            device.daemon.options = replace(device.daemon.options, keep_alive_s=0.0)
            request = ask(max_tokens=20, placement="edge")
            before = await device.answer(request)
            async with asyncio.timeout(30.0):
                while play.state() != [("one", "away")]:
                    # Its slot is closed by the drafter's own loop.
                    await asyncio.sleep(0)
                    await play.swap.look()
            assert (await device.answer(request)).ids() == before.ids()

    run(main())
