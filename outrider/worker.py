"""An engine behind an asynchronous face: in one thread, or in a child process of its own.

The event loop never calls an engine. Both faces keep the order of calls, so a
caller may `extend` and `close` without waiting in between. The thread suits the
device, where libraries release the interpreter lock in their passes; the process
is the cloud's default: a native crash or a lock that is not released stays away
from the loop that serves everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import msgspec

from outrider.engine import Engine, EngineInfo, EngineSpec, EngineStatistics, Picked, Span
from outrider.errors import EngineFailed, OutriderError
from outrider.protocol import faults
from outrider.protocol.constraint import Constraint
from outrider.protocol.sampling import Sampling, SamplingParams

T = TypeVar("T")


class AsyncEngine(Protocol):
    """`outrider.engine.Engine` for an event loop; errors are the same."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def alive(self) -> bool:
        """False once its process has ended; nothing works any more then."""
        ...

    async def open(self, sampling: Sampling | None = None) -> int: ...

    async def extend(self, spans: Sequence[Span]) -> list[Picked]: ...

    async def rewind(self, slot: int, length: int) -> None: ...

    async def close(self, slot: int) -> None: ...

    async def statistics(self) -> EngineStatistics: ...

    async def shutdown(self) -> None: ...


class EngineThread:
    """All calls run in one worker thread, first come first served."""

    def __init__(self, engine: Engine, pool: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._pool = pool

    @classmethod
    async def start(cls, build: Callable[[], Engine]) -> EngineThread:
        """`build` runs in the thread too, since some libraries bind to it."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="engine")
        engine = await asyncio.get_running_loop().run_in_executor(pool, build)
        return cls(engine, pool)

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def alive(self) -> bool:
        return True

    async def run(self, work: Callable[[Engine], T]) -> T:
        """Several calls of the engine in one visit to its thread."""
        return await self._call(lambda: work(self._engine))

    def _call(self, function: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def open(self, sampling: Sampling | None = None) -> int:
        return await self._call(lambda: self._engine.open(sampling))

    async def extend(self, spans: Sequence[Span]) -> list[Picked]:
        return await self._call(lambda: self._engine.extend(spans))

    async def rewind(self, slot: int, length: int) -> None:
        await self._call(lambda: self._engine.rewind(slot, length))

    async def close(self, slot: int) -> None:
        await self._call(lambda: self._engine.close(slot))

    async def statistics(self) -> EngineStatistics:
        return await self._call(self._engine.statistics)

    async def shutdown(self) -> None:
        await self._call(self._engine.shutdown)
        self._pool.shutdown(wait=False)


# --- the child process -------------------------------------------------------------------------


class _Request(msgspec.Struct, array_like=True):
    verb: str
    params: SamplingParams | None = None
    seed: bytes = b""
    choice: int = 0
    prompt_length: int = 0
    constraint: Constraint | None = None
    spans: tuple[Span, ...] = ()
    slot: int = 0
    length: int = 0
    spec: EngineSpec | None = None


class _Reply(msgspec.Struct, array_like=True):
    number: int = 0
    picked: list[Picked] | None = None
    info: EngineInfo | None = None
    statistics: EngineStatistics | None = None
    failure: dict[str, Any] | None = None
    """Parts of an error (`faults.to_parts`)."""


def _encode_array(value: Any) -> Any:
    if hasattr(value, "tobytes"):
        return {"shape": list(value.shape), "data": value.tobytes()}
    raise TypeError(f"{type(value).__name__} does not cross the process boundary")


def _decode_array(kind: type, value: Any) -> Any:
    import numpy as np

    flat = np.frombuffer(value["data"], dtype=np.float32)
    return flat.reshape(value["shape"])


_REQUEST_ENCODER = msgspec.msgpack.Encoder()
_REQUEST_DECODER = msgspec.msgpack.Decoder(_Request)
_REPLY_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_REPLY_DECODER = msgspec.msgpack.Decoder(_Reply, dec_hook=_decode_array)
_HEADER = 4
NICENESS = 3
"""Of the engine's process, beyond its parent's."""


class EngineProcess:
    """The engine lives in a child that ends with this process or with the socket."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._child = child
        self._reader = reader
        self._writer = writer
        self._waiting: deque[asyncio.Future[_Reply]] = deque()
        self._pump = asyncio.create_task(self._read())
        self._gone: EngineFailed | None = None
        self._info: EngineInfo | None = None

    @classmethod
    async def start(cls, spec: EngineSpec) -> EngineProcess:
        """Spawn and load; raises what loading raised."""
        child, ours = _spawn()
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 26)
        process = cls(child, reader, writer)
        try:
            reply = await process._call(_Request("load", spec=spec))
        except BaseException:
            await process.shutdown()
            raise
        assert reply.info is not None
        return process

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None
        return self._info

    async def open(self, sampling: Sampling | None = None) -> int:
        request = _Request("open")
        if sampling is not None:
            request = _Request(
                "open",
                params=sampling.params,
                seed=sampling.seed.to_bytes(16, "little"),
                choice=sampling.choice,
                prompt_length=sampling.prompt_length,
                constraint=sampling.constraint,
            )
        return (await self._call(request)).number

    async def extend(self, spans: Sequence[Span]) -> list[Picked]:
        reply = await self._call(_Request("extend", spans=tuple(spans)))
        return reply.picked or []

    async def rewind(self, slot: int, length: int) -> None:
        await self._call(_Request("rewind", slot=slot, length=length))

    async def close(self, slot: int) -> None:
        await self._call(_Request("close", slot=slot))

    async def statistics(self) -> EngineStatistics:
        reply = await self._call(_Request("statistics"))
        assert reply.statistics is not None
        return reply.statistics

    async def shutdown(self) -> None:
        self._pump.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.run_in_executor(None, self._child.wait), 5.0)
        except TimeoutError:
            self._child.kill()
            await loop.run_in_executor(None, self._child.wait)
        self._fail_all()

    def _call(self, request: _Request) -> Awaitable[_Reply]:
        if self._gone is not None:
            raise self._gone
        future: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        body = _REQUEST_ENCODER.encode(request)
        self._writer.write(len(body).to_bytes(_HEADER, "little") + body)
        return future

    async def _read(self) -> None:
        try:
            while True:
                size = int.from_bytes(await self._reader.readexactly(_HEADER), "little")
                reply = _REPLY_DECODER.decode(await self._reader.readexactly(size))
                self._info = reply.info or self._info
                future = self._waiting.popleft()
                if not future.done():
                    _resolve(future, reply)
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            # What can not be read leaves calls without an answer: the child is of no use.
            self._child.kill()
            self._fail_all()

    def _fail_all(self) -> None:
        self._gone = EngineFailed(
            "the engine's process ended",
            why=f"exit status {self._child.poll()}",
            effect="its slots are lost; sessions go on from their journals",
        )
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._gone)

    @property
    def alive(self) -> bool:
        return self._gone is None and self._child.poll() is None


def _spawn() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child that serves one end of a socket pair, and the other end.

    What libraries print to its standard output goes to our standard error.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-m", "outrider.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else subprocess.DEVNULL,
        )
    return child, ours


def _has_fileno(stream: Any) -> bool:
    try:
        return isinstance(stream.fileno(), int)
    except (OSError, ValueError, AttributeError):
        return False


def _resolve(future: asyncio.Future[_Reply], reply: _Reply) -> None:
    if reply.failure is None:
        future.set_result(reply)
        return
    future.set_exception(faults.from_parts(reply.failure))


class _Host:
    """The child's side: one request after the other, until the socket closes."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._told: EngineInfo | None = None

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "load comes first"
        return self._engine

    def answer(self, request: _Request) -> _Reply:
        """A description that is not the one last told goes with the answer."""
        reply = self._answer(request)
        if self._engine is not None and self._engine.info is not self._told:
            self._told = reply.info = self._engine.info
        return reply

    def _answer(self, request: _Request) -> _Reply:
        try:
            return self._do(request)
        except OutriderError as error:
            return _Reply(failure=faults.to_parts(error))
        except Exception as error:  # noqa: BLE001 - the child must answer whatever happened
            return _Reply(failure=faults.to_parts(EngineFailed(_named(error))))

    def _do(self, request: _Request) -> _Reply:
        match request.verb:
            case "extend":
                return _Reply(picked=self.engine.extend(request.spans))
            case "open":
                return _Reply(number=self.engine.open(_sampling(request)))
            case "close":
                self.engine.close(request.slot)
            case "rewind":
                self.engine.rewind(request.slot, request.length)
            case "statistics":
                return _Reply(statistics=self.engine.statistics())
            case "load":
                return self._load(request)
        return _Reply()

    def _load(self, request: _Request) -> _Reply:
        from outrider.engines import registry

        assert request.spec is not None
        self._engine = registry.build(request.spec)
        return _Reply()


def _named(error: Exception) -> str:
    """The kind alone: a library's message may hold what it was working on."""
    return f"the engine failed with {type(error).__name__}"


def _sampling(request: _Request) -> Sampling | None:
    if request.params is None:
        return None
    seed = int.from_bytes(request.seed, "little")
    length = request.prompt_length
    return Sampling(request.params, seed, request.choice, length, request.constraint)


def _serve(connection: socket.socket) -> None:
    host = _Host()
    with connection, connection.makefile("rb") as source:
        while header := source.read(_HEADER):
            request = _REQUEST_DECODER.decode(source.read(int.from_bytes(header, "little")))
            body = _REPLY_ENCODER.encode(host.answer(request))
            connection.sendall(len(body).to_bytes(_HEADER, "little") + body)


def _main() -> None:
    import signal

    # The parent decides when to end: Ctrl-C in a terminal reaches children too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whoever passes messages on goes first where cores are short: it needs them for a moment.
    os.nice(NICENESS)
    with contextlib.suppress(OSError, ConnectionError):
        _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)


if __name__ == "__main__":
    _main()
