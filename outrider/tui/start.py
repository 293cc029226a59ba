"""Puts a feed and a screen together: live, from a record, or once without a terminal."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path

from outrider.protocol import events, recording
from outrider.sdk import AsyncClient
from outrider.tui import picture
from outrider.tui.app import Top
from outrider.tui.caller import Caller
from outrider.tui.feed import BusFeed, Feed, ReplayFeed, StreamFeed
from outrider.tui.options import TopOptions

IPC = "ipc://"
FIRST_WORD_S = 3.0
"""How long a single picture waits for the daemon's first gauge."""
SETTLE_S = 1.2
"""And after it, so that rates are known."""
LOOK_S = 0.1


def live(
    address: str | None, host: str | None = None, api_key: str | None = None
) -> tuple[Feed, Caller]:
    """The bus where its socket lies on this machine, else the daemon's HTTP stream. The folder of
    the socket is watched, so that a daemon that is started again is found."""
    caller = Caller(host, api_key)
    socket = Path((address or "").removeprefix(IPC))
    if address and address.startswith(IPC) and socket.exists():
        return BusFeed(socket.parent, time.monotonic, (address,)), caller

    async def stream() -> AsyncIterator[events.Event]:
        async with AsyncClient(host, api_key=api_key) as client:
            async for event in client.events():
                yield event

    return StreamFeed(stream), caller


def replay(path: Path, options: TopOptions) -> Feed:
    """Raises NotFound, InvalidRequest for what is no record."""
    return ReplayFeed(recording.read(path), time.monotonic, options.speed)


def run(feed: Feed, options: TopOptions, caller: Caller | None) -> int:
    """On this terminal, until the user leaves."""
    app = Top(feed, options, caller)
    # What is loaded stays; to look through all of it again and again would cost more than looks do.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    app.run()
    return app.return_code or 0


async def _shown(app: Top, wait_s: float) -> None:
    """All of a record, or what a daemon says first."""
    if isinstance(app.feed, ReplayFeed):
        app.apply(app.feed.rest())
        return
    until = time.monotonic() + wait_s
    while app.state.gauge is None and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)
        app.tick()
    if app.state.gauge is not None:
        await asyncio.sleep(SETTLE_S)
        app.tick()


async def _picture(app: Top, size: tuple[int, int], wait_s: float, form: str) -> str:
    async with app.run_test(size=size) as pilot:
        await _shown(app, wait_s)
        app.draw()
        await pilot.pause()
        if form == "svg":
            return picture.svg(app)
        return picture.text(app, form)


def once(
    feed: Feed,
    options: TopOptions,
    caller: Caller | None,
    *,
    size: tuple[int, int],
    form: str = "text",
    wait_s: float = FIRST_WORD_S,
) -> str:
    """One screen; `form` is text, colours (with escape codes) or svg."""
    app = Top(feed, options, caller)
    return asyncio.run(_picture(app, size, wait_s, form))
