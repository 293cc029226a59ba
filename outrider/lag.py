"""How late the event loop is: the one number that says whether something blocks it."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from outrider.protocol import events

INTERVAL_S = 0.02
IDLE_S = 0.25
"""While nothing runs: looking often would be most of what an idle daemon does."""
KEPT = 3000
"""Samples: the last minute."""


class LoopLag:
    """Wakes every 20 ms and notes by how much it was late, in milliseconds."""

    def __init__(self) -> None:
        self.busy: Callable[[], bool] = lambda: True
        self._late_ms: deque[float] = deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, once loading is over: what was loaded is no longer looked at by the collector,
        whose full rounds would hold the loop for many milliseconds."""
        gc.collect()
        gc.freeze()
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            interval_s = INTERVAL_S if self.busy() else IDLE_S
            due = loop.time() + interval_s
            await asyncio.sleep(interval_s)
            self._late_ms.append((loop.time() - due) * 1e3)

    def quantile_ms(self, share: float) -> float:
        """Lateness that `share` of the samples stay below; 0 without samples."""
        ordered = sorted(self._late_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def event(self) -> events.Lag:
        return events.Lag(
            p50_ms=round(self.quantile_ms(0.5), 3), p99_ms=round(self.quantile_ms(0.99), 3)
        )

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


def run(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run` on uvloop where that is installed: the same loop, less of our time a turn."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main)
    else:
        uvloop.run(main)
