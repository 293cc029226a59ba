"""`outrider demo --top`: the live screen over a cloud and an edge to which things happen."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from outrider import AsyncClient
from outrider.demo.machine import Laptop
from outrider.demo.target import MODEL, made
from outrider.demo.weather import Scene, perform
from outrider.partitioner.power.machine import ROOT
from outrider.protocol import events
from outrider.testing.link import Link
from outrider.testing.pair import Pair
from outrider.tui import picture
from outrider.tui.app import Top
from outrider.tui.caller import Caller
from outrider.tui.feed import BusFeed
from outrider.tui.options import TopOptions

SIZE = (100, 32)
"""Of the screen that `once` prints."""


@dataclass(frozen=True, slots=True)
class Show:
    """What `--top` takes of the demo's options."""

    rtt_ms: float
    step_ms: float
    tokens: int
    patience_s: float
    screen: TopOptions
    once: bool = False
    """No terminal: all acts once, then print the screen."""
    pace: float = 1.0


@dataclass(slots=True)
class Told:
    """The bus, and what the script says between."""

    bus: BusFeed
    over: bool = False
    _said: deque[events.Event] = field(default_factory=deque)

    def say(self, text: str) -> None:
        moment = time.clock_gettime(time.CLOCK_REALTIME)
        now = time.monotonic() * 1e3
        self._said.append(events.Remark(said=text, source="demo", at=moment, t_ms=now))

    def take(self) -> Sequence[events.Event]:
        found = [*self.bus.take(), *self._said]
        self._said.clear()
        return sorted(found, key=lambda event: event.at)

    def close(self) -> None:
        self.bus.close()


def run(show: Show) -> int:
    """Until the user leaves; with `once` until all acts were played. 1 if an answer failed."""
    if not show.once:
        print("making the inflated target, and starting a cloud and an edge ...", flush=True)
    return asyncio.run(_run(show))


async def _run(show: Show) -> int:
    target = await asyncio.to_thread(made, show.step_ms)
    with tempfile.TemporaryDirectory(prefix="outrider-laptop-") as folder:
        laptop = Laptop(Path(folder))
        laptop.plant()
        async with _stage(show, target, laptop) as (scene, app):
            return await (_once(show, scene, app) if show.once else _live(scene, app))


@asynccontextmanager
async def _stage(show: Show, target: str, laptop: Laptop) -> AsyncIterator[tuple[Scene, Top]]:
    pair = Pair(
        Link.of_rtt(show.rtt_ms),
        cloud_arguments=(
            *("--model", f"{MODEL}={target}", "--threads", "1", "--context", "512"),
            *("--max-slots", "4"),
        ),
        edge_arguments=("--patience", str(show.patience_s), "--max-running", "4"),
        edge_environment={ROOT: str(laptop.root)},
    )
    async with pair, AsyncClient(pair.url) as client:
        socket = Path(pair.edge_events.removeprefix("ipc://"))
        told = Told(BusFeed(socket.parent, time.monotonic, (pair.edge_events,)))
        app = Top(told, show.screen, Caller(pair.url))
        yield Scene(pair, client, laptop, told.say, show.rtt_ms, show.tokens, show.pace), app


async def _live(scene: Scene, app: Top) -> int:
    script = asyncio.create_task(perform(scene))
    try:
        await app.run_async()
    finally:
        script.cancel()
        await asyncio.gather(script, return_exceptions=True)
    return app.return_code or 0


async def _once(show: Show, scene: Scene, app: Top) -> int:
    async with app.run_test(size=SIZE) as pilot:
        await perform(scene, times=1)
        app.tick()
        await pilot.pause()
        print(picture.text(app))
    return 1 if scene.failed else 0
