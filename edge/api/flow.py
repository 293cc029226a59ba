"""Events from the service to a client: in batches, with silence noticed, cancelled on hang-up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from starlette.types import Receive

T = TypeVar("T")
Timeout = Callable[[float], AbstractAsyncContextManager[Any]]
"""`asyncio.timeout`, or a test's: raises TimeoutError in its body after so many seconds."""


class _End:
    """A source has nothing more."""


_END = _End()


class Flow(Generic[T]):
    """Merges sources; what arrives together is handed on together.

    Tokens of one commit come without a pause between them, so that a batch is about
    a commit. At most `buffer` events wait for a slow reader. Leaving the context
    cancels the sources.
    """

    def __init__(
        self,
        sources: Sequence[AsyncIterator[T]],
        *,
        silence_s: float,
        buffer: int,
        timeout: Timeout,
    ) -> None:
        self._sources = sources
        self._silence_s = silence_s
        self._timeout = timeout
        self._queue: asyncio.Queue[tuple[int, T | _End | Exception]] = asyncio.Queue(buffer)
        self._pumps: list[asyncio.Task[None]] = []
        self._running = len(sources)
        self._failure: Exception | None = None

    async def __aenter__(self) -> Flow[T]:
        self._pumps = [
            asyncio.create_task(self._pump(i, source)) for i, source in enumerate(self._sources)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _pump(self, number: int, source: AsyncIterator[T]) -> None:
        try:
            async with aclosing(cast(AsyncGenerator[T, None], source)) as events:
                async for event in events:
                    await self._queue.put((number, event))
        except Exception as error:  # noqa: BLE001  Raised again where the batch is read.
            await self._queue.put((number, error))
        else:
            await self._queue.put((number, _END))

    async def batches(self) -> AsyncIterator[list[tuple[int, T]]]:
        """(source, event) pairs; an empty batch after each stretch of silence.

        Raises what a source raised, after everything that came before it.
        """
        while self._running and not self._failure:
            batch = await self._next()
            if batch is not None:
                yield batch
        if self._failure:
            raise self._failure

    async def _next(self) -> list[tuple[int, T]] | None:
        """The next batch; empty for silence; None when only ends came."""
        try:
            async with self._timeout(self._silence_s):
                item = await self._queue.get()
        except TimeoutError:
            return []
        batch: list[tuple[int, T]] = []
        self._sort(item, batch)
        while not self._queue.empty() and not self._failure:
            self._sort(self._queue.get_nowait(), batch)
        return batch or None

    def _sort(self, item: tuple[int, T | _End | Exception], batch: list[tuple[int, T]]) -> None:
        number, event = item
        if isinstance(event, _End):
            self._running -= 1
        elif isinstance(event, Exception):
            self._failure = event
        else:
            batch.append((number, event))


class HungUp(Exception):
    """The client went away; nobody is left to answer."""


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it when the client disconnects. The body has been read before."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_hang_up(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HungUp
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
