"""Sessions without a server, and a verifier on an engine in this process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from outrider.cloud.cost import StepCost
from outrider.cloud.hints import HintWindow
from outrider.cloud.scheduler import Scheduler, Trigger
from outrider.cloud.session import Choice, Session
from outrider.cloud.verifier import Verifier
from outrider.engine import EngineInfo, EngineStatistics, Picked, RowRule, Span
from outrider.engines.fake import FakeEngine, vocabulary
from outrider.errors import OutriderError
from outrider.protocol import events
from outrider.protocol.messages import ChoiceOpen, Commit, Finished, Hint, Open, Reason
from outrider.protocol.sampling import Sampling, SamplingParams, TokenLogprobs
from outrider.protocol.state import Ledger
from outrider.protocol.stops import Cutter
from tests.support import SAMPLED, fake, until

_NUMBERS = itertools.count(1)
PROMPT = tuple(b"The rider goes ahead")


def session(
    prompt: Sequence[int] = PROMPT,
    *,
    choices: int = 1,
    max_tokens: int = 60,
    sampling: SamplingParams = SAMPLED,
    seed: int = 7,
    stop: tuple[bytes, ...] = (),
    top_logprobs: int | None = None,
    tenant: str = "local",
    committed: Sequence[int] = (),
) -> Session:
    opening = Open(
        session=next(_NUMBERS).to_bytes(16, "big"),
        fence=1,
        prompt=tuple(prompt),
        choices=tuple(ChoiceOpen(n, tuple(committed)) for n in range(choices)),
        sampling=sampling,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
        top_logprobs=top_logprobs,
    )
    made = Session(tenant, opening)
    for number in range(choices):
        cutter = Cutter(vocabulary(), stop, max_tokens)
        cutter.cut(committed)
        made.choices[number] = Choice(
            made,
            number,
            Sampling(sampling, seed, number, len(prompt)),
            cutter,
            Ledger(1, list(committed)),
            HintWindow(seen=len(committed)),
        )
    return made


@dataclass(slots=True)
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Direct:
    """A fake engine behind the asynchronous face, on the loop itself, so that each step is seen."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.alive = True
        self.passes: list[tuple[Span, ...]] = []
        self.before: Callable[[Sequence[Span]], Awaitable[None] | None] = lambda spans: None

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    async def open(self, sampling: Sampling | None = None) -> int:
        return self.engine.open(sampling)

    async def extend(self, spans: Sequence[Span]) -> list[Picked]:
        waiting = self.before(spans)
        if waiting is not None:
            await waiting
        self.passes.append(tuple(spans))
        picked = self.engine.extend(spans)
        await asyncio.sleep(0)
        return picked

    async def rewind(self, slot: int, length: int) -> None:
        self.engine.rewind(slot, length)

    async def close(self, slot: int) -> None:
        self.engine.close(slot)

    async def statistics(self) -> EngineStatistics:
        return self.engine.statistics()

    async def shutdown(self) -> None:
        self.engine.shutdown()


@dataclass(slots=True)
class Bench:
    """A running verifier and what its sessions were told."""

    verifier: Verifier
    direct: Direct
    published: list[events.Event] = field(default_factory=list)

    def add(self, *made: Session) -> None:
        for each in made:
            self.verifier.add(each)

    def hear(self, made: Session, base: int, tokens: Sequence[int], **more: int) -> None:
        hint = Hint(1, more.get("choice", 0), more.get("seen", base), base, tuple(tokens))
        made.choices[hint.choice].hear(hint, self.verifier.clock())
        self.verifier.wake()

    async def ended(self, *made: Session) -> None:
        await until(lambda: all(each.key not in self.verifier.sessions for each in made))

    async def finish(self, made: Session) -> Told:
        """Read as a device does, acknowledging all, to the end."""
        told = Told()
        while len(told.finished) < len(made.choices) and told.error is None:
            async with asyncio.timeout(20):
                message = await made.outbox.get()
            told.take(message)
            if isinstance(message, Commit):
                choice = made.choices[message.choice]
                end = message.position + len(message.tokens)
                choice.hear(Hint(1, message.choice, end, end, ()), self.verifier.clock())
                self.verifier.wake()
        return told


@dataclass(slots=True)
class Told:
    """What went down to one session."""

    commits: list[Commit] = field(default_factory=list)
    finished: dict[int, Finished] = field(default_factory=dict)
    error: OutriderError | None = None

    def take(self, message: object) -> None:
        if isinstance(message, Commit):
            before = sum(len(c.tokens) for c in self.commits if c.choice == message.choice)
            assert message.position == before, "a commit leaves a gap or repeats"
            self.commits.append(message)
        elif isinstance(message, Finished):
            self.finished[message.choice] = message
        elif isinstance(message, OutriderError):
            self.error = message

    def ids(self, choice: int = 0) -> tuple[int, ...]:
        return tuple(t for c in self.commits if c.choice == choice for t in c.tokens)

    def reason(self, choice: int = 0) -> Reason:
        return self.finished[choice].reason

    def logprobs(self) -> list[TokenLogprobs]:
        return [found for c in self.commits for found in c.logprobs or ()]


@asynccontextmanager
async def bench(
    *,
    ahead: int = 64,
    trigger: Trigger | None = None,
    slots: int = 64,
    restart: Callable[[], Awaitable[Direct]] | None = None,
    engine: FakeEngine | None = None,
) -> AsyncIterator[Bench]:
    """Every slot is free again at its end, and the engine's books are right."""
    direct = Direct(engine or fake(slots=slots))
    published: list[events.Event] = []
    scheduler = Scheduler(StepCost(RowRule()), trigger or Trigger("free"), ahead=ahead)

    async def again() -> Direct:
        return await restart() if restart else Direct(fake(slots=slots))

    verifier = Verifier(direct, scheduler, published.append, Clock(), restart=again)
    task = asyncio.create_task(verifier.run())
    try:
        yield Bench(verifier, direct, published)
        await until(lambda: not verifier.sessions, "sessions end")
        running = verifier.engine
        assert isinstance(running, Direct)
        await until(lambda: not running.engine.statistics().slots_open, "slots are freed")
        running.engine.check_integrity()
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
