"""How long an answer goes on without a reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Stay:
    """Counts the readers of an answer; `end` is called `seconds` after the last one left.

    A connection that was cut can so be made again without a lost token, and a client that
    died costs no more than those seconds. Lives on the event loop.
    """

    seconds: float
    end: Callable[[], object]
    _readers: int = 0
    _timer: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """A reader came."""
        self._readers += 1
        self.close()

    def leave(self) -> None:
        """A reader left."""
        self._readers -= 1
        if not self._readers:
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self.end)

    def close(self) -> None:
        """The answer is over, or read again: nothing has to be ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
