"""Which draft model this device has: one that comes and goes, and another in its place.

A swap is safe for what runs: answers that began with a drafter keep it until they end, and only
then is it unloaded. Drafts never change the text; an answer that the small model makes alone is
made by one model from its first token to its last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal

from outrider.edge.daemon import Daemon, Small
from outrider.models.kept import Kept
from outrider.protocol import events
from outrider.protocol.messages import ModelDescription
from outrider.protocol.status import LoadedModel
from outrider.worker import EngineThread

LOOK_S = 0.5
"""Between two looks at who is idle."""

Later = Callable[[ModelDescription], Awaitable[Small | None]]
Make = Callable[[str, AsyncExitStack], Awaitable[tuple[Small | None, Later | None]]]
"""Loads what `--draft` may name; what it made ends with the stack."""


@dataclass(slots=True)
class Seat:
    """One draft model with what ends it. `small` is None for those that wait for a target."""

    draft: str
    small: Small | None
    ends: AsyncExitStack


@dataclass(slots=True)
class Swap:
    """Give it its `daemon`, then `run()` in a task; `close` ends all models."""

    make: Make
    publish: Callable[[events.Event], None]
    clock: Callable[[], float]
    """Monotonic seconds."""
    seat: Seat
    """The draft model of now; what loads it hands its end to `seat.ends`."""
    retiring: list[Seat] = field(default_factory=list)
    daemon: Daemon = field(init=False)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def _made(self, draft: str) -> tuple[Small | None, Later | None, Seat]:
        ends = AsyncExitStack()
        try:
            small, later = await self.make(draft, ends)
        except BaseException:
            await ends.aclose()
            raise
        return small, later, Seat(draft, small, ends)

    async def use(self, draft: str) -> LoadedModel | None:
        """Load another and draft with it from the next answer on; None for `none` and `ngram`.

        Raises what loading raises; the old one then stays.
        """
        async with self._changing:
            self.seat.small = self.daemon.small
            small, later, seat = await self._made(draft)
            old, self.seat = self.seat, seat
            self.daemon.small, self.daemon.small_for = small, later
            self.daemon.small_at_first = None
            self.retiring.append(old)
            await self._retire()
        return self._told(seat) if seat.small is not None else None

    # --- idle ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Put away what is idle, and end what is retired and free."""
        async with self._changing:
            self.seat.small = self.daemon.small
            kept = _kept(self.seat.small)
            if kept is not None:
                keep_alive_s = self.daemon.options.keep_alive_s
                await kept.rest(keep_alive_s, self.clock(), wanted=self._wanted(self.seat))
            await self._retire()

    def _wanted(self, seat: Seat) -> bool:
        if seat.small is None:
            return False
        drafter = seat.small.drafter
        rides = self.daemon.running.values()
        return bool(drafter.lanes) or any(ride.drafter is drafter for ride in rides)

    async def _retire(self) -> None:
        for seat in [seat for seat in self.retiring if not self._wanted(seat)]:
            self.retiring.remove(seat)
            await seat.ends.aclose()
            if seat.small is not None:
                name = seat.small.name
                self.publish(events.ModelUnloaded(model=name, role="draft", reason="replaced"))

    async def close(self) -> None:
        for seat in [*self.retiring, self.seat]:
            await seat.ends.aclose()
        self.retiring.clear()

    # --- views -----------------------------------------------------------------------------

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The draft of now, then those that answers still hold."""
        self.seat.small = self.daemon.small
        return tuple(self._seats())

    def _seats(self) -> Iterator[LoadedModel]:
        for seat in (self.seat, *self.retiring):
            if seat.small is not None:
                yield self._told(seat)

    def _told(self, seat: Seat) -> LoadedModel:
        assert seat.small is not None
        info = seat.small.info
        return LoadedModel(
            model=seat.small.name,
            role="draft",
            state=self._state(seat),
            engine=info.engine,
            device=info.device,
            dtype=info.dtype,
            numeric_class=info.numeric_class,
            path=seat.draft,
            idle_unload_s=self.daemon.options.keep_alive_s,
        )

    def _state(self, seat: Seat) -> Literal["loaded", "away", "retiring"]:
        if seat is not self.seat:
            return "retiring"
        kept = _kept(seat.small)
        return "loaded" if kept is None or kept.is_loaded else "away"


def _kept(small: Small | None) -> Kept[EngineThread] | None:
    """What can be put away: a model. A drafter without one holds next to nothing."""
    if small is None or small.served is None:
        return None
    engine = small.drafter.engine
    return engine if isinstance(engine, Kept) else None
