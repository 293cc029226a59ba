"""A chain of stages on workers, driven over gRPC.

    chain = RemoteChain.connect([WorkerAt("127.0.0.1:11713"), ...], ranges, spec)
    future = chain.submit(spans)

A pass goes from here to the first worker, from each worker to the next, and from the last
one back: one link for each boundary. Where a worker can not reach the next, what it
computed goes through here. Streams of orders are apart from those of results and signs of
life, so that no heartbeat stands behind a message of activations.

The API is synchronous and thread-safe, and needs no event loop: gRPC's own threads and one
that watches for silence do the work. A worker that dies is found at once by its broken
connection, one that falls silent within `SILENCE_S`; either way all that is under way fails
with StageLost, and the chain is of no more use.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

import grpc

from outrider import transport
from outrider.engine import EngineSpec, LayerRange, Picked, StageInfo, StageSpan
from outrider.errors import (
    HandshakeRefused,
    LinkError,
    LocalProtocolError,
    OutriderError,
    PlanError,
    RemoteProtocolError,
    StageLost,
)
from outrider.options import WORKER_PORT, Address
from outrider.protocol import stage_codec
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.sampling import Sampling
from outrider.protocol.stages import (
    PIPELINE_BYTES,
    TICKET_BYTES,
    Attach,
    Attached,
    Beat,
    Broken,
    CloseSlot,
    Detach,
    Failed,
    Forward,
    NextStage,
    OpenSlot,
    Pass,
    Passed,
    RewindSlot,
    StageHost,
    StageLoad,
    StageOp,
    StageUp,
)
from outrider.stages.chain import StageTimes
from outrider.stages.channel import (
    BEAT_S,
    CHANNEL_OPTIONS,
    CONNECT_S,
    DESCRIBE,
    INDEX_KEY,
    LOAD,
    PIPELINE_KEY,
    RELAY,
    RUN,
    SILENCE_S,
    TICKET_KEY,
    Credentials,
    told,
)
from outrider.stages.ledger import Ledger, check_spans

LOAD_S = 300.0
"""Reading layers from a slow disk; a worker that dies meanwhile is found by gRPC's pings."""
ATTACH_S = 10.0
FAREWELL_S = 2.0
"""How long a worker may take to free a stage; then it is left to find out by itself."""
WINDOW = 32
"""Passes on their way; more wait here, where they are only tokens."""

Direct = Literal["auto", "never"]


@dataclass(frozen=True, slots=True)
class WorkerAt:
    """A worker, and how it is called."""

    address: str
    """HOST:PORT as it is reached from here."""
    name: str = ""
    """In times and errors; empty takes the address."""
    peer_address: str = ""
    """HOST:PORT as other workers reach it; empty: the same."""

    @property
    def called(self) -> str:
        return self.name or self.address


def look(worker: WorkerAt, credentials: Credentials | None = None) -> StageHost:
    """What a worker says of itself. Raises StageLost, AccessDenied, HandshakeRefused."""
    keys = credentials or Credentials()
    with _channel(worker, keys) as channel:
        call: Any = channel.unary_unary(DESCRIBE)
        try:
            data = call(stage_codec.encode_query(), metadata=keys.metadata, timeout=CONNECT_S)
        except grpc.RpcError as error:
            raise _failure(error, worker.called) from None
        return stage_codec.decode_host(data)


class RemoteChain:
    """Made by `connect`. `rtt_s` and `leaving` tell of workers by their place in the chain."""

    def __init__(
        self,
        workers: Sequence[WorkerAt],
        credentials: Credentials,
        codec: ActivationCodec,
        direct: Direct,
        window: int,
    ) -> None:
        self._credentials = credentials
        self._codec: ActivationCodec = codec
        self._direct = direct
        self._window = window
        self._pipeline = secrets.token_bytes(PIPELINE_BYTES)
        self._members = [
            _Member(worker, index, self._pipeline, credentials, _channel(worker, credentials))
            for index, worker in enumerate(workers)
        ]
        self._infos: tuple[StageInfo, ...] = ()
        self._ledger = Ledger([worker.called for worker in workers])
        self._waiting: deque[StageOp] = deque()
        self._lock = threading.RLock()
        self._lost: OutriderError | None = None
        self._ended = threading.Event()

    @classmethod
    def connect(
        cls,
        workers: Sequence[WorkerAt],
        layers: Sequence[LayerRange],
        spec: EngineSpec,
        *,
        codec: ActivationCodec = "fp32",
        credentials: Credentials | None = None,
        weights_digest: str = "",
        model: str = "",
        direct: Direct = "auto",
        window: int = WINDOW,
    ) -> RemoteChain:
        """Load all stages at once and join them. A worker may stand in `workers` several times.

        `spec` says how the stages are to be built; its `auto` leaves it to each worker, and
        its path stays here: `model` is a name at the workers, `weights_digest` what they must
        have. Raises StageLost, AccessDenied, HandshakeRefused (another model), EngineFull,
        NotFound, ModelError, PlanError; then every worker is as it was.
        """
        if not workers or len(workers) != len(layers):
            raise PlanError(f"{len(workers)} workers and {len(layers)} ranges of layers")
        chain = cls(workers, credentials or Credentials(), codec, direct, window)
        try:
            chain._load(layers, spec, model, weights_digest)
            chain._attach()
        except BaseException:
            chain.shutdown()
            raise
        _thread(chain._watch, "stages watch")
        return chain

    # --- the chain -----------------------------------------------------------------------------

    @property
    def infos(self) -> tuple[StageInfo, ...]:
        return self._infos

    @property
    def direct(self) -> tuple[bool, ...]:
        """For each boundary whether the worker before it sends to the one behind by itself."""
        return tuple(member.direct for member in self._members[:-1])

    @property
    def rtt_s(self) -> tuple[float | None, ...]:
        """The last round trip to each worker, None before the first."""
        return tuple(member.rtt_s for member in self._members)

    @property
    def leaving(self) -> tuple[str, ...]:
        """Workers that are shutting down and want to be planned without."""
        return tuple(member.name for member in self._members if member.leaving)

    def open(self, slot: int, sampling: Sampling | None = None) -> None:
        self._put(OpenSlot(slot, sampling))

    def rewind(self, slot: int, length: int) -> None:
        self._put(RewindSlot(slot, length))

    def close(self, slot: int) -> None:
        self._put(CloseSlot(slot))

    def submit(self, spans: Sequence[StageSpan]) -> Future[list[Picked]]:
        """The future fails with StageLost too when the chain was lost before."""
        check_spans(spans)
        with self._lock:
            number, future = self._ledger.begin(sum(span.rows for span in spans), len(spans))
            try:
                self._put(Pass(number, tuple(spans)))
            except OutriderError as error:
                self._ledger.failed(number, error)
        return future

    def times(self) -> tuple[StageTimes, ...]:
        return self._ledger.times()

    def shutdown(self) -> None:
        """Passes under way fail; the workers that still answer have freed their stages."""
        with self._lock:
            error = self._lost or LocalProtocolError("the chain was shut down")
            self._lost = error
        self._ended.set()
        self._ledger.fail(error)
        for member in self._members:
            member.end()
        for member in self._members:
            member.wait_ended()

    # --- orders out ----------------------------------------------------------------------------

    def _put(self, op: StageOp) -> None:
        """In order, whatever waits. Raises what the chain was lost by."""
        with self._lock:
            if self._lost is not None:
                raise self._lost
            self._waiting.append(op)
            self._pump()

    def _pump(self) -> None:
        """Send what may go: passes up to the window, and all that stands before the next one."""
        first = self._members[0]
        while self._waiting:
            op = self._waiting[0]
            if isinstance(op, Pass) and first.under_way >= self._window:
                return
            data = stage_codec.encode_op(op)
            self._waiting.popleft()
            first.under_way += isinstance(op, Pass)
            first.send(data)

    def _settled(self) -> None:
        with self._lock:
            self._members[0].under_way -= 1
            if self._lost is None:
                self._pump()

    # --- joining -------------------------------------------------------------------------------

    def _load(
        self, layers: Sequence[LayerRange], spec: EngineSpec, model: str, digest: str
    ) -> None:
        calls = [
            (member, member.load(self._order(member, part, spec, model, digest)))
            for member, part in zip(self._members, layers, strict=True)
        ]
        # All are waited for: those that loaded have to be given back when another did not.
        found = [_outcome(call, member.name) for member, call in calls]
        for (member, _), outcome in zip(calls, found, strict=True):
            member.loaded = isinstance(outcome, StageInfo)
        for outcome in found:
            if isinstance(outcome, OutriderError):
                raise outcome
        self._infos = tuple(info for info in found if isinstance(info, StageInfo))
        check_joined(self._infos, layers, [member.name for member in self._members])

    def _order(
        self, member: _Member, layers: LayerRange, spec: EngineSpec, model: str, digest: str
    ) -> StageLoad:
        return StageLoad(
            pipeline=self._pipeline,
            index=member.index,
            ticket=member.ticket,
            layers=layers,
            model=model,
            weights_digest=digest,
            engine=spec.engine,
            device=spec.device,
            dtype=spec.dtype,
            numerics=spec.numerics,
            max_slots=spec.max_slots,
            max_rows=spec.max_rows,
            context=spec.context,
            options=spec.options,
        )

    def _attach(self) -> None:
        for member in self._members:
            member.start(self._attachment(member), self._hear)
        for member in self._members:
            self._wait_attached(member)
        # Orders go to the first stage, and to those that the stage before can not reach.
        for member in self._members:
            if member.index == 0 or not self._members[member.index - 1].direct:
                member.relay(self._lose)

    def _attachment(self, member: _Member) -> Attach:
        after = None
        if member.index + 1 < len(self._members):
            behind = self._members[member.index + 1]
            at = behind.worker.peer_address or behind.worker.address
            address = "" if self._direct == "never" else at
            after = NextStage(address, behind.ticket, self._credentials.authority)
        return Attach(self._pipeline, member.index, self._codec, after)

    def _wait_attached(self, member: _Member) -> None:
        try:
            attached = member.attached.result(ATTACH_S)
        except TimeoutError:
            raise StageLost(
                f"worker {member.name} did not take its place",
                device=member.name,
                why=f"nothing came within {ATTACH_S:g} s",
                effect="the stages were not joined",
            ) from None
        member.direct = attached.direct

    # --- what workers say ----------------------------------------------------------------------

    def _hear(self, member: _Member) -> None:
        """Read a worker's stream to its end, in a thread of its own."""
        try:
            for data in member.call:
                member.heard_at = time.monotonic()
                self._take(member, stage_codec.decode_down(data))
            error: OutriderError = StageLost("the worker ended its stream", device=member.name)
        except grpc.RpcError as broken:
            error = _failure(broken, member.name)
        except OutriderError as wrong:
            error = wrong
        if not member.attached.done():
            member.attached.set_exception(error)
        self._lose(member, error)

    def _take(self, member: _Member, message: object) -> None:
        match message:
            case Passed() if self._ledger.passed(message):
                self._settled()
            case Failed() if self._failed(message):
                self._settled()
            case Forward() if member.index + 1 < len(self._members) and not member.direct:
                self._members[member.index + 1].send(message.op)
            case Beat():
                member.beat(message)
            case Broken() if member.index + 1 < len(self._members):
                self._lose(self._members[member.index + 1], message.error)
            case Attached() if not member.attached.done():
                member.attached.set_result(message)
            case _:
                raise RemoteProtocolError("a worker said what does not belong there")

    def _failed(self, message: Failed) -> bool:
        """Whether it may be: that a device was lost is for the coordinator to say."""
        return not isinstance(message.error, LinkError) and self._ledger.failed(
            message.number, message.error
        )

    def _lose(self, member: _Member, error: OutriderError) -> None:
        """The first that is lost is the one to blame; what follows is its effect."""
        with self._lock:
            if self._lost is not None:
                return
            lost = self._lost = _lost(member.name, error)
        self._ended.set()
        self._ledger.fail(lost)
        for each in self._members:
            each.end()

    def _watch(self) -> None:
        """Signs of life both ways, until the chain ends."""
        while not self._ended.wait(BEAT_S):
            now = time.monotonic()
            for member in self._members:
                silent = now - member.heard_at
                if silent > SILENCE_S:
                    why = f"nothing came for {silent:.1f} s"
                    self._lose(member, LinkError("the worker went silent", why=why))
                    return
                member.say(Beat(_now_us()))


@dataclass(slots=True, eq=False)
class _Member:
    """One stage of the chain: the worker's channel and its two streams."""

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

    @property
    def name(self) -> str:
        return self.worker.called

    def load(self, order: StageLoad) -> Any:
        """The call, under way."""
        method: Any = self.channel.unary_unary(LOAD)
        data = stage_codec.encode_load(order)
        return method.future(data, metadata=self.credentials.metadata, timeout=LOAD_S)

    def start(self, attach: Attach, hear: Callable[[_Member], None]) -> None:
        self.say(attach)
        method: Any = self.channel.stream_stream(RUN)
        self.call = method(_until_none(self._up), metadata=self.credentials.metadata)
        self.heard_at = time.monotonic()
        _thread(lambda: hear(self), f"stage {self.index} results")

    def relay(self, lose: Callable[[_Member, OutriderError], None]) -> None:
        metadata = (
            (PIPELINE_KEY, self.pipeline),
            (TICKET_KEY, self.ticket),
            (INDEX_KEY, str(self.index)),
        )
        method: Any = self.channel.stream_stream(RELAY)
        self._relay = method(_until_none(self._orders), metadata=metadata)
        _thread(lambda: lose(self, self._see_off()), f"stage {self.index} orders")

    def _see_off(self) -> OutriderError:
        """The stream of orders says who was reached, and then only that it ended."""
        try:
            for data in self._relay:
                if stage_codec.decode_reached(data) != self.index:
                    return RemoteProtocolError("orders reached another stage")
        except grpc.RpcError as broken:
            return _failure(broken, self.name)
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
            self.rtt_s = max(0.0, (_now_us() - message.echo_us) / 1e6)

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
        self._farewell = _thread(self._close, f"stage {self.index} end")

    def wait_ended(self) -> None:
        if self._farewell is not None:
            self._farewell.join()

    def _close(self) -> None:
        """A worker that answers ends the stream once the stage is free."""
        if self.call is not None:
            with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                self.call.result(FAREWELL_S)
        self.channel.close()


def _read_out(member: _Member) -> None:
    """gRPC tells how a stream ended once all before that was read."""
    with suppress(grpc.RpcError):
        for _ in member.call:
            pass


def _thread(work: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def _until_none(queue: SimpleQueue[bytes | None]) -> Iterator[bytes]:
    while (data := queue.get()) is not None:
        yield data


def _channel(worker: WorkerAt, credentials: Credentials) -> grpc.Channel:
    address = Address.parse(worker.address, WORKER_PORT)
    return transport.blocking_channel(address, credentials.tls, CHANNEL_OPTIONS)


def _outcome(call: Any, name: str) -> StageInfo | OutriderError:
    try:
        return stage_codec.decode_loaded(call.result())
    except grpc.RpcError as error:
        return _failure(error, name)
    except OutriderError as error:
        return error


def _failure(error: Any, name: str) -> OutriderError:
    """Typed by the worker, or the network's fault."""
    found = told(error.trailing_metadata())
    if found is not None and not isinstance(found, LinkError):
        return found
    why = found.what if found else f"gRPC says {error.code().name.lower().replace('_', ' ')}"
    return _lost(name, LinkError("the worker can not be reached", why=why))


def _lost(name: str, error: OutriderError) -> StageLost:
    if isinstance(error, StageLost):
        return error
    lost = StageLost(
        f"worker {name} was lost",
        device=name,
        why=f"{error.what}{': ' if error.why else ''}{error.why}",
        effect="passes under way were dropped",
        todo="the layers that it held are planned anew on the devices that are left",
    )
    lost.__cause__ = error
    return lost


def check_joined(
    infos: Sequence[StageInfo], asked: Sequence[LayerRange], names: Sequence[str]
) -> None:
    """Whether stages make one model. Raises HandshakeRefused naming what differs, PlanError."""
    first = infos[0]
    for info, layers, name in zip(infos, asked, names, strict=True):
        if info.layers != layers:
            raise RemoteProtocolError(f"worker {name} loaded other layers than it was asked to")
        for what in ("weights_digest", "vocabulary_digest", "hidden_size", "model_layers"):
            ours, theirs = str(getattr(first, what)), str(getattr(info, what))
            if ours != theirs:
                raise HandshakeRefused(
                    what.replace("_", " "),
                    ours=ours,
                    theirs=theirs,
                    todo=f"start {names[0]} and {name} with the same model",
                )
    _check_ranges(asked, first.model_layers)


def _check_ranges(layers: Sequence[LayerRange], count: int) -> None:
    ends = [0, *(part.stop for part in layers)]
    starts = [*(part.start for part in layers), count]
    embeddings = [part.embedding for part in layers]
    heads = [part.head for part in layers]
    rest = [False] * (len(layers) - 1)
    if ends != starts or embeddings != [True, *rest] or heads != [*rest, True]:
        raise PlanError(
            "the stages do not make a whole model",
            why="their layers must follow one another from the first to the last, the embedding "
            "with the first stage and the head with the last",
            effect="the stages were not joined",
        )


def _now_us() -> int:
    return int(time.monotonic() * 1e6)
