"""The worker process: look at models, serve, drain, end."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from outrider import paths, transport
from outrider.engine import EngineSpec
from outrider.errors import AccessDenied, ConfigError
from outrider.lag import run
from outrider.options import WorkerOptions, parse_bounds
from outrider.protocol.fleet import JoinRequest
from outrider.stages import shelf
from outrider.stages.channel import SERVER_OPTIONS, SERVICE, Credentials
from outrider.stages.emulate import Memory, Processor, spell
from outrider.stages.joiner import Joiner, fresh_key
from outrider.stages.seat import Identity
from outrider.stages.server import Worker
from outrider.stages.shelf import Shelf
from outrider.stages.store import WeightStore

DRAIN_LOOK_S = 0.05
STOP_S = 0.2
"""How long the server has to send what ends the streams that are left."""
EXPIRE_EVERY_S = 10.0
SWITCH_S = 0.001
"""Between threads of the interpreter: what comes in must not wait long for one that computes."""

Who = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Running:
    """A worker that serves."""

    address: str
    worker: Worker
    server: grpc.aio.Server
    health: HealthServicer
    joiners: tuple[Joiner, ...] = ()


async def start(options: WorkerOptions, who: Who, stack: AsyncExitStack) -> Running:
    """Look at the models, bind and serve; everything ends with the stack.

    Raises ConfigError, NotFound, ModelError, PortInUse.
    """
    identity = Identity(
        transport.read_pem(options.tls_cert, "--tls-cert"),
        transport.read_pem(options.tls_key, "--tls-key"),
    )
    keys = {str(each): fresh_key() for each in options.join}
    worker = Worker(make_shelf(options), _known(options, who, keys), identity)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_generic_rpc_handlers((worker.handlers(),))
    tls = transport.server_tls(options.tls_cert, options.tls_key, options.client_ca)
    address = transport.bind(server, options.listen, tls, "worker")
    stack.push_async_callback(worker.end)
    await server.start()
    stack.push_async_callback(server.stop, STOP_S)
    await health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    stack.callback(asyncio.create_task(_expire(worker.shelf)).cancel)
    if options.mdns:
        from outrider.stages.mdns import announce

        stack.push_async_callback(await announce(worker.shelf.name, worker.shelf.kind, address))
    joiners = _joiners(options, worker.shelf, address, keys)
    for joiner in joiners:
        stack.callback(asyncio.create_task(joiner.run()).cancel)
    return Running(address, worker, server, health, joiners)


def _known(options: WorkerOptions, who: Who, keys: Mapping[str, str]) -> Who:
    """Each coordinator that it joined shows the key that it was given, and is a tenant of its
    own; others are asked for theirs."""

    def known(shown: str) -> str:
        for coordinator, key in keys.items():
            if hmac.compare_digest(shown.encode(), f"Bearer {key}".encode()):
                return f"joined {coordinator}"
        if options.join and options.api_keys is None and not options.listen.loopback:
            raise AccessDenied(
                "the worker works for those that it joined alone",
                effect="nothing was opened",
                todo="start it with --api-keys for others",
            )
        return who(shown)

    return known


def _joiners(
    options: WorkerOptions, shelf: Shelf, address: str, keys: Mapping[str, str]
) -> tuple[Joiner, ...]:
    said = shelf.describe()
    shown = Credentials.read(
        options.join_api_key, options.join_ca, options.tls_cert, options.tls_key
    )
    request = JoinRequest(
        name=said.name,
        kind=said.kind,
        address=str(options.advertise or address),
        digests=tuple(model.digest for model in said.models),
        accepts_bytes=said.accepts_bytes,
    )
    return tuple(
        Joiner(each, replace(request, key=keys[str(each)]), shown, _tell) for each in options.join
    )


def _tell(line: str) -> None:
    sys.stderr.write(f"outrider worker: {line}\n")
    sys.stderr.flush()


def make_shelf(options: WorkerOptions) -> Shelf:
    """Raises what the models' files deserve, and EngineMissing for an engine that is not there."""
    threads = options.threads
    if threads is None and options.speed < 1.0:
        threads = 1
    return Shelf(
        name=options.name or socket.gethostname(),
        kind=options.kind,
        models=shelf.models([(model.name, model.path) for model in options.models]),
        memory=Memory(options.memory_bytes),
        processor=Processor(options.speed, threads),
        clock=time.monotonic,
        base=EngineSpec(
            model="",
            engine=shelf.choose_engine(options.engine),
            device=options.device,
            dtype=options.dtype,
            threads=threads,
        ),
        bounds=parse_bounds(options.layers),
        store=_store(options),
    )


def _store(options: WorkerOptions) -> WeightStore | None:
    """Raises ConfigError where its folder can not be made."""
    if options.accept_weights is None:
        return None
    folder = options.cache or paths.cache_dir() / "weights"
    try:
        return WeightStore(folder.expanduser(), options.accept_weights)
    except OSError as error:
        raise ConfigError(
            f"weights can not be kept in {folder}",
            why=error.strerror or "",
            effect="the worker was not started",
            todo="name a folder of this user's with --cache",
        ) from None


async def _expire(idle: Shelf) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(EXPIRE_EVERY_S)
        await loop.run_in_executor(None, idle.expire)


async def drain(running: Running, grace_s: float) -> None:
    """Take nothing new, tell coordinators to plan without, and wait for them for a while."""
    running.worker.draining = True
    await asyncio.gather(*(joiner.leave() for joiner in running.joiners))
    await running.health.enter_graceful_shutdown()
    try:
        async with asyncio.timeout(grace_s):
            while running.worker.seats:
                await asyncio.sleep(DRAIN_LOOK_S)
    except TimeoutError:
        pass
    await running.server.stop(STOP_S)


def serve(options: WorkerOptions, who: Who) -> int:
    """Run until SIGTERM or SIGINT; the exit code. `who` knows the keys (see `server.Worker`)."""
    sys.setswitchinterval(SWITCH_S)
    run(_serve(options, who))
    return 0


async def _serve(options: WorkerOptions, who: Who) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        running = await start(options, who, stack)
        _announce(options, running)
        await stop.wait()
        await drain(running, options.drain_s)


def _announce(options: WorkerOptions, running: Running) -> None:
    """Say on stderr, and in the ready file, where it serves."""
    sys.stderr.write(f"outrider worker serves {_serving(running.worker.shelf)} at ")
    sys.stderr.write(f"{running.address}\n")
    if options.ready_file is not None:
        ready = {"address": running.address, "pid": os.getpid()}
        paths.write_atomically(options.ready_file, json.dumps(ready).encode())


def _serving(had: Shelf) -> str:
    first, stop = had.bounds
    layers = f"layers {first}:{stop}" if stop else "any layers"
    models = ", ".join(f"{m.name} ({m.layers} layers)" for m in had.describe().models)
    told = [f"{layers} of {models or 'what it is sent'}"]
    if models and had.store is not None:
        told.append(f"takes {spell(had.store.limit)} of others' weights")
    if had.memory.limit is not None:
        told.append(f"in {spell(had.memory.limit)}")
    if had.processor.speed < 1.0:
        told.append(f"emulating a device of {had.processor.speed:g} this processor's speed")
    return ", ".join(told)
