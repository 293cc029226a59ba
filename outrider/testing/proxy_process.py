"""The shaping proxy as a process of its own, and the client that drives it.

    python -m outrider.testing.proxy --listen 127.0.0.1:0 --to 127.0.0.1:50051 --rtt-ms 40

The process speaks JSON lines. First it says `{"listening": ["127.0.0.1", 40123]}`; then each
line on standard input is a request and gets one line of answer:

    {"do": "set", "link": {"up_delay_ms": 20, "loss": 0.01}}   named fields change, others stay
    {"do": "black_hole"}   {"do": "restore"}   {"do": "reset"}   {"do": "cut"}
    {"do": "mark"}         begins a new window of lateness
    {"do": "stats"}
    {"do": "quit"}

An answer is `{"ok": true, "done": "set", "statistics": {...}}`, or `{"ok": false, "error": "..."}`
and nothing was changed. The process ends when standard input does, so it never outlives the
program that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from outrider.errors import ConfigError, OutriderError
from outrider.testing.flow import ConnectionStatistics
from outrider.testing.link import Link
from outrider.testing.mangle import Slicer
from outrider.testing.proxy import ProxyStatistics, ShapingProxy, split_address

LINE_BYTES: Final = 1 << 20
"""The longest line either side reads; a thousand remembered connections fit many times."""


class ProxyProcess:
    """A shaping proxy in a child process, at a lower priority if asked."""

    def __init__(self, process: Process, host: str, port: int, link: Link) -> None:
        self.host: Final = host
        self.port: Final = port
        self._link = link
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(
        cls,
        to_host: str,
        to_port: int,
        link: Link | None = None,
        *,
        listen: str = "127.0.0.1:0",
        nice: int = 0,
        slice_bytes: int = 0,
    ) -> Self:
        """Starts the process and waits until it listens; raises ConfigError if it can not."""
        chosen = link or Link()
        options = {"--nice": nice, "--slice-bytes": slice_bytes}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outrider.testing.proxy"),
            *("--listen", listen, "--to", f"[{to_host}]:{to_port}"),
            *(str(part) for option in options.items() for part in option),
            *link_arguments(chosen),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=LINE_BYTES,
            env=os.environ | {"PYTHONPATH": _python_path()},
        )
        assert process.stdout is not None
        told = await process.stdout.readline()
        if not told:
            raise await _not_started(process)
        host, port = json.loads(told)["listening"]
        return cls(process, host, port, chosen)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def link(self) -> Link:
        return self._link

    async def set(self, link: Link) -> None:
        """Changes the link while it runs."""
        await self._ask("set", link=asdict(link))
        self._link = link

    async def black_hole(self) -> None:
        """See `ShapingProxy.black_hole`."""
        await self._ask("black_hole")

    async def restore(self) -> None:
        """See `ShapingProxy.restore`."""
        await self._ask("restore")

    async def reset(self) -> None:
        """See `ShapingProxy.reset`."""
        await self._ask("reset")

    async def cut(self) -> None:
        """See `ShapingProxy.cut`."""
        await self._ask("cut")

    async def mark(self) -> None:
        """See `ShapingProxy.mark`."""
        await self._ask("mark")

    async def statistics(self) -> ProxyStatistics:
        """Counts and lateness, as the process sees them."""
        return read_statistics((await self._ask("stats"))["statistics"])

    async def aclose(self) -> None:
        """Ends the process and waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.communicate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps({"do": verb} | arguments).encode() + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        if not line:
            raise ConfigError("the proxy process has ended", effect=f"{verb} was not done")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise ConfigError(answer["error"])
        return answer


async def _not_started(process: Process) -> ConfigError:
    _, said = await process.communicate()
    last = said.decode(errors="replace").strip()[-2000:]
    return ConfigError("the proxy process did not start", why=last or f"it {process.returncode=}")


def _python_path() -> str:
    """The folder that holds the package, before what was set: the child imports the same code."""
    here = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))


def link_arguments(link: Link) -> list[str]:
    """The options that give the process this link."""
    given = [(name, value) for name, value in asdict(link).items() if value is not None]
    return [part for name, value in given for part in (f"--{name.replace('_', '-')}", str(value))]


def read_statistics(told: dict[str, Any]) -> ProxyStatistics:
    """From JSON back to values."""
    each = tuple(ConnectionStatistics(**one) for one in told["per_connection"])
    others: dict[str, Any] = {**told, "per_connection": each}
    return ProxyStatistics(**others)


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options of the process; each field of a Link is one."""
    parser = argparse.ArgumentParser(
        prog="outrider.testing.proxy", description="A shaping TCP proxy, driven by JSON lines."
    )
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--rtt-ms", type=float, help="sets both delays to half of it")
    for one in fields(Link):
        kind = int if one.name == "seed" else float
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=None)
    parser.add_argument("--slice-bytes", type=int, default=0, help="write so many at a time")
    parser.add_argument("--nice", type=int, default=0, help="added to the process's niceness")
    return parser.parse_args(argv)


def link_of(options: argparse.Namespace) -> Link:
    """The link that the options describe."""
    base = Link() if options.rtt_ms is None else Link.of_rtt(options.rtt_ms)
    given = {one.name: getattr(options, one.name) for one in fields(Link)}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


async def answer(proxy: ShapingProxy, line: bytes) -> dict[str, object]:
    """Does what one request says; a request that can not be done changes nothing."""
    try:
        request = json.loads(line)
        await _do(proxy, request)
    except (OutriderError, ValueError, TypeError, KeyError) as error:
        return {"ok": False, "error": str(error) or type(error).__name__}
    return {"ok": True, "done": request["do"], "statistics": asdict(proxy.statistics())}


async def _do(proxy: ShapingProxy, request: dict[str, Any]) -> None:
    match request["do"]:
        case "set":
            proxy.link = replace(proxy.link, **request["link"])
        case "black_hole":
            proxy.black_hole()
        case "restore":
            await proxy.restore()
        case "reset":
            proxy.reset()
        case "cut":
            proxy.cut()
        case "mark":
            proxy.mark()
        case "stats" | "quit":
            pass
        case unknown:
            raise ValueError(f"unknown request {unknown!r}")


async def serve(options: argparse.Namespace) -> None:
    """Runs the proxy until standard input ends or says `quit`."""
    to_host, to_port = split_address(options.to)
    host, port = split_address(options.listen)
    slices = [lambda: Slicer(options.slice_bytes)] if options.slice_bytes else []
    proxy = ShapingProxy(
        to_host, to_port, link_of(options), host=host, port=port, up=slices, down=slices
    )
    async with proxy:
        _say({"listening": [proxy.host, proxy.port]})
        requests = asyncio.StreamReader(limit=LINE_BYTES)
        await proxy.loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(requests), sys.stdin
        )
        async for line in requests:
            told = await answer(proxy, line)
            _say(told)
            if told.get("done") == "quit":
                return


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop that wakes within microseconds: epoll rounds up to whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    """The process."""
    options = arguments(sys.argv[1:])
    os.nice(options.nice)
    try:
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            runner.run(serve(options))
    except OutriderError as error:
        sys.exit(str(error))
