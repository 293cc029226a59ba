"""Where workers join a coordinator: one call, renewed as long as the worker wants to be used."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from outrider import transport
from outrider.errors import ConfigError
from outrider.options import WORKER_PORT, Address
from outrider.protocol import fleet_codec
from outrider.protocol.fleet import JoinReply, JoinRequest
from outrider.protocol.stages import HostedModel
from outrider.stages.channel import JOINING, SERVER_OPTIONS, guarded, metadata_of
from outrider.stages.roster import Entry, Register

LEASE_S = 6.0
"""A worker that is not heard of for so long leaves the fleet."""
SWEEP_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True, eq=False)
class Desk:
    """`who` gives the name of an `authorization` value, or raises AccessDenied; `tell` is given
    a line for people when a worker comes or goes."""

    register: Register
    models: tuple[HostedModel, ...]
    who: Callable[[str], str]
    tell: Callable[[str], None]
    far: str = ""
    """Why workers beyond loopback can not be called from here; empty when they can."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def open(
        cls,
        folder: Path,
        models: tuple[HostedModel, ...],
        who: Callable[[str], str],
        tell: Callable[[str], None],
        authority: Path | None,
    ) -> Desk:
        """`folder` is for this user alone; `authority` signed the workers' certificates."""
        far = "" if authority else "the coordinator has no --workers-ca to know its certificate by"
        register = Register(folder / "roster.json", LEASE_S, time.monotonic)
        return cls(register, models, who, tell, far)

    def handlers(self) -> grpc.GenericRpcHandler:
        join: Any = grpc.unary_unary_rpc_method_handler(self.join)
        return grpc.method_handlers_generic_handler(JOINING, {"Join": join})

    async def serve(
        self, listen: Address, tls: grpc.ServerCredentials | None, stack: AsyncExitStack
    ) -> str:
        """On a port of its own; the address. Raises PortInUse, ConfigError."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((self.handlers(),))
        address = transport.bind(server, listen, tls, "desk for workers")
        await server.start()
        stack.push_async_callback(server.stop, 0.2)
        return address

    async def join(self, data: bytes, context: Context) -> bytes:
        answer: bytes = await guarded(context, self._join(data, context))
        return answer

    async def _join(self, data: bytes, context: Context) -> bytes:
        self.who(str(metadata_of(context, "authorization")))
        request = fleet_codec.decode_join(data)
        address = str(self._reached(request, _peer(context)))
        entry = Entry(request.name, request.kind, address, request.key)
        if request.leaving:
            if self.register.remove(address):
                self._news(f"worker {request.name} leaves ({address})")
        elif self.register.renew(entry):
            self._news(f"worker {request.name} joined at {address}")
        reply = JoinReply(int(self.register.lease_s * 1e3), address, self.models)
        return fleet_codec.encode_joined(reply)

    def _reached(self, request: JoinRequest, peer: str) -> Address:
        """Where the worker is called. Raises ConfigError for what can not be."""
        address = Address.parse(request.address, WORKER_PORT)
        if _unspecified(address.host):
            address = Address(peer, address.port)
        why = self.far
        if address.loopback:
            near = Address(peer, 0).loopback
            why = "" if near else f"it calls from {peer}, and would be called on this machine"
        if why:
            raise ConfigError(
                f"worker {request.name} can not be called at {address}",
                why=why,
                effect="it did not join",
                todo="give the worker --advertise HOST:PORT and TLS, the coordinator --workers-ca",
            )
        return address

    def _news(self, line: str) -> None:
        self.tell(line)
        self.changed.set()

    async def sweep(self) -> None:
        """Forget workers whose lease ended, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            for gone in self.register.expire():
                self._news(f"worker {gone.name} was not heard of for {LEASE_S:g} s")


def _peer(context: Context) -> str:
    """The caller's IP address, of gRPC's `ipv4:1.2.3.4:5` or `ipv6:%5B::1%5D:5`."""
    kind, _, rest = unquote(str(context.peer())).partition(":")
    host = rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else "127.0.0.1"
    return host.partition("%")[0]


def _unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
