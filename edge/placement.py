"""Placement at run time: feed what was measured to the policy, and carry out what it decides.

The policy is `partitioner/placement.py`. A `Governor` belongs to the daemon and holds
what its requests share; a `Steering` belongs to one request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal

from outrider.edge.link import Link, Peer
from outrider.partitioner.acceptance import Acceptance
from outrider.partitioner.bandit import DOUBT, PROBE_DEPTH
from outrider.partitioner.book import Arm, Book, Habit, Heard, Track, pace
from outrider.partitioner.placement import (
    Objective,
    Pilot,
    Rules,
    Score,
    Verdict,
    Wants,
)
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import Energy, PeerSignals, Placement, Signals
from outrider.protocol import events
from outrider.protocol.messages import Commit, Finished
from outrider.protocol.status import PlacementStatus, ScoreStatus

EVERY = 4
"""Commits between two looks at the placement; a change of power or heat is looked at at once."""
MEASURED = 24
"""Tokens after which the effect of a change is told; at the answer's end half of them do."""

What = Literal["placement", "hint_depth", "drafting"]


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
    _numbers: int = 0

    def steer(self, request: str, model: str, wants: Wants, fresh: Placement) -> Steering:
        """The steering of a new request; `fresh` is where to begin while nothing is known."""
        book = self.book
        habit = book.habits.get(model) or Habit(fresh)
        if wants.drafter:
            habit = replace(habit, placement="cloud")
        if wants.pinned is not None:
            habit = Habit(wants.pinned)
        pilot = Pilot.of(habit, wants, book.budget, self.objective, self.rules)
        return Steering(self, request, model, pilot, book.answer(model), self.power())

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

    def _peer(self, peer: Peer, model: str, now: float) -> PeerSignals:
        meter = self.book.meter(peer.address, model)
        rtt_ms = None if peer.rtt_s is None else peer.rtt_s * 1e3
        if rtt_ms is not None:
            meter.round_trip(rtt_ms, now)
        classes = [d.numeric_class for d in peer.models if d.name == model]
        return meter.signals(
            peer.address,
            now,
            kind=peer.kind,
            reachable=peer.known and not peer.failures,
            why=peer.detail or f"{peer.address} has not answered yet",
            numeric_class=next(iter(classes), ""),
            rtt_ms=rtt_ms,
        )

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def tell(self, decision: events.Decision) -> None:
        if decision.phase == "made":
            self.counts[decision.what] += 1
        self.publish(decision)

    def status(self) -> tuple[PlacementStatus, ...]:
        energy = self.energy()
        return tuple(_status(model, v, energy) for model, v in self.verdicts.items())


def _may(peer: Peer, model: str) -> bool:
    return not peer.known or peer.serves(model)


@dataclass(slots=True)
class _Pending:
    """A change whose effect is not known yet."""

    decision: events.Decision
    cost_before: float | None
    ms_before: float | None


@dataclass(slots=True)
class Steering:
    """One request's placement from its first look to its end."""

    governor: Governor
    request: str
    model: str
    pilot: Pilot
    acceptance: Acceptance
    bounds: Bounds
    tracks: list[Track] = field(default_factory=list)
    reason: str = ""
    changes: int = 0
    depth: int | None = None
    """How far drafts may go; None while only the committer's wish counts."""
    committed: int = 0
    """Of all choices."""
    counted: int = 0
    """Of them, known to the budget of probes."""
    _commits: int = 0
    _left: tuple[float, float] | None = None
    """What the placement cost that a probe took a token from."""
    _pending: list[_Pending] = field(default_factory=list)

    # --- what it is ------------------------------------------------------------------------

    @property
    def pinned(self) -> bool:
        return self.pilot.wants.pinned is not None

    @property
    def placement(self) -> Placement:
        return self.pilot.placement

    @property
    def peer(self) -> str:
        """The committer that should have it; empty for the first that does."""
        return self.pilot.peer

    @property
    def drafts(self) -> bool:
        """Whether the device drafts for it now; the committer's wish may still be nothing."""
        if self.pinned:
            return self.placement == "draft"
        return self.placement in ("draft", "split") and not self.pilot.wants.drafter

    @property
    def floor(self) -> int:
        """Tokens to draft ahead whatever the committer wishes: while drafting is tried."""
        probes = self.pilot.probe is not None and self.placement == "draft"
        return PROBE_DEPTH if probes else 0

    def begin(self) -> None:
        """Before the first stream: where to start."""
        if self.pinned:
            self.reason = f"{self.placement} was asked for"
        else:
            self.look(self.pilot.wants)

    # --- what was measured -----------------------------------------------------------------

    def opened(self, peer: str, kind: Literal["cloud", "split"]) -> None:
        """A stream begins on a committer, which need not be the one that was chosen."""
        pilot = self.pilot
        pilot.peer = peer
        if not self.pinned and (kind == "split") != (pilot.placement == "split"):
            pilot.placement = "split" if kind == "split" else "cloud"
            self.reason = f"{peer} answered, and what was chosen did not"
        self._restart()

    def burst(self, tokens: int, ms: float, share_ms: float, choice: int) -> None:
        """The drafter worked: `ms` for `tokens` of a lane, of which this answer's share."""
        if tokens:
            self.governor.book.drafter(self.model).burst(tokens, ms)
        self._track(choice).draws(share_ms)

    def heard(self, message: Commit, fresh: int) -> None:
        """A commit with `fresh` new tokens was applied."""
        now, book = self.governor.clock(), self.governor.book
        self.committed += fresh
        self._commits += 1
        heard = Heard(fresh, message.rows, message.hint_rows, message.step_us / 1e3, message.wish)
        arm: Arm = "drafted" if self.drafts else "plain"
        meter = book.meter(self.peer, self.model)
        window = self._track(message.choice).heard(heard, meter, arm, now)
        if window is not None:
            self._measure(window, arm, now)
        self._follow_up(MEASURED)

    def _measure(self, window: tuple[float, float], arm: Arm, now: float) -> None:
        book = self.governor.book
        meter = book.meter(self.peer, self.model)
        peer = meter.signals(self.peer, now, rtt_ms=self._rtt_ms())
        drafter = book.drafter(self.model)
        if pace(peer, meter, drafter, self.acceptance.rates(), window, arm, now):
            book.surprised(self.peer, self.model, now)

    def _rtt_ms(self) -> float | None:
        peers = self.governor.link.peers
        found = next((p.rtt_s for p in peers if p.address == self.peer), None)
        return None if found is None else found * 1e3

    def finished(self, message: Finished) -> None:
        meter = self.governor.book.meter(self.peer, self.model)
        prompt = self.pilot.wants.prompt
        meter.finished(
            message.queue_us / 1e3, message.prefill_us / 1e3, prompt, self.governor.clock()
        )

    def _track(self, choice: int) -> Track:
        while len(self.tracks) <= choice:
            self.tracks.append(Track())
        return self.tracks[choice]

    # --- what is decided -------------------------------------------------------------------

    def due(self) -> bool:
        """Whether to look at the placement at this commit."""
        if self.pinned:
            return False
        return self._commits % EVERY == 0 or self.governor.power() != self.bounds

    def look(self, wants: Wants) -> bool:
        """Decide anew; True when something has to be carried out."""
        governor, pilot = self.governor, self.pilot
        governor.book.budget.tokens += self.committed - self.counted
        self.counted = self.committed
        limited, self.bounds = self.bounds.draft, governor.power()
        old, old_peer, old_depth = pilot.placement, pilot.peer, self.depth
        probed = pilot.probe is not None
        official = pilot.probe.back if pilot.probe is not None else old
        signals = governor.signals(self.model, self.acceptance, wants.drafter)
        verdict = pilot.decide(signals, wants)
        governor.verdicts[self.model] = verdict
        if verdict.shifted and self.peer:
            governor.book.surprised(self.peer, self.model, signals.at_s)
        governor.book.habits[self.model] = pilot.habit()
        self.reason, self.depth = verdict.reason, verdict.depth
        moved = old_peer not in ("", verdict.peer)
        if verdict.changed and (official != verdict.placement or moved):
            self._changed(official, verdict, self._left if probed else self._cost())
        elif old != verdict.placement:
            self._say("drafting", old, verdict.placement, verdict, probe=True)
            self._left = self._cost() if verdict.probing else None
            if verdict.probing and verdict.placement == "draft":
                self.acceptance.doubt(DOUBT)
            self._restart()
        elif verdict.placement == "draft":
            self._say_depth(old_depth, limited, verdict)
        return old != verdict.placement or moved

    def _changed(
        self, old: Placement, verdict: Verdict, before: tuple[float, float] | None
    ) -> None:
        self.changes += 1
        named = verdict.placement
        decision = self._say("placement", old, named, verdict, ms_before=before and before[1])
        cost, ms = before or (None, None)
        self._pending.append(_Pending(decision, cost, ms))
        del self._pending[:-1]
        self._restart()

    def _say_depth(self, old: int | None, limited: str, verdict: Verdict) -> None:
        """Power's word on depth is told; what follows the acceptance from look to look is not."""
        if old is None or old == verdict.depth or limited == self.bounds.draft:
            return
        reason = self.bounds.reason or "power and heat leave more room"
        told = replace(verdict, reason=reason, cause=reason)
        self._say("hint_depth", str(old), str(verdict.depth), told)

    def _restart(self) -> None:
        for track in self.tracks:
            track.restart()

    def _say(
        self,
        what: What,
        old: str,
        new: str,
        verdict: Verdict,
        *,
        probe: bool = False,
        ms_before: float | None = None,
    ) -> events.Decision:
        decision = events.Decision(
            request=self.request,
            what=what,
            old=old,
            new=new,
            reason=verdict.reason,
            predicted_gain=_rounded(verdict.gain),
            binding=verdict.binding,
            runner_up=verdict.runner_up,
            number=self.governor.number(),
            position=self.pilot.wants.committed,
            cause=verdict.cause,
            margin=_rounded(verdict.margin),
            probe=probe,
            ms_before=_rounded(ms_before),
            scores=_scores(sorted(verdict.scores, key=lambda score: score.total)),
        )
        self.governor.tell(decision)
        return decision

    # --- what it brought -------------------------------------------------------------------

    def _cost(self, least: int = MEASURED // 3) -> tuple[float, float] | None:
        """Measured (cost, ms) a token since the last change; None after too few tokens."""
        tokens = sum(track.total_tokens for track in self.tracks)
        if tokens < least:
            return None
        ms = sum(track.total_ms for track in self.tracks) / tokens
        busy_ms = sum(track.total_busy_ms for track in self.tracks) / tokens
        energy = self.governor.energy()
        joules = (energy.stream_w * ms + energy.draft_w * busy_ms) / 1e3
        return ms + self.governor.objective.ms_per_joule * joules, ms

    def _follow_up(self, least: int) -> None:
        """Tell what the last change brought, once enough came after it."""
        if not self._pending or (now := self._cost(least)) is None:
            return
        pending = self._pending.pop()
        cost, ms = now
        gain = None if pending.cost_before is None else 1.0 - cost / pending.cost_before
        self.governor.tell(
            events.Decision(
                request=self.request,
                what=pending.decision.what,
                old=pending.decision.old,
                new=pending.decision.new,
                reason=pending.decision.reason,
                predicted_gain=pending.decision.predicted_gain,
                observed_gain=_rounded(gain),
                binding=pending.decision.binding,
                runner_up=pending.decision.runner_up,
                phase="measured",
                number=pending.decision.number,
                position=self.pilot.wants.committed,
                cause=pending.decision.cause,
                margin=pending.decision.margin,
                ms_before=_rounded(pending.ms_before),
                ms_after=_rounded(ms),
            )
        )

    def end(self) -> None:
        """The answer is over: a probe under way counts, a change is measured if it can be."""
        self._follow_up(MEASURED // 2)
        self.governor.book.budget.tokens += self.committed - self.counted
        self.counted = self.committed
        self.pilot.end(self.governor.clock(), self.pilot.wants.committed)


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 4)


def _status(model: str, verdict: Verdict, energy: Energy) -> PlacementStatus:
    return PlacementStatus(
        model=model,
        placement=verdict.placement,
        peer=verdict.peer,
        reason=verdict.reason,
        binding=verdict.binding,
        runner_up=verdict.runner_up,
        margin=_rounded(verdict.margin),
        depth=verdict.depth,
        trigger=verdict.trigger,
        energy_kind=energy.kind,
        energy_source=energy.source,
        scores=_scores(verdict.scores),
    )


def _scores(found: Sequence[Score]) -> tuple[ScoreStatus, ...]:
    return tuple(
        ScoreStatus(
            score.placement,
            score.peer,
            _rounded(score.ms),
            _rounded(score.joules),
            _rounded(score.total),
            _rounded(score.error),
            score.why,
        )
        for score in found
    )
