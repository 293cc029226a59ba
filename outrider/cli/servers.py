"""`outrider cloud` and `outrider edge`: flags to checked options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from outrider.cli import console, settings
from outrider.errors import EngineMissing
from outrider.options import (
    CLOUD_PORT,
    EDGE_PORT,
    JOIN_PORT,
    WORKER_PORT,
    Address,
    CloudOptions,
    EdgeOptions,
    LogLevel,
    NamedModel,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CLOUD = CloudOptions()
EDGE = EdgeOptions()


def cloud(
    *,
    listen: str = str(CLOUD.listen),
    model: Sequence[str] = ("bundled:target",),
    engine: Literal["auto", "torch", "llama", "onnx", "split", "fake"] = "auto",
    workers: str = "",
    workers_ca: Path | None = None,
    join_listen: str = "",
    join_keys: Path | None = None,
    join_cert: Path | None = None,
    join_key: Path | None = None,
    layers: str = CLOUD.layers,
    activations: Literal["fp32", "bf16", "fp16", "int8", "int4"] = CLOUD.activations,
    device: str = CLOUD.device,
    dtype: str = CLOUD.dtype,
    numerics: Literal["exact", "plain"] = CLOUD.numerics,
    threads: int | None = None,
    memory: str = CLOUD.memory,
    max_slots: int = CLOUD.max_slots,
    context: int | None = None,
    trigger: str = CLOUD.trigger,
    ahead: int = CLOUD.ahead,
    session_ttl: float = CLOUD.session_ttl_s,
    keep_alive: float = CLOUD.keep_alive_s,
    drain: float = CLOUD.drain_s,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    client_ca: Path | None = None,
    paired: bool = False,
    api_keys: Path | None = None,
    channel: Literal["auto", "required"] = CLOUD.channel,
    channel_identity: Path | None = None,
    channel_devices: Path | None = None,
    runtime_dir: Path | None = None,
    ready_file: Path | None = None,
    log_file: Path | None = None,
    log_level: LogLevel = "info",
) -> int:
    """Serve target models over gRPC, until SIGTERM or ctrl-c. OUTRIDER_WORKERS_API_KEY is sent
    to the workers.

    Args:
        listen: HOST:PORT for gRPC. Beyond loopback TLS and API keys are required.
        model: [NAME=]PATH of a target: a folder with config.json and safetensors, a .gguf or
            .onnx file, or bundled:target. Repeat it to serve several; the first is the default.
        engine: What computes the model; auto goes by the file.
        workers: HOST:PORT,... of devices that hold the layers (outrider worker); mdns adds
            those that announce themselves, join those that register here.
        workers_ca: TLS to the workers, checked against this authority (PEM).
        join_listen: HOST:PORT at which workers join; by default where the cloud serves.
        join_keys: File of NAME KEY lines; workers must send one of the keys to join.
        join_cert: The certificate at --join-listen (PEM).
        join_key: Its key.
        layers: auto plans which worker holds which; A:B,B:C,... deals ranges to them in turn.
        activations: How hidden states travel; all but fp32 lose bits of a float32 model.
        device: auto, cpu, cuda:N or mps.
        dtype: auto, or what the engine computes in, such as float32 or bfloat16.
        numerics: exact keeps the text the same in any company; plain is the engine's fastest.
        threads: CPU threads of each engine.
        memory: Such as 2G: weights and KV keep to it, the rest lies on disk (torch engine).
        max_slots: Answers computed at a time, per model.
        context: Tokens of an answer with its prompt; by default what the model was made for.
        trigger: free, wait:MS, or auto: whether a pass waits for hints.
        ahead: Tokens that may be committed beyond what the device has seen.
        session_ttl: Seconds that a session outlives its stream.
        keep_alive: Seconds without a session until a model is unloaded; the next one loads it
            again. 0 is at once, -1 never.
        drain: Seconds that sessions may go on after SIGTERM.
        tls_cert: The server's certificate (PEM).
        tls_key: Its key.
        client_ca: Devices must show a certificate of this authority.
        paired: Only devices that were paired may call (outrider link invite); certificates are
            made and renewed by the cloud itself.
        api_keys: File of tenants' keys (outrider tenants add); devices must send one of them.
        channel: required refuses sessions that are not sealed inside TLS.
        channel_identity: The cloud's own key (Ed25519, PEM), which devices pin.
        channel_devices: File of NAME HEX lines: public keys of devices that may seal sessions.
        runtime_dir: Where the events socket lies.
        ready_file: Written as JSON with the address once the cloud serves.
        log_file: Structured log, JSON lines.
        log_level: debug, info, warning or error.
    """
    flags = dict(
        listen=Address.parse(listen, CLOUD_PORT),
        models=tuple(NamedModel.parse(text) for text in model),
        engine=engine,
        workers=_addresses(workers),
        workers_ca=workers_ca,
        join_listen=Address.parse(join_listen, JOIN_PORT) if join_listen else None,
        join_keys=join_keys,
        join_cert=join_cert,
        join_key=join_key,
        workers_api_key=os.environ.get("OUTRIDER_WORKERS_API_KEY", ""),
        layers=layers,
        activations=activations,
        device=device,
        dtype=dtype,
        numerics=numerics,
        threads=threads,
        memory=memory,
        max_slots=max_slots,
        context=context,
        trigger=trigger,
        ahead=ahead,
        session_ttl_s=session_ttl,
        keep_alive_s=keep_alive,
        drain_s=drain,
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        paired=paired,
        api_keys=api_keys,
        channel=channel,
        channel_identity=channel_identity,
        channel_devices=channel_devices,
        runtime_dir=runtime_dir,
        ready_file=ready_file,
        log_file=log_file,
        log_level=log_level,
    )
    options = settings.settle(CloudOptions, "cloud", flags)
    serve = _serve_cloud()
    # The port's failure is told as an error of ours; gRPC's own log line would stand before it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    console.note(f"loading {', '.join(model.path for model in options.models)}")
    return serve(options)


def edge(
    *,
    listen: str = str(EDGE.listen),
    cloud: Sequence[str] = (str(EDGE.clouds[0]),),
    cloud_ca: Path | None = None,
    cloud_cert: Path | None = None,
    cloud_key: Path | None = None,
    channel: Literal["auto", "on", "off"] = EDGE.channel,
    channel_identity: Path | None = None,
    channel_pin: str = EDGE.channel_pin,
    channel_router_key: Path | None = None,
    split: str = EDGE.split,
    workers: str = "",
    workers_ca: Path | None = None,
    join_listen: str = str(EDGE.join_listen),
    join_keys: Path | None = None,
    join_cert: Path | None = None,
    join_key: Path | None = None,
    draft: str = EDGE.draft,
    draft_engine: Literal["auto", "torch", "llama", "onnx", "ngram", "fake"] = "auto",
    draft_load: Literal["start", "lazy"] = EDGE.draft_load,
    draft_device: str = EDGE.draft_device,
    draft_threads: int | None = EDGE.draft_threads,
    keep_alive: float = EDGE.keep_alive_s,
    placement: Literal["auto", "edge", "cloud", "draft", "split"] = EDGE.placement,
    objective: Literal["latency", "balanced", "energy"] = EDGE.objective,
    share: Literal["tokens", "hidden", "nothing"] = EDGE.share,
    redact: Sequence[str] = (),
    fallback: Literal["wait", "local", "error"] = EDGE.fallback,
    patience: float = EDGE.patience_s,
    journal: Literal["memory", "disk"] = EDGE.journal,
    journal_dir: Path | None = None,
    api_keys: Path | None = None,
    allow_host: Sequence[str] = (),
    max_running: int = EDGE.max_running,
    max_queue: int = EDGE.max_queue,
    hint_depth: int | None = None,
    power: Literal["auto", "save", "off"] = EDGE.power,
    battery_floor: float = EDGE.battery_floor,
    watt_cap: float | None = None,
    runtime_dir: Path | None = None,
    ready_file: Path | None = None,
    log_file: Path | None = None,
    log_level: LogLevel = "info",
) -> int:
    """Run the daemon, until SIGTERM or ctrl-c. OUTRIDER_CLOUD_API_KEY is sent to the clouds.

    Args:
        listen: HOST:PORT for HTTP. Beyond loopback an API key is required.
        cloud: HOST:PORT of a cloud. Repeat it for more; they are tried in order.
        cloud_ca: TLS to the clouds, checked against this authority (PEM).
        cloud_cert: The device's own certificate.
        cloud_key: Its key.
        channel: Seals sessions inside TLS, where TLS ends before the cloud: auto does so to
            clouds whose key is pinned, on uses no others.
        channel_identity: The device's own key (Ed25519, PEM).
        channel_pin: The cloud's public key: 64 hexadecimal digits, or a file of them.
        channel_router_key: File of 64 hexadecimal digits, shared with a router that may see
            which sealed prompts begin alike.
        split: [NAME=]PATH of a target whose layers lie on workers; this device commits it.
        workers: HOST:PORT,... of the devices that hold them (outrider worker); mdns adds
            those that announce themselves, join those that register.
        workers_ca: TLS to the workers, checked against this authority (PEM).
        join_listen: HOST:PORT at which workers join. Beyond loopback TLS and keys are required.
        join_keys: File of NAME KEY lines; workers must send one of the keys to join.
        join_cert: The certificate at --join-listen (PEM).
        join_key: Its key.
        draft: The small model: a path, bundled:draft, ngram (drafts from the text itself), none.
        draft_engine: What computes the draft; auto goes by what is installed.
        draft_load: lazy loads the draft with the first request, and saves its memory until then.
        draft_device: auto, cpu, cuda:N or mps.
        draft_threads: CPU threads of the drafter.
        keep_alive: Seconds without a request until the draft model is unloaded; the next one
            loads it again. 0 is at once, -1 never.
        placement: auto decides by request; edge, cloud, draft and split pin it.
        objective: What auto weighs: latency counts time alone, balanced joules too, energy joules
            ten times as much.
        share: What may leave the device: tokens, hidden (states between layers, no token ids)
            or nothing; a request may keep back more.
        redact: Take out of prompts, and put back into answers: email, key, card, iban, phone,
            all, with commas between them, or NAME=PATTERN. Repeat it for more.
        fallback: While the cloud is away: wait, go on with the local model, or error.
        patience: Seconds a plain OpenAI stream waits for the cloud before its answer forks.
        journal: Where a request's record lies, so that its text survives: memory or disk.
        journal_dir: Where disk journals lie.
        api_keys: File of NAME KEY lines; HTTP clients must send one of the keys.
        allow_host: A Host header value to take beside loopback's names. Repeat it for more.
        max_running: Answers at a time.
        max_queue: Requests that may wait; then 429 with retry-after.
        hint_depth: Tokens to draft ahead; by default what the cloud wishes.
        power: auto drafts less on a low battery and when it gets hot; save also spares a battery
            that is full; off never minds.
        battery_floor: Charge, 0 to 1, below which nothing is computed here on battery.
        watt_cap: Watts that the device may draw.
        runtime_dir: Where daemon.json and the events socket lie.
        ready_file: Written as JSON with the URL once the daemon serves.
        log_file: Structured log, JSON lines.
        log_level: debug, info, warning or error.
    """
    flags = dict(
        listen=Address.parse(listen, EDGE_PORT),
        clouds=tuple(Address.parse(text, CLOUD_PORT) for text in cloud),
        cloud_ca=cloud_ca,
        cloud_cert=cloud_cert,
        cloud_key=cloud_key,
        channel=channel,
        channel_identity=channel_identity,
        channel_pin=channel_pin,
        channel_router_key=channel_router_key,
        cloud_api_key=os.environ.get("OUTRIDER_CLOUD_API_KEY", ""),
        split=split,
        workers=_addresses(workers),
        workers_ca=workers_ca,
        join_listen=Address.parse(join_listen, JOIN_PORT),
        join_keys=join_keys,
        join_cert=join_cert,
        join_key=join_key,
        draft=draft,
        draft_engine=draft_engine,
        draft_load=draft_load,
        draft_device=draft_device,
        draft_threads=draft_threads,
        keep_alive_s=keep_alive,
        placement=placement,
        objective=objective,
        share=share,
        redact=tuple(redact),
        fallback=fallback,
        patience_s=patience,
        journal=journal,
        journal_dir=journal_dir,
        api_keys=api_keys,
        allowed_hosts=tuple(name.lower() for name in allow_host),
        max_running=max_running,
        max_queue=max_queue,
        hint_depth=hint_depth,
        power=power,
        battery_floor=battery_floor,
        watt_cap=watt_cap,
        runtime_dir=runtime_dir,
        ready_file=ready_file,
        log_file=log_file,
        log_level=log_level,
    )
    options = settings.settle(EdgeOptions, "edge", flags)
    serve = _serve_edge()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    if options.draft not in ("none", "ngram"):
        console.note(f"loading {options.draft}")
    return serve(options)


def _addresses(text: str) -> tuple[Address, ...]:
    """Of workers, in the order that the layers go."""
    return tuple(Address.parse(part.strip(), WORKER_PORT) for part in text.split(",") if part)


def _serve_cloud() -> Callable[[CloudOptions], int]:
    try:
        from outrider.cloud.main import serve
    except ModuleNotFoundError as error:
        raise missing("cloud", error) from None
    return serve


def _serve_edge() -> Callable[[EdgeOptions], int]:
    try:
        from outrider.edge.main import serve
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None
    return serve


def missing(extra: str, error: ModuleNotFoundError) -> Exception:
    """A package of an extra is not there; a module of our own that is not there is a bug."""
    if error.name is None or error.name.split(".")[0] == "outrider":
        return error
    return MissingExtra(error.name, extra)


class MissingExtra(EngineMissing):
    """A verb needs an extra that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.what = f"package {package!r} is not installed"
        self.why = f"`outrider {extra}` needs it"
        self.effect = "nothing was started"
