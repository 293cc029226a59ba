"""Real workers with tiny stages, on an event loop of their own beside the test's thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from outrider.engine import EngineSpec, LayerRange, Picked, StageSpan
from outrider.errors import EngineFailed
from outrider.protocol.stages import HostedModel
from outrider.stages.chain import Chain
from outrider.stages.channel import SERVER_OPTIONS
from outrider.stages.emulate import Memory, Processor
from outrider.stages.seat import Identity
from outrider.stages.server import Worker
from outrider.stages.shelf import Shelf, ShelfModel
from outrider.testing.proxy import ShapingProxy
from tests.stages.tiny import LAYERS, TinyChain, TinyStage, info

T = TypeVar("T")
PATIENCE_S = 20.0
"""Bound of every wait in a test: reached only by one that fails."""
SPEC = EngineSpec("tiny", max_slots=4, max_rows=128)
BYTES_A_LAYER = 1000


def ranges(*bounds: int) -> tuple[LayerRange, ...]:
    """`ranges(0, 2, 6)`: layers 0:2 with the embedding, 2:6 with the head."""
    pairs = list(zip(bounds, bounds[1:], strict=False))
    return tuple(LayerRange(a, b, a == 0, b == LAYERS) for a, b in pairs)


@dataclass
class ToyStage(TinyStage):
    """A tiny stage that tests can hold up or break."""

    gate: threading.Event = field(default_factory=threading.Event)
    """Passes wait for it."""
    began: threading.Event = field(default_factory=threading.Event)
    fails: Callable[[Sequence[StageSpan]], bool] = lambda spans: False
    down: bool = False

    def run(self, spans: Sequence[StageSpan]) -> list[NDArray[np.float32] | Picked]:
        self.began.set()
        assert self.gate.wait(PATIENCE_S)
        if self.fails(spans):
            raise EngineFailed("the toy broke")
        return super().run(spans)

    def rewind(self, slot: int, length: int) -> None:
        for layer, kept in self.kv[slot].items():
            self.kv[slot][layer] = kept[:length]

    def shutdown(self) -> None:
        self.down = True


def toy(device: str, layers: LayerRange, **changed: object) -> ToyStage:
    size = BYTES_A_LAYER * (layers.stop - layers.start)
    stage = ToyStage(info(device, layers, **{"memory_bytes": size, **changed}))
    stage.gate.set()
    return stage


@dataclass
class Factory:
    """Builds stages and remembers them."""

    device: str = "toy"
    changed: dict[str, object] = field(default_factory=dict)
    built: list[ToyStage] = field(default_factory=list)
    prepare: Callable[[ToyStage], None] = lambda stage: None

    def __call__(self, spec: EngineSpec, layers: LayerRange) -> ToyStage:
        changed = {"max_slots": spec.max_slots, "max_rows": spec.max_rows, **self.changed}
        stage = toy(self.device, layers, **changed)
        self.prepare(stage)
        self.built.append(stage)
        return stage


def shelf(name: str = "toy", factory: Factory | None = None, **changed: Any) -> Shelf:
    made = factory or Factory(name)
    digest = str(made.changed.get("weights_digest", "w"))
    fields: dict[str, Any] = dict(
        name=name,
        kind="laptop",
        models={"tiny": ShelfModel(HostedModel("tiny", digest, LAYERS), "tiny")},
        memory=Memory(),
        processor=Processor(),
        clock=time.monotonic,
        build=made,
        estimate=lambda spec, layers: 0,
    )
    return Shelf(**{**fields, **changed})


class Town:
    """Where workers and proxies live; `do` runs something there and waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def worker(
        self,
        has: Shelf,
        *,
        who: Callable[[str], str] = lambda shown: "anybody",
        credentials: grpc.ServerCredentials | None = None,
        identity: Identity | None = None,
    ) -> tuple[str, Worker]:
        """Its address and itself."""
        return self.do(self._worker(has, who, credentials, identity or Identity()))

    async def _worker(
        self,
        has: Shelf,
        who: Callable[[str], str],
        credentials: grpc.ServerCredentials | None,
        identity: Identity,
    ) -> tuple[str, Worker]:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        worker = Worker(has, who, identity)
        server.add_generic_rpc_handlers((worker.handlers(),))
        at = "127.0.0.1:0"
        port = (
            server.add_secure_port(at, credentials) if credentials else server.add_insecure_port(at)
        )
        await server.start()
        self._stack.push_async_callback(worker.end)
        self._stack.push_async_callback(server.stop, 0.1)
        return f"127.0.0.1:{port}", worker

    def proxy(self, address: str, **options: Any) -> tuple[str, ShapingProxy]:
        """A shaped link to an address, and what shapes it; call it through `do` or `soon`."""
        host, _, port = address.rpartition(":")

        async def start() -> ShapingProxy:
            return await self._stack.enter_async_context(ShapingProxy(host, int(port), **options))

        proxy = self.do(start())
        return f"127.0.0.1:{proxy.port}", proxy

    def soon(self, work: Callable[[], None]) -> None:
        """Run a plain function there, and wait."""

        async def run() -> None:
            work()

        self.do(run())

    def close(self) -> None:
        self.do(self._stack.aclose())
        self.do(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()


async def _end_tasks() -> None:
    """What handlers of calls that broke have left to do."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@contextmanager
def town() -> Iterator[Town]:
    made = Town()
    try:
        yield made
    finally:
        made.close()


# --- what a chain is made to say ---------------------------------------------------------------


def ask(chain: Chain, slot: int, base: int, tokens: Sequence[int], first: int = 0) -> Any:
    """The future of one span."""
    return chain.submit([StageSpan(slot, base, len(tokens), tuple(tokens), first=first)])


def said(chain: Chain, slot: int = 0, steps: int = 12) -> list[int]:
    """A prompt in three pieces under way at once, then tokens one by one, with rewinds."""
    chain.open(slot)
    pieces = [ask(chain, slot, at, range(at + 1, at + 5)) for at in (0, 4, 8)]
    ids = [*pieces[2].result(PATIENCE_S)[0].ids[-1:]]
    base = 12
    for step in range(steps):
        # Two guesses that do not hold, cut away by the next span's base, or by a rewind.
        row = ask(chain, slot, base, (ids[-1], 1, 2)).result(PATIENCE_S)[0].ids
        ids.append(row[0])
        base += 1
        if step % 3 == 0:
            chain.rewind(slot, base)
    chain.close(slot)
    return ids


def alone() -> list[int]:
    """What the tiny model says without any chain."""
    stages: list[TinyStage] = [toy("alone", part) for part in ranges(0, LAYERS)]
    chain = TinyChain(stages)
    chain.rewind = lambda slot, length: None  # type: ignore[method-assign]
    return said(chain)


def wait_until(holds: Callable[[], bool]) -> None:
    """For something that another thread brings about."""
    pause, end = threading.Event(), time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        pause.wait(0.005)
