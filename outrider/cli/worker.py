"""`outrider worker`: flags to checked options."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from outrider.cli import console, settings
from outrider.cli.servers import missing
from outrider.options import (
    JOIN_PORT,
    WORKER_PORT,
    Address,
    DeviceKind,
    NamedModel,
    WorkerOptions,
)

WORKER = WorkerOptions()


def worker(
    *,
    listen: str = str(WORKER.listen),
    model: Sequence[str] = ("bundled:target",),
    layers: str = WORKER.layers,
    memory: str = "",
    speed: float = WORKER.speed,
    name: str = "",
    kind: DeviceKind = WORKER.kind,
    engine: Literal["auto", "torch", "onnx"] = WORKER.engine,
    device: str = WORKER.device,
    dtype: str = WORKER.dtype,
    threads: int | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    client_ca: Path | None = None,
    api_keys: Path | None = None,
    mdns: bool = False,
    join: Sequence[str] = (),
    join_ca: Path | None = None,
    advertise: str = "",
    accept_weights: str = "",
    cache: Path | None = None,
    drain: float = WORKER.drain_s,
    ready_file: Path | None = None,
) -> int:
    """Hold layers of models that are split over devices, until SIGTERM or ctrl-c.
    OUTRIDER_CLOUD_API_KEY is sent to the coordinators that it joins.

    Args:
        listen: HOST:PORT for gRPC. Beyond loopback TLS and API keys are required.
        model: [NAME=]PATH of a model whose files lie here, or none. Repeat it for more.
        layers: auto takes what it is asked for; A:B takes decoder layers A up to B alone.
        memory: What stages may claim, such as 512M or 1.5G; by default nothing bounds them.
        speed: Below 1 it emulates a device so much slower than this processor.
        name: What people call the device; by default the machine's name.
        kind: phone, laptop, jetson, desktop, server or cloud, for whoever plans.
        engine: What computes the layers; auto goes by what is installed.
        device: auto, cpu, cuda:N or mps.
        dtype: auto, or what the engine computes in, such as float32 or bfloat16.
        threads: CPU threads; an emulated device has one.
        tls_cert: The worker's certificate (PEM).
        tls_key: Its key.
        client_ca: Coordinators must show a certificate of this authority.
        api_keys: File of NAME KEY lines; coordinators must send one of the keys.
        mdns: Announce it on the local network as _outrider-stage._tcp.
        join: HOST:PORT of a coordinator to register at (--workers join). Repeat it for more.
        join_ca: TLS to the coordinators, checked against this authority (PEM).
        advertise: HOST:PORT at which others reach it, if not where it listens.
        accept_weights: What coordinators may send of models that do not lie here, such as 2G.
        cache: Where such weights are kept.
        drain: Seconds that coordinators may go on after SIGTERM.
        ready_file: Written as JSON with the address once the worker serves.
    """
    parse_size, serve, read_keys = _parts()
    flags = dict(
        listen=Address.parse(listen, WORKER_PORT),
        name=name,
        kind=kind,
        models=tuple(NamedModel.parse(text) for text in model if text != "none"),
        layers=layers,
        memory_bytes=parse_size(memory) if memory else None,
        speed=speed,
        engine=engine,
        device=device,
        dtype=dtype,
        threads=threads,
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        api_keys=api_keys,
        mdns=mdns,
        join=tuple(Address.parse(text, JOIN_PORT) for text in join),
        join_ca=join_ca,
        join_api_key=os.environ.get("OUTRIDER_CLOUD_API_KEY", ""),
        advertise=Address.parse(advertise, WORKER_PORT) if advertise else None,
        accept_weights=parse_size(accept_weights) if accept_weights else None,
        cache=cache,
        drain_s=drain,
        ready_file=ready_file,
    )
    options = settings.settle(WorkerOptions, "worker", flags)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if options.models:
        console.note(f"reading {', '.join(each.path for each in options.models)}")
    return serve(options, read_keys(options.api_keys))


def _parts() -> tuple[
    Callable[[str], int],
    Callable[[WorkerOptions, Callable[[str], str]], int],
    Callable[[Path | None], Callable[[str], str]],
]:
    try:
        from outrider.cloud.tenants import Tenants
        from outrider.stages.emulate import parse_size
        from outrider.stages.worker_main import serve
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None

    def keys(path: Path | None) -> Callable[[str], str]:
        return (Tenants.read(path, "worker") if path else Tenants()).who

    return parse_size, serve, keys
