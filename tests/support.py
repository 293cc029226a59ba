"""A real cloud and a real edge in the test's process, with engines that are known to the bit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from outrider.cloud.main import Running, start
from outrider.cloud.verifier import Verifier
from outrider.edge.daemon import Daemon, Small
from outrider.edge.drafter import Drafter
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link, watch
from outrider.edge.service import GenerateRequest
from outrider.engine import Engine, EngineSpec, Span
from outrider.engines import registry
from outrider.engines.fake import FakeEngine, vocabulary
from outrider.lag import LoopLag
from outrider.models import served
from outrider.options import Address, CloudOptions, EdgeOptions, NamedModel
from outrider.protocol import events
from outrider.protocol.bus import NoBus
from outrider.protocol.constraint import Constraint
from outrider.protocol.messages import Reason
from outrider.protocol.sampling import Sampling, SamplingParams
from outrider.protocol.stops import Cutter
from outrider.protocol.stream import Done, Provisional, Retract, StreamEvent, Token
from outrider.worker import EngineThread

LOOPBACK = Address("127.0.0.1", 0)
PATIENCE_S = 30.0
"""Bound of every wait in a test: reached only by one that fails."""


def run(work: Coroutine[Any, Any, None]) -> None:
    """An asynchronous test on a loop of its own, bounded."""
    asyncio.run(asyncio.wait_for(work, 60.0))


async def until(condition: Callable[[], bool], why: str = "") -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


# --- the engine alone --------------------------------------------------------------------------


def plain(
    engine: Engine,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    choice: int = 0,
    stop: Sequence[bytes] = (),
    constraint: Constraint | None = None,
) -> tuple[tuple[int, ...], Reason]:
    """What the target alone says: one row at a time, no hints, no company."""
    params = sampling or SamplingParams()
    slot = engine.open(Sampling(params, seed, choice, len(prompt), constraint))
    cutter = Cutter(vocabulary(), stop, max_tokens)
    answer: list[int] = []
    rows = tuple(prompt)
    while True:
        base = engine.length(slot)
        token = engine.extend([Span(slot, base, rows, len(rows) - 1)])[0].ids[0]
        answer.append(token)
        reason = cutter.feed(token)
        if reason is not None:
            engine.close(slot)
            return tuple(answer), reason
        rows = (token,)


def fake(model: str = "fake", *, slots: int = 64, **options: str) -> FakeEngine:
    spec = EngineSpec(model=model, engine="fake", max_slots=slots, options=tuple(options.items()))
    engine = registry.build(spec)
    assert isinstance(engine, FakeEngine)
    return engine


# --- the cloud ---------------------------------------------------------------------------------


@dataclass(slots=True)
class CloudUnderTest:
    running: Running
    published: list[events.Event] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address.parse(self.running.address, 0)

    @property
    def verifier(self) -> Verifier:
        return next(iter(self.running.cloud.hosts.values())).verifier

    async def settled(self) -> None:
        """No session is left, and no slot."""
        await until(lambda: not self.verifier.sessions, "sessions end")
        async with asyncio.timeout(PATIENCE_S):
            while (await self.verifier.engine.statistics()).slots_open:
                await asyncio.sleep(0.005)
        await until(lambda: not self.running.cloud.streams, "streams end")

    async def forget(self) -> None:
        """End the sessions whose device is away, as their time would."""

        def ended() -> bool:
            self.verifier.expire(-1.0)
            return not self.verifier.sessions

        await until(ended, "sessions end")

    def opened(self) -> list[events.SessionOpened]:
        return [e for e in self.published if isinstance(e, events.SessionOpened)]


def cloud_options(tmp: Path, **changes: Any) -> CloudOptions:
    base = CloudOptions(
        listen=LOOPBACK,
        models=(NamedModel("t", "fake"),),
        engine="fake",
        threads=1,
        runtime_dir=tmp / "cloud",
        session_ttl_s=10.0,
        ahead=16,
    )
    return replace(base, **changes)


@asynccontextmanager
async def cloud(tmp: Path, **changes: Any) -> AsyncIterator[CloudUnderTest]:
    """A cloud on a free port, its engine in a child; sound and empty at the end."""
    async with AsyncExitStack() as stack:
        running = await start(cloud_options(tmp, **changes), stack)
        under_test = CloudUnderTest(running)
        _listen(running, under_test.published)
        yield under_test
        if under_test.verifier.engine.alive:
            await under_test.settled()


def _listen(running: Running, heard: list[events.Event]) -> None:
    """Hear every event that the cloud publishes, before the bus has it."""

    def heard_by(publish: Callable[[events.Event], None]) -> Callable[[events.Event], None]:
        def both(event: events.Event) -> None:
            heard.append(event)
            publish(event)

        return both

    running.cloud.publish = heard_by(running.cloud.publish)
    for host in running.cloud.hosts.values():
        host.verifier.publish = heard_by(host.verifier.publish)


# --- the edge ----------------------------------------------------------------------------------


@dataclass(slots=True)
class EdgeUnderTest:
    daemon: Daemon
    published: list[events.Event]

    async def answer(self, request: GenerateRequest) -> Answered:
        found = Answered()
        async for event in self.daemon.generate(request):
            found.events.append(event)
        return found

    def kinds(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.published if isinstance(event, kind)]


@dataclass(slots=True)
class Answered:
    """All events of a request, in the order they came."""

    events: list[StreamEvent] = field(default_factory=list)

    def tokens(self, choice: int = 0) -> list[Token]:
        return [e for e in self.events if isinstance(e, Token) and e.choice == choice]

    def ids(self, choice: int = 0) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens(choice))

    def text(self, choice: int = 0) -> str:
        return "".join(token.text for token in self.tokens(choice))

    def done(self, choice: int = 0) -> Done:
        return next(e for e in self.events if isinstance(e, Done) and e.choice == choice)

    def of(self, kind: type[StreamEvent]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def check(self) -> None:
        """Append-only: every position of every choice is committed once, in order."""
        for choice in {e.choice for e in self.events}:
            places = [token.position for token in self.tokens(choice)]
            assert places == list(range(len(places)))


class Screen:
    """What a client that can retract shows: provisional text is replaced by final text."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.final = 0
        self.provisional = 0
        self.retracted = 0

    def show(self, event: StreamEvent) -> None:
        match event:
            case Token():
                assert event.position == self.final, "a token was lost or doubled"
                self.tokens[event.position : event.position + 1] = [event.id]
                self.final += 1
            case Provisional():
                assert event.position == len(self.tokens)
                self.tokens.append(event.id)
                self.provisional += 1
            case Retract():
                assert event.position >= self.final, "a final token was taken back"
                self.retracted += len(self.tokens) - event.position
                del self.tokens[event.position :]
            case _:
                pass


def edge_options(clouds: Iterable[Address], **changes: Any) -> EdgeOptions:
    base = EdgeOptions(listen=LOOPBACK, clouds=tuple(clouds), draft="d=fake", patience_s=5.0)
    return replace(base, **changes)


DRAFT = EngineSpec(
    model="draft", engine="fake", max_slots=32, options=(("agreement", "0.8"),), context=4096
)
"""Agrees with the target after four of five contexts."""


@asynccontextmanager
async def edge(
    *clouds: Address,
    draft: EngineSpec | None = DRAFT,
    build: Callable[[], Engine] | None = None,
    watching: bool = False,
    **changes: Any,
) -> AsyncIterator[EdgeUnderTest]:
    """A daemon without its HTTP face, on a drafter of the test's choice."""
    options = edge_options(clouds, **changes)
    published: list[events.Event] = []
    async with AsyncExitStack() as stack:
        fanout = Fanout(NoBus())
        fanout_publish = fanout.publish

        def publish(event: events.Event) -> None:
            published.append(event)
            fanout_publish(event)

        fanout.publish = publish  # type: ignore[method-assign]
        link = Link.make(options, publish)
        stack.push_async_callback(link.close)
        small = None
        if draft is not None:
            small = await _small(draft, build or (lambda: registry.build(draft)), stack)
        daemon = Daemon(options, link, small, fanout, LoopLag())
        stack.push_async_callback(daemon.close)
        if watching:
            stack.callback(asyncio.create_task(_watch(link)).cancel)
        yield EdgeUnderTest(daemon, published)


async def _watch(link: Link) -> None:
    async for _ in watch(link, 0.2):
        pass


async def _small(spec: EngineSpec, build: Callable[[], Engine], stack: AsyncExitStack) -> Small:
    engine = await EngineThread.start(build)
    stack.push_async_callback(engine.shutdown)
    drafter = Drafter(engine, time.monotonic)
    stack.callback(asyncio.create_task(drafter.run()).cancel)
    return Small("d", drafter, None if spec.engine == "ngram" else served.load(spec), 0.0)


def answering(
    edge: EdgeUnderTest, request: GenerateRequest
) -> aclosing[AsyncGenerator[StreamEvent, None]]:
    """An answer that the test may leave before its end."""
    return aclosing(cast("AsyncGenerator[StreamEvent, None]", edge.daemon.generate(request)))


GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95)


def ask(text: str = "The rider goes ahead", **changes: Any) -> GenerateRequest:
    base = GenerateRequest(prompt=text, sampling=SAMPLED, max_tokens=120, seed=7)
    return replace(base, **changes)


def expected(request: GenerateRequest, choice: int = 0) -> tuple[int, ...]:
    """The fake target's own answer to a request."""
    assert isinstance(request.prompt, str) and request.max_tokens and request.seed is not None
    stop = tuple(text.encode() for text in request.stop)
    ids, _ = plain(
        fake(),
        tuple(request.prompt.encode()),
        request.max_tokens,
        sampling=request.sampling,
        seed=request.seed,
        choice=choice,
        stop=stop,
        constraint=request.constraint,
    )
    return ids
