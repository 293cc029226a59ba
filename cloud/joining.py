"""Workers that come by themselves: where they join a cloud, and waiting for enough of them."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from outrider import transport
from outrider.cloud.tenants import Tenants
from outrider.engine import EngineSpec
from outrider.errors import PlanError
from outrider.options import CloudOptions
from outrider.protocol.stages import HostedModel
from outrider.stages.desk import Desk
from outrider.worker import EngineProcess

T = TypeVar("T")


async def opened(options: CloudOptions, stack: AsyncExitStack) -> Desk | None:
    """Where workers join; served here where it has a port of its own. None unless asked for.

    Raises ConfigError, PortInUse, and what the models' files deserve.
    """
    if not options.joins:
        return None
    tenants = Tenants.read(options.join_keys) if options.join_keys else Tenants()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-join-")))
    models = await asyncio.get_running_loop().run_in_executor(None, _models, options)
    desk = Desk.open(folder, models, tenants.who, _tell, options.workers_ca)
    if options.join_listen is not None:
        tls = transport.server_tls(options.join_cert, options.join_key, None)
        address = await desk.serve(options.join_listen, tls, stack)
        _tell(f"workers join at {address}: outrider worker --join {address}")
    stack.callback(asyncio.create_task(desk.sweep()).cancel)
    return desk


def _models(options: CloudOptions) -> tuple[HostedModel, ...]:
    from outrider.models.graph import read
    from outrider.models.source import resolve

    named = ((each.name, each.path) for each in options.models)
    return tuple(HostedModel(n, resolve(path).digest, read(path).decoders) for n, path in named)


async def started(spec: EngineSpec, desk: Desk | None) -> EngineProcess:
    """The engine; with a desk, once enough workers have joined to hold the model."""
    while True:
        if desk is not None:
            desk.changed.clear()
        try:
            return await EngineProcess.start(spec)
        except PlanError as error:
            if desk is None:
                raise
            _tell(f"waiting for workers: {error.what}; {error.why}")
            await desk.changed.wait()


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; None when it was cancelled because `stop` came first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def _tell(line: str) -> None:
    sys.stderr.write(f"outrider cloud: {line}\n")
    sys.stderr.flush()
