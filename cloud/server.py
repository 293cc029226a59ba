"""gRPC in and out: streams to sessions and back. No policy lives here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from outrider.cloud.channel import Door, Sealed
from outrider.cloud.guests import Guests
from outrider.cloud.session import Choice, Session
from outrider.cloud.tenants import Tenants
from outrider.cloud.verifier import Verifier
from outrider.engine import EngineInfo
from outrider.errors import (
    AccessDenied,
    CloudUnreachable,
    ContextExceeded,
    HandshakeRefused,
    InvalidRequest,
    LinkLost,
    NotFound,
    OutriderError,
    Overloaded,
    ProtocolError,
)
from outrider.protocol import codec, events, faults
from outrider.protocol.messages import (
    VERSION,
    Close,
    Down,
    Heartbeat,
    Hint,
    ModelDescription,
    Open,
    Opened,
    Up,
)
from outrider.protocol.sampling import Sampling
from outrider.protocol.state import Conversation, Ledger, Role
from outrider.protocol.stops import Cutter
from outrider.protocol.vocabulary import Vocabulary

SERVICE = "outrider.v1.Outrider"
HEARTBEAT_MS = 1000
LOST_AFTER = 2.5
"""Heartbeats of silence after which the peer is taken for lost."""
LINGER_S = 1.0
"""How long a stream on which all was told waits for the edge to end its side."""
MAX_MESSAGE = 16 << 20
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", 16384),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 200),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 200),
    ("grpc.http2.bdp_probe", 0),
)
"""A dead peer shows in seconds, and edges may ping as often as they need to find out."""


@dataclass(slots=True)
class Host:
    """One model that is served."""

    description: ModelDescription
    vocabulary: Vocabulary
    verifier: Verifier

    def describe(self, info: EngineInfo) -> None:
        """The engine became another; sessions that open from now on are told."""
        self.description = replace(
            self.description,
            numeric_class=info.numeric_class,
            exact=info.exact,
            engine=info.engine,
            device=info.device,
            dtype=info.dtype,
            masks=info.masks,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """Per cloud; each refusal names its limit."""

    sessions_per_tenant: int = 256
    choices: int = 16
    ahead: int = 64


@dataclass(slots=True, eq=False)
class Lease:
    """A stream's hold on its session; the stream ends when a higher fence takes it."""

    fence: int
    taken: asyncio.Future[int] = field(default_factory=lambda: _loop().create_future())
    """The fence that took it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    device: str = ""
    """The fingerprint of the paired device that has it."""

    def refuse(self, error: OutriderError) -> None:
        """End the stream for another reason than a higher fence."""
        if not self.taken.done():
            self.taken.set_exception(error)
            self.taken.exception()

    def take(self, fence: int) -> None:
        if not self.taken.done():
            self.taken.set_result(fence)


@dataclass(slots=True)
class Cloud:
    """The service: models by name, the first is the default."""

    hosts: dict[str, Host]
    tenants: Tenants
    limits: Limits
    publish: Callable[[events.Event], None]
    draining: bool = False
    streams: dict[tuple[str, bytes], Lease] = field(default_factory=dict)
    retired: list[Host] = field(default_factory=list)
    """Served no more; sessions that were opened with them go on."""
    door: Door = field(default_factory=Door)
    """What keys sessions may be sealed with."""
    guests: Guests | None = None
    """Devices that were paired; None where certificates are not ours."""

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Describe": grpc.unary_unary_rpc_method_handler(self.describe),
                "Session": grpc.stream_stream_rpc_method_handler(self.session),
            },
        )

    def host(self, name: str) -> Host:
        self._check_loaded()
        if not name:
            return next(iter(self.hosts.values()))
        try:
            return self.hosts[name]
        except KeyError:
            raise NotFound(
                "this cloud does not serve that model",
                param="model",
                effect="no session was opened",
                todo=f"it serves: {', '.join(self.hosts)}",
            ) from None

    # --- describe --------------------------------------------------------------------------

    async def describe(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        answer: bytes = await _guarded(context, self._describe(data, context), self.publish)
        return answer

    async def _describe(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await self._who(context)
        self._check_open_for_business()
        self._check_loaded()
        version, name, with_tokenizer = codec.decode_describe(data)
        _check_version(version)
        hosts = [self.host(name)] if name else list(self.hosts.values())
        models = [host.description for host in hosts]
        if not with_tokenizer:
            models = [_without_tokenizer(model) for model in models]
        return codec.encode_description(VERSION, models)

    # --- session ---------------------------------------------------------------------------

    async def session(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        await _guarded(context, self._session(requests, context), self.publish)

    async def _session(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        authorization = _authorization(context)
        tenant, device = await self._who(context)
        conversation = Conversation(Role.CLOUD)
        greeted = await self.door.greet(await _first(requests), _exchange(requests, context))
        opening = greeted.first
        conversation.receive(opening)
        assert isinstance(opening, Open)
        host = self._holding(tenant, opening) or self.host(opening.model)
        greeted.check(opening, host.description, authorization)
        lease = Lease(opening.fence, device=device)
        try:
            session, resumed = await self._attach(tenant, opening, host, lease)
            sealed = greeted.sealed(opening)
            stream = Stream(session, host, conversation, context, lease, sealed)
            try:
                await stream.run(requests, self._opened(opening, host, resumed=resumed))
            except AccessDenied:
                host.verifier.drop(session, "revoked")
                raise
            finally:
                self._detach(stream, opening.fence)
        finally:
            self._end_lease((tenant, opening.session), lease)

    async def _who(self, context: grpc.aio.ServicerContext[Any, Any]) -> tuple[str, str]:
        """Tenant and device; the latter is empty where none was paired. Raises AccessDenied."""
        if self.guests is None:
            return await self.tenants.admit(_authorization(context)), ""
        device = self.guests.who(context)
        if not self.tenants.asked_for:
            return device.tenant, device.fingerprint
        return await self.tenants.admit(_authorization(context)), device.fingerprint

    def admit_only(self, tenants: Tenants) -> None:
        """Other keys count from now on; what tenants run that are gone ends."""
        self.tenants = tenants
        for (tenant, _), lease in list(self.streams.items()):
            if tenant not in tenants.names and (self.guests is None or tenants.asked_for):
                lease.refuse(
                    AccessDenied(
                        "the key of this session was revoked",
                        effect="the session ended; what was committed stays",
                        todo="ask whoever runs the cloud for another key",
                    )
                )

    def _holding(self, tenant: str, opening: Open) -> Host | None:
        """The retired model that still has this session: it does not go on under another."""
        key = (tenant, opening.session)
        return next((host for host in self.retired if key in host.verifier.sessions), None)

    def _check_served(self, host: Host) -> None:
        """Another may have taken its place while the stream's lease was waited for."""
        if all(host is not known for known in (*self.hosts.values(), *self.retired)):
            raise CloudUnreachable(
                "this model was replaced just now",
                effect="no session was opened",
                todo="open it again",
            )

    def _opened(self, opening: Open, host: Host, *, resumed: bool) -> Opened:
        model = host.description
        return Opened(
            fence=opening.fence,
            model=model.name,
            model_digest=model.model_digest,
            vocabulary_digest=model.vocabulary_digest,
            numeric_class=model.class_of(opening.constraint),
            exact=host.verifier.engine.info.exact,
            context=model.context,
            ahead=self.limits.ahead,
            heartbeat_ms=HEARTBEAT_MS,
            resumed=resumed,
            masks=model.masks if opening.constraint is not None else "",
        )

    async def _attach(
        self, tenant: str, opening: Open, host: Host, lease: Lease
    ) -> tuple[Session, bool]:
        """The session of this open: a kept one under a higher fence, or a new one."""
        check_open(opening, host, self.limits)
        verifier = host.verifier
        key = (tenant, opening.session)
        kept = verifier.sessions.get(key)
        if kept is not None and self._may_resume(kept, opening):
            await self._take_lease(key, lease)
            resume(kept, opening, verifier)
            self._announce(kept, resumed=True)
            verifier.wake()
            return kept, True
        if kept is not None:
            await self._take_lease(key, lease)
            verifier.drop(kept, "restarted")
        self._admit(tenant, verifier)
        session = new_session(tenant, opening, host, verifier.clock())
        self._check_served(host)
        self.streams[key] = lease
        verifier.add(session)
        self._announce(session, resumed=False)
        return session, False

    def _may_resume(self, kept: Session, opening: Open) -> bool:
        if opening.fence <= kept.open.fence:
            raise HandshakeRefused("fence", ours=str(kept.open.fence), theirs=str(opening.fence))
        return _same_request(kept, opening) and _agrees(kept, opening)

    async def _take_lease(self, key: tuple[str, bytes], lease: Lease) -> None:
        """End the older stream of a session: the higher fence holds it."""
        old = self.streams.get(key)
        if old is not None and old.fence >= lease.fence:
            raise HandshakeRefused("fence", ours=str(old.fence), theirs=str(lease.fence))
        self.streams[key] = lease
        if old is not None:
            old.take(lease.fence)
            await old.ended.wait()
        if lease.taken.done():
            raise HandshakeRefused("fence", ours=str(lease.taken.result()), theirs=str(lease.fence))

    def _admit(self, tenant: str, verifier: Verifier) -> None:
        self._check_open_for_business()
        running = sum(1 for owner, _ in verifier.sessions if owner == tenant)
        if running >= self.limits.sessions_per_tenant:
            raise Overloaded(
                f"{running} sessions of this tenant are running",
                retry_after_s=1.0,
                effect="the session was not opened",
                todo="wait for one to end",
            )

    def _check_loaded(self) -> None:
        if not self.hosts:
            raise CloudUnreachable(
                "this cloud has loaded no model yet", why="it waits for workers to join"
            )

    def _check_open_for_business(self) -> None:
        if self.draining:
            raise CloudUnreachable(
                "this cloud is shutting down", todo="the edge goes on with another one"
            )

    def _announce(self, session: Session, *, resumed: bool) -> None:
        self.publish(
            events.SessionOpened(
                session=session.name,
                fence=session.open.fence,
                prompt_tokens=len(session.open.prompt),
                resumed=resumed,
            )
        )

    def _detach(self, stream: Stream, fence: int) -> None:
        """A stream ended; the session waits for its device, unless a newer stream has it."""
        session, verifier = stream.session, stream.host.verifier
        if session.open.fence != fence:
            return
        session.attached = False
        session.detached_at = verifier.clock()
        if session.done and not stream.conversation.open_choices:
            verifier.drop(session, "done")
        verifier.wake()

    def _end_lease(self, key: tuple[str, bytes], lease: Lease) -> None:
        """The place in the table stays with a newer stream that has taken it."""
        lease.ended.set()
        if self.streams.get(key) is lease:
            del self.streams[key]


@dataclass(slots=True)
class Stream:
    """One gRPC stream of a session: a reader task, and a writer in the handler's own."""

    session: Session
    host: Host
    conversation: Conversation
    context: grpc.aio.ServicerContext[Any, Any]
    lease: Lease
    sealed: Sealed | None = None

    async def run(self, requests: AsyncIterator[bytes], opened: Opened) -> None:
        """Raises what ended it, if not its own end."""
        await self._write(opened)
        reader = asyncio.create_task(self._read(requests))
        writer = asyncio.create_task(self._write_all())
        taken = self.lease.taken
        try:
            await asyncio.wait((reader, writer, taken), return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and not writer.exception():
                # gRPC hides how a stream ended from a peer that writes meanwhile.
                await asyncio.wait(
                    (reader, taken), timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            await _finish(reader, writer)
        if taken.done():
            raise HandshakeRefused("fence", ours=str(taken.result()), theirs=str(self.lease.fence))

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        """Until the edge closes, or all is told, or silence for too long (LinkLost)."""
        slots = self.session.open.slots
        while True:
            try:
                data = await _next(requests, HEARTBEAT_MS * LOST_AFTER / 1e3)
            except LinkLost:
                if self.conversation.open_choices:
                    raise
                return
            message = codec.decode_up(data, slots)
            if self.sealed is not None:
                message = self.sealed.open(message)
            self.conversation.receive(message)
            match message:
                case Hint():
                    self._hear(message)
                case Heartbeat():
                    if message.echo_us == 0:
                        self.session.outbox.put_nowait(Heartbeat(_now_us(), message.sent_us))
                case Close():
                    self.host.verifier.drop(self.session, "closed")
                    return

    def _hear(self, hint: Hint) -> None:
        choice = self.session.choices.get(hint.choice)
        if choice is None or hint.fence != self.session.open.fence:
            return
        if hint.seen > len(choice.committed):
            raise ProtocolError("a hint has seen more than was committed")
        size = len(self.host.vocabulary)
        if any(token >= size for token in hint.tokens):
            raise InvalidRequest("a hint holds an id beyond the vocabulary", param="hint")
        choice.hear(hint, self.host.verifier.clock())
        self.host.verifier.wake()

    async def _write_all(self) -> None:
        """Until the last choice is told to have ended."""
        while self.conversation.open_choices:
            try:
                async with asyncio.timeout(HEARTBEAT_MS / 1e3):
                    message = await self.session.outbox.get()
            except TimeoutError:
                # Without an echo: it asks for an answer, by which the device is known to be there.
                message = Heartbeat(_now_us())
            if isinstance(message, OutriderError):
                raise message
            await self._write(message)

    async def _write(self, message: Any) -> None:
        self.conversation.send(message)
        opening = self.session.open
        if self.sealed is not None:
            data = self.sealed.seal(message, lambda choice: self.session.choices[choice].ledger)
        else:
            data = codec.encode_down(message, opening.slots, opening.top_logprobs)
        await self.context.write(data)


# --- what an open must fulfil ------------------------------------------------------------------


def check_open(opening: Open, host: Host, limits: Limits) -> None:
    """Raises HandshakeRefused, InvalidRequest or ContextExceeded; nothing was done yet."""
    _check_version(opening.version)
    model = host.description
    if opening.constraint is not None and not model.masks:
        raise HandshakeRefused(
            "masks",
            ours="none",
            theirs=f"a constraint of kind {opening.constraint.kind}",
            todo='pip install "outrider[cloud]" at the cloud, or ask without response_format',
        )
    info = host.verifier.engine.info
    pinned = (
        ("vocabulary digest", opening.vocabulary_digest, model.vocabulary_digest),
        ("numeric class", opening.numeric_class, model.class_of(opening.constraint)),
    )
    for name, theirs, ours in pinned:
        if theirs and theirs != ours:
            raise HandshakeRefused(name, ours=ours, theirs=theirs)
    if opening.exact_required and not info.exact:
        raise HandshakeRefused("exactness", ours="best effort", theirs="required")
    if len(opening.choices) > limits.choices:
        raise InvalidRequest(f"at most {limits.choices} choices", param="n")
    _check_ids(opening, len(host.vocabulary))
    _check_lengths(opening, model.context)


def _check_version(version: int) -> None:
    if version != VERSION:
        raise HandshakeRefused(
            "protocol version",
            ours=str(VERSION),
            theirs=str(version),
            todo="run the same release of outrider on both sides",
        )


def _check_ids(opening: Open, size: int) -> None:
    parts = [opening.prompt, *(choice.committed for choice in opening.choices)]
    if any(token >= size for part in parts for token in part):
        raise InvalidRequest(
            f"a token id lies outside 0 to {size - 1}",
            param="prompt",
            effect="no session was opened",
        )
    if not opening.prompt:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if any(token >= size for token, _ in opening.sampling.logit_bias):
        raise InvalidRequest("logit_bias names an id beyond the vocabulary", param="logit_bias")


def _check_lengths(opening: Open, context: int) -> None:
    if len(opening.prompt) + opening.max_tokens > context or opening.max_tokens < 1:
        raise ContextExceeded(
            f"a prompt of {len(opening.prompt)} tokens and {opening.max_tokens} more "
            f"do not fit the model's context of {context}",
            param="max_tokens",
            effect="no session was opened",
            todo="shorten the prompt, or ask for fewer tokens",
        )
    if any(len(choice.committed) >= opening.max_tokens for choice in opening.choices):
        raise InvalidRequest("a choice to resume has already all its tokens", param="committed")


def new_session(tenant: str, opening: Open, host: Host, now: float) -> Session:
    session = Session(tenant, opening)
    for each in opening.choices:
        length, constraint = len(opening.prompt), opening.constraint
        sampling = Sampling(opening.sampling, opening.seed, each.choice, length, constraint)
        cutter = Cutter(host.vocabulary, opening.stop, opening.max_tokens)
        cutter.cut(each.committed)
        ledger = Ledger(opening.fence, list(each.committed))
        choice = Choice(session, each.choice, sampling, cutter, ledger, opened_at=now)
        choice.window.seen = len(each.committed)
        session.choices[each.choice] = choice
    return session


def _same_request(kept: Session, opening: Open) -> bool:
    old = kept.open
    return (
        old.prompt == opening.prompt
        and old.sampling == opening.sampling
        and (old.seed, old.max_tokens, old.stop) == (opening.seed, opening.max_tokens, opening.stop)
        and (old.slots, old.top_logprobs) == (opening.slots, opening.top_logprobs)
        and old.constraint == opening.constraint
        and {c.choice for c in opening.choices} <= set(kept.choices)
    )


def _agrees(kept: Session, opening: Open) -> bool:
    """Whether the journal's committed tokens are a prefix of what was committed here."""
    return all(
        tuple(kept.choices[each.choice].committed[: len(each.committed)]) == each.committed
        for each in opening.choices
    )


def resume(session: Session, opening: Open, verifier: Verifier) -> None:
    """Take the session up under the new fence, and send again what the device missed."""
    wanted = {each.choice for each in opening.choices}
    for number, choice in session.choices.items():
        if number not in wanted:
            verifier.leave(choice)
    session.open = opening
    session.attached = True
    while not session.outbox.empty():
        session.outbox.get_nowait()
    for each in opening.choices:
        choice = session.choices[each.choice]
        _renew(choice, opening.fence, len(each.committed))
        session.emit(session.replay(choice, len(each.committed)))


def _renew(choice: Choice, fence: int, seen: int) -> None:
    choice.ledger.fence = fence
    choice.window.alive = False
    choice.window.seen = seen
    choice.waited = False
    choice.ends.clear()


# --- plumbing ----------------------------------------------------------------------------------


async def _first(requests: AsyncIterator[bytes]) -> Up:
    """The next message of a session of which nothing is known yet."""
    return codec.decode_up(await _next(requests, HEARTBEAT_MS * LOST_AFTER / 1e3), 8)


def _exchange(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
) -> Callable[[Down], Awaitable[Up]]:
    async def exchange(message: Down) -> Up:
        await context.write(codec.encode_down(message, 8, None))
        return await _first(requests)

    return exchange


async def _next(requests: AsyncIterator[bytes], timeout_s: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests)
    except TimeoutError:
        raise LinkLost("the edge went silent", why=f"nothing came for {timeout_s:.1f} s") from None
    except StopAsyncIteration:
        raise LinkLost("the edge ended its stream") from None


async def _finish(*tasks: asyncio.Task[None]) -> None:
    """Cancel what still runs; raise what the first of them raised."""
    for task in tasks:
        if not task.done():
            task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _guarded(
    context: grpc.aio.ServicerContext[Any, Any],
    work: Awaitable[Any],
    publish: Callable[[events.Event], None],
) -> Any:
    """Typed errors become a status with detail; whatever else happened tells nothing but that."""
    try:
        return await work
    except OutriderError as error:
        fault, what = error, error.what
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as error:  # noqa: BLE001 - its text could hold a prompt
        fault = OutriderError("the cloud failed", effect="the session ended", todo="try again")
        what = f"a handler failed: {type(error).__name__}"
    if not isinstance(fault, LinkLost):
        publish(events.Trouble(code=fault.code, what=what))
    trailing = ((faults.METADATA, faults.pack(fault)),)
    await context.abort(grpc.StatusCode[fault.grpc_status], fault.what, trailing)


def _authorization(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    metadata = context.invocation_metadata() or ()
    return next((str(value) for key, value in metadata if key == "authorization"), "")


def _without_tokenizer(model: ModelDescription) -> ModelDescription:
    return replace(model, tokenizer_json=b"")


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _now_us() -> int:
    return int(time.monotonic() * 1e6)
