"""The SDK over a real daemon and a real cloud: traces, cuts, cancellation, limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from outrider import (
    AsyncClient,
    Client,
    Commit,
    Decision,
    Done,
    Draft,
    Energy,
    Event,
    Started,
    Timeouts,
    Token,
)
from outrider.edge.api.app import build
from outrider.edge.api.server import ApiServer
from outrider.errors import DaemonUnreachable, InvalidRequest, NotFound
from outrider.sdk._async import pause
from outrider.testing.link import Link
from outrider.testing.proxy import ShapingProxy
from tests.support import CloudUnderTest, EdgeUnderTest, cloud, edge, until

PROMPT = "The rider goes ahead"


@dataclass(slots=True)
class House:
    """A daemon behind a link of its own, so that the client's connection can be cut."""

    cloud: CloudUnderTest
    edge: EdgeUnderTest
    proxy: ShapingProxy

    @property
    def url(self) -> str:
        return f"http://{self.proxy.host}:{self.proxy.port}"

    async def idle(self) -> None:
        """Nothing runs any more, here or in the cloud."""
        await until(lambda: not self.edge.daemon.running, "the daemon is idle")
        await self.cloud.settled()


@asynccontextmanager
async def house(place: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        above = await stack.enter_async_context(cloud(place))
        below = await stack.enter_async_context(edge(above.address))
        server = ApiServer(build(below.daemon, events=below.daemon.fanout), drain_s=1)
        await server.start("127.0.0.1", 0)
        stack.push_async_callback(server.stop)
        proxy = ShapingProxy("127.0.0.1", server.address[1], Link.of_rtt(0))
        yield House(above, below, await stack.enter_async_context(proxy))


Do = Callable[[Callable[[House], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def in_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Do]:
    """Runs a test's coroutine beside a house that all of them share."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        found = runner.run(stack.enter_async_context(house(tmp_path_factory.mktemp("house"))))
        yield lambda work: runner.run(asyncio.wait_for(work(found), 30.0))
        runner.run(stack.aclose())


def tokens(events: list[Event]) -> list[Token]:
    return [event for event in events if isinstance(event, Token)]


# --- traces ------------------------------------------------------------------------------------


def test_a_trace_holds_what_the_daemon_did_for_this_answer(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url) as client:
            other = asyncio.create_task(client.complete("another", max_tokens=40, seed=3))
            stream = client.stream(PROMPT, max_tokens=60, seed=7, trace="events")
            events = [event async for event in stream]
            answer = await stream.answer()
            await other
        kinds = {type(event) for event in events}
        assert {Started, Token, Draft, Commit, Decision, Energy, Done} <= kinds
        commits = [event for event in events if isinstance(event, Commit)]
        assert sum(commit.tokens for commit in commits) == len(tokens(events)) == 60
        assert [type(event) for event in events[-2:]] == [Energy, Done]
        (decision, *_) = answer.plan.decisions
        assert decision.reasons and all(decision.reasons)
        assert {one.placement for one in decision.alternatives} >= {"cloud", "draft"}
        assert answer.energy.joules is not None and answer.energy.device_j is not None
        assert answer.energy.kind in ("measured", "estimated")
        times = [event.t_ms for event in events if isinstance(event, Commit)]
        assert times == sorted(times) and times[-1] < 30_000

    in_house(work)


def test_a_trace_changes_nothing_of_the_text(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url) as client:
            plain = await client.complete(PROMPT, max_tokens=30, seed=9)
            traced = await client.complete(PROMPT, max_tokens=30, seed=9, trace="events")
        assert traced.text == plain.text
        assert plain.plan.decisions == () and plain.energy.device_j is None
        assert plain.usage.total_tokens == plain.usage.prompt_tokens + 30
        assert plain.metrics.tokens_per_second and plain.metrics.total_ms > plain.metrics.ttft_ms

    in_house(work)


# --- cuts --------------------------------------------------------------------------------------


def test_a_cut_stream_goes_on_at_the_next_token(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url) as client:
            calm = await client.complete(PROMPT, max_tokens=120, seed=11, n=2)
            seen: list[Event] = []
            before = here.proxy.statistics().connections
            stream = client.stream(PROMPT, max_tokens=120, seed=11, n=2, trace="events")
            async for event in stream:
                seen.append(event)
                if isinstance(event, Token) and event.position in (5, 40) and not event.choice:
                    here.proxy.reset()
            stormy = await stream.answer()
            assert here.proxy.statistics().connections > before
        assert [choice.text for choice in stormy.choices] == [c.text for c in calm.choices]
        for choice in (0, 1):
            places = [token.position for token in tokens(seen) if token.choice == choice]
            assert places == list(range(120))
        assert sum(isinstance(event, Started) for event in seen) == 2
        await here.idle()

    in_house(work)


def test_a_sync_stream_comes_back_too(in_house: Do) -> None:
    async def work(here: House) -> None:
        loop = asyncio.get_running_loop()

        def ask() -> list[Event]:
            seen: list[Event] = []
            with Client(here.url) as client, client.stream(PROMPT, max_tokens=200, seed=5) as all_:
                for event in all_:
                    seen.append(event)
                    if isinstance(event, Token) and event.position == 7:
                        asyncio.run_coroutine_threadsafe(reset(), loop).result()
            return seen

        async def reset() -> None:
            here.proxy.reset()

        seen = await asyncio.to_thread(ask)
        assert [token.position for token in tokens(seen)] == list(range(200))

    in_house(work)


def test_without_time_to_resume_a_cut_ends_the_answer(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url, timeouts=Timeouts(resume_s=0.0)) as client:
            with pytest.raises(DaemonUnreachable, match="went away"):
                async for event in client.stream(PROMPT, max_tokens=3000, seed=1):
                    if isinstance(event, Token) and event.position == 3:
                        here.proxy.reset()
        await here.idle()

    in_house(work)


def test_a_daemon_that_does_not_come_back_is_given_up(
    in_house: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(here: House) -> None:
        now = [0.0]

        async def later(seconds: float) -> None:
            now[0] += seconds

        monkeypatch.setattr(pause, "pause", later)
        async with AsyncClient(here.url, clock=lambda: now[0]) as client:
            with pytest.raises(DaemonUnreachable):
                async for event in client.stream(PROMPT, max_tokens=3000, seed=1):
                    if isinstance(event, Token) and event.position == 3:
                        here.proxy.cut()
        assert 9.0 < now[0] <= 10.0
        await here.proxy.restore()
        for request in list(here.edge.daemon.running):
            here.edge.daemon.cancel(request)
        await here.idle()

    in_house(work)


# --- leaving -----------------------------------------------------------------------------------


def test_leaving_the_context_frees_daemon_and_cloud(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url) as client:
            async with client.stream(PROMPT, max_tokens=3000, seed=2) as stream:
                async for event in stream:
                    if isinstance(event, Token):
                        break
            await here.idle()
            (last,) = [one for one in await client.requests() if one.id == stream.request]
            assert last.state == "done" and last.committed[0] < 3000

    in_house(work)


def test_a_request_is_cancelled_by_name(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url) as client:
            stream = client.stream(PROMPT, max_tokens=3000, seed=2)
            seen: list[Event] = []
            async for event in stream:
                seen.append(event)
                if isinstance(event, Token) and event.position == 2:
                    await client.cancel(stream.request)
            assert isinstance(seen[-1], Done) and seen[-1].finish_reason == "cancelled"
            with pytest.raises(NotFound):
                await client.cancel("0" * 16)
        await here.idle()

    in_house(work)


def test_a_client_that_dies_costs_no_more_than_its_time_to_resume(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url, timeouts=Timeouts(resume_s=0.05)) as client:
            stream = client.stream(PROMPT, max_tokens=3000, seed=2)
            events = aiter(stream)
            await anext(events)
            await client._http.aclose()
        await here.idle()

    in_house(work)


# --- the daemon's word -------------------------------------------------------------------------


def test_events_of_all_requests(in_house: Do) -> None:
    async def work(here: House) -> None:
        async with AsyncClient(here.url) as client:
            heard = client.events()
            first = asyncio.ensure_future(anext(heard))
            await until(lambda: bool(here.edge.daemon.fanout._readers), "somebody listens")
            await client.complete("x", max_tokens=2, seed=1)
            event = await first
            assert event.at > 0 and event.t_ms > 0
            await cast(AsyncGenerator[Any, None], heard).aclose()

    in_house(work)


def test_links_and_plan(in_house: Do) -> None:
    pytest.importorskip("highspy", reason="needs outrider[plan]")

    async def work(here: House) -> None:
        async with AsyncClient(here.url) as client:
            await client.complete("x", max_tokens=2)
            (link,) = await client.links()
            assert link.state == "connected"
            two = ("macbook-air-m2-16gb", "rtx-3060-12gb")
            found = await client.plan("shape:llama-3.1-8b", devices=two, what_if="rtt=80ms")
            assert found.plan.stages and found.plan.estimate.tpot_s > 0
            assert found.what_if is not None and found.what_if.changes
            with pytest.raises(InvalidRequest, match="model"):
                await client.plan("/etc/passwd")

    in_house(work)
