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
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Literal

import grpc

from outrider.engine import EngineSpec, LayerRange, Picked, StageInfo, StageSpan
from outrider.errors import (
    LinkError,
    LocalProtocolError,
    OutriderError,
    PlanError,
    RemoteProtocolError,
    StageLost,
)
from outrider.protocol import stage_codec
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.sampling import Sampling
from outrider.protocol.stages import (
    PIPELINE_BYTES,
    Attach,
    Attached,
    Beat,
    Broken,
    CloseSlot,
    Failed,
    Forward,
    NextStage,
    OpenSlot,
    Pass,
    Passed,
    RewindSlot,
    StageLoad,
    StageOp,
)
from outrider.stages.chain import StageTimes
from outrider.stages.chain_stage import ChainStage, now_us, outcome, thread
from outrider.stages.channel import BEAT_S, SILENCE_S, Credentials
from outrider.stages.joined import check_joined
from outrider.stages.ledger import Ledger, check_spans
from outrider.stages.worker_at import WorkerAt, failure, lost_by

ATTACH_S = 10.0
WINDOW = 32
"""Passes on their way; more wait here, where they are only tokens."""

Direct = Literal["auto", "never"]


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
            ChainStage.at(worker, index, self._pipeline, worker.keys(credentials))
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
        thread(chain._watch, "stages watch")
        return chain

    # --- the chain -----------------------------------------------------------------------------

    @property
    def infos(self) -> tuple[StageInfo, ...]:
        return self._infos

    @property
    def alive(self) -> bool:
        """False once a stage was lost, or it was shut down."""
        return self._lost is None

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
        found = [outcome(call, member.name) for member, call in calls]
        for (member, _), answer in zip(calls, found, strict=True):
            member.loaded = isinstance(answer, StageInfo)
        for answer in found:
            if isinstance(answer, OutriderError):
                raise answer
        self._infos = tuple(info for info in found if isinstance(info, StageInfo))
        check_joined(self._infos, layers, [member.name for member in self._members])

    def _order(
        self, member: ChainStage, layers: LayerRange, spec: EngineSpec, model: str, digest: str
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

    def _attachment(self, member: ChainStage) -> Attach:
        after = None
        if member.index + 1 < len(self._members):
            behind = self._members[member.index + 1]
            at = behind.worker.reached
            address = "" if self._direct == "never" else at
            after = NextStage(address, behind.ticket, self._credentials.authority)
        return Attach(self._pipeline, member.index, self._codec, after)

    def _wait_attached(self, member: ChainStage) -> None:
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

    def _hear(self, member: ChainStage) -> None:
        """Read a worker's stream to its end, in a thread of its own."""
        try:
            for data in member.call:
                member.heard_at = time.monotonic()
                self._take(member, stage_codec.decode_down(data))
            error: OutriderError = StageLost("the worker ended its stream", device=member.name)
        except grpc.RpcError as broken:
            error = failure(broken, member.name)
        except OutriderError as wrong:
            error = wrong
        if not member.attached.done():
            member.attached.set_exception(error)
        self._lose(member, error)

    def _take(self, member: ChainStage, message: object) -> None:
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

    def _lose(self, member: ChainStage, error: OutriderError) -> None:
        """The first that is lost is the one to blame; what follows is its effect."""
        with self._lock:
            if self._lost is not None:
                return
            lost = self._lost = lost_by(member.name, error)
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
                member.say(Beat(now_us()))
