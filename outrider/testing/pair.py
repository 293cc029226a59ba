"""A cloud, an emulated link and an edge on this machine, each a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from outrider.testing.child import Child, ChildSpec, ReadyFile
from outrider.testing.link import Link
from outrider.testing.proxy_process import ProxyProcess
from outrider.testing.supervisor import Supervisor

_COMMAND = (sys.executable, "-c", "from outrider.cli import main; main()")
EDGE_NICENESS = 5
"""Edge, link and client share a core; the target comes first."""


@dataclass(slots=True)
class Pair:
    """`async with Pair(link, cloud_arguments, edge_arguments) as pair`; everything ends with it."""

    link: Link
    cloud_arguments: Sequence[str] = ()
    edge_arguments: Sequence[str] = ()
    edge_environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the edge's."""
    url: str = ""
    """The edge's address, once it runs."""
    cloud_address: str = ""
    cloud_events: str = ""
    edge_events: str = ""
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _proxy: ProxyProcess | None = None
    _supervisor: Supervisor | None = None

    @property
    def proxy(self) -> ProxyProcess:
        assert self._proxy is not None, "the pair has not been started"
        return self._proxy

    async def kill_cloud(self) -> None:
        """SIGKILL to the cloud, its engines too: no goodbye."""
        await self._cloud.end()

    async def restart_cloud(self) -> None:
        """A new process at the old address, with an events socket of its own."""
        cloud = self._cloud
        assert isinstance(cloud.spec.ready, ReadyFile)
        note = cloud.spec.ready.path
        note.unlink(missing_ok=True)
        words = [self.cloud_address if word == "127.0.0.1:0" else word for word in cloud.spec.argv]
        cloud.spec = replace(cloud.spec, argv=words)
        await cloud.restart()
        self.cloud_events = json.loads(note.read_text())["events"]

    @property
    def _cloud(self) -> Child:
        assert self._supervisor is not None, "the pair has not been started"
        return self._supervisor["cloud"]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-")))
        supervisor = await self._stack.enter_async_context(Supervisor())
        self._supervisor = supervisor
        ready = await _launch(supervisor, "cloud", self.cloud_arguments, place, 0)
        self.cloud_address, self.cloud_events = ready["address"], ready["events"]
        host, _, port = self.cloud_address.rpartition(":")
        self._proxy = await ProxyProcess.start(host, int(port), self.link, nice=EDGE_NICENESS)
        self._stack.push_async_callback(self._proxy.aclose)
        through = f"{self._proxy.host}:{self._proxy.port}"
        arguments = ("--cloud", through, *self.edge_arguments)
        more = self.edge_environment
        ready = await _launch(supervisor, "edge", arguments, place, EDGE_NICENESS, more)
        self.url, self.edge_events = ready["url"], ready["events"]


async def _launch(
    supervisor: Supervisor,
    verb: str,
    arguments: Sequence[str],
    place: Path,
    nice: int,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Start `outrider VERB` on a free port; what its ready file says."""
    note = place / f"{verb}.json"
    command = (*_COMMAND, verb, "--listen", "127.0.0.1:0", "--ready-file", str(note), *arguments)
    environment = {"OUTRIDER_RUNTIME": str(place / "run"), "OMP_NUM_THREADS": "1", **(more or {})}
    await supervisor.start(
        ChildSpec(verb, command, env=environment, ready=ReadyFile(note), nice=nice)
    )
    found: dict[str, str] = json.loads(note.read_text())
    return found
