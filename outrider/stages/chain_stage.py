"""One stage of a chain over workers: the worker's channel and its two streams.

The stream of orders is apart from that of results and signs of life, so that no heartbeat
stands behind a message of activations.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc

from outrider.engine import StageInfo
from outrider.errors import LinkError, OutriderError, RemoteProtocolError
from outrider.protocol import stage_codec
from outrider.protocol.stages import (
    TICKET_BYTES,
    Attach,
    Attached,
    Beat,
    Detach,
    StageLoad,
    StageUp,
)
from outrider.stages.channel import (
    INDEX_KEY,
    LOAD,
    PIPELINE_KEY,
    RELAY,
    RUN,
    TICKET_KEY,
    Credentials,
)
from outrider.stages.worker_at import WorkerAt, channel_to, failure

LOAD_S = 300.0
"""Reading layers from a slow disk; a worker that dies meanwhile is found by gRPC's pings."""
FAREWELL_S = 2.0
"""How long a worker may take to free a stage; then it is left to find out by itself."""


@dataclass(slots=True, eq=False)
class ChainStage:
    """Made by `at`. `end` and `wait_ended` leave the worker."""

    worker: WorkerAt
    index: int
    pipeline: bytes
    credentials: Credentials
    channel: grpc.Channel
    ticket: bytes = field(default_factory=lambda: secrets.token_bytes(TICKET_BYTES))
    attached: Future[Attached] = field(default_factory=Future)
    loaded: bool = False
    direct: bool = False
    leaving: bool = False
    rtt_s: float | None = None
    heard_at: float = field(default_factory=time.monotonic)
    under_way: int = 0
    call: Any = None
    _up: SimpleQueue[bytes | None] = field(default_factory=SimpleQueue)
    _orders: SimpleQueue[bytes | None] = field(default_factory=SimpleQueue)
    _relay: Any = None
    _farewell: threading.Thread | None = None

    @classmethod
    def at(
        cls, worker: WorkerAt, index: int, pipeline: bytes, credentials: Credentials
    ) -> ChainStage:
        """`credentials` are those for this worker."""
        return cls(worker, index, pipeline, credentials, channel_to(worker, credentials))

    @property
    def name(self) -> str:
        return self.worker.called

    def load(self, order: StageLoad) -> Any:
        """The call, under way."""
        method: Any = self.channel.unary_unary(LOAD)
        data = stage_codec.encode_load(order)
        return method.future(data, metadata=self.credentials.metadata, timeout=LOAD_S)

    def start(self, attach: Attach, hear: Callable[[ChainStage], None]) -> None:
        self.say(attach)
        method: Any = self.channel.stream_stream(RUN)
        self.call = method(_until_none(self._up), metadata=self.credentials.metadata)
        self.heard_at = time.monotonic()
        thread(lambda: hear(self), f"stage {self.index} results")

    def relay(self, lose: Callable[[ChainStage, OutriderError], None]) -> None:
        metadata = (
            (PIPELINE_KEY, self.pipeline),
            (TICKET_KEY, self.ticket),
            (INDEX_KEY, str(self.index)),
        )
        method: Any = self.channel.stream_stream(RELAY)
        self._relay = method(_until_none(self._orders), metadata=metadata)
        thread(lambda: lose(self, self._see_off()), f"stage {self.index} orders")

    def _see_off(self) -> OutriderError:
        """The stream of orders says who was reached, and then only that it ended."""
        try:
            for data in self._relay:
                if stage_codec.decode_reached(data) != self.index:
                    return RemoteProtocolError("orders reached another stage")
        except grpc.RpcError as broken:
            return failure(broken, self.name)
        except OutriderError as wrong:
            return wrong
        return LinkError("the worker takes no more orders")

    def say(self, message: StageUp) -> None:
        self._up.put(stage_codec.encode_up(message))

    def send(self, op: bytes) -> None:
        self._orders.put(op)

    def beat(self, message: Beat) -> None:
        self.leaving = message.leaving
        if message.echo_us:
            self.rtt_s = max(0.0, (now_us() - message.echo_us) / 1e6)

    def end(self) -> None:
        """Leave the worker, in the background."""
        if self._farewell is not None:
            return
        if self.loaded and self.call is None:
            # Loaded and never attached: a stream that begins and ends frees the stage.
            self.start(Attach(self.pipeline, self.index), _read_out)
        self.say(Detach())
        self._up.put(None)
        self._orders.put(None)
        self._farewell = thread(self._close, f"stage {self.index} end")

    def wait_ended(self) -> None:
        if self._farewell is not None:
            self._farewell.join()

    def _close(self) -> None:
        """A worker that answers ends the stream once the stage is free."""
        if self.call is not None:
            with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                self.call.result(FAREWELL_S)
        self.channel.close()


def _read_out(member: ChainStage) -> None:
    """gRPC tells how a stream ended once all before that was read."""
    with suppress(grpc.RpcError):
        for _ in member.call:
            pass


def thread(work: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def _until_none(queue: SimpleQueue[bytes | None]) -> Iterator[bytes]:
    while (data := queue.get()) is not None:
        yield data


def outcome(call: Any, name: str) -> StageInfo | OutriderError:
    try:
        return stage_codec.decode_loaded(call.result())
    except grpc.RpcError as error:
        return failure(error, name)
    except OutriderError as error:
        return error


def now_us() -> int:
    return int(time.monotonic() * 1e6)
