"""One answer's placement over time, by the runtime's own policy and meters.

`Pilot`, `Book`, `Track` and the signals are those of the runtime; this feeds them what a
device would have measured, as `edge/placement.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.partitioner.acceptance import Acceptance
from outrider.partitioner.book import Arm, Book, Habit, Heard, Track, pace
from outrider.partitioner.placement import Objective, Pilot, Rules, Verdict, Wants
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import Energy, PeerSignals, Placement, Signals
from outrider.partitioner.sim.trace import Ask

MODEL = "target"
CLOUD = "cloud"
EVERY = 4
"""Commits between two looks, as at the edge."""


@dataclass(frozen=True, slots=True)
class Now:
    """What a device knows beside its meters."""

    at_s: float
    rtt_ms: float
    reachable: bool
    bounds: Bounds
    energy: Energy
    drafter: str = ""


def wants(ask: Ask, placement: Placement | None, committed: int, drafter: str) -> Wants:
    return Wants(
        pinned=placement,
        drafter=drafter,
        prompt=ask.prompt,
        committed=committed,
        remaining=max(1, ask.tokens - committed),
    )


def signals(book: Book, now: Now, acceptance: Acceptance | None) -> Signals:
    peer = _peer(book, now)
    return book.drafter(MODEL).signals(
        now.at_s,
        [peer],
        acceptance=acceptance,
        bounds=now.bounds,
        energy=now.energy,
        drafter=now.drafter,
    )


def _peer(book: Book, now: Now) -> PeerSignals:
    meter = book.meter(CLOUD, MODEL)
    meter.round_trip(now.rtt_ms, now.at_s)
    why = "" if now.reachable else "the link is down"
    return meter.signals(CLOUD, now.at_s, reachable=now.reachable, why=why, rtt_ms=now.rtt_ms)


@dataclass(slots=True)
class Steer:
    """From an answer's first look to its end."""

    book: Book
    pilot: Pilot
    acceptance: Acceptance
    bounds: Bounds
    track: Track = field(default_factory=Track)
    depth: int | None = None
    committed: int = 0
    changes: int = 0
    tokens_at: dict[Placement, int] = field(default_factory=dict)
    _counted: int = 0
    _commits: int = 0

    @classmethod
    def begin(cls, book: Book, ask: Ask, placement: Placement | None, now: Now) -> Steer:
        asked = wants(ask, placement, 0, now.drafter)
        habit = book.habits.get(MODEL) or Habit("draft" if not now.drafter else "cloud")
        if placement is not None:
            habit = Habit(placement)
        pilot = Pilot.of(habit, asked, book.budget, Objective(), Rules())
        found = cls(book, pilot, book.answer(MODEL), now.bounds)
        if placement is None:
            found.look(asked, now)
        pilot.peer = CLOUD
        return found

    @property
    def pinned(self) -> bool:
        return self.pilot.wants.pinned is not None

    @property
    def placement(self) -> Placement:
        return self.pilot.placement

    @property
    def drafts(self) -> bool:
        if self.pinned:
            return self.placement == "draft"
        return self.placement == "draft" and not self.pilot.wants.drafter

    @property
    def most(self) -> Placement:
        """Where most of it was said."""
        found = self.tokens_at or {self.placement: 1}
        return max(found, key=lambda placement: found[placement])

    # --- what was measured -----------------------------------------------------------------

    def burst(self, tokens: int, ms: float, share_ms: float) -> None:
        if tokens:
            self.book.drafter(MODEL).burst(tokens, ms)
        self.track.draws(share_ms)

    def heard(self, heard: Heard, now: Now) -> None:
        self.committed += heard.tokens
        place = self.placement
        self.tokens_at[place] = self.tokens_at.get(place, 0) + heard.tokens
        self._commits += 1
        arm: Arm = "drafted" if self.drafts else "plain"
        meter = self.book.meter(CLOUD, MODEL)
        window = self.track.heard(heard, meter, arm, now.at_s)
        if window is None:
            return
        peer = meter.signals(CLOUD, now.at_s, rtt_ms=now.rtt_ms)
        drafter = self.book.drafter(MODEL)
        if pace(peer, meter, drafter, self.acceptance.rates(), window, arm, now.at_s):
            self.book.surprised(CLOUD, MODEL, now.at_s)

    def finished(self, queue_ms: float, prefill_ms: float, prompt: int, now: Now) -> None:
        self.book.meter(CLOUD, MODEL).finished(queue_ms, prefill_ms, prompt, now.at_s)

    # --- what is decided -------------------------------------------------------------------

    def due(self, bounds: Bounds) -> bool:
        if self.pinned:
            return False
        return self._commits % EVERY == 0 or bounds != self.bounds

    def look(self, asked: Wants, now: Now) -> Verdict:
        self._count()
        self.bounds = now.bounds
        old = self.pilot.placement
        verdict = self.pilot.decide(signals(self.book, now, self.acceptance), asked)
        if verdict.shifted:
            self.book.surprised(CLOUD, MODEL, now.at_s)
        self.book.habits[MODEL] = self.pilot.habit()
        self.depth = verdict.depth
        if verdict.placement != old:
            self.changes += verdict.changed
            self.track.restart()
        return verdict

    def _count(self) -> None:
        self.book.budget.tokens += self.committed - self._counted
        self._counted = self.committed

    def end(self, now_s: float) -> None:
        self._count()
        self.pilot.end(now_s, self.pilot.wants.committed)
