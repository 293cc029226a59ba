"""A device reduced to its wire: raw calls on a cloud, for tests of what the cloud answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio

from outrider.engines.fake import vocabulary
from outrider.errors import OutriderError
from outrider.protocol import codec, faults
from outrider.protocol.messages import (
    VERSION,
    ChoiceOpen,
    Commit,
    Down,
    Finished,
    Heartbeat,
    Hint,
    ModelDescription,
    Open,
    Opened,
    Up,
)
from tests.cloud.making import PROMPT
from tests.support import SAMPLED

SESSION = "/outrider.v1.Outrider/Session"
DESCRIBE = "/outrider.v1.Outrider/Describe"


def opening(session: int = 1, **changes: Any) -> Open:
    base = Open(
        session=session.to_bytes(16, "big"),
        fence=1,
        prompt=PROMPT,
        choices=(ChoiceOpen(0),),
        sampling=SAMPLED,
        seed=7,
        max_tokens=24,
        model="t",
        vocabulary_digest=vocabulary().digest,
    )
    return replace(base, **changes)


class Refused(Exception):
    """How a call ended that did not end well."""

    def __init__(self, code: grpc.StatusCode, details: str, error: OutriderError | None) -> None:
        super().__init__(details)
        self.code = code
        self.error = error
        self.everything = f"{details} {error}"


async def refused(call: Any) -> Refused:
    trailing = await call.trailing_metadata()
    packed = [value for key, value in trailing or () if key == faults.METADATA]
    error = faults.unpack(packed[0]) if packed else None
    return Refused(await call.code(), await call.details(), error)


@dataclass(slots=True)
class Stream:
    """One session stream; acknowledges what it reads unless told not to."""

    call: Any
    open: Open
    opened: Opened | None = None
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, Finished] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)

    async def send(self, message: Up) -> None:
        try:
            await self.call.write(codec.encode_up(message, self.open.slots))
        except grpc.aio.AioRpcError:
            raise await refused(self.call) from None

    async def receive(self) -> Down | None:
        """None at the proper end; raises Refused."""
        try:
            async with asyncio.timeout(15):
                data = await self.call.read()
        except grpc.aio.AioRpcError:
            raise await refused(self.call) from None
        if data is grpc.aio.EOF:
            if await self.call.code() is not grpc.StatusCode.OK:
                raise await refused(self.call)
            return None
        message = codec.decode_down(data, self.open.slots, self.open.top_logprobs)
        self._note(message)
        return message

    def _note(self, message: Down) -> None:
        match message:
            case Opened():
                self.opened = message
            case Commit():
                got = self.tokens[message.choice]
                assert message.fence == self.open.fence
                assert message.position == len(got), "a gap, or a repeat"
                got.extend(message.tokens)
                self.commits.append(message)
            case Finished():
                self.finished[message.choice] = message
            case _:
                pass

    async def acknowledge(self, choice: int = 0) -> None:
        seen = len(self.tokens[choice])
        await self.send(Hint(self.open.fence, choice, seen, seen, ()))

    async def until(self, count: int, choice: int = 0) -> None:
        """Read, without acknowledging, until so many tokens came."""
        while len(self.tokens[choice]) < count:
            assert await self.receive() is not None

    async def listen(self) -> None:
        """Read without a word, so that nothing stands between us and how the stream ends."""
        while await self.receive() is not None:
            pass

    async def to_the_end(self) -> None:
        while (message := await self.receive()) is not None:
            if isinstance(message, Commit) and not self.finished.get(message.choice):
                await self.acknowledge(message.choice)
            if isinstance(message, Heartbeat) and not message.echo_us:
                await self.send(Heartbeat(1, message.sent_us))
            if set(self.finished) == set(self.tokens):
                await self.call.done_writing()

    def ids(self, choice: int = 0) -> tuple[int, ...]:
        return tuple(self.tokens[choice])


@dataclass(slots=True)
class Client:
    channel: grpc.aio.Channel
    key: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    async def start(self, message: Open) -> Stream:
        """A stream on which the open was sent; nothing was read yet."""
        method: Any = self.channel.stream_stream(SESSION)
        stream = Stream(method(metadata=self.metadata), message)
        stream.tokens = {each.choice: list(each.committed) for each in message.choices}
        await stream.send(message)
        return stream

    async def open(self, message: Open) -> Stream:
        """Raises Refused."""
        stream = await self.start(message)
        first = await stream.receive()
        assert isinstance(first, Opened)
        return stream

    async def refusal(self, message: Open) -> Refused:
        try:
            await self.open(message)
        except Refused as found:
            return found
        raise AssertionError("the cloud took it")

    async def raw(self, *messages: bytes) -> Refused:
        """What the cloud says to bytes that are no session."""
        method: Any = self.channel.stream_stream(SESSION)
        call = method(metadata=self.metadata)
        try:
            for data in messages:
                await call.write(data)
            async with asyncio.timeout(15):
                while await call.read() is not grpc.aio.EOF:
                    pass
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return await refused(call)

    async def describe(
        self, model: str = "", *, tokenizer: bool = False, version: int = VERSION
    ) -> tuple[ModelDescription, ...]:
        request = codec.encode_describe(version, model, with_tokenizer=tokenizer)
        return await self.describe_raw(request)

    async def describe_raw(self, request: bytes) -> tuple[ModelDescription, ...]:
        method: Any = self.channel.unary_unary(DESCRIBE)
        call = method(request, metadata=self.metadata, timeout=15)
        try:
            data = await call
        except grpc.aio.AioRpcError:
            raise await refused(call) from None
        return codec.decode_description(data)[1]


def connect(address: object, *, key: str = "", largest: int = 64 << 20) -> Client:
    options = (("grpc.max_send_message_length", largest),)
    return Client(grpc.aio.insecure_channel(str(address), options=options), key)  # noqa: TID251 - the tests serve on loopback
