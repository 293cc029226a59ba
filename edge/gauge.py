"""What the daemon says of itself in turn: a gauge, and the plan when it changes.

Readers of events that come late learn here what `outrider status` would have told them.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from outrider import __version__
from outrider.edge.daemon import Daemon
from outrider.edge.link import Figures, Peer
from outrider.edge.power import PowerWatch
from outrider.options import Address, EdgeOptions
from outrider.partitioner.power.account import Accountant
from outrider.protocol import events
from outrider.protocol.status import PlacementStatus

BUSY_S = 0.5
"""Between two gauges while answers run."""
IDLE_S = 1.0
REPEAT_S = 5.0
"""A plan that stays the same is told again after this."""
CERTIFICATE_S = 3600.0
"""Between two looks at a cloud's certificate."""
GREETING_S = 3.0
STATM = Path("/proc/self/statm")
"""Linux; the second number is resident pages."""


@dataclass(slots=True)
class Teller:
    """`await run()` in a task, until cancelled."""

    daemon: Daemon
    publish: Callable[[events.Event], None]
    clock: Callable[[], float] = time.monotonic
    expires: dict[str, float] = field(default_factory=dict)
    """By cloud: Unix seconds."""
    _told: dict[str, tuple[float, events.PlanMade]] = field(default_factory=dict)
    _looked: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        while True:
            self.tell()
            await self.look()
            await asyncio.sleep(BUSY_S if self.daemon.running else IDLE_S)

    def tell(self) -> None:
        """The gauge, and each plan that is new or was told long ago."""
        self.publish(gauge(self.daemon, self.expires))
        now = self.clock()
        for status in self.daemon.governor.status():
            made = plan(status)
            at, before = self._told.get(made.model, (float("-inf"), None))
            if made != before or now - at >= REPEAT_S:
                self._told[made.model] = (now, made)
                self.publish(made)

    async def look(self) -> None:
        """Learn when certificates end, of clouds that answer over TLS; seldom."""
        options, now = self.daemon.options, self.clock()
        for peer in self.daemon.link.peers:
            looked = self._looked.get(peer.address, float("-inf"))
            if not (_tls(options, peer) and peer.known) or now - looked < CERTIFICATE_S:
                continue
            self._looked[peer.address] = now
            found = await asyncio.to_thread(certificate_end, peer.address, options)
            if found is not None:
                self.expires[peer.address] = found


def _tls(options: EdgeOptions, peer: Peer) -> bool:
    return options.cloud_ca is not None and peer.kind == "cloud"


def certificate_end(address: str, options: EdgeOptions) -> float | None:
    """Unix seconds at which the certificate of a cloud ends; None when it can not be had.

    Blocks: greets the cloud over a connection of its own, checked as the sessions' is.
    """
    import socket

    place = Address.parse(address, 0)
    try:
        context = ssl.create_default_context(cafile=options.cloud_ca)
        context.set_alpn_protocols(["h2"])
        if options.cloud_cert is not None:
            context.load_cert_chain(options.cloud_cert, options.cloud_key)
        with (
            socket.create_connection((place.host, place.port), GREETING_S) as plain,
            context.wrap_socket(plain, server_hostname=place.host) as sealed,
        ):
            found = (sealed.getpeercert() or {}).get("notAfter")
    except OSError:
        return None
    return float(ssl.cert_time_to_seconds(found)) if isinstance(found, str) else None


def gauge(daemon: Daemon, expires: dict[str, float]) -> events.Gauge:
    rides = list(daemon.running.values())
    totals, small = daemon.totals, daemon.small
    answers = [answer for ride in rides for answer in ride.answers]
    default = daemon.link.find("")
    joules, kind = _joules(daemon.energy)
    said = events.Gauge(
        version=__version__,
        listen=daemon.listen,
        pid=os.getpid(),
        uptime_s=round(daemon.clock() - daemon.started_at, 1),
        placement=daemon.placement,
        pinned=daemon.pinned,
        model=default.name if default is not None else "",
        drafter=small.name if small is not None else "",
        drafter_device=small.info.device if small is not None else "",
        running=len(rides),
        queued=daemon.queued,
        requests=totals.requests + len(rides),
        tokens=totals.tokens + sum(a.end for a in answers),
        sent=totals.sent + sum(a.counts.sent for a in answers),
        hint_rows=totals.hint_rows + sum(a.counts.hint_rows for a in answers),
        accepted=totals.accepted + sum(a.counts.accepted for a in answers),
        lag_p99_ms=round(daemon.lag.quantile_ms(0.99), 3),
        rss_mb=resident_mb(),
        joules_per_token=joules,
        joules_kind=kind,
        links=tuple(_link(peer, daemon, expires) for peer in daemon.link.peers),
    )
    return said if daemon.power is None else _with_power(said, daemon.power)


def resident_mb() -> float | None:
    """Of this process."""
    try:
        pages = int(STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _with_power(said: events.Gauge, watch: PowerWatch) -> events.Gauge:
    state, bounds, policy = watch.state, watch.bounds, watch.governor.policy
    return msgspec.structs.replace(
        said,
        supply=state.supply,
        battery=state.battery,
        charging=state.charging,
        watts=state.watts,
        watts_kind=state.watts_kind,
        watts_source=state.watts_source,
        temperature_c=state.temperature_c,
        limit_c=state.limit_c,
        throttled=state.throttled,
        power_policy=policy.choice,
        battery_floor=policy.battery_floor,
        power_draft=bounds.draft,
        power_reason=bounds.reason,
    )


def _joules(energy: Accountant) -> tuple[float | None, str]:
    """Of a token, over all placements: what the requests that ended have cost."""
    found = energy.per_token().values()
    tokens = sum(one.tokens for one in found)
    if not tokens:
        return None, "none"
    mean = sum(one.joules for one in found) / tokens
    measured = all(one.kind == "measured" for one in found)
    return round(mean, 4), "measured" if measured else "estimated"


def _link(peer: Peer, daemon: Daemon, expires: dict[str, float]) -> events.LinkGauge:
    state: Literal["connected", "connecting", "unreachable"] = "connecting"
    if peer.failures:
        state = "unreachable"
    elif peer.known:
        state = "connected"
    model = peer.models[0] if peer.models else None
    seen = Figures.of(peer.traffic.estimate(daemon.link.clock()))
    return events.LinkGauge(
        cloud=peer.address,
        state=state,
        kind=peer.kind,
        model=model.name if model is not None else "",
        device=model.device if model is not None else "",
        rtt_ms=_ms(peer.rtt_s),
        jitter_ms=seen.jitter_ms,
        up_bytes_per_s=seen.up_bytes_per_s,
        down_bytes_per_s=seen.down_bytes_per_s,
        loss=seen.loss,
        bytes_up=peer.bytes_up,
        bytes_down=peer.bytes_down,
        cert_expires=expires.get(peer.address),
        tls=_tls(daemon.options, peer),
        detail=peer.detail,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def plan(status: PlacementStatus) -> events.PlanMade:
    return events.PlanMade(
        model=status.model,
        placement=status.placement,
        peer=status.peer,
        reason=status.reason,
        binding=status.binding,
        runner_up=status.runner_up,
        margin=status.margin,
        depth=status.depth,
        trigger=status.trigger,
        scores=status.scores,
    )
