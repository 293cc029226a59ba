"""The edge process: load the draft model, find the clouds, serve HTTP, end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from outrider import __version__, paths
from outrider.daemon import log as logs
from outrider.daemon.log import Log
from outrider.daemon.notify import Notifier
from outrider.daemon.reload import Reloader, on_hangup
from outrider.edge import link as links
from outrider.edge import live, renewal
from outrider.edge.api.app import build as build_api
from outrider.edge.api.keys import read_keys
from outrider.edge.api.server import ApiServer
from outrider.edge.api.settings import ApiSettings
from outrider.edge.daemon import Daemon, Small
from outrider.edge.drafter import Drafter
from outrider.edge.fanout import Fanout
from outrider.edge.gauge import Teller
from outrider.edge.link import Link
from outrider.edge.local import LocalCommitter
from outrider.edge.power import PowerWatch, accountant
from outrider.edge.redacting import Redacting
from outrider.edge.seals import seals
from outrider.edge.swap import Make, Seat, Swap
from outrider.engine import EngineInfo, EngineSpec
from outrider.engines import registry
from outrider.lag import LoopLag, run
from outrider.models import served
from outrider.models.kept import Kept
from outrider.models.source import locate
from outrider.options import EdgeOptions, NamedModel
from outrider.partitioner.power.account import Accountant
from outrider.privacy.redact import Rules
from outrider.protocol import events
from outrider.protocol.messages import ModelDescription
from outrider.worker import EngineThread

LAG_EVERY_S = 5.0
SWITCH_S = 0.0005
"""The drafter's thread gives the interpreter back this soon when the loop wants it; the default
of 5 ms would be the loop's lag."""


@dataclass(frozen=True, slots=True)
class Running:
    """A daemon that serves, and where."""

    url: str
    daemon: Daemon
    reloader: Reloader[EdgeOptions]


async def start(options: EdgeOptions, stack: AsyncExitStack, log: Log | None = None) -> Running:
    """Load, bind and serve; everything ends with the stack. Raises ConfigError, ModelError."""
    directory = options.runtime_dir or paths.runtime_dir()
    given, options = options, _with_places(options)
    settings, sealed = _settings(options), seals(options)
    fanout = Fanout(logs.bus(directory, f"edge-{os.getpid()}", log or Log()))
    stack.callback(fanout.close)
    lag = LoopLag()
    link = Link.make(options, fanout.publish)
    stack.push_async_callback(link.close)
    energy = accountant(options)
    waits = options.draft_load == "lazy" and options.draft not in ("none", "ngram")
    ends = AsyncExitStack()
    make = _maker(options, fanout.publish, energy)
    swap = Swap(make, fanout.publish, time.monotonic, Seat(options.draft, None, ends))
    stack.push_async_callback(swap.close)
    small, later = (None, None) if waits else await make(options.draft, ends)
    power = PowerWatch(options, energy, fanout.publish, time.monotonic)
    daemon = Daemon(options, link, small, fanout, lag, small_for=later, energy=energy, power=power)
    swap.daemon, daemon.loaded = daemon, swap.loaded
    if waits:
        daemon.small_at_first = partial(_first, options, ends, fanout.publish, energy)
    daemon.seals = sealed
    power.busy = lag.busy = lambda: bool(daemon.running)
    stack.push_async_callback(daemon.close)
    server = ApiServer(
        build_api(
            Redacting(daemon, lambda: Rules.parse(daemon.options.redact)),
            replace(settings, hosts_now=lambda: daemon.options.allowed_hosts),
            events=fanout,
            ready=daemon.ready,
            pin=daemon.pin,
            use=swap.use,
            reload=(reloader := live.reloader(given, daemon, power)).reload,
        )
    )
    await server.start(options.listen.host, options.listen.port)
    stack.push_async_callback(server.stop)
    daemon.listen = server.url
    lag.start()
    stack.callback(lag.stop)
    teller = Teller(daemon, fanout.publish)
    for work in (
        _watch(link),
        _tell_lag(lag, fanout.publish),
        daemon.restore(),
        power.run(),
        teller.run(),
        swap.run(),
        renewal.run(link, lambda: daemon.options, fanout.publish),
    ):
        stack.callback(asyncio.create_task(work).cancel)
    if options.split:
        await _commit_here(LocalCommitter(options, link, fanout.publish, directory), stack)
    fanout.publish(events.Up(role="edge", version=__version__, listen=server.url, pid=os.getpid()))
    _leave_card(options, server.url, fanout.address, stack, log.place if log else "")
    return Running(server.url, daemon, reloader)


def _with_places(options: EdgeOptions) -> EdgeOptions:
    if options.journal == "disk" and options.journal_dir is None:
        return replace(options, journal_dir=paths.state_dir() / "journals")
    return options


def _settings(options: EdgeOptions) -> ApiSettings:
    keys = read_keys(options.api_keys) if options.api_keys else frozenset()
    return ApiSettings(api_keys=keys)


async def _watch(link: Link) -> None:
    async for _ in links.watch(link):
        pass


async def _tell_lag(lag: LoopLag, publish: Callable[[events.Event], None]) -> None:
    while True:
        await asyncio.sleep(LAG_EVERY_S)
        publish(lag.event())


async def _commit_here(committer: LocalCommitter, stack: AsyncExitStack) -> None:
    """Its child ends before the daemon does."""
    task = asyncio.create_task(committer.run())

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


def _maker(
    options: EdgeOptions, publish: Callable[[events.Event], None], energy: Accountant
) -> Make:
    """What loads a draft model by what `--draft` would name it."""

    async def make(draft: str, ends: AsyncExitStack) -> tuple[Small | None, SmallLater | None]:
        return await _small(replace(options, draft=draft), ends, publish, energy)

    return make


SmallLater = Callable[[ModelDescription], Awaitable[Small | None]]


async def _small(
    options: EdgeOptions,
    stack: AsyncExitStack,
    publish: Callable[[events.Event], None],
    energy: Accountant,
) -> tuple[Small | None, SmallLater | None]:
    """The draft model, now, or once the target's vocabulary is known, or never."""
    if options.draft == "none":
        return None, None
    if options.draft == "ngram":

        async def later(target: ModelDescription) -> Small:
            spec = _ngram(target, options)
            return await _load(spec, "ngram", None, stack, publish, energy)

        return None, later
    model = NamedModel.parse(options.draft)
    spec = EngineSpec(
        model=model.path,
        engine=_draft_engine(options, model.path),
        device=options.draft_device,
        numerics="plain",
        max_slots=options.max_running,
        threads=options.draft_threads,
    )
    return await _load(spec, model.name, served.load(spec), stack, publish, energy), None


async def _first(
    options: EdgeOptions,
    stack: AsyncExitStack,
    publish: Callable[[events.Event], None],
    energy: Accountant,
) -> Small | None:
    """The draft model, when the first request comes."""
    return (await _small(options, stack, publish, energy))[0]


def _draft_engine(options: EdgeOptions, path: str) -> str:
    """onnxruntime drafts fastest on a CPU, so it is taken where it is installed."""
    if options.draft_engine != "auto" or locate(path).endswith(".gguf"):
        return options.draft_engine
    onnx = "onnx" in registry.installed() and options.draft_device in ("auto", "cpu")
    return "onnx" if onnx else "auto"


def _ngram(target: ModelDescription, options: EdgeOptions) -> EngineSpec:
    return EngineSpec(
        model="ngram",
        engine="ngram",
        max_slots=options.max_running,
        options=(
            ("size", str(target.vocabulary_size)),
            ("digest", target.vocabulary_digest),
        ),
    )


async def _load(
    spec: EngineSpec,
    name: str,
    found: served.Served | None,
    stack: AsyncExitStack,
    publish: Callable[[events.Event], None],
    energy: Accountant,
) -> Small:
    engine = await Kept.load(
        lambda: EngineThread.start(lambda: registry.build(spec)),
        lambda info, took_s: publish(_loaded(name, info, took_s)),
        lambda: publish(events.ModelUnloaded(model=name, role="draft", reason="idle")),
        time.monotonic,
    )
    stack.push_async_callback(engine.shutdown)
    drafter = Drafter(engine, time.monotonic, energy.worked)
    stack.callback(asyncio.create_task(drafter.run()).cancel)
    return Small(name, drafter, found, time.clock_gettime(time.CLOCK_REALTIME))


def _loaded(name: str, info: EngineInfo, took_s: float) -> events.ModelLoaded:
    return events.ModelLoaded(
        model=name,
        role="draft",
        engine=info.engine,
        device=info.device,
        dtype=info.dtype,
        exact=info.exact,
        row_rule=str(info.row_rule),
        numeric_class=info.numeric_class,
        load_ms=round(took_s * 1e3, 1),
    )


def _leave_card(
    options: EdgeOptions, url: str, address: str, stack: AsyncExitStack, log: str
) -> None:
    """Tell clients on this machine where the daemon is, for as long as it is there."""
    # Who listens everywhere is called by its loopback name here, which the door lets in.
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    card = paths.DaemonInfo(schema=1, url=url, pid=os.getpid(), events=address, log=log)
    place = paths.daemon_file(options.runtime_dir)
    paths.write_atomically(place, msgspec.json.encode(card))

    def remove() -> None:
        if paths.read_daemon(options.runtime_dir) == card:
            place.unlink(missing_ok=True)

    stack.callback(remove)
    if options.ready_file is not None:
        ready = {"url": url, "pid": os.getpid(), "events": address}
        paths.write_atomically(options.ready_file, json.dumps(ready).encode())


def serve(options: EdgeOptions) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    run(_serve(options))
    return 0


async def _serve(options: EdgeOptions) -> None:
    stop = asyncio.Event()
    sys.setswitchinterval(SWITCH_S)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log, manager = Log.start(options.log_file, options.log_level, "edge"), Notifier.of()
    async with AsyncExitStack() as stack:
        stack.callback(log.close)
        running = await start(options, stack, log)
        stack.callback(manager.stopping)
        stack.callback(asyncio.create_task(manager.beat()).cancel)
        on_hangup(running.reloader, manager)
        small = running.daemon.small
        drafts = "no draft model" if small is None else f"drafts with {small.name}"
        clouds = ", ".join(str(cloud) for cloud in options.clouds)
        sys.stderr.write(f"outrider edge serves {running.url}, clouds {clouds}, {drafts}\n")
        manager.ready(f"serves {running.url}")
        await stop.wait()
