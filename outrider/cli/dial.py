"""One cloud, dialled step by step, so that what fails says at which step."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec
from cryptography import x509

from outrider import transport
from outrider.edge.link import OPTIONS, SERVICE, called, reason
from outrider.errors import AccessDenied, CloudUnreachable, ConfigError, OutriderError
from outrider.options import CloudLink
from outrider.protocol import codec
from outrider.protocol.messages import VERSION, ModelDescription

CALLS = 5
SOON_DAYS = 14.0
"""A certificate with less to live is worth a word."""
PAIRED_SOON_DAYS = 3.0
AHEAD_S = 60.0
"""By so much a cloud's clock may be ahead before it is told."""
DAY_S = 86400.0
EFFECT = "while it is away the small model may answer alone, and says so"


class Certificate(msgspec.Struct, frozen=True):
    subject: str
    until: str
    """A date."""
    days_left: float


class Tried(msgspec.Struct, frozen=True):
    """What a dial found."""

    link: str
    address: str
    ip: str
    connect_ms: float
    certificate: Certificate | None
    rtt_ms: float
    """Median of `calls` empty calls."""
    rtt_least_ms: float
    calls: int
    version: int
    models: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Steps:
    """How far it came, for the error's first line."""

    link: CloudLink
    deadline_s: float
    done: list[str] = field(default_factory=list)

    def failed(self, step: str, why: str, todo: str) -> CloudUnreachable:
        path = ", ".join([f"deadline {self.deadline_s:g} s", *self.done, step])
        what = f"link {self.link.name!r} can not be reached ({path})"
        return CloudUnreachable(what, why=why, effect=EFFECT, todo=todo)


def dial(link: CloudLink, deadline_s: float) -> Tried:
    """Raises CloudUnreachable, AccessDenied, HandshakeRefused, ConfigError."""
    steps = Steps(link, deadline_s)
    ip = _resolve(steps)
    began = time.perf_counter()
    with _connect(steps, ip) as raw:
        connect_ms = (time.perf_counter() - began) * 1e3
        certificate = _greet(steps, raw) if link.ca else None
    models, rtts, version = asyncio.run(_describe(steps))
    return Tried(
        link=link.name,
        address=str(link.url),
        ip=ip,
        connect_ms=connect_ms,
        certificate=certificate,
        rtt_ms=sorted(rtts)[len(rtts) // 2],
        rtt_least_ms=min(rtts),
        calls=len(rtts),
        version=version,
        models=tuple(_told(model) for model in models),
        warnings=tuple(_warnings(link, certificate, models)),
    )


def _resolve(steps: Steps) -> str:
    url = steps.link.url
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except OSError as error:
        why = f"the name {url.host!r} leads nowhere: {error.strerror or error}"
        raise steps.failed(
            "DNS failed", why, "check the name, and this machine's network"
        ) from None
    steps.done.append("DNS ok")
    return str(found[0][4][0])


def _connect(steps: Steps, ip: str) -> socket.socket:
    url = steps.link.url
    try:
        raw = socket.create_connection((ip, url.port), timeout=steps.deadline_s)
    except ConnectionRefusedError:
        todo = f"start `outrider cloud` there, listening on port {url.port}"
        raise steps.failed("TCP refused", f"nothing listens at {ip}:{url.port}", todo) from None
    except TimeoutError:
        why = f"{ip}:{url.port} did not answer: a firewall, or a machine that is off"
        raise steps.failed("TCP timed out", why, "look at firewall and machine") from None
    except OSError as error:
        why = f"{ip}:{url.port}: {error.strerror or error}"
        raise steps.failed("TCP failed", why, "look at this machine's network") from None
    steps.done.append("TCP ok")
    return raw


# --- certificates ------------------------------------------------------------------------------


def _greet(steps: Steps, raw: socket.socket) -> Certificate:
    """TLS as gRPC will do it, for the reason that gRPC does not tell."""
    link = steps.link
    try:
        context = ssl.create_default_context(cafile=str(link.ca))
        if link.cert is not None:
            context.load_cert_chain(link.cert, link.key)
    except OSError as error:
        raise ConfigError(
            f"the certificates of link {link.name!r} can not be used: {error.strerror or error}",
            effect="nothing was dialled",
            todo="check ca, cert and key: PEM files that this user may read",
        ) from None
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(raw, server_hostname=_called(link)) as talk:
            found = talk.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        raise steps.failed("TLS refused", _reason_of(error), _remedy_of(error)) from None
    except (ssl.SSLError, OSError) as error:
        why = f"the handshake ended: {getattr(error, 'reason', None) or error}"
        todo = "check that TLS is on there, and that it takes this device's certificate"
        raise steps.failed("TLS failed", why, todo) from None
    steps.done.append("TLS ok")
    assert found is not None
    return _certificate(x509.load_der_x509_certificate(found))


def _called(link: CloudLink) -> str:
    """The name that its certificate must bear."""
    found = called(link)
    return found[0][1] if found else link.url.host


def _reason_of(error: ssl.SSLCertVerificationError) -> str:
    return f"its certificate is not taken: {error.verify_message}"


def _remedy_of(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message:
        return "renew the cloud's certificate; check this machine's clock too"
    if "not yet valid" in error.verify_message:
        return "set this machine's clock"
    if "match" in error.verify_message:
        return "use a name that stands in the certificate"
    return "give the authority that signed it: ca in [link.NAME]"


def _certificate(found: x509.Certificate) -> Certificate:
    until = found.not_valid_after_utc
    left = (until - datetime.now(UTC)).total_seconds() / DAY_S
    return Certificate(found.subject.rfc4514_string() or "no name", until.date().isoformat(), left)


def own_certificate(path: Path) -> Certificate:
    """Of a PEM file. Raises OSError, ValueError."""
    return _certificate(x509.load_pem_x509_certificate(path.read_bytes()))


# --- the cloud ---------------------------------------------------------------------------------


async def _describe(steps: Steps) -> tuple[tuple[ModelDescription, ...], list[float], int]:
    """What it serves, milliseconds of each call, and its protocol's version."""
    link = steps.link
    tls = transport.channel_tls(
        transport.read_pem(link.ca, "ca"),
        transport.read_pem(link.cert, "cert"),
        transport.read_pem(link.key, "key"),
    )
    channel = transport.channel(link.url, tls, (*OPTIONS, *called(link)))
    try:
        version, models = await _call(steps, channel)
        rtts = []
        for _ in range(CALLS):
            began = time.perf_counter()
            await _call(steps, channel)
            rtts.append((time.perf_counter() - began) * 1e3)
    finally:
        await channel.close()
    return models, rtts, version


async def _call(
    steps: Steps, channel: grpc.aio.Channel
) -> tuple[int, tuple[ModelDescription, ...]]:
    method: Any = channel.unary_unary(f"/{SERVICE}/Describe")
    key = steps.link.api_key()
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    request = codec.encode_describe(VERSION, "", with_tokenizer=False)
    call = method(request, metadata=metadata, timeout=steps.deadline_s, wait_for_ready=True)
    try:
        return codec.decode_description(await call)
    except grpc.aio.AioRpcError:
        raise _typed(steps, await reason(call)) from None


def _typed(steps: Steps, error: OutriderError) -> OutriderError:
    if isinstance(error, AccessDenied):
        todo = f"set api_key_ref of link {steps.link.name!r} to where the key is found"
        error.todo = error.todo or todo
        return error
    if error.exit_code != CloudUnreachable.exit_code:
        return error
    todo = error.todo or "check that an Outrider cloud listens there, and its version"
    return steps.failed("handshake failed", error.why or error.what, todo)


def _told(model: ModelDescription) -> dict[str, Any]:
    return {
        "name": model.name,
        "engine": model.engine,
        "device": model.device,
        "dtype": model.dtype,
        "exact": model.exact,
        "context": model.context,
        "numeric_class": model.numeric_class,
        "vocabulary_digest": model.vocabulary_digest,
    }


def _warnings(
    link: CloudLink, certificate: Certificate | None, models: tuple[ModelDescription, ...]
) -> list[str]:
    # Paired ones are renewed by themselves.
    soon = SOON_DAYS if not link.paired else PAIRED_SOON_DAYS
    found = [] if certificate is None else _soon("the cloud's certificate", certificate, soon)
    if link.cert is not None:
        found += _soon("this device's certificate", own_certificate(link.cert), soon)
    now = datetime.now(UTC).timestamp()
    if ahead := [m.created - now for m in models if m.created - now > AHEAD_S]:
        found.append(f"the cloud's clock is at least {max(ahead):.0f} s ahead of this machine's")
    return found


def _soon(whose: str, certificate: Certificate, days: float) -> list[str]:
    if certificate.days_left > days:
        return []
    return [f"{whose} ends on {certificate.until}, in {certificate.days_left:.0f} days"]
