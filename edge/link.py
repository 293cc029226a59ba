"""The way to the clouds: channels, sessions on them, round trips, and what is down.

Clouds are tried in order. One that fails is left alone for a while that doubles up
to a bound, so that many devices do not come back all at once. A peer is found
dead by silence: both sides send heartbeats, and gRPC's own pings back that up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import grpc.aio

from outrider import transport
from outrider.edge import channel as channels
from outrider.edge.traffic import Asked, Traffic, is_bulk
from outrider.errors import (
    AccessDenied,
    CloudUnreachable,
    HandshakeRefused,
    InvalidRequest,
    LinkLost,
    OutriderError,
    RemoteProtocolError,
    SealError,
)
from outrider.models import served
from outrider.models.served import Served
from outrider.options import Address, CloudLink, EdgeOptions
from outrider.partitioner.observe import Estimate
from outrider.partitioner.signals import Share
from outrider.privacy.certificates import tls_name
from outrider.privacy.lane import sealed_size
from outrider.protocol import codec, events, faults
from outrider.protocol.constraint import Constraint
from outrider.protocol.messages import (
    VERSION,
    Commit,
    Down,
    Heartbeat,
    Hint,
    ModelDescription,
    Open,
    Opened,
    Up,
)
from outrider.protocol.state import Conversation, Role

SERVICE = "outrider.v1.Outrider"
KEY = "authorization"
"""The metadata in which a caller's key travels."""
CONNECT_S = 3.0
"""A cloud that takes longer to greet is tried again later; meanwhile others are."""
DESCRIBE_S = 20.0
"""For an answer that carries tokenizers, some megabytes on a slow link."""
CHECK_S = 2.5
"""For one that only says that the cloud is there."""
BEAT_S = 1.0
"""The edge says this often that it is there, and learns the round trip from the echo."""
SILENCE_S = 2.5
"""Nothing for this long from a cloud that announced 1000 ms heartbeats: it is lost."""
BACKOFF_S = (0.25, 4.0)
"""First and longest pause before a cloud is tried again; each has up to half of it on top."""
LEAST_PAUSE_S = 0.1
RETIRE_S = 5.0
"""What streams on a channel that is used no more have to end in."""
DRAIN_S = 3600.0
"""The same where a new certificate is the only reason: what runs there is sound."""
LEFT = 4
"""Dropped peers whose channels stay open for what may still end on them."""
RTT_FADE = 0.7
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 96 << 20),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Also the least time a connection gets to be made.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1e3)),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
)
"""Pings run only while a session does; the tokenizer of a large vocabulary fits a message."""


@dataclass(slots=True)
class Wire:
    """One session stream; counts its own message bytes."""

    call: Any
    conversation: Conversation
    slots: int
    top_logprobs: int | None
    rtt: Callable[[float], None]
    passed: Callable[[int, int], None] = lambda up, down: None
    """Told of each message: bytes up, bytes down."""
    asked: Asked = field(default_factory=lambda: Asked(Traffic()))
    """Told of hints and commits, by which the link may be known."""
    bytes_up: int = 0
    bytes_down: int = 0
    asked_at: float = 0.0
    """When a heartbeat was sent last, on the monotonic clock."""
    sealed: channels.Sealed | None = None
    """None: its messages travel as they are."""
    _beat_bytes: int = 0
    """Of the heartbeat whose echo is awaited."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Frames are sealed in the order in which they are written."""
    _reading: asyncio.Task[Any] | None = None
    _writing: asyncio.Task[Any] | None = None

    async def send(self, message: Up) -> None:
        """Raises LinkLost, or what the cloud ended the stream with."""
        self.conversation.send(message)
        data = codec.encode_up(message, self.slots)
        size = len(data) if self.sealed is None else sealed_size(len(data))
        if isinstance(message, Hint):
            self.asked.hinted(message, size, time.monotonic())
        elif isinstance(message, Heartbeat) and not message.echo_us:
            self._beat_bytes = size
        await self._put(data, size)

    async def greet(
        self, keys: channels.Keys, message: Open, model: ModelDescription, authorization: str
    ) -> None:
        """The handshake of the sealed channel, and the open in it. Raises as `send` does, and
        PeerUntrusted, SealBroken, RemoteProtocolError."""
        greeting = channels.Greeting(keys)
        hello = codec.encode_up(greeting.hello(), self.slots)
        await self._put(hello, len(hello))
        data = await self._take()
        if data is None:
            raise LinkLost("the cloud ended the stream before it began")
        answer = codec.decode_down(data, self.slots, self.top_logprobs)
        self.conversation.send(message)
        finish, sealed = greeting.finish(answer, message, model, authorization, time.monotonic)
        last = codec.encode_up(finish, self.slots)
        await self._put(last, len(last))
        self.sealed = sealed

    async def _put(self, data: bytes, size: int) -> None:
        self.bytes_up += size
        self.passed(size, 0)
        try:
            await self._write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            raise await self._reason() from None

    async def receive(self) -> Down | None:
        """The next message, None at the stream's proper end; heartbeats are answered here."""
        while True:
            data = await self._take()
            if data is None:
                return None
            message = self._opened(codec.decode_down(data, self.slots, self.top_logprobs))
            self.conversation.receive(message)
            if isinstance(message, Commit):
                self.asked.committed(message, len(data), time.monotonic())
            if not isinstance(message, Heartbeat):
                return message
            await self._beat(message, len(data))

    def _opened(self, message: Down) -> Down:
        if self.sealed is not None:
            return self.sealed.open(message)
        if isinstance(message, Commit) and message.check:
            raise RemoteProtocolError("a commit on a plain stream carries a check")
        return message

    async def _take(self) -> bytes | None:
        """The next message as it came, None at the stream's proper end."""
        try:
            data = await self._read()
        except grpc.aio.AioRpcError:
            raise await self._reason() from None
        if data is grpc.aio.EOF:
            await self._ended()
            return None
        self.bytes_down += len(data)
        self.passed(0, len(data))
        found: bytes = data
        return found

    async def _write(self, data: bytes) -> None:
        """One write, in a task of its own for the same reason as a read, after the one before."""
        async with self._turn:
            if self._writing is not None:
                await asyncio.wait((self._writing,))
            # Whoever gave up until now leaves no gap in the frames' numbers.
            data = data if self.sealed is None else self.sealed.seal(data)
            writing = self._writing = asyncio.ensure_future(self.call.write(data))
        # Its outcome is looked at even when nobody waits for it any more.
        writing.add_done_callback(_looked_at)
        await asyncio.wait((writing,))
        if writing.cancelled():
            raise _closed()
        writing.result()

    async def _read(self) -> Any:
        """One read, in a task of its own: gRPC ends the whole call when a read is cancelled,
        and a caller that gives up has a Close to send yet."""
        reading = self._reading
        if reading is None:
            reading = self._reading = asyncio.ensure_future(self.call.read())
            reading.add_done_callback(_looked_at)
        done, _ = await asyncio.wait((reading,), timeout=SILENCE_S)
        if not done:
            raise LinkLost("the cloud went silent", why=f"nothing came for {SILENCE_S} s")
        self._reading = None
        if reading.cancelled():
            raise _closed()
        return reading.result()

    async def _beat(self, message: Heartbeat, size: int) -> None:
        if message.echo_us:
            now, sent = time.monotonic(), message.echo_us / 1e6
            self.rtt(now - sent)
            self.asked.traffic.exchanged(self._beat_bytes, size, sent, now)
        else:
            await self.send(Heartbeat(_now_us(), message.sent_us))

    async def beat(self) -> float:
        """Send a heartbeat when the last one is long ago; seconds until the next is due.

        Whatever else is sent: its echo is what tells the round trip while drafts go up.
        """
        if time.monotonic() - self.asked_at >= BEAT_S:
            self.asked_at = time.monotonic()
            await self.send(Heartbeat(_now_us()))
        return max(0.0, self.asked_at + BEAT_S - time.monotonic())

    async def _ended(self) -> None:
        if await self.call.code() is not grpc.StatusCode.OK:
            raise await self._reason()

    async def _reason(self) -> OutriderError:
        """Why the stream ended, typed."""
        return await reason(self.call)

    def cancel(self) -> None:
        self.call.cancel()
        if self._reading is not None:
            self._reading.cancel()


def _closed() -> LinkLost:
    """gRPC tells the calls of a channel that is closed here as if their reader were cancelled."""
    return LinkLost(
        "the connection was given up", why="another takes its place, or its link was removed"
    )


def _looked_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def reason(call: Any) -> OutriderError:
    """The typed error of a call that failed; what carries none is the network's fault.

    gRPC forgets the status of a stream that ended while a message was being written on it.
    """
    code, trailing = await call.code(), await call.trailing_metadata()
    for key, value in trailing or ():
        if key == faults.METADATA and isinstance(value, bytes):
            return faults.unpack(value)
    detail = f"gRPC says {code.name.lower().replace('_', ' ')}"
    if code is grpc.StatusCode.UNAVAILABLE:
        return CloudUnreachable("the cloud can not be reached", why=detail)
    return LinkLost("the link to the cloud broke", why=detail)


@dataclass(slots=True)
class Peer:
    """One cloud: its channel, what it serves, and when it may be tried again."""

    address: str
    channel: grpc.aio.Channel
    kind: Literal["cloud", "split"] = "cloud"
    """What answers there: a cloud, or a committer of this house over its own devices' stages."""
    home: bool = False
    """It commits here, and the ends of its model lie on this very machine: it gets token ids,
    and nothing but hidden states leaves the device."""
    models: tuple[ModelDescription, ...] = ()
    served: dict[str, Served] = field(default_factory=dict)
    failures: int = 0
    retry_at: float = 0.0
    rtt_s: float | None = None
    detail: str = ""
    name: str = ""
    """Of the link that leads there, where the settings name it."""
    way: tuple[object, ...] = ()
    """What the settings say of the way there; while it stays the same, so does the channel."""
    key: str | None = None
    """For this cloud alone; None: the one for all."""
    sealing: channels.Keys | None = None
    """What its sessions are sealed with; None: they are not."""
    bytes_up: int = 0
    """Of all sessions."""
    bytes_down: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    """What live traffic tells of the way there."""
    checking: asyncio.Task[bool] | None = None
    """The look at it that is under way; whoever wants one shares it."""

    @property
    def known(self) -> bool:
        return bool(self.models)

    def serves(self, model: str) -> bool:
        return any(model in ("", description.name) for description in self.models)

    def described(self, model: str) -> ModelDescription:
        """What is known of a model that it is known to serve. Raises HandshakeRefused."""
        for each in self.models:
            if model in ("", each.name):
                return each
        names = ", ".join(each.name for each in self.models)
        raise HandshakeRefused("model", ours=names, theirs=model)

    def classes(self, model: str, constraint: Constraint | None = None) -> frozenset[str]:
        """Numeric classes under which it serves a model; empty while it is not known."""
        return frozenset(m.class_of(constraint) for m in self.models if model in ("", m.name))

    def takes(self, model: str, constraint: Constraint | None) -> bool:
        """Whether it keeps an answer to a constraint, as far as it is known."""
        known = [m for m in self.models if model in ("", m.name)]
        return constraint is None or not known or any(m.masks for m in known)

    def device(self, model: str) -> str:
        """What computes a model there, as that cloud tells; empty when it does not."""
        return next((m.device for m in self.models if model in ("", m.name)), "")

    def may_have(self, share: Share) -> bool:
        """Whether an answer may go there of which only so much may leave the device."""
        return share == "tokens" or (share == "hidden" and self.home)

    def note_rtt(self, seconds: float) -> None:
        fade = RTT_FADE if self.rtt_s is not None else 0.0
        self.rtt_s = (self.rtt_s or 0.0) * fade + seconds * (1 - fade)

    def passed(self, up: int, down: int) -> None:
        self.traffic.passed(time.monotonic())
        self.bytes_up += up
        self.bytes_down += down

    def failed(self, error: OutriderError, now: float) -> None:
        """One outage breaks every session on the link: while it pauses, that counts once."""
        self.detail = error.what
        if now < self.retry_at:
            return
        pause = min(BACKOFF_S[1], BACKOFF_S[0] * 2**self.failures)
        self.failures += 1
        self.retry_at = now + pause * (1.0 + random.random() / 2)

    def worked(self) -> None:
        self.failures, self.retry_at, self.detail = 0, 0.0, ""


@dataclass(slots=True)
class Link:
    """All clouds of this daemon, in order of preference."""

    peers: list[Peer]
    metadata: tuple[tuple[str, str], ...]
    publish: Callable[[events.Event], None]
    clock: Callable[[], float] = time.monotonic
    _retiring: set[asyncio.Task[None]] = field(default_factory=set)
    _left: list[Peer] = field(default_factory=list)
    """Those that were dropped; streams on them may still be ending."""

    @classmethod
    def make(cls, options: EdgeOptions, publish: Callable[[events.Event], None]) -> Link:
        credentials = _credentials(options)
        # Where nothing of any answer may go to a cloud, none is spoken to at all.
        clouds = options.clouds if options.share == "tokens" else ()
        sealing = channels.keys(options) if options.clouds else None
        peers = [
            Peer(str(a), transport.channel(a, credentials, OPTIONS), sealing=sealing)
            for a in clouds
        ]
        key = options.cloud_api_key
        metadata = ((KEY, f"Bearer {key}"),) if key else ()
        for peer in peers:
            peer.way = (peer.address, options.cloud_ca, options.cloud_cert, options.cloud_key)
        peers += [_named(link, options) for link in options.links if options.share == "tokens"]
        return cls(peers, metadata, publish)

    def retarget(self, options: EdgeOptions) -> None:
        """Other clouds, or the same in another order: what stays keeps what is known of it.

        Raises ConfigError before anything changes.
        """
        made = Link.make(options, self.publish)
        kept = {peer.way: peer for peer in self.peers if peer.kind == "cloud"}
        wanted = [kept.pop(peer.way, peer) for peer in made.peers]
        split = [peer for peer in self.peers if peer.kind != "cloud"]
        for old, new in zip(wanted, made.peers, strict=True):
            old.key = new.key
            if old is not new:
                self._retire(new)
        self.metadata = made.metadata
        self.peers[:] = [*wanted, *split]
        for peer in kept.values():
            self._say(peer, "lost", "the settings name it no more")
            self._retire(peer)

    def _retire(self, peer: Peer, grace_s: float = RETIRE_S) -> None:
        """Its channel closes once the streams on it ended, or had time to."""
        task = asyncio.ensure_future(peer.channel.close(grace_s))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def renewed(self, link: CloudLink, options: EdgeOptions) -> None:
        """The link's certificate is another now: sessions that open from here on go over a new
        connection, those that run keep theirs until they end. gRPC has no way to change the
        certificate of a channel (grpc/grpc 15735)."""
        made = _named(link, options)
        for peer in self.peers:
            if peer.way == made.way:
                peer.channel, made.channel = made.channel, peer.channel
                break
        self._retire(made, DRAIN_S)

    def _metadata(self, peer: Peer) -> tuple[tuple[str, str], ...]:
        if peer.key is None:
            return self.metadata
        return ((KEY, f"Bearer {peer.key}"),) if peer.key else ()

    def add(self, address: Address, kind: Literal["cloud", "split"], *, home: bool = False) -> Peer:
        """One more, on loopback."""
        peer = Peer(str(address), transport.channel(address, None, OPTIONS), kind, home)
        self.peers.append(peer)
        return peer

    async def drop(self, peer: Peer) -> None:
        """It is gone for good; what runs there goes on elsewhere."""
        self.peers.remove(peer)
        self._say(peer, "lost", "it ended")
        self._left.append(peer)
        while len(self._left) > LEFT:
            await self._left.pop(0).channel.close()

    def usable(self) -> list[Peer]:
        """Clouds that may be tried now, best first."""
        now = self.clock()
        return [peer for peer in self.peers if peer.retry_at <= now]

    def next_try_s(self) -> float:
        """Seconds until a cloud may be tried again; 0 when one may be now."""
        now = self.clock()
        return max(0.0, min((peer.retry_at for peer in self.peers), default=now + 1.0) - now)

    def connected(self) -> Peer | None:
        """The first cloud that answered and has not failed since."""
        return next((peer for peer in self.peers if peer.known and not peer.failures), None)

    def find(self, model: str) -> ModelDescription | None:
        """The description of a target model by name, empty for the default."""
        for peer in self.peers:
            for description in peer.models:
                if model in ("", description.name):
                    return description
        return None

    def served(self, model: str) -> Served | None:
        """Tokenizer and template of a target that is or was reachable."""
        for peer in self.peers:
            for description in peer.models:
                if model in ("", description.name) and description.name in peer.served:
                    return peer.served[description.name]
        return None

    async def describe(self, peer: Peer) -> None:
        """Ask a cloud what it serves, with tokenizers unless they are known already.

        Raises what is wrong with it.
        """
        await _connected(peer.channel)
        models = await self._models(peer, with_tokenizer=not peer.known)
        if peer.known and not _same(models, peer.models):
            models = await self._models(peer, with_tokenizer=True)
        if not peer.known or not _same(models, peer.models):
            peer.served = {model.name: served.described(model) for model in models}
        peer.models = models
        self._worked(peer)

    async def _models(self, peer: Peer, *, with_tokenizer: bool) -> tuple[ModelDescription, ...]:
        method: Any = peer.channel.unary_unary(f"/{SERVICE}/Describe")
        request = codec.encode_describe(VERSION, "", with_tokenizer=with_tokenizer)
        timeout_s = DESCRIBE_S if with_tokenizer else CHECK_S
        began, ready = self.clock(), _ready(peer.channel)
        call = method(
            request, metadata=self._metadata(peer), timeout=timeout_s, wait_for_ready=False
        )
        try:
            data = await call
        except grpc.aio.AioRpcError:
            raise await reason(call) from None
        now = self.clock()
        if ready:
            peer.traffic.exchanged(len(request), len(data), began, now)
        if peer.rtt_s is None and not is_bulk(len(data)):
            peer.note_rtt(now - began)
        return codec.decode_description(data)[1]

    async def find_one(self, model: str, may: Callable[[Peer], bool] = lambda peer: True) -> None:
        """Until a cloud answers that serves the model, and may, from now on."""
        while True:
            for peer in self.usable():
                if may(peer) and await self.check(peer) and peer.serves(model):
                    return
            await asyncio.sleep(max(LEAST_PAUSE_S, self.next_try_s()))

    async def check(self, peer: Peer) -> bool:
        """Whether the cloud answers now; keeps its state. Callers share one look."""
        if peer.checking is None or peer.checking.done():
            peer.checking = asyncio.create_task(self._check(peer))
        return await asyncio.shield(peer.checking)

    async def _check(self, peer: Peer) -> bool:
        before = peer.failures
        try:
            await self.describe(peer)
        except OutriderError as error:
            self.failed(peer, error)
            if not before:
                self._say(peer, "unreachable", error.what)
            return False
        return True

    async def open(self, peer: Peer, message: Open, share: Share = "tokens") -> tuple[Wire, Opened]:
        """A session on one cloud. Raises LinkError, HandshakeRefused, Overloaded, ...; and
        InvalidRequest before a byte is sent where `share` keeps the answer from it."""
        if not peer.may_have(share):
            raise _kept(peer, share)
        if not peer.known:
            await self.describe(peer)
        method: Any = peer.channel.stream_stream(f"/{SERVICE}/Session")
        metadata = self._metadata(peer)
        header = () if peer.sealing is None else peer.sealing.header(message)
        call = method(metadata=(*metadata, *header), wait_for_ready=False)
        wire = Wire(
            call,
            Conversation(Role.EDGE),
            message.slots,
            message.top_logprobs,
            peer.note_rtt,
            peer.passed,
            Asked(peer.traffic),
        )
        began, ready = self.clock(), _ready(peer.channel)
        try:
            if peer.sealing is None:
                await wire.send(message)
            else:
                model = peer.described(message.model)
                await wire.greet(peer.sealing, message, model, dict(metadata).get(KEY, ""))
            opened = await wire.receive()
        except BaseException as error:
            if isinstance(error, HandshakeRefused) and "model" in error.what:
                # What is known of it may be old, or a lie: it is asked anew.
                peer.models = ()
            wire.cancel()
            raise
        if not isinstance(opened, Opened):
            wire.cancel()
            raise LinkLost("the cloud ended the stream before it began")
        now = self.clock()
        if ready:
            peer.traffic.exchanged(wire.bytes_up, wire.bytes_down, began, now)
        if peer.rtt_s is None or not is_bulk(wire.bytes_up):
            peer.note_rtt(now - began)
        self._worked(peer)
        return wire, opened

    def failed(self, peer: Peer, error: OutriderError) -> None:
        peer.failed(error, self.clock())
        if isinstance(error, AccessDenied):
            self._say(peer, "unreachable", error.what)

    def lost(self, peer: Peer, error: OutriderError) -> None:
        """A session's stream broke."""
        kinds = SealError if peer.sealing is None else (SealError, RemoteProtocolError)
        if isinstance(error, kinds):
            # Not the weather: somebody changed what was sealed, or a cloud lied.
            self.publish(events.Trouble(code=error.code, what=error.what))
        if not peer.failures:
            self._say(peer, "lost", error.what)
        peer.failed(error, self.clock())

    def _worked(self, peer: Peer) -> None:
        if peer.failures or not peer.detail == "":
            self._say(peer, "connected", "")
        peer.worked()

    def tell_measured(self) -> None:
        """Say what the traffic has shown of each way since it was last said."""
        now = self.clock()
        for peer in self.peers:
            if peer.known and not peer.failures and peer.traffic.news(now) is not None:
                self._say(peer, "connected", "measured")

    def _say(self, peer: Peer, state: Any, detail: str) -> None:
        figures = Figures.of(peer.traffic.estimate(self.clock()))
        self.publish(
            events.LinkChanged(
                cloud=peer.address,
                state=state,
                rtt_ms=None if peer.rtt_s is None else round(peer.rtt_s * 1e3, 3),
                detail=detail,
                jitter_ms=figures.jitter_ms,
                up_bytes_per_s=figures.up_bytes_per_s,
                down_bytes_per_s=figures.down_bytes_per_s,
                loss=figures.loss,
            )
        )

    async def close(self) -> None:
        for peer in (*self.peers, *self._left):
            if peer.checking is not None:
                peer.checking.cancel()
            await peer.channel.close()


@dataclass(frozen=True, slots=True)
class Figures:
    """An estimate as it is told; None where the traffic does not tell."""

    jitter_ms: float | None = None
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    loss: float | None = None

    @classmethod
    def of(cls, found: Estimate | None) -> Figures:
        if found is None:
            return cls()
        up, down = found.up_bytes_per_s, found.down_bytes_per_s
        return cls(
            round(found.jitter_s * 1e3, 3),
            None if up is None else round(up, 1),
            None if down is None else round(down, 1),
            round(found.loss, 5),
        )


async def watch(link: Link, every_s: float = 5.0) -> AsyncIterator[None]:
    """Keep trying the clouds that are not known or failed; yields after each round."""
    while True:
        for peer in link.usable():
            if peer.failures or not peer.known:
                await link.check(peer)
        link.tell_measured()
        yield
        pause = link.next_try_s() if link.connected() is None else every_s
        await asyncio.sleep(max(LEAST_PAUSE_S, min(pause, every_s)))


async def _connected(channel: grpc.aio.Channel) -> None:
    """Until the channel is ready, or was refused; a call says why. Raises CloudUnreachable."""
    undecided = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)
    try:
        async with asyncio.timeout(CONNECT_S):
            while (state := channel.get_state(try_to_connect=True)) in undecided:
                await channel.wait_for_state_change(state)
    except TimeoutError:
        raise CloudUnreachable(
            "the cloud can not be reached", why=f"it did not greet within {CONNECT_S} s"
        ) from None


def _ready(channel: grpc.aio.Channel) -> bool:
    """Whether a call need not wait for the connection to be made."""
    return channel.get_state() is grpc.ChannelConnectivity.READY


def _kept(peer: Peer, share: Share) -> InvalidRequest:
    what = "nothing" if share == "nothing" else "no token id"
    return InvalidRequest(
        f"{peer.address} may not have this answer",
        param="outrider.share",
        why=f"share={share}: {what} may leave the device",
        effect="nothing was sent",
        todo="ask for placement `edge`, or allow outrider.share=tokens",
    )


def _same(new: Sequence[ModelDescription], old: Sequence[ModelDescription]) -> bool:
    """Whether the tokenizers and templates that are known are still those of the models."""
    return [_identity(model) for model in new] == [_identity(model) for model in old]


def _identity(model: ModelDescription) -> tuple[str, ...]:
    return (
        model.name,
        model.vocabulary_digest,
        model.tokenizer_digest,
        model.chat_template,
        model.bos,
        model.eos,
    )


def _named(link: CloudLink, options: EdgeOptions) -> Peer:
    """A cloud with certificates and a key of its own. Raises ConfigError."""
    tls = transport.channel_tls(
        transport.read_pem(link.ca, f"ca of link {link.name}"),
        transport.read_pem(link.cert, f"cert of link {link.name}"),
        transport.read_pem(link.key, f"key of link {link.name}"),
    )
    channel = transport.channel(link.url, tls, (*OPTIONS, *called(link)))
    way = (link.name, str(link.url), link.ca, link.cert, link.key, link.pin, link.paired)
    found = Peer(str(link.url), channel, name=link.name, way=way, key=link.api_key())
    found.sealing = channels.keys(options, link)
    return found


def called(link: CloudLink) -> tuple[tuple[str, str], ...]:
    """The name that a paired cloud's certificate must bear, wherever it is."""
    if not link.paired:
        return ()
    return (("grpc.ssl_target_name_override", tls_name(bytes.fromhex(link.paired))),)


def _credentials(options: EdgeOptions) -> grpc.ChannelCredentials | None:
    return transport.channel_tls(
        transport.read_pem(options.cloud_ca, "--cloud-ca"),
        transport.read_pem(options.cloud_cert, "--cloud-cert"),
        transport.read_pem(options.cloud_key, "--cloud-key"),
    )


def _now_us() -> int:
    return int(time.monotonic() * 1e6)
