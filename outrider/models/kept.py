"""An engine that is put away when nobody asked for a while, and comes back by itself.

Its description stays, so that whoever plans with it need not know whether it is loaded. Slots
do not outlive the engine, so it is put away only when none is open. An engine in a thread gives
its memory back to the system as far as the allocator lets it; one in a child gives back all.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from outrider.engine import Engine, EngineInfo, EngineStatistics, Picked, Span
from outrider.errors import EngineFailed, ModelChanged
from outrider.protocol.sampling import Sampling
from outrider.worker import AsyncEngine, EngineThread

E = TypeVar("E", bound=AsyncEngine)
T = TypeVar("T")
FOREVER = -1.0
"""A `keep_alive_s` that never puts it away."""


@dataclass(slots=True)
class Kept(Generic[E]):
    """An `AsyncEngine`; make it with `load`."""

    start: Callable[[], Awaitable[E]]
    loaded: Callable[[EngineInfo, float], None]
    """Told after each load: what it is, and the seconds that it took."""
    put_away: Callable[[], None]
    """Told after each time that it was put away for being idle."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    _engine: E | None = None
    _info: EngineInfo | None = None
    _last: EngineStatistics | None = None
    _slots: set[int] = field(default_factory=set)
    _used: int = 0
    """Calls under way that need no slot."""
    _idle_since: float | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _ended: bool = False

    @classmethod
    async def load(
        cls,
        start: Callable[[], Awaitable[E]],
        loaded: Callable[[EngineInfo, float], None],
        put_away: Callable[[], None],
        clock: Callable[[], float],
    ) -> Kept[E]:
        """Raises what loading raises."""
        kept = cls(start, loaded, put_away, clock)
        await kept._awake()
        return kept

    @classmethod
    def of(
        cls,
        engine: E,
        start: Callable[[], Awaitable[E]],
        loaded: Callable[[EngineInfo, float], None],
        put_away: Callable[[], None],
        clock: Callable[[], float],
    ) -> Kept[E]:
        """One that is loaded already."""
        return cls(start, loaded, put_away, clock, engine)

    # --- an engine -------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        engine = self._engine
        if engine is not None:
            self._info = engine.info
        assert self._info is not None
        return self._info

    @property
    def alive(self) -> bool:
        """Put away it is as good as alive: the next call brings it back."""
        return not self._ended and (self._engine is None or self._engine.alive)

    @property
    def is_loaded(self) -> bool:
        return self._engine is not None

    @property
    def pid(self) -> int:
        """Of the child; 0 while there is none."""
        return int(getattr(self._engine, "pid", 0))

    async def open(self, sampling: Sampling | None = None) -> int:
        """Brings it back if it is away; raises what loading raises."""
        async with self._lock:
            engine = await self._awake()
            slot = await engine.open(sampling)
            self._slots.add(slot)
            return slot

    async def extend(self, spans: Sequence[Span]) -> list[Picked]:
        return await self._there().extend(spans)

    async def rewind(self, slot: int, length: int) -> None:
        await self._there().rewind(slot, length)

    async def close(self, slot: int) -> None:
        self._slots.discard(slot)
        if self._engine is not None:
            await self._engine.close(slot)

    async def statistics(self) -> EngineStatistics:
        """Of the last life while it is away."""
        engine = self._engine
        if engine is None and self._last is not None:
            return self._last
        try:
            return await self._there().statistics()
        except EngineFailed:
            # It may have been put away while it was asked.
            if self._engine is engine or self._last is None:
                raise
            return self._last

    async def shutdown(self) -> None:
        """For good."""
        self._ended = True
        async with self._lock:
            await self._drop()

    async def run(self, work: Callable[[Engine], T]) -> T:
        """Several calls in one visit to the engine's thread, where it lives in one."""
        with self._using():
            async with self._lock:
                engine = await self._awake()
            assert isinstance(engine, EngineThread)
            return await engine.run(work)

    @contextmanager
    def _using(self) -> Iterator[None]:
        self._used += 1
        try:
            yield
        finally:
            self._used -= 1

    def _there(self) -> E:
        assert self._engine is not None, "a slot is open, so it is loaded"
        return self._engine

    # --- coming and going ------------------------------------------------------------------

    async def rest(self, keep_alive_s: float, now: float, *, wanted: bool) -> None:
        """Put it away once nobody `wanted` it for so long; to be called now and then."""
        if wanted or self._slots or self._used or self._engine is None:
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = now
        if 0 <= keep_alive_s <= now - self._idle_since:
            await self.unload()

    async def unload(self) -> None:
        """Put it away if nothing uses it."""
        async with self._lock:
            if self._slots or self._used or self._engine is None or not self._engine.alive:
                return
            self._idle_since = None
            self._last = await self._engine.statistics()
            await self._drop()
        self.put_away()

    async def _drop(self) -> None:
        engine, self._engine = self._engine, None
        self._slots.clear()
        if engine is None:
            return
        self._info = engine.info
        await engine.shutdown()
        del engine
        await asyncio.get_running_loop().run_in_executor(None, give_back)

    async def _awake(self) -> E:
        if self._engine is None:
            began = self.clock()
            engine = await self.start()
            await self._compare(engine)
            self._engine = engine
            self.loaded(engine.info, self.clock() - began)
        return self._engine

    async def _compare(self, engine: E) -> None:
        """An answer may have been opened under what it was; it must not go on under another."""
        known, found = self._info, engine.info
        if known is not None and known.numeric_class != found.numeric_class:
            await engine.shutdown()
            raise ModelChanged(
                f"{known.model} is another model than the one that was put away",
                why="its files were changed while it was put away",
                effect="it was not loaded again",
                todo="outrider models use NAME takes it as another model, or start anew",
            )


def give_back() -> None:
    """Let go of what is not used, and hand free pages back to the system where it can be asked."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
