"""Other models for a cloud that runs: loaded beside those that are served, then in their place.

Sessions that are open stay with the model and the numeric class that they were opened under, also
when their device comes back after a cut; only then is the old one unloaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from outrider.cloud.server import Cloud, Host
from outrider.errors import OutriderError
from outrider.options import NamedModel
from outrider.protocol import events

LOOK_S = 0.5
"""Between two looks whether a retired model has lost its last session."""

Make = Callable[[NamedModel, AsyncExitStack], Awaitable[Host]]
"""Loads a model; what it made ends with the stack."""


@dataclass(slots=True)
class Swap:
    """`add` at the start, `take` for other models while it runs, `run()` in a task."""

    cloud: Cloud
    make: Make
    publish: Callable[[events.Event], None]
    served: dict[str, NamedModel] = field(default_factory=dict)
    _ends: dict[int, AsyncExitStack] = field(default_factory=dict)
    """`id` of a host to what ends it."""
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def add(self, model: NamedModel) -> None:
        """Load and serve it too. Raises ConfigError, ModelError."""
        self.cloud.hosts[model.name] = await self._made(model)
        self.served[model.name] = model

    async def _made(self, model: NamedModel) -> Host:
        ends = AsyncExitStack()
        try:
            host = await self.make(model, ends)
        except BaseException:
            await ends.aclose()
            raise
        self._ends[id(host)] = ends
        return host

    def begin(self, models: Sequence[NamedModel]) -> None:
        """`take` in a task; what goes wrong is told as an event, and changes nothing."""
        task = asyncio.create_task(self._try(models))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try(self, models: Sequence[NamedModel]) -> None:
        try:
            await self.take(models)
        except OutriderError as error:
            what = f"the models stay as they are: {error.what}"
            self.publish(events.Trouble(code=error.code, what=what))

    async def take(self, models: Sequence[NamedModel]) -> None:
        """Serve these and no others from now on; the first is the default.

        All that are new are loaded before anything changes. Raises what loading raises.
        """
        async with self._changing:
            fresh = await self._loaded([m for m in models if self.served.get(m.name) != m])
            hosts = {m.name: fresh.get(m.name) or self.cloud.hosts[m.name] for m in models}
            old = list(self.cloud.hosts.values())
            # One step of the loop: whoever opens a session sees the old ones or the new ones.
            self.cloud.hosts.clear()
            self.cloud.hosts.update(hosts)
            self.served = {model.name: model for model in models}
            kept = {id(host) for host in hosts.values()}
            self.cloud.retired.extend(host for host in old if id(host) not in kept)
        await self.look()

    async def _loaded(self, models: Sequence[NamedModel]) -> dict[str, Host]:
        fresh: dict[str, Host] = {}
        try:
            for model in models:
                fresh[model.name] = await self._made(model)
        except BaseException:
            for host in fresh.values():
                await self._end(host)
            raise
        return fresh

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Unload the retired whose last session has ended."""
        async with self._changing:
            for host in [host for host in self.cloud.retired if not host.verifier.sessions]:
                self.cloud.retired.remove(host)
                await self._end(host)
                name = host.description.name
                self.publish(events.ModelUnloaded(model=name, role="target", reason="replaced"))

    async def _end(self, host: Host) -> None:
        await self._ends.pop(id(host)).aclose()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for ends in list(self._ends.values()):
            await ends.aclose()
        self._ends.clear()
