"""Devices that were paired: their certificates, who they are on a connection, and their end.

The cloud's own certificate is renewed while it serves: each new connection is shown the newest,
and those that are there go on. Devices ask for a new one of theirs over the one they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from outrider import paths
from outrider.errors import AccessDenied, NotFound, OutriderError, SealError
from outrider.privacy import certificates, keys
from outrider.privacy.certificates import Authority, Leaf, Life
from outrider.privacy.devices import Device, Devices
from outrider.privacy.identity import Identity
from outrider.privacy.renewal import METHOD, Renewal
from outrider.protocol import faults

LOOK_S = 0.5
"""Between two looks at who was revoked."""


def devices() -> Devices:
    """Those that are paired with the cloud of this machine."""
    return Devices(paths.state_dir() / "cloud" / "devices.json")


class Revocable(Protocol):
    """What may have to end before its time."""

    device: str

    def refuse(self, error: OutriderError) -> None: ...


@dataclass(slots=True)
class Guests:
    """Who may call, and what the cloud shows them. `clock`: seconds since 1970."""

    identity: Identity
    authority: Authority
    devices: Devices
    clock: Callable[[], float]
    leaf: Leaf = field(init=False)
    life: Life = field(init=False)

    def __post_init__(self) -> None:
        self.renew()

    @classmethod
    def here(cls, clock: Callable[[], float]) -> Guests:
        """This machine's, from its keys. Raises SealError."""
        secrets = keys.here()
        identity = keys.identity(secrets, "verifier")
        authority = certificates.authority(secrets, identity.public, clock())
        found = devices()
        found.now()
        return cls(identity, authority, found, clock)

    # --- the cloud's certificate -----------------------------------------------------------

    def renew(self) -> None:
        self.leaf = self.authority.server(self.identity.public, self.clock())
        self.life = Life.of(self.leaf.pem)

    def tls(self) -> grpc.ServerCredentials:
        """Asks every caller for a certificate of the own authority."""
        return grpc.dynamic_ssl_server_credentials(
            self._shown(), self._newer, require_client_authentication=True
        )

    def _newer(self) -> grpc.ServerCertificateConfiguration:
        """Called by gRPC, on a thread of its own, before each handshake."""
        if self.life.due(self.clock()):
            self.renew()
        return self._shown()

    def _shown(self) -> grpc.ServerCertificateConfiguration:
        pair = (self.leaf.key, self.leaf.pem)
        return grpc.ssl_server_certificate_configuration([pair], self.authority.pem)

    # --- devices ---------------------------------------------------------------------------

    def who(self, context: grpc.aio.ServicerContext[Any, Any]) -> Device:
        """The device on a connection. Raises AccessDenied for one that is not paired any more."""
        names = [bytes(name) for name in context.auth_context().get(_NAMES, ())]
        said = certificates.device_of(names)
        try:
            found = self.devices.find(said or "")
        except (NotFound, SealError):
            found = None
        if found is None or found.revoked_at is not None:
            raise _revoked()
        return found

    def live(self, fingerprint: str) -> bool:
        try:
            return self.devices.find(fingerprint).revoked_at is None
        except (NotFound, SealError):
            return False

    async def watch(self, running: Callable[[], list[Revocable]]) -> None:
        """End what belongs to devices that were revoked."""
        while True:
            for one in running():
                if one.device and not self.live(one.device):
                    one.refuse(_revoked())
            await asyncio.sleep(LOOK_S)

    # --- renewing theirs -------------------------------------------------------------------

    def handlers(self) -> grpc.GenericRpcHandler:
        service, name = METHOD[1:].split("/")
        method: Any = grpc.unary_unary_rpc_method_handler(self._renew)
        return grpc.method_handlers_generic_handler(service, {name: method})

    async def _renew(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            device = self.who(context)
            public = bytes.fromhex(device.public)
            request = Renewal.proven(data, public)
            return self.authority.device(public, request, self.clock())
        except OutriderError as error:
            trailing = ((faults.METADATA, faults.pack(error)),)
            await context.abort(grpc.StatusCode[error.grpc_status], error.what, trailing)
            raise


_NAMES = "x509_subject_alternative_name"


def _revoked() -> AccessDenied:
    return AccessDenied(
        "this device is not paired with the cloud any more",
        why="it was revoked, or the cloud's list of devices was lost",
        effect="its sessions end; what was committed stays",
        todo="pair again: outrider link add NAME URL --pair",
    )
