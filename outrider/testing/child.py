"""A supervised child process: start, watch, strike, and start again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from outrider.errors import OutriderError
from outrider.testing import failpoints, tether
from outrider.testing.failpoints import ANNOUNCEMENT, Failpoint

TAIL_LINES: Final = 1000
LINE_CHARACTERS: Final = 4000
"""Bounds of the output that is kept; a longer line loses its end."""
GLANCE_S: Final = 0.002
"""How often a condition outside this process is looked at."""
LAST_WORDS_S: Final = 1.0
"""How long the output of a child that has ended is waited for."""

State = Literal["running", "stopped", "gone"]


class ChildError(OutriderError):
    """A child did not do what was waited for; `why` holds the end of its output."""

    code = "child"


@dataclass(frozen=True, slots=True)
class ReadyLine:
    """Ready once a line of output matches; the match is kept as `Child.ready`."""

    pattern: str


@dataclass(frozen=True, slots=True)
class ReadyFile:
    """Ready once the file exists."""

    path: Path


@dataclass(frozen=True, slots=True)
class ReadyPort:
    """Ready once something accepts connections there."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ReadyAtOnce:
    """Ready as soon as it was started."""


Ready = ReadyLine | ReadyFile | ReadyPort | ReadyAtOnce


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to start a child."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    cwd: Path | None = None
    ready: Ready = field(default_factory=ReadyAtOnce)
    ready_timeout_s: float = 60.0
    nice: int = 0
    """Added to this process's niceness."""
    failpoints: tuple[Failpoint, ...] = ()

    def environment(self) -> dict[str, str]:
        """The child's whole environment; failpoints of this process are not passed on."""
        armed = {failpoints.VARIABLE: failpoints.spell(*self.failpoints)}
        return {**os.environ, "PYTHONUNBUFFERED": "1", **self.env, **armed}


def process_state(pid: int) -> State:
    """Whether a process runs, is stopped, or is gone (a zombie is gone)."""
    import psutil

    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return "gone"
    return "stopped" if status == psutil.STATUS_STOPPED else "running"


class _Output(asyncio.Protocol):
    """Collects lines of the child's standard output and error, in order, bounded."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)
        self.transport: asyncio.BaseTransport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LINE_CHARACTERS]
        self.lines.extend(line.decode(errors="replace")[:LINE_CHARACTERS] for line in whole)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self.data_received(b"\n")

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class Child:
    """One child process; `Supervisor.start` makes it.

    All waits raise ChildError with the end of the child's output when their time is over.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.ready: re.Match[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._output = _Output()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.returncode

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; a stopped process runs in this sense."""
        return self._process is not None and self._process.returncode is None

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines of output since the last start."""
        return tuple(self._output.lines)

    async def start(self) -> None:
        """Starts it and waits until it is ready; a child that is not gets killed."""
        reading, writing = os.pipe()
        self._output, self.ready = _Output(), None
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: self._output, os.fdopen(reading, "rb", 0))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", tether.__file__, str(os.getpid())),
                *(str(self.spec.nice), *self.spec.argv),
                env=self.spec.environment(),
                cwd=self.spec.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            await self._until_ready()
        except ChildError as error:
            await self._last_words()
            await self.end()
            raise self._error(error.what) from None
        except BaseException:
            await self.end()
            raise

    async def _last_words(self) -> None:
        """What it said just before its end may still be on its way; its group's end closes it."""
        self.end_now()
        transport = self._output.transport
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                while transport is not None and not transport.is_closing():
                    await asyncio.sleep(GLANCE_S)
                await asyncio.sleep(GLANCE_S)

    async def restart(self, *armed: Failpoint) -> None:
        """Kills it if it runs, with all it started, and starts it anew with these failpoints."""
        await self.end()
        self.spec = replace(self.spec, failpoints=armed)
        await self.start()

    async def kill(self) -> int:
        """SIGKILL to the process itself, not to what it started; its exit status."""
        self._signal(signal.SIGKILL)
        return await self.wait()

    async def terminate(self, patience_s: float = 10.0) -> int:
        """SIGTERM; its exit status. A child that outlasts the patience is left running."""
        self._signal(signal.SIGTERM)
        return await self.wait(patience_s)

    async def freeze(self) -> None:
        """SIGSTOP; returns when it has stopped."""
        self._signal(signal.SIGSTOP)
        await self._until(lambda: process_state(self.pid) != "running", 10.0, "stop")

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def wait(self, timeout_s: float = 60.0) -> int:
        """Waits for its end; its exit status."""
        await self._until(lambda: not self.is_running, timeout_s, "end")
        status = self.status
        assert status is not None
        return status

    async def wait_line(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        """Waits for a line of output, or finds one among the last, that the pattern matches."""
        return await self._line(re.compile(pattern), timeout_s, f"say {pattern!r}")

    async def reached(self, point: str, timeout_s: float = 60.0) -> re.Match[str]:
        """Waits until a failpoint has struck, and the process it struck has stopped or ended.

        That process may be one that the child started. Groups: point, action, pid.
        """
        wanted = re.compile(ANNOUNCEMENT.pattern.replace(r"(?P<point>\S+)", _named(point)))
        found = await self._line(wanted, timeout_s, f"reach {point}")
        states = {"kill": ("gone",), "exit": ("gone",), "stop": ("stopped", "gone"), "raise": ()}
        accepted, pid = states[found["action"]], int(found["pid"])
        if pid == self.pid and accepted == ("gone",):
            await self.wait(timeout_s)
        elif accepted:
            await self._until(lambda: process_state(pid) in accepted, timeout_s, f"stop at {point}")
        return found

    async def end(self) -> None:
        """Kills it and all of its process group, and waits."""
        if self._process is not None:
            self.end_now()
            await self._process.wait()
        self._output.close()

    def end_now(self) -> None:
        """The kill without the wait, for a program that is itself about to end."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self.is_running:
            raise self._error(f"it can not be sent {number.name}: it does not run")
        os.kill(self.pid, number)

    async def _until_ready(self) -> None:
        limit = self.spec.ready_timeout_s
        match self.spec.ready:
            case ReadyLine(pattern):
                self.ready = await self._line(re.compile(pattern), limit, "get ready")
            case ReadyFile(path):
                await self._until(path.exists, limit, "get ready", self._demand_running)
            case ReadyPort(host, port):
                await self._port_open(host, port, limit)
            case ReadyAtOnce():
                pass

    async def _port_open(self, host: str, port: int, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                while not await _accepts(host, port):
                    self._demand_running()
                    await asyncio.sleep(10 * GLANCE_S)
        except TimeoutError:
            raise self._error(f"it did not get ready within {limit_s:g} s") from None

    async def _line(self, pattern: re.Pattern[str], timeout_s: float, what: str) -> re.Match[str]:
        output = self._output

        def found() -> re.Match[str] | None:
            return next((m for line in output.lines if (m := pattern.search(line))), None)

        await self._until(found, timeout_s, what, lambda: self._demand_output(output))
        match = found()
        assert match is not None
        return match

    def _demand_running(self) -> None:
        if not self.is_running:
            raise self._error(f"it ended with status {self.status} before it got ready")

    def _demand_output(self, output: _Output) -> None:
        """Nothing more can be said once the pipe is closed by all who held it."""
        closed = output.transport is not None and output.transport.is_closing()
        if closed and not self.is_running:
            raise self._error(f"it ended with status {self.status} without saying so")

    async def _until(
        self,
        holds: Callable[[], object],
        timeout_s: float,
        what: str,
        demand: Callable[[], None] = lambda: None,
    ) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    demand()
                    await asyncio.sleep(GLANCE_S)
        except TimeoutError:
            raise self._error(f"it did not {what} within {timeout_s:g} s") from None

    def _error(self, what: str) -> ChildError:
        said = "\n    ".join(self.lines[-20:])
        name = f"child {self.name!r}: "
        return ChildError(name + what.removeprefix(name), why=f"it said last:\n    {said}")


def _named(point: str) -> str:
    return f"(?P<point>{re.escape(point)})"


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
