"""How coordinators and workers speak gRPC: options, credentials, and errors both ways."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from outrider import transport
from outrider.errors import LinkLost, OutriderError
from outrider.protocol import faults

SERVICE = "outrider.v1.Stages"
DESCRIBE, LOAD, RUN, RELAY, PUSH, MEASURE, PROBE = (
    f"/{SERVICE}/{name}"
    for name in ("Describe", "Load", "Run", "Relay", "Push", "Measure", "Probe")
)
JOINING = "outrider.v1.Joining"
JOIN = f"/{JOINING}/Join"
PIPELINE_KEY = "outrider-pipeline-bin"
TICKET_KEY = "outrider-ticket-bin"
INDEX_KEY = "outrider-stage"

MAX_MESSAGE = 64 << 20
BEAT_S = 0.5
"""Between two signs of life on a stream that is otherwise silent."""
SILENCE_S = 2.2
"""Nothing from a worker for this long: it is lost."""
PATIENCE_S = 10.0
"""Nothing from a coordinator for this long: its stages are free. Longer, since a device that
holds them for nobody costs less than one that gives them up too soon."""
CONNECT_S = 3.0

_SHARED: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # What may be on its way of one message: more than 64 KiB, or a round trip would bound a
    # pass; not much more, or signs of life would wait behind it on a slow link.
    ("grpc.http2.lookahead_bytes", 256 << 10),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1500),
    ("grpc.http2.ping_timeout_ms", 1500),
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SHARED,
    ("grpc.so_reuseport", 0),
    ("grpc.max_metadata_size", 16384),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 200),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 200),
)
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_SHARED,
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Also the least time a connection gets to be made.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1e3)),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
    # Two chains of one process to one worker do not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What a coordinator shows its workers. PEM, empty where there is none."""

    key: str = ""
    """An API key of theirs."""
    authority: bytes = b""
    """Signed the workers' certificates; without it there is no TLS, on loopback alone."""
    certificate: bytes = b""
    private_key: bytes = b""

    @classmethod
    def read(
        cls, key: str, authority: Path | None, cert: Path | None = None, private: Path | None = None
    ) -> Credentials:
        """Raises ConfigError for a file that can not be read."""
        return cls(
            key,
            transport.read_pem(authority, "the workers' authority"),
            transport.read_pem(cert, "the certificate for workers"),
            transport.read_pem(private, "the key for workers"),
        )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    @property
    def tls(self) -> grpc.ChannelCredentials | None:
        return transport.channel_tls(self.authority, self.certificate, self.private_key)


# --- errors over the wire ----------------------------------------------------------------------


def told(trailing: Iterable[tuple[str, Any]] | None) -> OutriderError | None:
    """The typed error in a failed call's trailing metadata; None: the network's fault."""
    for key, value in trailing or ():
        if key == faults.METADATA and isinstance(value, bytes):
            return faults.unpack(value)
    return None


async def guarded(context: grpc.aio.ServicerContext[Any, Any], work: Awaitable[Any]) -> Any:
    """Typed errors become a status with detail; whatever else happened tells its kind alone."""
    try:
        return await work
    except OutriderError as error:
        fault = error
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - its text could hold a prompt
        fault = OutriderError(
            f"the worker failed with {type(error).__name__}",
            effect="the call ended",
            todo="please report it",
        )
    trailing = ((faults.METADATA, faults.pack(fault)),)
    await context.abort(grpc.StatusCode[fault.grpc_status], fault.what, trailing)


def metadata_of(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str | bytes:
    """Empty text where the caller sent none of that name."""
    found = context.invocation_metadata() or ()
    return next((value for key, value in found if key == name), "")


async def reason(call: Any, what: str) -> OutriderError:
    """Why an outgoing call of the event loop's kind failed."""
    code, trailing = await call.code(), await call.trailing_metadata()
    detail = f"gRPC says {code.name.lower().replace('_', ' ')}"
    return told(trailing) or LinkLost(what, why=detail)
