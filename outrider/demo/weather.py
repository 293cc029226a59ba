"""What happens to the device in `outrider demo --top`: act after act, while people ask.

The link is the shaping proxy's, the battery is a played one, and the cloud really dies:
its process is killed, and started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from outrider import AsyncClient
from outrider.demo.machine import Laptop
from outrider.demo.story import PROMPTS
from outrider.errors import OutriderError
from outrider.testing.link import Link
from outrider.testing.pair import Pair

ASKERS = 2
PAUSE_S = 0.4
"""Between two questions of one asker."""
FLOOR = 0.2
"""The daemon's default: below it nothing is drafted on battery."""


@dataclass(slots=True)
class Scene:
    """What acts turn, and what goes on meanwhile."""

    pair: Pair
    client: AsyncClient
    laptop: Laptop
    tell: Callable[[str], None]
    rtt_ms: float
    tokens: int
    pace: float = 1.0
    """Lengths of acts are multiplied by it."""
    asked: int = 0
    failed: int = 0
    played: list[str] = field(default_factory=list)

    # --- those who ask ---------------------------------------------------------------------

    async def ask(self, number: int) -> None:
        """Question after question, until cancelled; one that fails is not the last."""
        for turn in count(number):
            prompt, temperature = PROMPTS[turn % len(PROMPTS)]
            self.asked += 1
            try:
                async with self.client.stream(
                    prompt, temperature=temperature, seed=turn, max_tokens=self.tokens
                ) as answer:
                    async for _ in answer:
                        pass
            except OutriderError:
                self.failed += 1
            await asyncio.sleep(PAUSE_S)

    # --- acts ------------------------------------------------------------------------------

    async def play(self) -> None:
        """All acts once."""
        for act in ACTS:
            self.tell(act.said)
            await act.do(self)
            self.played.append(act.name)
            await asyncio.sleep(act.seconds * self.pace)

    async def fair(self) -> None:
        self.laptop.plugged(0.64)
        await self.pair.proxy.set(Link.of_rtt(self.rtt_ms))

    async def far(self) -> None:
        far = Link.of_rtt(self.rtt_ms * 4, jitter_ms=self.rtt_ms / 2, loss=0.01)
        await self.pair.proxy.set(far)

    async def pull(self) -> None:
        self.laptop.unplugged(0.6)

    async def drain(self) -> None:
        self.laptop.unplugged(FLOOR - 0.03)

    async def kill(self) -> None:
        await self.pair.kill_cloud()

    async def revive(self) -> None:
        await self.pair.restart_cloud()


@dataclass(frozen=True, slots=True)
class Act:
    name: str
    said: str
    seconds: float
    do: Callable[[Scene], Awaitable[None]]


ACTS = (
    Act("fair", "fair weather: on mains, and the cloud is near", 10.0, Scene.fair),
    Act("far", "Wi-Fi gets worse: four times as far, jitter, lost packets", 12.0, Scene.far),
    Act("near", "Wi-Fi is well again", 6.0, Scene.fair),
    Act("pull", "the charger is pulled", 6.0, Scene.pull),
    Act("drain", "the battery falls below its floor: no more drafts", 9.0, Scene.drain),
    Act("charge", "the charger is back", 6.0, Scene.fair),
    Act("kill", "the cloud dies: its process was killed", 7.0, Scene.kill),
    Act("revive", "the cloud is back: answers go on where they were", 10.0, Scene.revive),
)


async def perform(scene: Scene, *, times: int | None = None) -> None:
    """Play over and over while people ask; `times` None is until cancelled."""
    askers = [asyncio.create_task(scene.ask(number)) for number in range(ASKERS)]
    try:
        for number in count(1):
            await scene.play()
            if times is not None and number >= times:
                return
    finally:
        for asker in askers:
            asker.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*askers, return_exceptions=True)
