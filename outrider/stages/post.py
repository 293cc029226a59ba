"""One stage at its post: a thread that does what comes, in order, and hands on what it gave.

The same code runs a stage beside others in one process (`local`) and in a worker
(`server`), so that the wire is all that differs between the two.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from outrider.engine import Picked, Stage, StageInfo, StageSpan
from outrider.errors import EngineFailed, InvalidRequest, OutriderError, RemoteProtocolError
from outrider.protocol import activations
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.stages import (
    CloseSlot,
    Failed,
    Hop,
    OpenSlot,
    Pass,
    Passed,
    RewindSlot,
    StageOp,
)
from outrider.stages.emulate import Processor

T = TypeVar("T")

Given = StageOp | Passed | Failed
"""What a stage hands on: an order for the next one, or, of a pass, its result or its end."""


@dataclass(slots=True)
class Orders:
    """What a stage was told, carried out; belongs to one thread.

    An order that opens a slot gets no answer. If it fails, the slot's passes fail with what
    it raised, until the slot is closed.
    """

    stage: Stage
    codec: ActivationCodec
    processor: Processor
    refused: dict[int, OutriderError] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    ended: bool = False
    """Nobody waits for passes any more. Set from any thread."""

    def do(self, op: StageOp) -> Given:
        """What comes out of it. Raises nothing."""
        match op:
            case Pass():
                return self._pass(op)
            case OpenSlot():
                self._change(op.slot, lambda: self._open(op))
            case RewindSlot():
                self._change(op.slot, lambda: self.stage.rewind(op.slot, op.length))
            case CloseSlot():
                self._close(op.slot)
        return op

    def close_all(self) -> None:
        """The stage is free for another coordinator."""
        for slot in list(self.held):
            self._close(slot)
        self.refused.clear()

    def _open(self, op: OpenSlot) -> None:
        self.stage.open(op.slot, op.sampling)
        self.held.add(op.slot)

    def _close(self, slot: int) -> None:
        if slot in self.held:
            self.held.discard(slot)
            self._change(slot, lambda: self.stage.close(slot))
        self.refused.pop(slot, None)

    def _change(self, slot: int, work: Callable[[], None]) -> None:
        try:
            typed(work)
        except OutriderError as error:
            self.refused.setdefault(slot, error)

    def _pass(self, op: Pass) -> Given:
        try:
            self._check(op)
            (given, size), seconds = self.processor.run(lambda: typed(lambda: self._run(op)))
        except OutriderError as error:
            return Failed(op.number, error)
        hop = Hop(int(seconds * 1e6), len(op.activations), size)
        return replace(given, trail=(*op.trail, hop))

    def _check(self, op: Pass) -> None:
        if self.ended:
            raise EngineFailed("the chain ended", effect="the pass was dropped")
        for span in op.spans:
            if span.slot in self.refused:
                raise self.refused[span.slot]
        if op.rows > self.stage.info.max_rows:
            raise InvalidRequest(
                f"a pass of {op.rows} rows, and this stage takes {self.stage.info.max_rows}",
                param="spans",
                effect="the pass was dropped",
            )

    def _run(self, op: Pass) -> tuple[Pass | Passed, int]:
        """Decoding and encoding are the device's work too. The second is bytes that go on."""
        results = self.stage.run(self._spans(op))
        if self.stage.info.layers.head:
            picked = tuple(each for each in results if isinstance(each, Picked))
            return Passed(op.number, picked), 0
        hidden = [each for each in results if not isinstance(each, Picked)]
        data = activations.encode(np.concatenate(hidden), self.codec)
        return replace(op, activations=data), len(data)

    def _spans(self, op: Pass) -> list[StageSpan]:
        if self.stage.info.layers.embedding:
            if op.activations:
                raise RemoteProtocolError("hidden states came to the stage with the embedding")
            return list(op.spans)
        width = self.stage.info.hidden_size
        hidden = activations.decode(op.activations, self.codec, op.rows, width)
        return _with_hidden(op.spans, hidden)


def _with_hidden(spans: Sequence[StageSpan], hidden: NDArray[np.float32]) -> list[StageSpan]:
    given, at = [], 0
    for span in spans:
        given.append(replace(span, hidden=hidden[at : at + span.rows]))
        at += span.rows
    return given


def typed(work: Callable[[], T]) -> T:
    """Whatever else a library raises is an EngineFailed that names the kind alone: its text may
    hold what it was working on."""
    try:
        return work()
    except OutriderError:
        raise
    except Exception as error:
        raise EngineFailed(
            f"the stage failed with {type(error).__name__}",
            effect="the pass was dropped",
            todo="try again; if it stays, plan the model without this device",
        ) from error


class Post:
    """A stage and its thread. `emit` is called in that thread with whatever comes out, and
    raises nothing.

    Native libraries may bind to the thread that loads them, so the stage is made there too.
    """

    def __init__(self, build: Callable[[], Stage], processor: Processor, name: str) -> None:
        self.processor = processor
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._work, name=f"stage {name}", daemon=True)
        self._thread.start()
        self._stage = self._call(lambda: typed(build))

    def ready(self) -> StageInfo:
        """Wait until the stage is loaded; raises what loading it raised, and then it is over."""
        try:
            return self._stage.result().info
        except BaseException:
            self.shutdown()
            raise

    @property
    def stage(self) -> Stage:
        return self._stage.result()

    def orders(self, codec: ActivationCodec) -> Orders:
        """For one chain that uses the stage."""
        return Orders(self.stage, codec, self.processor)

    def put(self, orders: Orders, op: StageOp, emit: Callable[[Given], None]) -> None:
        """Do it after what was put before."""
        self._add(lambda: emit(orders.do(op)))

    def release(self, orders: Orders) -> Future[None]:
        """Close what a chain left open; done when nothing of it is under way. Passes that
        have not begun are dropped."""
        orders.ended = True
        return self._call(orders.close_all)

    def shutdown(self) -> None:
        """Free the stage after what was put before, and end the thread; waits for it."""
        with self._lock:
            if not self._over:
                self._over = True
                self._queue.put(self._free)
                self._queue.put(None)
        self._thread.join()

    def _free(self) -> None:
        if self._stage.exception() is None:
            self._stage.result().shutdown()

    def _add(self, work: Callable[[], None]) -> bool:
        """False once it is over."""
        with self._lock:
            if not self._over:
                self._queue.put(work)
            return not self._over

    def _call(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                future.set_exception(error)

        if not self._add(call):
            future.set_exception(EngineFailed("the stage was freed", effect="nothing was done"))
        return future

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
