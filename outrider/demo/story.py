"""What the demo does and measures; nothing is shown here.

Three placements answer the same prompts in turn, then the link is cut in the
middle of an answer. Every figure is counted by the processes themselves; bytes
are those of the proxy's sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from outrider import AsyncClient
from outrider.protocol import trace
from outrider.protocol.stream import Done, Forked, Provisional, Retract, Token
from outrider.testing.pair import Pair

Mode = Literal["edge", "cloud", "draft"]
MODES: tuple[Mode, ...] = ("edge", "cloud", "draft")

PROMPTS: tuple[tuple[str, float], ...] = (
    ("import argparse\nimport os\n\n\ndef main():\n    parser = argparse.", 0.0),
    ("class Queue:\n    def __init__(self, maxsize=0):\n        self.maxsize = ", 0.8),
    ('def read_file(path):\n    """Read a file and return its lines."""\n', 0.8),
)
"""Python to be continued, and the temperature."""
CUT_PROMPT = "import unittest\n\n\nclass TestQueue(unittest.TestCase):\n    def test_"
SEED = 11
CUT_AFTER = 12
"""Committed tokens of the answer before the link is cut."""
LOCAL_TOKENS = 16
"""Provisional tokens to be seen, and a plain client's fork, before the link comes back."""
CUT_S = 8.0
"""Seconds after which the link comes back at the latest."""

Watch = Callable[[trace.Event], None]


@dataclass(frozen=True, slots=True)
class Ride:
    """One answer, and what it took."""

    tokens: tuple[Token, ...]
    done: Done
    bytes_up: int

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.tokens)

    @property
    def decode_ms(self) -> float:
        """From the first token to the last."""
        return self.tokens[-1].t_ms - self.tokens[0].t_ms if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one placement over all its rides."""

    tokens_per_s: float
    tpot_ms: float
    acceptance_length: float
    accepted_share: float
    passes_per_token: float
    bytes_up_per_token: float


@dataclass(frozen=True, slots=True)
class Cut:
    """What happened when the link was cut in the middle of an answer."""

    lost: int
    """Committed tokens that were taken back, or missing at the end."""
    doubled: int
    """Positions that were committed twice."""
    identical: bool
    """Whether the final text is the cloud's alone."""
    local_tokens: int
    """Provisional tokens that were shown."""
    retracted: int
    committed_before: int
    text: str
    fork_text: str
    """The same cut as a plain OpenAI client sees it; empty when it was not shown."""
    fork_from: int | None
    """Position from which that answer is the small model's."""


@dataclass(slots=True)
class Story:
    pair: Pair
    client: AsyncClient
    tokens: int
    rides: dict[Mode, list[Ride]] = field(default_factory=lambda: {mode: [] for mode in MODES})

    async def ride(self, number: int, mode: Mode, watch: Watch = lambda event: None) -> Ride:
        """Answer prompt `number` under a placement."""
        prompt, temperature = PROMPTS[number]
        before = (await self.pair.proxy.statistics()).bytes_up
        got = await self._answer(prompt, temperature, mode, watch)
        after = (await self.pair.proxy.statistics()).bytes_up
        ride = Ride(*got, after - before)
        self.rides[mode].append(ride)
        return ride

    async def _answer(
        self, prompt: str, temperature: float, mode: Mode, watch: Watch
    ) -> tuple[tuple[Token, ...], Done]:
        tokens: list[Token] = []
        done: list[Done] = []
        stream = self.client.stream(
            prompt,
            temperature=temperature,
            seed=SEED,
            max_tokens=self.tokens,
            placement=mode,
        )
        async with stream:
            async for event in stream:
                watch(event)
                if isinstance(event, Token):
                    tokens.append(event)
                elif isinstance(event, Done):
                    done.append(event)
        return tuple(tokens), done[0]

    def identical(self) -> bool:
        """Whether drafting changed no token of any answer."""
        pairs = zip(self.rides["cloud"], self.rides["draft"], strict=True)
        return all(cloud.ids == draft.ids for cloud, draft in pairs)

    def figures(self, mode: Mode) -> Figures:
        rides = self.rides[mode]
        tokens = sum(len(ride.tokens) for ride in rides)
        gaps = sum(len(ride.tokens) - 1 for ride in rides)
        decode_ms = sum(ride.decode_ms for ride in rides)
        found = [ride.done.speculation for ride in rides]
        steps = sum(each.num_spec_steps for each in found)
        rows = sum(each.num_draft_tokens for each in found)
        accepted = sum(each.num_accepted_draft_tokens for each in found)
        return Figures(
            tokens_per_s=1e3 * gaps / decode_ms if decode_ms else 0.0,
            tpot_ms=decode_ms / max(1, gaps),
            acceptance_length=1.0 + accepted / steps if steps else 1.0,
            accepted_share=accepted / rows if rows else 0.0,
            passes_per_token=sum(each.passes for each in found) / max(1, tokens),
            bytes_up_per_token=sum(ride.bytes_up for ride in rides) / max(1, tokens),
        )

    # --- the cut ---------------------------------------------------------------------------

    async def cut(self, watch: Watch = lambda event: None) -> Cut:
        """Cut the link in the middle of an answer, and let it come back."""
        alone = (await self._answer(CUT_PROMPT, 0.0, "cloud", lambda event: None))[0]
        seen = _Seen()
        plain = asyncio.create_task(self._plain(seen))
        breaker = asyncio.create_task(self._break(seen))

        def note(event: trace.Event) -> None:
            seen.note(event)
            watch(event)

        tokens, _ = await self._answer(CUT_PROMPT, 0.0, "draft", note)
        await breaker
        fork_text, fork_from = await plain
        ids = tuple(token.id for token in tokens)
        positions = [token.position for token in tokens]
        return Cut(
            lost=len(set(range(len(alone))) - set(positions)) + seen.taken_back,
            doubled=len(positions) - len(set(positions)),
            identical=ids == tuple(token.id for token in alone),
            local_tokens=seen.provisional,
            retracted=seen.retracted,
            committed_before=seen.before,
            text="".join(token.text for token in tokens),
            fork_text=fork_text,
            fork_from=fork_from,
        )

    async def _break(self, seen: _Seen) -> None:
        await seen.reached.wait()
        await self.pair.proxy.cut()
        seen.before = seen.committed
        try:
            async with asyncio.timeout(CUT_S):
                await seen.enough.wait()
                await seen.forked.wait()
        except TimeoutError:
            pass
        await self.pair.proxy.restore()

    async def _plain(self, seen: _Seen) -> tuple[str, int | None]:
        """The same question without `retract`, as the OpenAI API asks it."""
        stream = self.client.stream(
            CUT_PROMPT,
            temperature=0.0,
            seed=SEED,
            max_tokens=self.tokens,
            placement="draft",
            retract=False,
        )
        text, mixed_from = "", None
        async with stream:
            async for event in stream:
                if isinstance(event, Token):
                    text += event.text
                elif isinstance(event, Forked):
                    mixed_from = event.position
                    seen.forked.set()
        seen.forked.set()
        return text, mixed_from


@dataclass(slots=True)
class _Seen:
    """Counts over the stream that is cut."""

    committed: int = 0
    provisional: int = 0
    retracted: int = 0
    taken_back: int = 0
    before: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    forked: asyncio.Event = field(default_factory=asyncio.Event)
    """The plain client's answer went on with the small model, or is over."""
    _shown_end: int = 0

    def note(self, event: trace.Event) -> None:
        match event:
            case Token():
                self.committed += 1
                if self.committed >= CUT_AFTER:
                    self.reached.set()
            case Provisional():
                self.provisional += 1
                self._shown_end = event.position + 1
                if self.provisional >= LOCAL_TOKENS:
                    self.enough.set()
            case Retract():
                self.retracted += self._shown_end - event.position
                self.taken_back += max(0, self.committed - event.position)
            case Done():
                self.reached.set()
                self.enough.set()


def shares(rides: Sequence[Ride]) -> dict[str, int]:
    """Tokens by who produced them."""
    counts: dict[str, int] = {}
    for ride in rides:
        for token in ride.tokens:
            counts[token.source] = counts.get(token.source, 0) + 1
    return counts
