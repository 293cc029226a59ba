"""Targets that are unloaded while nobody asks: the child ends, and all of its memory with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from outrider.cloud.server import Host
from outrider.engine import EngineInfo, EngineSpec
from outrider.models.kept import Kept
from outrider.options import CloudOptions
from outrider.protocol import events
from outrider.worker import AsyncEngine, EngineProcess

LOOK_S = 0.5
"""Between two looks at who is idle."""

Restart = Callable[[], Awaitable[AsyncEngine]]


def kept(
    engine: AsyncEngine,
    spec: EngineSpec,
    name: str,
    options: CloudOptions,
    publish: Callable[[events.Event], None],
) -> tuple[AsyncEngine, Restart]:
    """The engine as a verifier gets it, and what makes it anew after its process ended.

    It can be put away where `keep_alive_s` says so; a split model lies on devices that others
    may use meanwhile, and stays.
    """

    async def start() -> AsyncEngine:
        return await EngineProcess.start(spec)

    if options.keep_alive_s < 0 or options.workers:
        return engine, start

    def loaded(info: EngineInfo, took_s: float) -> None:
        publish(loaded_event(name, info, took_s))

    def put_away() -> None:
        publish(events.ModelUnloaded(model=name, role="target", reason="idle"))

    async def again() -> AsyncEngine:
        return await Kept.load(start, loaded, put_away, time.monotonic)

    return Kept.of(engine, start, loaded, put_away, time.monotonic), again


def loaded_event(name: str, info: EngineInfo, took_s: float) -> events.ModelLoaded:
    return events.ModelLoaded(
        model=name,
        role="target",
        engine=info.engine,
        device=info.device,
        dtype=info.dtype,
        exact=info.exact,
        row_rule=str(info.row_rule),
        numeric_class=info.numeric_class,
        load_ms=round(took_s * 1e3, 1),
    )


async def rest(hosts: Mapping[str, Host], keep_alive_s: float) -> None:
    """Until cancelled: put away what no session has wanted for so long."""
    while True:
        await asyncio.sleep(LOOK_S)
        for host in list(hosts.values()):
            await look(host, keep_alive_s)


async def look(host: Host, keep_alive_s: float) -> None:
    verifier = host.verifier
    if isinstance(verifier.engine, Kept):
        wanted = bool(verifier.sessions)
        await verifier.engine.rest(keep_alive_s, verifier.clock(), wanted=wanted)
