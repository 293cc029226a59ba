"""A worker as its coordinator reaches it: where, by what name, with which key; and its failures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import grpc

from outrider import transport
from outrider.errors import LinkError, OutriderError, StageLost
from outrider.options import WORKER_PORT, Address
from outrider.protocol import stage_codec
from outrider.protocol.stages import StageHost
from outrider.stages.channel import CHANNEL_OPTIONS, CONNECT_S, DESCRIBE, Credentials, told


@dataclass(frozen=True, slots=True)
class WorkerAt:
    """A worker, and how it is called."""

    address: str
    """HOST:PORT as it is reached from here."""
    name: str = ""
    """In times and errors; empty takes the address."""
    peer_address: str = ""
    """HOST:PORT as other workers reach it; empty: the same."""
    key: str = ""
    """That it gave when it joined; empty takes that of all workers."""

    @property
    def called(self) -> str:
        return self.name or self.address

    @property
    def reached(self) -> str:
        """HOST:PORT for other workers."""
        return self.peer_address or self.address

    def keys(self, credentials: Credentials) -> Credentials:
        """What this one is shown."""
        return replace(credentials, key=self.key) if self.key else credentials


def look(worker: WorkerAt, credentials: Credentials | None = None) -> StageHost:
    """What a worker says of itself. Raises StageLost, AccessDenied, HandshakeRefused."""
    keys = worker.keys(credentials or Credentials())
    with channel_to(worker, keys) as channel:
        call: Any = channel.unary_unary(DESCRIBE)
        try:
            data = call(stage_codec.encode_query(), metadata=keys.metadata, timeout=CONNECT_S)
        except grpc.RpcError as error:
            raise failure(error, worker.called) from None
        return stage_codec.decode_host(data)


def channel_to(worker: WorkerAt, credentials: Credentials) -> grpc.Channel:
    address = Address.parse(worker.address, WORKER_PORT)
    return transport.blocking_channel(address, credentials.tls, CHANNEL_OPTIONS)


def failure(error: Any, name: str) -> OutriderError:
    """Typed by the worker, or the network's fault."""
    found = told(error.trailing_metadata())
    if found is not None and not isinstance(found, LinkError):
        return found
    why = found.what if found else f"gRPC says {error.code().name.lower().replace('_', ' ')}"
    return lost_by(name, LinkError("the worker can not be reached", why=why))


def lost_by(name: str, error: OutriderError) -> StageLost:
    if isinstance(error, StageLost):
        return error
    lost = StageLost(
        f"worker {name} was lost",
        device=name,
        why=f"{error.what}{': ' if error.why else ''}{error.why}",
        effect="passes under way were dropped",
        todo="the layers that it held are planned anew on the devices that are left",
    )
    lost.__cause__ = error
    return lost
