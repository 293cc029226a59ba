"""Placement at run time: what is measured goes to the policy, and what it decides is told.

The policy and each answer's steering are pure and shared with the simulator
(`partitioner/placement.py`, `partitioner/steering.py`). The `Governor` belongs to the daemon: it
holds what its requests share, and knows the clouds, the power, the clock and the events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from outrider.edge.link import Link, Peer
from outrider.partitioner.acceptance import Acceptance
from outrider.partitioner.book import Book
from outrider.partitioner.placement import Objective, Rules, Verdict, Wants, alone
from outrider.partitioner.power.account import Accountant, worst
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import (
    PLACEMENTS,
    STALL_MS,
    Energy,
    PeerSignals,
    Placement,
    Signals,
)
from outrider.partitioner.steering import EVERY, MEASURED, Steering, rounded, scored
from outrider.protocol import events
from outrider.protocol.status import PlacementStatus

__all__ = ["EVERY", "MEASURED", "Alone", "Governor", "Steering", "drawn"]

COUNTED = 64
"""Tokens of a placement from which on its joules are those that were counted."""


@dataclass(frozen=True, slots=True)
class Alone:
    """The small model was chosen for an answer, before it began."""

    verdict: Verdict
    number: int


@dataclass(slots=True)
class Governor:
    """What all requests of a daemon share: experience, limits, and the last verdicts."""

    link: Link
    publish: Callable[[events.Event], None]
    clock: Callable[[], float]
    power: Callable[[], Bounds] = Bounds
    """What power and heat leave now; asked at every commit, so it must be quick."""
    energy: Callable[[], Energy] = Energy
    objective: Objective = Objective()
    rules: Rules = Rules()
    book: Book = field(default_factory=Book)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """The last one by model."""
    counts: Counter[str] = field(default_factory=Counter)
    pin: Placement | None = None
    """The operator's, for answers without a wish of their own; the small model's answer can be
    wished for only before it begins."""

    def steer(self, request: str, model: str, wants: Wants, fresh: Placement) -> Steering:
        """The steering of a new request; `fresh` is where to begin while nothing is known."""
        return Steering.of(self, request, model, wants, fresh)

    def signals(self, model: str, acceptance: Acceptance | None, drafter: str) -> Signals:
        """As things stand now, for an answer of a model."""
        now = self.clock()
        peers = [self._peer(peer, model, now) for peer in self.link.peers if _may(peer, model)]
        return self.book.drafter(model).signals(
            now,
            peers,
            acceptance=acceptance,
            bounds=self.power(),
            energy=self.energy(),
            drafter=drafter,
        )

    def committer(self, model: str, name: str) -> PeerSignals:
        """One committer as its meter knows it now."""
        now = self.clock()
        found = next((peer for peer in self.link.peers if peer.address == name), None)
        if found is None:
            return self.book.committer(name, model, now, None)
        return self._peer(found, model, now)

    def _peer(self, peer: Peer, model: str, now: float) -> PeerSignals:
        classes = [d.numeric_class for d in peer.models if d.name == model]
        known = dict(
            kind=peer.kind,
            reachable=peer.known and not peer.failures,
            why=peer.detail or f"{peer.address} has not answered yet",
            numeric_class=next(iter(classes), ""),
            home=peer.home,
        )
        rtt_ms = None if peer.rtt_s is None else peer.rtt_s * 1e3
        return self.book.committer(peer.address, model, now, rtt_ms, **(known | _link(peer, now)))

    # --- before an answer begins -----------------------------------------------------------

    def alone(self, model: str, wants: Wants) -> Verdict | None:
        """Whether the small model's own answer is the best that the request allows."""
        signals = self.signals(model, None, wants.drafter)
        return alone(signals, wants, self.objective, self.rules)

    def began_alone(self, request: str, verdict: Verdict) -> Alone:
        made = Alone(verdict, self.book.number())
        self.tell(_of_alone(request, made))
        return made

    def ended_alone(self, request: str, made: Alone, tokens: int, ms: float) -> None:
        """What it brought, against what the other was expected to cost."""
        verdict = made.verdict
        rivals = [s.total for s in verdict.scores if s.placement == verdict.runner_up]
        if not tokens:
            return
        found = next(s for s in verdict.scores if s.placement == "edge")
        cost = ms / tokens + self.objective.ms_per_joule * found.joules
        gain = 1.0 - cost / min(rivals) if rivals and min(rivals) > 0 else None
        self.tell(_of_alone(request, made, gain, ms / tokens))

    # --- what is told ----------------------------------------------------------------------

    def tell(self, decision: events.Decision) -> None:
        if decision.phase == "made":
            self.counts[decision.what] += 1
        self.publish(decision)

    def status(self) -> tuple[PlacementStatus, ...]:
        energy = self.energy()
        return tuple(_status(model, v, energy) for model, v in self.verdicts.items())


def _of_alone(
    request: str, made: Alone, gain: float | None = None, ms: float | None = None
) -> events.Decision:
    verdict = made.verdict
    return events.Decision(
        request=request,
        what="placement",
        old=verdict.runner_up,
        new="edge",
        reason=verdict.reason,
        predicted_gain=rounded(verdict.gain),
        observed_gain=rounded(gain),
        binding=verdict.binding,
        runner_up=verdict.runner_up,
        phase="made" if ms is None else "measured",
        number=made.number,
        cause=verdict.cause,
        margin=rounded(verdict.margin),
        ms_after=rounded(ms),
        scores=scored(sorted(verdict.scores, key=lambda score: score.total)),
    )


def _may(peer: Peer, model: str) -> bool:
    return not peer.known or peer.serves(model)


def _link(peer: Peer, now: float) -> dict[str, object]:
    """What its live traffic tells of the way to it."""
    found = peer.traffic.estimate(now)
    if found is None:
        return {}
    stall_ms = STALL_MS if found.stall_s is None else found.stall_s * 1e3
    return dict(
        jitter_ms=found.jitter_s * 1e3,
        up_bytes_per_s=found.up_bytes_per_s,
        down_bytes_per_s=found.down_bytes_per_s,
        loss=found.loss,
        stall_ms=stall_ms,
    )


def drawn(energy: Accountant) -> Energy:
    """The device's watts while it drafts and while an answer streams, measured where they were;
    and the joules a token of placements that answers were counted under."""
    watts = energy.costs.device_w if energy.busy_w is None else energy.busy_w
    radio = energy.costs.radio
    measured = energy.busy_w is not None
    kind = energy.busy_kind if measured else "estimated"
    source = "this device's counter" if measured else "a busy device"
    counted = []
    for placement in PLACEMENTS:
        found = energy.per_token().get(placement)
        if found is not None and found.tokens >= COUNTED:
            counted.append((placement, found.parts.device_j + found.parts.radio_j))
            kind = worst(kind, found.kind)
    said = f"{source}, and {radio.name}"
    if counted:
        said += f"; counted: {', '.join(placement for placement, _ in counted)}"
    return Energy.over(radio, watts, per_token=tuple(counted), kind=kind, source=said)


def _status(model: str, verdict: Verdict, energy: Energy) -> PlacementStatus:
    return PlacementStatus(
        model=model,
        placement=verdict.placement,
        peer=verdict.peer,
        reason=verdict.reason,
        binding=verdict.binding,
        runner_up=verdict.runner_up,
        margin=rounded(verdict.margin),
        depth=verdict.depth,
        trigger=verdict.trigger,
        energy_kind=energy.kind,
        energy_source=energy.source,
        scores=scored(verdict.scores),
    )
