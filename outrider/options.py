"""What the two servers can be told, checked. The CLI fills these; each field says what it does."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outrider.errors import ConfigError, InvalidRequest

CLOUD_PORT = 11712
EDGE_PORT = 11711
WORKER_PORT = 11713
JOIN_PORT = 11714
JOIN = "join"
"""In the place of a worker's address: workers register themselves."""


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT; port 0 takes any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int) -> Address:
        """`HOST`, `HOST:PORT`, `:PORT`, `[::1]:PORT`. Raises ConfigError."""
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]*))(?::(\d{1,5}))?", text)
        if match is None or (match[3] and int(match[3]) > 65535):
            raise ConfigError(f"{text!r} is no address", todo="write HOST:PORT")
        return cls(match[1] or match[2] or "127.0.0.1", int(match[3] or default_port))

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NamedModel:
    """`[NAME=]PATH`."""

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> NamedModel:
        """Without a name the last part of the path serves as one. Raises ConfigError."""
        name, separator, path = text.partition("=")
        if not separator:
            name, path = "", text
        if not path:
            raise ConfigError(f"{text!r} names no model", todo="write [NAME=]PATH")
        return cls(name or _short(path), path)


def _short(path: str) -> str:
    if path.startswith("bundled:"):
        return "outrider-" + path.removeprefix("bundled:")
    return Path(path).name.removesuffix(".gguf").removesuffix(".onnx") or "model"


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, not {value}")


LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class CloudOptions:
    """`outrider cloud`."""

    listen: Address = Address("127.0.0.1", CLOUD_PORT)
    """Where to serve gRPC; beyond loopback TLS and API keys are required."""
    models: tuple[NamedModel, ...] = (NamedModel("outrider-target", "bundled:target"),)
    """What to serve; the first is the default."""
    engine: str = "auto"
    """auto, torch, llama, onnx, fake."""
    device: str = "auto"
    """auto, cpu, cuda:N, mps."""
    dtype: str = "auto"
    """auto, or what the engine computes in, such as float32 or bfloat16."""
    numerics: Literal["exact", "plain"] = "exact"
    """`plain` gives up identity for speed; sessions that require exactness are refused."""
    threads: int | None = None
    """CPU threads of each engine; None leaves it to the engine."""
    memory: str = ""
    """For weights and KV, such as `2G`: what does not fit lies on disk; empty for no limit."""
    max_slots: int = 32
    """Answers computed at a time, per model."""
    context: int | None = None
    """Tokens per answer with its prompt; None takes what the model was made for."""
    trigger: str = "auto"
    """free, wait:MS, or auto: whether a pass waits for hints; auto goes by expected rate."""
    ahead: int = 64
    """Tokens the committer may run past what the device has seen."""
    keep_alive_s: float = -1.0
    """Seconds without a session until a model is unloaded; the next one loads it again. 0 is at
    once, -1 never: a cloud is there to answer at once."""
    session_ttl_s: float = 30.0
    """How long a session outlives its stream."""
    channel: Literal["auto", "required"] = "auto"
    """Sessions may be sealed inside TLS by those who are paired; `required` refuses all others."""
    channel_identity: Path | None = None
    """The cloud's own key (Ed25519, PEM), which devices pin."""
    channel_devices: Path | None = None
    """File of `NAME HEX` lines: public keys of devices whose sessions may be sealed."""
    workers: tuple[Address, ...] = ()
    """Devices that hold the layers (`outrider worker`); none: the models are computed here."""
    workers_ca: Path | None = None
    """TLS to the workers, checked against this authority; required beyond loopback."""
    workers_api_key: str = ""
    """Sent to the workers; OUTRIDER_WORKERS_API_KEY in the environment."""
    join_listen: Address | None = None
    """Where workers join, if `workers` has `join`; None is where the cloud serves."""
    join_keys: Path | None = None
    """File of `NAME KEY` lines that workers must show one of to join; required beyond loopback,
    and apart from the devices' keys, since a worker sees everybody's text."""
    join_cert: Path | None = None
    """The certificate at `join_listen`."""
    join_key: Path | None = None
    """Its key."""
    layers: str = "auto"
    """What lies where: `auto` plans it, `A:B,B:C,...` deals ranges to the workers in turn."""
    activations: Literal["fp32", "bf16", "fp16", "int8", "int4"] = "fp32"
    """How hidden states travel between workers; what loses bits makes another numeric class."""
    tls_cert: Path | None = None
    """The server's certificate (PEM)."""
    tls_key: Path | None = None
    """Its key."""
    client_ca: Path | None = None
    """With it, devices must show a certificate of this authority."""
    paired: bool = False
    """Devices that were paired (`outrider link invite`) may call, and nobody else: TLS both ways,
    with certificates that this cloud issues and renews."""
    api_keys: Path | None = None
    """File of tenants' keys, as `outrider tenants add` writes it."""
    runtime_dir: Path | None = None
    """Where the events socket lies; None takes the user's runtime directory."""
    drain_s: float = 10.0
    """How long sessions may go on after SIGTERM."""
    ready_file: Path | None = None
    """Written as JSON with the address once the cloud serves."""
    log_file: Path | None = None
    """Structured log, JSON lines; without it journald gets them where systemd started it."""
    log_level: LogLevel = "info"
    """debug, info, warning, error."""
    reread: Callable[[], CloudOptions] | None = field(default=None, compare=False, repr=False)
    """Reads the settings anew, flags first as before. Raises ConfigError."""

    def __post_init__(self) -> None:
        _positive("--ahead", self.ahead)
        _positive("--session-ttl", self.session_ttl_s)
        parse_trigger(self.trigger)
        if len({model.name for model in self.models}) != len(self.models) or not self.models:
            raise ConfigError("models need names of their own", todo="write --model NAME=PATH")
        if not self.workers and (self.layers, self.activations) != ("auto", "fp32"):
            raise ConfigError("--layers and --activations need --workers, the devices they are for")
        check_workers(self.workers, self.workers_ca)
        check_joining(self.joins, self.join_listen or self.listen, self.join_keys, self.join_flags)
        if self.join_listen is not None:
            check_encrypted("--join-listen", self.join_listen, self.join_cert, self.join_key)
        if self.workers and self.engine not in ("auto", "split"):
            raise ConfigError(
                f"--engine {self.engine} computes here, and --workers elsewhere",
                todo="leave --engine away: each worker has its own",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        if self.client_ca is not None and self.tls_cert is None:
            raise ConfigError("--client-ca needs --tls-cert and --tls-key")
        if (self.channel_identity is None) != (self.channel_devices is None):
            raise ConfigError("--channel-identity and --channel-devices go together")
        if self.channel == "required" and self.channel_identity is None:
            raise ConfigError(
                "--channel required needs --channel-identity and --channel-devices",
                why="without them no session can be sealed",
                effect="the cloud was not started",
            )
        if self.paired and self.tls_cert is not None:
            raise ConfigError(
                "--paired and --tls-cert exclude each other",
                why="paired devices trust the certificates that this cloud issues by itself",
                effect="the cloud was not started",
            )
        known = self.tls_cert is not None and self.api_keys is not None
        if not self.listen.loopback and not known and not self.paired:
            raise ConfigError(
                f"{self.listen} is not a loopback address",
                why="beyond loopback every connection must be encrypted and known",
                effect="the cloud was not started",
                todo="give --paired and pair the devices; or --tls-cert, --tls-key and --api-keys; "
                "or listen on 127.0.0.1",
            )

    @property
    def joins(self) -> bool:
        """Whether workers may register themselves."""
        return any(worker.host == JOIN for worker in self.workers)

    @property
    def join_flags(self) -> bool:
        """Whether anything was said about joining."""
        given = (self.join_listen, self.join_keys, self.join_cert, self.join_key)
        return any(each is not None for each in given)


def check_joining(
    joins: bool,  # noqa: FBT001 - two facts about the options
    listen: Address,
    keys: Path | None,
    flags: bool,  # noqa: FBT001
) -> None:
    """Raises ConfigError for workers that could join unasked or unknown."""
    if flags and not joins:
        raise ConfigError("--join-listen and its kin need --workers join")
    if joins and not listen.loopback and keys is None:
        raise ConfigError(
            f"anybody could join at {listen}",
            why="a worker sees every text that it helps to compute",
            effect="nothing was started",
            todo="give --join-keys, a file of NAME KEY lines, or listen on 127.0.0.1",
        )


def check_encrypted(flag: str, listen: Address, cert: Path | None, key: Path | None) -> None:
    """Raises ConfigError for half a certificate, and for none beyond loopback."""
    if (cert is None) != (key is None):
        raise ConfigError("--join-cert and --join-key go together")
    if not listen.loopback and cert is None:
        raise ConfigError(
            f"{flag} {listen} is not a loopback address",
            why="beyond loopback every connection must be encrypted and known",
            effect="nothing was started",
            todo="give --join-cert, --join-key and --join-keys, or listen on 127.0.0.1",
        )


def check_workers(workers: Sequence[Address], authority: Path | None) -> None:
    """Raises ConfigError for what may not be sent in the clear, and for a worker named twice."""
    if len(set(workers)) != len(workers):
        raise ConfigError("--workers names a device twice", todo="give it more ranges in --layers")
    named = [worker for worker in workers if worker.host != JOIN]
    if authority is None and any(not worker.loopback for worker in named):
        raise ConfigError(
            "a worker beyond loopback needs TLS",
            effect="nothing was started",
            todo="give --workers-ca, the authority that signed the workers' certificates",
        )


def check_redact(words: Sequence[str]) -> None:
    """Raises ConfigError for what can not be looked for."""
    if not words:
        return
    from outrider.privacy.redact import Rules

    try:
        Rules.parse(words, "--redact")
    except InvalidRequest as refused:
        raise ConfigError(
            refused.what, why=refused.why, effect="the edge was not started"
        ) from None


def parse_trigger(text: str) -> tuple[Literal["auto", "free", "wait"], float]:
    """(mode, milliseconds). Raises ConfigError."""
    if text == "auto":
        return "auto", 0.0
    if text == "free":
        return "free", 0.0
    match = re.fullmatch(r"wait:(\d+(?:\.\d+)?)(?:ms)?", text)
    if match is None or float(match[1]) > 10_000:
        raise ConfigError(f"trigger {text!r} is unknown", todo="auto, free, or wait:MS up to 10000")
    return "wait", float(match[1])


@dataclass(frozen=True, slots=True)
class CloudLink:
    """A cloud by name: `[link.NAME]` of the configuration."""

    url: Address
    """HOST:PORT, also written grpc://HOST:PORT."""
    name: str = ""
    ca: Path | None = None
    """TLS, checked against this authority (PEM); required beyond loopback."""
    cert: Path | None = None
    """With `key`: the device's own certificate (PEM)."""
    key: Path | None = None
    """The key of `cert`."""
    api_key_ref: str = ""
    """Where the key for this cloud is found: env:VARIABLE or file:PATH."""
    priority: int = 100
    """Lower ones are tried first."""
    pin: str = ""
    """The cloud's public key, 64 hexadecimal digits or a file of them: sessions there are sealed
    inside TLS, with the device's `channel_identity`."""
    paired: str = ""
    """The public key (64 hexadecimal digits) of the cloud that was paired with: its certificate
    must be made for it. Written by `outrider link add --pair`."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError(f"cert and key of link {self.name!r} go together")
        if self.ca is None and not self.url.loopback:
            raise ConfigError(
                f"link {self.name!r} leads to {self.url}, which needs TLS",
                why="keys and tokens would travel in the clear",
                effect="the link was not taken",
                todo="name the authority that signed the cloud's certificate in `ca`",
            )
        if self.paired and not re.fullmatch(r"[0-9a-f]{64}", self.paired):
            raise ConfigError(
                f"`paired` of link {self.name!r} is no public key",
                effect="the link was not taken",
                todo="pair again: outrider link add NAME URL --pair",
            )
        if self.api_key_ref and not re.fullmatch(r"env:\w+|file:.+", self.api_key_ref):
            raise ConfigError(
                f"api_key_ref of link {self.name!r} names no place of a key",
                why="a key itself has no business in a file of settings",
                effect="the link was not taken",
                todo="write env:VARIABLE or file:PATH",
            )

    def api_key(self) -> str:
        """The key itself, empty without a reference. Raises ConfigError where it is not found."""
        kind, _, place = self.api_key_ref.partition(":")
        if kind == "env":
            return os.environ.get(place, "")
        if kind != "file":
            return ""
        try:
            return Path(place).expanduser().read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"the key of link {self.name!r} can not be read: {error.strerror}",
                effect="the link can not be used",
                todo=f"put the key into {place}, readable by this user alone",
            ) from None


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """`outrider edge`."""

    listen: Address = Address("127.0.0.1", EDGE_PORT)
    """Where to serve HTTP; beyond loopback an API key is required."""
    clouds: tuple[Address, ...] = (Address("127.0.0.1", CLOUD_PORT),)
    """Tried in order."""
    cloud_ca: Path | None = None
    """TLS to the clouds, checked against this authority; required beyond loopback."""
    cloud_cert: Path | None = None
    """With `cloud_key`: the device's own certificate."""
    cloud_key: Path | None = None
    """The key of `cloud_cert`."""
    cloud_api_key: str = ""
    """Sent to the clouds; OUTRIDER_CLOUD_API_KEY in the environment."""
    links: tuple[CloudLink, ...] = ()
    """Clouds by name, each with certificates and a key of its own; tried after `clouds`."""
    channel: Literal["auto", "on", "off"] = "auto"
    """Whether sessions are sealed inside TLS, for when TLS ends before the cloud: auto seals them
    to clouds whose key is pinned, on uses no others."""
    channel_identity: Path | None = None
    """The device's own key (Ed25519, PEM), which the clouds know."""
    channel_pin: str = ""
    """The clouds' public key: 64 hexadecimal digits, or a file of them."""
    channel_router_key: Path | None = None
    """File of 64 hexadecimal digits, shared with a router that may tell which sealed prompts
    begin alike, and about how long they are; None tells it nothing."""
    split: str = ""
    """[NAME=]PATH of a target whose layers lie on `workers`; this device commits it."""
    workers: tuple[Address, ...] = ()
    """Devices that hold the layers of `split` (`outrider worker`)."""
    workers_ca: Path | None = None
    """TLS to the workers, checked against this authority; required beyond loopback."""
    join_listen: Address = Address("127.0.0.1", JOIN_PORT)
    """Where workers join, if `workers` has `join`; beyond loopback TLS and keys are required."""
    join_keys: Path | None = None
    """File of `NAME KEY` lines that workers must show one of to join."""
    join_cert: Path | None = None
    """The certificate at `join_listen` (PEM)."""
    join_key: Path | None = None
    """Its key."""
    draft: str = "bundled:draft"
    """A model path, `ngram`, or `none`."""
    draft_load: Literal["start", "lazy"] = "start"
    """lazy loads the draft with the first request: until then the daemon needs half the memory."""
    keep_alive_s: float = 300.0
    """Seconds without a request until the draft model is unloaded; the next one loads it again.
    0 is at once, -1 never."""
    draft_engine: str = "auto"
    """auto, torch, llama, onnx, ngram, fake: what computes the draft."""
    draft_device: str = "auto"
    """auto, cpu, cuda:N, mps."""
    draft_threads: int | None = 1
    """One thread drafts a small model fastest, and leaves the others to the user."""
    placement: Literal["auto", "edge", "cloud", "draft", "split"] = "auto"
    """auto decides by request; edge, cloud, draft and split pin it."""
    objective: Literal["latency", "balanced", "energy"] = "balanced"
    """What placement weighs: time alone, time and joules, or joules ten times as much."""
    share: Literal["tokens", "hidden", "nothing"] = "tokens"
    """What may leave the device: token ids, hidden states alone, or nothing at all; a request may
    keep back more, not less."""
    redact: tuple[str, ...] = ()
    """What is taken out of prompts before they leave, and put back into answers: email, key, card,
    iban, phone, all, or NAME=PATTERN; a request may add to it."""
    fallback: Literal["wait", "local", "error"] = "local"
    """What an answer does when the cloud is away: wait, go on with the draft model, or fail."""
    patience_s: float = 10.0
    """How long a plain OpenAI stream waits for the cloud before its answer forks."""
    journal: Literal["memory", "disk"] = "memory"
    """Where a request's record lies, so that its text survives."""
    journal_dir: Path | None = None
    """Where disk journals lie; None takes the user's state directory."""
    api_keys: Path | None = None
    """File of `NAME KEY` lines that HTTP clients must show one of."""
    allowed_hosts: tuple[str, ...] = ()
    """Host header values to take beside loopback names."""
    max_running: int = 16
    """Answers at a time."""
    max_queue: int = 64
    """Requests that may wait; then 429 with retry-after."""
    hint_depth: int | None = None
    """Tokens to draft ahead; None follows the cloud's wish."""
    power: Literal["auto", "save", "off"] = "auto"
    """auto: draft less on a low battery, when it gets hot, and in a low-power profile; save: also
    none on battery; off: never mind."""
    battery_floor: float = 0.2
    """Charge (0 to 1) below which nothing is computed here on battery: where laptops and phones
    begin to warn, and begin to save by themselves."""
    watt_cap: float | None = None
    """Watts the device may draw; drafts get shallower above it, and stop a quarter beyond."""
    runtime_dir: Path | None = None
    """Where daemon.json and the events socket lie."""
    ready_file: Path | None = None
    """Written as JSON with the URL once the daemon serves."""
    log_file: Path | None = None
    """Structured log, JSON lines; without it journald gets them where systemd started it."""
    log_level: LogLevel = "info"
    """debug, info, warning, error."""
    reread: Callable[[], EdgeOptions] | None = field(default=None, compare=False, repr=False)
    """Reads the settings anew, flags first as before. Raises ConfigError."""

    def __post_init__(self) -> None:
        _positive("--patience", self.patience_s)
        _positive("--max-running", self.max_running)
        if self.max_queue < 0:
            raise ConfigError("--max-queue can not be negative")
        if self.hint_depth is not None and not 0 <= self.hint_depth <= 32:
            raise ConfigError("--hint-depth lies between 0 and 32")
        if not 0 <= self.battery_floor <= 1:
            raise ConfigError(
                f"--battery-floor lies between 0 and 1, not at {self.battery_floor}",
                todo="write 0.2 for 20 %",
            )
        if self.watt_cap is not None:
            _positive("--watt-cap", self.watt_cap)
        check_redact(self.redact)
        check_workers(self.workers, self.workers_ca)
        flags = any(each is not None for each in (self.join_keys, self.join_cert, self.join_key))
        check_joining(self.joins, self.join_listen, self.join_keys, flags)
        check_encrypted("--join-listen", self.join_listen, self.join_cert, self.join_key)
        if bool(self.split) != bool(self.workers):
            raise ConfigError(
                "--split and --workers go together",
                why="one names a model, the other the devices that hold its layers",
                effect="the edge was not started",
            )
        self._check_placement()
        if (self.cloud_cert is None) != (self.cloud_key is None):
            raise ConfigError("--cloud-cert and --cloud-key go together")
        if self.cloud_ca is None and any(not cloud.loopback for cloud in self.clouds):
            raise ConfigError(
                "a cloud beyond loopback needs TLS",
                effect="the edge was not started",
                todo="give --cloud-ca, the authority that signed the cloud's certificate",
            )
        self._check_channel()
        if not self.listen.loopback and self.api_keys is None:
            raise ConfigError(
                f"{self.listen} is not a loopback address",
                why="beyond loopback every client must be known",
                effect="the edge was not started",
                todo="give --api-keys, or listen on 127.0.0.1",
            )

    @property
    def workers_here(self) -> bool:
        """All stages of `split` lie on this very machine."""
        return all(worker.loopback for worker in self.workers)

    def _check_channel(self) -> None:
        pinned = bool(self.channel_pin) or any(link.pin for link in self.links)
        if self.channel != "off" and pinned and self.channel_identity is None:
            raise ConfigError(
                "a pinned cloud needs --channel-identity",
                why="both sides of a sealed channel show who they are",
                effect="the edge was not started",
                todo="name the device's key, or say --channel off",
            )
        if self.channel == "on" and not pinned:
            raise ConfigError(
                "--channel on needs --channel-pin",
                why="without the cloud's key whoever stands between could answer",
                effect="the edge was not started",
                todo="pin the cloud's public key",
            )
        if self.channel_router_key is not None and (self.channel == "off" or not pinned):
            raise ConfigError("--channel-router-key needs a sealed channel: --channel-pin")

    def _check_placement(self) -> None:
        """Raises ConfigError where `placement`, `share`, `split` and `draft` contradict."""
        if self.placement == "split" and not self.split:
            raise ConfigError(
                "--placement split needs --split and --workers",
                effect="the edge was not started",
                todo="name the model that lies on the workers, or another placement",
            )
        if self.share == "tokens":
            return
        elsewhere = self.placement in ("cloud", "draft")
        if elsewhere or (self.share == "nothing" and self.split):
            what = "--split" if self.split and not elsewhere else f"--placement {self.placement}"
            raise ConfigError(
                f"--share {self.share} and {what} contradict each other",
                why="other devices get what may not leave this one",
                effect="the edge was not started",
                todo="leave one of them away",
            )
        if self.split and not self.workers_here:
            raise ConfigError(
                "--share hidden needs the split model's embedding and head on this device",
                why="a worker elsewhere may be dealt them, and would get the token ids",
                effect="the edge was not started",
                todo="run the workers on this machine, or share tokens",
            )
        if not self.split and self.draft in ("none", "ngram"):
            raise ConfigError(
                f"with --share {self.share} and --draft {self.draft} nothing can answer",
                effect="the edge was not started",
                todo="give --draft a model",
            )

    @property
    def joins(self) -> bool:
        """Whether workers may register themselves."""
        return any(worker.host == JOIN for worker in self.workers)


DeviceKind = Literal["phone", "laptop", "jetson", "desktop", "server", "cloud"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """`outrider worker`."""

    listen: Address = Address("127.0.0.1", WORKER_PORT)
    """Where to serve gRPC; beyond loopback TLS and API keys are required."""
    name: str = ""
    """What people call the device; empty takes the machine's name."""
    kind: DeviceKind = "laptop"
    """For whoever plans: phone, laptop, jetson, desktop, server, cloud."""
    models: tuple[NamedModel, ...] = (NamedModel("outrider-target", "bundled:target"),)
    """Models whose files lie here."""
    layers: str = "auto"
    """auto takes what it is asked for; `A:B` only decoder layers A up to B without B."""
    memory_bytes: int | None = None
    """What stages may claim, weights and KV; None bounds nothing."""
    speed: float = 1.0
    """Below 1 a slower device is emulated: passes take as much longer."""
    engine: Literal["auto", "torch", "onnx"] = "auto"
    """auto goes by what is installed."""
    device: str = "auto"
    """auto, cpu, cuda:N, mps."""
    dtype: str = "auto"
    """auto, or what the engine computes in."""
    threads: int | None = None
    """CPU threads; None leaves it to the engine, and gives an emulated device one."""
    tls_cert: Path | None = None
    """The worker's certificate (PEM)."""
    tls_key: Path | None = None
    """Its key."""
    client_ca: Path | None = None
    """With it, coordinators must show a certificate of this authority."""
    api_keys: Path | None = None
    """File of `NAME KEY` lines."""
    mdns: bool = False
    """Announce it on the local network."""
    join: tuple[Address, ...] = ()
    """Coordinators to register at, and to be called by."""
    join_ca: Path | None = None
    """TLS to them, checked against this authority; required beyond loopback."""
    join_api_key: str = ""
    """Sent to them; OUTRIDER_CLOUD_API_KEY in the environment."""
    advertise: Address | None = None
    """Where coordinators and other workers reach it, if not where it listens."""
    accept_weights: int | None = None
    """Bytes of weights that coordinators may send, in all; None takes none."""
    cache: Path | None = None
    """Where they are kept; None takes the user's cache folder."""
    drain_s: float = 10.0
    """How long coordinators may go on after SIGTERM."""
    ready_file: Path | None = None
    """Written as JSON with the address once the worker serves."""

    def __post_init__(self) -> None:
        self._check_device()
        parse_bounds(self.layers)
        if len({model.name for model in self.models}) != len(self.models):
            raise ConfigError("models need names of their own", todo="write --model NAME=PATH")
        self._check_joins()
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        if self.client_ca is not None and self.tls_cert is None:
            raise ConfigError("--client-ca needs --tls-cert and --tls-key")
        known = self.api_keys is not None or bool(self.join)
        if not self.listen.loopback and (self.tls_cert is None or not known):
            raise ConfigError(
                f"{self.listen} is not a loopback address",
                why="beyond loopback every connection must be encrypted and known",
                effect="the worker was not started",
                todo="give --tls-cert, --tls-key and --api-keys, or listen on 127.0.0.1",
            )
        if self.mdns and self.listen.loopback:
            raise ConfigError(
                "--mdns announces a worker that nobody else can reach",
                why=f"it listens on {self.listen}",
                effect="the worker was not started",
                todo="listen on the network, or leave --mdns away",
            )

    def _check_joins(self) -> None:
        if not self.models and self.accept_weights is None:
            raise ConfigError(
                "a worker without models has nothing to hold",
                effect="the worker was not started",
                todo="give --model, or --accept-weights for those that coordinators send",
            )
        if self.accept_weights is not None:
            _positive("--accept-weights", self.accept_weights)
        if self.join_ca is None and any(not each.loopback for each in self.join):
            raise ConfigError(
                "a coordinator beyond loopback needs TLS",
                effect="the worker was not started",
                todo="give --join-ca, the authority that signed the coordinator's certificate",
            )

    def _check_device(self) -> None:
        if not 0.0 < self.speed <= 1.0:
            raise ConfigError(
                f"a speed of {self.speed:g} can not be emulated",
                why="waiting makes a device slower, nothing makes it faster",
                effect="the worker was not started",
                todo="give a --speed above 0, at most 1",
            )
        if self.memory_bytes is not None:
            _positive("--memory", self.memory_bytes)
        if self.threads is not None:
            _positive("--threads", self.threads)


def parse_bounds(text: str) -> tuple[int, int]:
    """`auto` is (0, 0); `A:B` decoder layers A up to B without B. Raises ConfigError."""
    if text == "auto":
        return 0, 0
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"layers {text!r} are no range", todo="auto, or A:B such as 0:12")
    return int(match[1]), int(match[2])
