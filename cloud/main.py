"""The cloud process: load models, serve, drain, end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from outrider import __version__, paths, transport
from outrider.cloud import joining
from outrider.cloud import rest as resting
from outrider.cloud.channel import Door
from outrider.cloud.cost import StepCost
from outrider.cloud.guests import Guests
from outrider.cloud.scheduler import Scheduler, Trigger
from outrider.cloud.server import OPTIONS, SERVICE, Cloud, Host, Limits
from outrider.cloud.swap import Swap
from outrider.cloud.tenants import Tenants, follow
from outrider.cloud.verifier import Verifier
from outrider.config.keys import LIVE
from outrider.daemon import log as logs
from outrider.daemon.log import Log
from outrider.daemon.notify import Notifier
from outrider.daemon.reload import Reloader, on_hangup
from outrider.engine import EngineInfo, EngineSpec
from outrider.errors import ConfigError
from outrider.lag import LoopLag, run
from outrider.models import served
from outrider.options import CloudOptions, NamedModel, parse_trigger
from outrider.protocol import events
from outrider.protocol.messages import ModelDescription
from outrider.stages.desk import Desk

EXPIRE_EVERY_S = 1.0
DRAIN_LOOK_S = 0.05
STOP_S = 0.2
"""How long the server has to send what ends the streams that are left."""
LAG_EVERY_S = 5.0
CLEAR = (
    "the key file holds keys in the clear; `outrider tenants add NAME` writes their hashes instead"
)


@dataclass(frozen=True, slots=True)
class Running:
    """A cloud that serves: its address, and what it is made of."""

    address: str
    cloud: Cloud
    server: grpc.aio.Server
    health: HealthServicer
    lag: LoopLag
    publish: Callable[[events.Event], None]
    events_address: str
    swap: Swap


async def start(options: CloudOptions, stack: AsyncExitStack, log: Log | None = None) -> Running:
    """Load, bind and serve; everything ends with the stack. Raises ConfigError, ModelError."""
    tenants = Tenants.read(options.api_keys) if options.api_keys else Tenants()
    directory = options.runtime_dir or paths.runtime_dir()
    bus = logs.bus(directory, f"cloud-{os.getpid()}", log or Log())
    stack.callback(bus.close)
    hosts: dict[str, Host] = {}
    cloud = Cloud(hosts, tenants, Limits(ahead=options.ahead), bus.publish, door=Door.of(options))
    cloud.guests = guests = Guests.here(_now) if options.paired else None
    if tenants.digests:
        sys.stderr.write(f"outrider cloud: {CLEAR}\n")
    server = grpc.aio.server(options=OPTIONS)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_generic_rpc_handlers((cloud.handlers(),))
    if guests is not None:
        server.add_generic_rpc_handlers((guests.handlers(),))
        watching = guests.watch(lambda: list(cloud.streams.values()))
        stack.callback(asyncio.create_task(watching).cancel)
    if options.api_keys is not None:
        following = follow(options.api_keys, cloud.admit_only)
        stack.callback(asyncio.create_task(following).cancel)
    desk = await joining.opened(options, stack)
    address = ""
    if desk is not None and options.join_listen is None:
        # Workers join at this port before the model can be loaded on them.
        server.add_generic_rpc_handlers((desk.handlers(),))
        address = await _listen(server, options, guests)
        sys.stderr.write(f"outrider cloud: workers join at {address}\n")
    swap = Swap(cloud, partial(_host, options, bus.publish, desk), bus.publish)
    stack.push_async_callback(swap.close)
    for model in options.models:
        await swap.add(model)
    address = address or await _listen(server, options, guests)
    stack.push_async_callback(server.stop, STOP_S)
    await health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    lag = LoopLag()
    lag.start()
    stack.callback(lag.stop)
    for work in (
        _expire(cloud, options.session_ttl_s),
        swap.run(),
        _tell_lag(lag, bus.publish),
        resting.rest(hosts, options.keep_alive_s),
    ):
        stack.callback(asyncio.create_task(work).cancel)
    bus.publish(events.Up(role="cloud", version=__version__, listen=address, pid=os.getpid()))
    return Running(address, cloud, server, health, lag, bus.publish, bus.address, swap)


def _now() -> float:
    """Seconds since 1970, for certificates."""
    return time.clock_gettime(time.CLOCK_REALTIME)


async def _listen(
    server: grpc.aio.Server, options: CloudOptions, guests: Guests | None = None
) -> str:
    """Bind and serve; the address."""
    tls = guests.tls() if guests is not None else None
    tls = tls or transport.server_tls(options.tls_cert, options.tls_key, options.client_ca)
    address = transport.bind(server, options.listen, tls, "cloud")
    await server.start()
    return address


async def _host(
    options: CloudOptions,
    publish: Callable[[events.Event], None],
    desk: Desk | None,
    model: NamedModel,
    stack: AsyncExitStack,
) -> Host:
    spec = EngineSpec(
        model=model.path,
        engine="split" if options.workers else options.engine,
        device=options.device,
        dtype=options.dtype,
        numerics=options.numerics,
        context=options.context,
        max_slots=options.max_slots,
        threads=options.threads,
        options=_split(options, desk) if options.workers else _budget(options),
    )
    began = time.monotonic()
    first = await joining.started(spec, desk)
    engine, restart = resting.kept(first, spec, model.name, options, publish)
    mode, wait_ms = parse_trigger(options.trigger)
    scheduler = Scheduler(
        StepCost(engine.info.row_rule),
        Trigger(mode, wait_ms),
        ahead=options.ahead,
        max_rows=engine.info.max_rows,
    )
    verifier = Verifier(engine, scheduler, publish, time.monotonic, restart=restart)
    stack.push_async_callback(lambda: verifier.engine.shutdown())
    await verifier.calibrate()
    details = served.load(spec)
    host = Host(_describe(model, engine.info, details), details.vocabulary, verifier)
    verifier.changed = host.describe
    task = asyncio.create_task(verifier.run())
    stack.callback(task.cancel)
    publish(resting.loaded_event(model.name, engine.info, time.monotonic() - began))
    return host


def _budget(options: CloudOptions) -> tuple[tuple[str, str], ...]:
    return (("memory", options.memory),) if options.memory else ()


def _split(options: CloudOptions, desk: Desk | None) -> tuple[tuple[str, str], ...]:
    """Where and how the layers are computed, for the engine `split`."""
    named = {
        "workers": ",".join(map(str, options.workers)),
        "workers_ca": str(options.workers_ca or ""),
        "workers_api_key": options.workers_api_key,
        "layers": options.layers,
        "activations": options.activations,
    }
    if desk is not None:
        named["roster"] = str(desk.register.path)
    return tuple(named.items())


def _describe(model: NamedModel, info: EngineInfo, details: served.Served) -> ModelDescription:
    if details.vocabulary.digest != info.vocabulary_digest:
        raise ConfigError(
            f"the engine and the tokenizer of {model.name} disagree on its vocabulary"
        )
    return ModelDescription(
        name=model.name,
        model_digest=details.digest,
        vocabulary_digest=info.vocabulary_digest,
        numeric_class=info.numeric_class,
        vocabulary_size=info.vocabulary_size,
        context=info.context,
        exact=info.exact,
        engine=info.engine,
        device=info.device,
        dtype=info.dtype,
        end_ids=details.vocabulary.end,
        chat_template=details.chat_template,
        tokenizer_digest=details.tokenizer_digest,
        created=int(time.clock_gettime(time.CLOCK_REALTIME)),
        bos=details.bos,
        eos=details.eos,
        tokenizer_json=details.tokenizer_json,
        masks=info.masks,
    )


async def _expire(cloud: Cloud, ttl_s: float) -> None:
    while True:
        await asyncio.sleep(min(EXPIRE_EVERY_S, ttl_s / 4))
        for host in (*cloud.hosts.values(), *cloud.retired):
            host.verifier.expire(ttl_s)


async def _tell_lag(lag: LoopLag, publish: Callable[[events.Event], None]) -> None:
    while True:
        await asyncio.sleep(LAG_EVERY_S)
        publish(lag.event())


async def drain(running: Running, grace_s: float) -> None:
    """Take nothing new, let sessions end for a while, then end their streams."""
    running.cloud.draining = True
    running.publish(events.Down(role="cloud", reason="draining"))
    await running.health.enter_graceful_shutdown()
    # The server still answers, so that who comes now is refused and not left without a word.
    try:
        async with asyncio.timeout(grace_s):
            while running.cloud.streams:
                await asyncio.sleep(DRAIN_LOOK_S)
    except TimeoutError:
        pass
    await running.server.stop(STOP_S)


def serve(options: CloudOptions) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    run(_serve(options))
    return 0


async def _serve(options: CloudOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log, manager = Log.start(options.log_file, options.log_level, "cloud"), Notifier.of()
    async with AsyncExitStack() as stack:
        stack.callback(log.close)
        running = await joining.unless(stop, start(options, stack, log))
        if running is None:
            return
        _announce(options, running, log)
        stack.callback(asyncio.create_task(manager.beat()).cancel)
        reloader = Reloader(options, LIVE["cloud"], partial(_apply, running), running.publish)
        on_hangup(reloader, manager)
        manager.ready(f"serves at {running.address}")
        await stop.wait()
        manager.stopping()
        await drain(running, reloader.options.drain_s)


def _apply(running: Running, old: CloudOptions, new: CloudOptions) -> None:
    """Settings that a running cloud takes; how long it drains is looked up when it does."""
    if old.models != new.models:
        if new.workers:
            raise ConfigError(
                "a split model can not be swapped while it runs",
                why="its layers lie on devices that have no room for two",
                effect="no setting was changed",
                todo="start the cloud anew",
            )
        running.swap.begin(new.models)
    Log.set_level(new.log_level)


def _announce(options: CloudOptions, running: Running, log: Log) -> None:
    """Say on stderr, and in the ready file, where it serves."""
    hosts = running.cloud.hosts.values()
    names = ", ".join(
        f"{host.description.name} ({host.description.engine}, {host.description.dtype}, "
        f"{'exact' if host.description.exact else 'not exact'})"
        for host in hosts
    )
    sys.stderr.write(f"outrider cloud serves {names} at {running.address}\n")
    if options.ready_file is not None:
        ready = {
            "address": running.address,
            "pid": os.getpid(),
            "events": running.events_address,
            "log": log.place,
        }
        paths.write_atomically(options.ready_file, json.dumps(ready).encode())
