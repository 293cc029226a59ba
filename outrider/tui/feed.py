"""Where events come from: the bus of this machine, the daemon's HTTP stream, or a record.

A feed is asked for what came since it was asked last; nothing is pushed, so that the
screen decides how much work it does in a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from outrider.errors import OutriderError
from outrider.protocol import events

if TYPE_CHECKING:
    import zmq

BATCH = 4000
"""Events that one look takes at most; the rest comes with the next."""
KEPT = 10_000
SOCKETS = "*.events"
AGAIN_S = 1.0
"""Before a stream that broke is opened again."""
NEWER_S = 2.0
"""Between two looks for sockets that are new: a daemon or a cloud that was started again."""


class Feed(Protocol):
    def take(self) -> Sequence[events.Event]:
        """What came since the last call, in order of its coming."""
        ...

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        ...

    def close(self) -> None: ...


class BusFeed:
    """All event sockets of a folder: the daemon's, and those of clouds on this machine.

    Raises ModuleNotFoundError without pyzmq.
    """

    over = False

    def __init__(
        self,
        folder: Path | None,
        clock: Callable[[], float],
        addresses: Sequence[str] = (),
    ) -> None:
        import zmq

        self._folder, self._clock = folder, clock
        self._again = zmq.Again
        self._now = zmq.NOBLOCK
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.set(zmq.RCVHWM, KEPT)
        self._socket.set(zmq.LINGER, 0)
        self._socket.subscribe(b"")
        self._known: set[str] = set()
        self._looked = float("-inf")
        for address in addresses:
            self._join(address)
        self.refused = 0
        """Messages that were no events of this version."""

    def _join(self, address: str) -> None:
        if address not in self._known:
            self._known.add(address)
            self._socket.connect(address)

    def _look(self) -> None:
        """Join sockets that are new, leave those that are gone."""
        now = self._clock()
        if self._folder is None or now - self._looked < NEWER_S:
            return
        self._looked = now
        found = {f"ipc://{path}" for path in self._folder.glob(SOCKETS)}
        for address in found - self._known:
            self._join(address)
        for address in [a for a in self._known - found if self._ours(a)]:
            self._known.discard(address)
            self._socket.disconnect(address)

    def _ours(self, address: str) -> bool:
        return self._folder is not None and address.startswith(f"ipc://{self._folder}/")

    def take(self) -> Sequence[events.Event]:
        self._look()
        found: list[events.Event] = []
        while len(found) < BATCH:
            try:
                data = self._socket.recv(self._now)
            except self._again:
                break
            try:
                found.append(events.decode(data))
            except msgspec.ValidationError:
                self.refused += 1
        return found

    def close(self) -> None:
        self._socket.close()


class StreamFeed:
    """`/outrider/v1/events` of a daemon that is elsewhere; `await run()` in a task."""

    over = False

    def __init__(self, stream: Callable[[], AsyncIterator[events.Event]]) -> None:
        self._stream = stream
        self._came: deque[events.Event] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """Until cancelled; a stream that breaks is opened again. Silence is shown as such."""
        while True:
            try:
                async for event in self._stream():
                    self._came.append(event)
            except (OutriderError, OSError):
                pass
            await asyncio.sleep(AGAIN_S)

    def take(self) -> Sequence[events.Event]:
        found = list(self._came)
        self._came.clear()
        return found

    def close(self) -> None:
        """The task that runs it is the caller's."""


class ReplayFeed:
    """A record at its own pace, or faster; `hold` stops its time."""

    def __init__(
        self, record: Iterable[events.Event], clock: Callable[[], float], speed: float = 1.0
    ) -> None:
        self._left = deque(sorted(record, key=lambda event: event.at))
        self._clock, self._speed = clock, speed
        self._first = self._left[0].at if self._left else 0.0
        self._played = 0.0
        self._at = clock()
        self.held = False

    @property
    def over(self) -> bool:
        return not self._left

    def take(self) -> Sequence[events.Event]:
        now = self._clock()
        if not self.held:
            self._played += (now - self._at) * self._speed
        self._at = now
        until = self._first + self._played
        found = []
        while self._left and self._left[0].at <= until:
            found.append(self._left.popleft())
        return found

    def rest(self) -> Sequence[events.Event]:
        """All that is left, at once."""
        found = list(self._left)
        self._left.clear()
        return found

    def close(self) -> None:
        """Nothing is open."""
