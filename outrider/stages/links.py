"""Links between workers as they measured them themselves, kept for a while."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from outrider.errors import OutriderError
from outrider.partitioner.device import LinkProfile
from outrider.protocol import fleet_codec
from outrider.protocol.fleet import MeasuredLink, MeasureLink
from outrider.protocol.stages import TICKET_BYTES
from outrider.stages.channel import MEASURE, Credentials
from outrider.stages.worker_at import WorkerAt, channel_to, failure

FRESH_S = 600.0
"""How long a measurement is planned with."""
MEASURE_S = 15.0
LEAST = 1.0
"""Bytes per second, for a planner that divides by it."""

Measure = Callable[[WorkerAt, WorkerAt, Credentials], MeasuredLink]
Pair = tuple[str, str]


def measure(a: WorkerAt, b: WorkerAt, credentials: Credentials) -> MeasuredLink:
    """The way from `a` to `b`, by `a`. Blocks for a second at most on a link that works.

    Raises StageLost, AccessDenied, LinkLost (they do not reach one another), ConfigError.
    """
    ticket = secrets.token_bytes(TICKET_BYTES)
    _asked(b, MeasureLink(ticket), credentials)
    return _asked(a, MeasureLink(ticket, b.reached, credentials.authority), credentials)


def _asked(worker: WorkerAt, message: MeasureLink, credentials: Credentials) -> MeasuredLink:
    keys = worker.keys(credentials)
    with channel_to(worker, keys) as channel:
        call: Any = channel.unary_unary(MEASURE)
        try:
            data = call(
                fleet_codec.encode_measure(message), metadata=keys.metadata, timeout=MEASURE_S
            )
        except grpc.RpcError as error:
            raise failure(error, worker.called) from None
        return fleet_codec.decode_measured(data)


@dataclass(slots=True)
class Links:
    """`clock` gives seconds, monotonic. Used by one thread at a time."""

    clock: Callable[[], float]
    measure: Measure = measure
    _found: dict[Pair, tuple[float, LinkProfile | None]] = field(default_factory=dict)
    """When, and what; None where they do not reach one another."""

    def known(self) -> Mapping[Pair, LinkProfile | None]:
        """What is fresh enough, by the names of both ends; each way to look a pair up is there."""
        now = self.clock()
        fresh = {p: link for p, (at, link) in self._found.items() if now - at < FRESH_S}
        return fresh | {(b, a): link for (a, b), link in fresh.items()}

    def learn(
        self, pairs: Iterable[Pair], workers: Mapping[str, WorkerAt], credentials: Credentials
    ) -> bool:
        """Measure those that are not known; whether there were any."""
        known = self.known()
        fresh = [pair for pair in pairs if pair not in known]
        for a, b in fresh:
            link = self._asked(workers[a], workers[b], credentials)
            self._found[a, b] = (self.clock(), link)
        return bool(fresh)

    def _asked(self, a: WorkerAt, b: WorkerAt, credentials: Credentials) -> LinkProfile | None:
        try:
            found = self.measure(a, b, credentials)
        except OutriderError:
            # Whatever it was: a chain would find the same, and send through the coordinator.
            return None
        return LinkProfile(
            a.called,
            b.called,
            found.rtt_us / 1e6,
            max(LEAST, found.up_bytes_per_s),
            max(LEAST, found.down_bytes_per_s),
            source="measured",
        )
