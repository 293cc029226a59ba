"""The cloud goes away in the middle of an answer: what is shown, what is final, what is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outrider.edge.link import OPTIONS, SILENCE_S
from outrider.engine import EngineSpec
from outrider.errors import CloudUnreachable, EngineFailed, LinkError, LinkLost
from outrider.options import Address
from outrider.protocol import events
from outrider.protocol.stream import Forked, Provisional, Retract, Started, StreamEvent, Waiting
from outrider.testing.proxy import ShapingProxy
from tests.support import (
    Answered,
    CloudUnderTest,
    EdgeUnderTest,
    Screen,
    ask,
    cloud,
    edge,
    expected,
    run,
)


@dataclass
class Line:
    """A cloud, a proxy before it, and an edge that knows the proxy alone."""

    cloud: CloudUnderTest
    proxy: ShapingProxy
    edge: EdgeUnderTest

    async def answer(
        self, request: Any, strike: Callable[[], Any], *, at: int = 20, then: Heal | None = None
    ) -> Answered:
        """Strike when `at` tokens are final; heal when `then` has been seen."""
        found, struck, healed = Answered(), False, False
        async for event in self.edge.daemon.generate(request):
            found.events.append(event)
            if not struck and len(found.tokens()) >= at:
                struck = True
                strike()
            elif struck and not healed and then is not None and then(event, found):
                healed = True
                await self.proxy.restore()
        assert struck
        return found


Heal = Callable[[StreamEvent, Answered], bool]


def provisional(count: int) -> Heal:
    """So many provisional tokens were shown."""
    return lambda _, found: len(found.of(Provisional)) >= count


def waiting(_: StreamEvent, found: Answered) -> bool:
    """The answer said that it waits."""
    return bool(found.of(Waiting))


@asynccontextmanager
async def line(tmp_path: Path, **changes: Any) -> AsyncIterator[Line]:
    async with (
        cloud(tmp_path) as c,
        ShapingProxy("127.0.0.1", c.address.port) as proxy,
        edge(Address("127.0.0.1", proxy.port), **changes) as e,
    ):
        yield Line(c, proxy, e)
        await proxy.restore()
        await c.forget()


STRIKES: dict[str, Callable[[Line], Callable[[], None]]] = {
    "reset": lambda here: here.proxy.reset,
    "cut": lambda here: here.proxy.cut,
    "black hole": lambda here: here.proxy.black_hole,
}


@pytest.mark.parametrize("how", STRIKES)
def test_provisional_text_is_shown_meanwhile_and_the_final_text_is_the_undisturbed_one(
    tmp_path: Path, how: str
) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=30.0) as here:
            request = ask(max_tokens=120, retract=True)
            heal = None if how == "reset" else provisional(8)
            found = await here.answer(request, STRIKES[how](here), then=heal)
            found.check()
            screen = Screen()
            for event in found.events:
                screen.show(event)
            assert tuple(screen.tokens) == found.ids() == expected(request)
            assert found.done().exact and found.done().mixed_from is None
            assert all(token.source != "edge" for token in found.tokens())
            if how != "reset":
                assert screen.provisional >= 8
            kinds = [(e.to, e.cause) for e in here.edge.kinds(events.Fallback)]
            assert kinds[0][0] == "provisional" and kinds[-1][0] == "cloud"
            assert any(opened.resumed for opened in here.cloud.opened())

    run(main())


def test_a_draft_that_was_wrong_is_taken_back(tmp_path: Path) -> None:
    wrong = EngineSpec(model="draft", engine="fake", options=(("world", "another"),))

    async def main() -> None:
        async with line(tmp_path, patience_s=30.0, draft=wrong) as here:
            request = ask(max_tokens=60, retract=True)
            found = await here.answer(request, here.proxy.cut, then=provisional(5))
            screen = Screen()
            for event in found.events:
                screen.show(event)
            assert screen.retracted >= 5 and found.of(Retract)
            assert tuple(screen.tokens) == expected(request)

    run(main())


@pytest.mark.parametrize("placement", ["auto", "cloud"])
def test_a_plain_client_sees_the_answer_fork_after_the_patience_and_stay_local(
    tmp_path: Path, placement: str
) -> None:
    """The cloud comes back right after the fork: too late, what was said is said."""

    def forked(event: StreamEvent, _: Answered) -> bool:
        return isinstance(event, Forked)

    async def main() -> None:
        async with line(tmp_path, patience_s=0.3) as here:
            request = ask(max_tokens=200, placement=placement, n=2)
            found = await here.answer(request, here.proxy.cut, then=forked)
            found.check()
            assert not found.of(Provisional) and not found.of(Retract)
            for choice in (0, 1):
                done = found.done(choice)
                at = done.mixed_from
                assert at is not None and len(found.ids(choice)) == 200 and not done.exact
                assert found.ids(choice)[:at] == expected(request, choice)[:at]
                sources = [token.source for token in found.tokens(choice)]
                assert "edge" not in sources[:at] and set(sources[at:]) == {"edge"}
                [fork] = [x for x in found.of(Forked) if x.choice == choice]
                assert (fork.position, fork.model) == (at, "d")

    run(main())


def test_the_retracting_client_forks_only_when_its_provisional_answer_has_an_end(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=0.2) as here:
            found = await here.answer(ask(max_tokens=300, retract=True), here.proxy.cut)
            at = found.done().mixed_from
            assert at is not None and len(found.ids()) == 300
            assert [x.position for x in found.of(Provisional)] == list(range(at, 300))
            screen = Screen()
            for event in found.events:
                screen.show(event)
            assert screen.retracted == 0, "what was shown became final"

    run(main())


@pytest.mark.parametrize("retract", [False, True])
def test_where_exactness_is_required_it_never_forks(tmp_path: Path, *, retract: bool) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=0.1) as here:
            request = ask(max_tokens=60, exact_required=True, retract=retract)
            outlasted = lambda _, found: len(found.of(Waiting)) >= 3  # noqa: E731
            found = await here.answer(request, here.proxy.cut, then=outlasted)
            assert found.ids() == expected(request)
            assert found.done().exact and not found.of(Forked) and not found.of(Provisional)

    run(main())


def test_fallback_wait_waits_beyond_the_patience(tmp_path: Path) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=0.1) as here:
            request = ask(max_tokens=60, fallback="wait")
            outlasted = lambda _, found: len(found.of(Waiting)) >= 3  # noqa: E731
            found = await here.answer(request, here.proxy.cut, then=outlasted)
            assert found.ids() == expected(request) and not found.of(Forked)

    run(main())


def test_fallback_error_fails_typed_after_the_patience(tmp_path: Path) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=0.2) as here:
            with pytest.raises(LinkError) as found:
                await here.answer(ask(max_tokens=120, fallback="error"), here.proxy.cut)
            assert isinstance(found.value, LinkLost | CloudUnreachable)
            [done] = here.edge.kinds(events.RequestDone)
            assert done.finish_reason == "failed"

    run(main())


def test_without_a_draft_that_speaks_it_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=0.1, draft=None) as here:
            request = ask(max_tokens=60)
            outlasted = lambda _, found: len(found.of(Waiting)) >= 2  # noqa: E731
            found = await here.answer(request, here.proxy.cut, then=outlasted)
            assert found.ids() == expected(request)

    run(main())


def test_a_fork_that_meets_the_drafts_context_ends_in_a_named_error(tmp_path: Path) -> None:
    short = EngineSpec(model="draft", engine="fake", context=80)

    async def main() -> None:
        async with line(tmp_path, patience_s=0.2, draft=short) as here:
            with pytest.raises(EngineFailed, match="can not go on"):
                await here.answer(ask(max_tokens=300), here.proxy.cut)

    run(main())


def test_a_request_that_finds_its_known_cloud_gone_says_started_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=0.2) as here:
            await here.edge.answer(ask(max_tokens=5))
            here.proxy.cut()
            found = await here.edge.answer(ask(max_tokens=20, n=2))
            assert [type(x) for x in found.events[:2]] == [Started, Started]
            assert len(found.of(Started)) == 2
            assert found.of(Started)[0].model == "t"
            assert found.done().mixed_from == 0 and len(found.ids()) == 20

    run(main())


def test_a_hang_up_during_an_outage_ends_the_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with line(tmp_path, patience_s=30.0) as here:
            answer: Any = here.edge.daemon.generate(ask(max_tokens=200, retract=True))
            shown = 0
            async for event in answer:
                if event.choice == 0 and getattr(event, "position", -1) == 20:
                    here.proxy.cut()
                shown += isinstance(event, Provisional)
                if shown > 3:
                    break
            await answer.aclose()
            small = here.edge.daemon.small
            assert not here.edge.daemon.running and small is not None and not small.drafter.lanes

    run(main())


def test_a_dead_link_is_found_in_three_seconds() -> None:
    set_to = dict(OPTIONS)
    assert SILENCE_S <= 3.0
    assert set_to["grpc.keepalive_time_ms"] + set_to["grpc.keepalive_timeout_ms"] <= 3000
    assert set_to["grpc.http2.max_pings_without_data"] == 0


def test_an_edge_with_nothing_to_say_lets_the_cloud_know_that_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow target and no drafts: commits keep the cloud from asking, and nothing else is due."""
    monkeypatch.setattr("outrider.edge.link.BEAT_S", 0.02)
    monkeypatch.setattr("outrider.cloud.server.LOST_AFTER", 0.25)

    async def main() -> None:
        async with cloud(tmp_path, ahead=64) as c, edge(c.address, draft=None) as e:
            engine: Any = c.verifier.engine
            extend = engine.extend

            async def slow(spans: Any) -> Any:
                await asyncio.sleep(0.05)
                return await extend(spans)

            monkeypatch.setattr(engine, "extend", slow)
            found = await e.answer(ask(max_tokens=15))
            assert found.ids() == expected(ask(max_tokens=15))
            assert len(c.opened()) == 1, "the stream was never lost"

    run(main())
