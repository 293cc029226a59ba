"""A supervisor of child processes, for the demo, benches and fault tests.

    async with Supervisor() as supervisor:
        cloud = await supervisor.start(ChildSpec("cloud", argv, ready=ReadyLine(r"listening (.+)")))
        await cloud.restart(Failpoint("cloud.before_commit", "kill", 3))
        await cloud.reached("cloud.before_commit")

No child outlives the supervisor: each runs in a process group of its own that is killed when the
supervisor closes or its program exits, and on Linux the kernel kills each child when that program
dies, even by SIGKILL (see `tether`). What a child started itself is in its group; it survives
only if the supervisor's program was killed and the child had not tied it in turn.
"""

from __future__ import annotations

import asyncio
import atexit
from types import TracebackType
from typing import Self

from outrider.errors import ConfigError
from outrider.testing.child import Child, ChildSpec


class Supervisor:
    """Holds named children and ends them all."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}

    async def start(self, spec: ChildSpec) -> Child:
        """Starts a child and waits until it is ready.

        A name may be used again once its child has ended. Raises ChildError if it does not get
        ready, ConfigError if the name is taken.
        """
        known = self._children.get(spec.name)
        if known is not None and known.is_running:
            raise ConfigError(
                f"a child named {spec.name!r} runs already", effect="none was started"
            )
        if known is not None:
            await known.end()
        child = self._children[spec.name] = Child(spec)
        await child.start()
        return child

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._children)

    async def aclose(self) -> None:
        """Kills every child with its process group and waits for them; stopped ones too."""
        await asyncio.gather(*(child.end() for child in self._children.values()))

    async def __aenter__(self) -> Self:
        atexit.register(self._end_now)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await asyncio.shield(self.aclose())
        finally:
            self._end_now()
            atexit.unregister(self._end_now)

    def _end_now(self) -> None:
        for child in self._children.values():
            if child.is_running:
                child.end_now()
