"""One answer's placement from its first look to its end: what the runtime and the simulator share.

A `Steering` is told what was measured, decides through its `Pilot`, and tells each decision with
its reason, then what it brought. What it needs to know beside its meters it asks of a `Host`: the
daemon's governor, or a device in virtual time. Pure: the host has the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Literal, Protocol, Self

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
    depth_gain,
)
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import (
    MAX_DEPTH,
    Energy,
    PeerSignals,
    Placement,
    Signals,
    streamed_j,
)
from outrider.protocol import events
from outrider.protocol.status import ScoreStatus

EVERY = 4
"""Commits between two looks at the placement; a change of power or heat is looked at at once."""
MEASURED = 24
"""Tokens after which the effect of a change is told; at the answer's end half of them do."""
FEWEST = MEASURED // 3
"""Tokens from which on a cost a token says anything."""

What = Literal["placement", "hint_depth", "drafting"]


class Host(Protocol):
    """What all answers of a device share, and what only the device knows."""

    @property
    def book(self) -> Book: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def rules(self) -> Rules: ...
    @property
    def verdicts(self) -> dict[str, Verdict]: ...
    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        ...

    @property
    def power(self) -> Callable[[], Bounds]:
        """What power and heat leave now; asked at every commit, so it must be quick."""
        ...

    @property
    def energy(self) -> Callable[[], Energy]: ...

    @property
    def pin(self) -> Placement | None:
        """Where an operator wants the answers that have no wish of their own."""
        ...

    def signals(self, model: str, acceptance: Acceptance, drafter: str) -> Signals:
        """As things stand now, for an answer of a model."""
        ...

    def committer(self, model: str, name: str) -> PeerSignals:
        """One committer as its meter knows it now."""
        ...

    def tell(self, decision: events.Decision) -> None: ...


@dataclass(frozen=True, slots=True)
class _Cost:
    """Measured since the last change, a committed token."""

    total: float
    """What is compared: ms with joules priced in."""
    ms: float


@dataclass(frozen=True, slots=True)
class _Pending:
    """A change whose effect is not known yet."""

    decision: events.Decision
    before: _Cost | None


@dataclass(slots=True)
class Steering:
    """Told of commits and bursts; asked at commits whether something has to change."""

    host: Host
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
    _pin: Placement | None = None
    """The operator's, as of the last look."""
    _left: _Cost | None = None
    """What the placement cost that a probe took a token from."""
    _pending: _Pending | None = None
    _agreed: int = 0
    """Looks in a row by which joules bound the depth otherwise than was told."""

    @classmethod
    def of(cls, host: Host, request: str, model: str, wants: Wants, fresh: Placement) -> Self:
        """Of a new answer; `fresh` is where to begin while nothing is known."""
        book = host.book
        habit = book.habits.get(model) or Habit(fresh)
        if wants.drafter:
            habit = replace(habit, placement="cloud")
        if wants.pinned is not None:
            habit = Habit(wants.pinned)
        pilot = Pilot.of(habit, wants, book.budget, host.objective, host.rules)
        return cls(host, request, model, pilot, book.answer(model), host.power())

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
        if self.pinned and self.placement == "draft":
            return True
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

    def burst(self, tokens: int, ms: float, share_ms: float, choice: int = 0) -> None:
        """The drafter worked: `ms` for `tokens` of a lane, of which this answer's share."""
        if tokens:
            self.host.book.drafter(self.model).burst(tokens, ms)
        self._track(choice).draws(share_ms)

    def heard(self, heard: Heard, choice: int = 0) -> None:
        """A commit with new tokens was applied."""
        now, book = self.host.clock(), self.host.book
        self.committed += heard.tokens
        self._commits += 1
        arm: Arm = "drafted" if self.drafts else "plain"
        meter = book.meter(self.peer, self.model)
        window = self._track(choice).heard(heard, meter, arm, now)
        if window is not None:
            self._measure(window, arm, now)
        self._follow_up(MEASURED)

    def passed(self, tokens: int) -> None:
        """A commit with new tokens that drafts of another kind had a part in, such as a
        prediction's: it counts, and tells nothing of the placement."""
        self.committed += tokens
        self._commits += 1

    def _measure(self, window: tuple[float, float], arm: Arm, now: float) -> None:
        book = self.host.book
        peer = self.host.committer(self.model, self.peer)
        meter, drafter = book.meter(self.peer, self.model), book.drafter(self.model)
        if pace(peer, meter, drafter, self.acceptance.rates(), window, arm, now):
            book.surprised(self.peer, self.model, now)

    def finished(self, queue_ms: float, prefill_ms: float) -> None:
        """The committer told what it spent before its first token."""
        meter = self.host.book.meter(self.peer, self.model)
        meter.finished(queue_ms, prefill_ms, self.pilot.wants.prompt, self.host.clock())

    def _track(self, choice: int) -> Track:
        while len(self.tracks) <= choice:
            self.tracks.append(Track())
        return self.tracks[choice]

    # --- what is decided -------------------------------------------------------------------

    def due(self) -> bool:
        """Whether to look at the placement at this commit."""
        if self.pinned:
            return False
        told = self.host.power() != self.bounds or self._pin != self.host.pin
        return self._commits % EVERY == 0 or told

    def look(self, wants: Wants) -> bool:
        """Decide anew; True when something has to be carried out."""
        host, pilot = self.host, self.pilot
        self._count()
        before, self.bounds = self.bounds, host.power()
        old, old_peer, probe = pilot.placement, pilot.peer, pilot.probe
        official = probe.back if probe is not None else old
        signals = host.signals(self.model, self.acceptance, wants.drafter)
        self._pin = host.pin
        verdict = pilot.decide(signals, replace(wants, wished=self._pin))
        host.verdicts[self.model] = verdict
        if verdict.shifted and self.peer:
            host.book.surprised(self.peer, self.model, signals.at_s)
        host.book.habits[self.model] = pilot.habit()
        moved = old_peer not in ("", verdict.peer)
        old_depth, self.depth, self.reason = self.depth, verdict.depth, verdict.reason
        if verdict.changed and (official != verdict.placement or moved):
            self._changed(official, verdict, tried=probe is not None)
        elif old != verdict.placement:
            self._try(old, verdict)
        elif verdict.placement == "draft":
            self._say_depth(old_depth, before, verdict, signals)
        return old != verdict.placement or moved

    def _count(self) -> None:
        self.host.book.budget.tokens += self.committed - self.counted
        self.counted = self.committed

    def _changed(self, old: Placement, verdict: Verdict, *, tried: bool) -> None:
        before = self._left if tried else self._cost()
        self._follow_up(FEWEST)
        self.changes += 1
        self._say("placement", old, verdict.placement, verdict, before)
        self._restart()

    def _try(self, old: Placement, verdict: Verdict) -> None:
        """A try of the other way begins, or ends where it began."""
        before = self._cost()
        self._follow_up(FEWEST)
        self._say("drafting", old, verdict.placement, verdict, before, probe=True)
        self._left = before if verdict.probing else None
        if not verdict.probing:
            # The way back is the try's end; the try itself has told what it brought.
            self._pending = None
        elif verdict.placement == "draft":
            self.acceptance.doubt(DOUBT)
        self._restart()

    def _say_depth(
        self, old: int | None, before: Bounds, verdict: Verdict, signals: Signals
    ) -> None:
        """Power's word on depth is told at once, that of joules when it lasts; what follows the
        acceptance from look to look is not told."""
        if old is None:
            return
        if before.draft != self.bounds.draft and old != verdict.depth:
            reason = self.bounds.reason or "power and heat leave more room"
            self._deepen(old, verdict, signals, reason)
            return
        if self.bounds.draft == "free":
            self._weigh_depth(verdict, signals)

    def _weigh_depth(self, verdict: Verdict, signals: Signals) -> None:
        """Joules begin or cease to bound the depth, and it lasts."""
        known = self.host.book.told_depths
        told, at_s = known.get(self.model, (MAX_DEPTH, -inf))
        sheds = verdict.depth < MAX_DEPTH
        self._agreed = self._agreed + 1 if sheds != (told < MAX_DEPTH) else 0
        rules = self.host.rules
        if self._agreed < rules.agree or signals.at_s - at_s < rules.dwell_s:
            return
        self._agreed = 0
        known[self.model] = (verdict.depth, signals.at_s)
        price = f"{self.host.objective.ms_per_joule:g} ms a joule"
        held = f"{self.acceptance.rates()[0]:.0%} of first drafts hold"
        reason = f"drafts beyond {verdict.depth} cost more joules than they save time"
        if not sheds:
            reason = "deeper drafts are worth their joules"
        bound = replace(verdict, binding=f"hint_depth: {price}") if sheds else verdict
        self._deepen(told, bound, signals, f"{reason}: {price}, {held}")

    def _deepen(self, old: int, verdict: Verdict, signals: Signals, reason: str) -> None:
        before = self._cost()
        self._follow_up(FEWEST)
        peer = signals.peer(self.peer)
        gain = None
        if peer is not None:
            gain = depth_gain(signals, peer, self.host.objective, old, verdict.depth)
        cause = self.bounds.reason or verdict.cause
        bound = f"hint_depth: {self.bounds.reason}" if self.bounds.reason else verdict.binding
        told = replace(verdict, reason=reason, cause=cause, gain=gain, binding=bound)
        self._say("hint_depth", str(old), str(verdict.depth), told, before)
        self._restart()

    def _restart(self) -> None:
        for track in self.tracks:
            track.restart()

    def _say(
        self,
        what: What,
        old: str,
        new: str,
        verdict: Verdict,
        before: _Cost | None,
        *,
        probe: bool = False,
    ) -> None:
        decision = events.Decision(
            request=self.request,
            what=what,
            old=old,
            new=new,
            reason=verdict.reason,
            predicted_gain=rounded(verdict.gain),
            binding=verdict.binding,
            runner_up=verdict.runner_up,
            number=self.host.book.number(),
            position=self.pilot.wants.committed,
            cause=verdict.cause,
            margin=rounded(verdict.margin),
            probe=probe,
            ms_before=rounded(None if before is None else before.ms),
            scores=scored(sorted(verdict.scores, key=lambda score: score.total)),
        )
        self.host.tell(decision)
        self._pending = _Pending(decision, before)

    # --- what it brought -------------------------------------------------------------------

    def _cost(self, least: int = FEWEST) -> _Cost | None:
        """Measured since the last change; None after too few tokens."""
        tokens = sum(track.total_tokens for track in self.tracks)
        if tokens < least:
            return None
        ms = sum(track.total_ms for track in self.tracks) / tokens
        busy_ms = sum(track.total_busy_ms for track in self.tracks) / tokens
        energy = self.host.energy()
        joules = streamed_j(energy, ms, ms) + energy.draft_w * busy_ms / 1e3
        return _Cost(ms + self.host.objective.ms_per_joule * joules, ms)

    def _follow_up(self, least: int) -> None:
        """Tell what the last change brought, once enough came after it."""
        if self._pending is None or (after := self._cost(least)) is None:
            return
        made, before = self._pending.decision, self._pending.before
        self._pending = None
        gain = None if before is None else 1.0 - after.total / before.total
        self.host.tell(
            events.Decision(
                request=self.request,
                what=made.what,
                old=made.old,
                new=made.new,
                reason=made.reason,
                predicted_gain=made.predicted_gain,
                observed_gain=rounded(gain),
                binding=made.binding,
                runner_up=made.runner_up,
                phase="measured",
                number=made.number,
                position=self.pilot.wants.committed,
                cause=made.cause,
                margin=made.margin,
                probe=made.probe,
                ms_before=made.ms_before,
                ms_after=rounded(after.ms),
                scores=made.scores,
            )
        )

    def end(self) -> None:
        """The answer is over: a probe under way counts, a change is measured if it can be."""
        self._follow_up(MEASURED // 2)
        self._count()
        self.pilot.end(self.host.clock(), self.pilot.wants.committed)


def scored(found: Sequence[Score]) -> tuple[ScoreStatus, ...]:
    """Scores as they are told."""
    return tuple(
        ScoreStatus(
            score.placement,
            score.peer,
            rounded(score.ms),
            rounded(score.joules),
            rounded(score.total),
            rounded(score.error),
            score.why,
        )
        for score in found
    )


def rounded(value: float | None) -> float | None:
    """As it is told; None where it is no number."""
    return None if value is None or not isfinite(value) else round(value, 4)
