"""What a device has learnt, shared by its requests: per committer and model, per drafter. Pure.

A request keeps a `Track` per answer. It tells commits and bursts to the book, and the
book tells the next request what to expect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from outrider.partitioner.acceptance import Acceptance
from outrider.partitioner.bandit import Budget
from outrider.partitioner.pace import drafted, plain_ms
from outrider.partitioner.signals import (
    MAX_DEPTH,
    DraftMeter,
    PeerMeter,
    PeerSignals,
    Placement,
    Signals,
)
from outrider.protocol.messages import Commit

WINDOW = 8
"""Tokens over which a pace is measured."""
Arm = Literal["plain", "drafted"]


@dataclass(slots=True)
class Habit:
    """Where answers of a model ran last when the choice was ours, and how settled that is."""

    placement: Placement
    since_s: float = -math.inf
    dwell_s: float | None = None
    before: Placement | None = None
    seen: Signals | None = None
    """As things stood at the last change."""
    marked: Signals | None = None
    """As they stood when they were last found to be another situation."""


@dataclass(slots=True)
class Book:
    """Meters by (committer, model) and by model; small, as are their numbers."""

    budget: Budget = field(default_factory=Budget)
    meters: dict[tuple[str, str], PeerMeter] = field(default_factory=dict)
    drafters: dict[str, DraftMeter] = field(default_factory=dict)
    habits: dict[str, Habit] = field(default_factory=dict)
    told_depths: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By model: how deep drafts may go for their joules, as it was told last, and when."""
    decisions: int = 0
    """Told so far."""

    def number(self) -> int:
        """Of the next decision."""
        self.decisions += 1
        return self.decisions

    def meter(self, peer: str, model: str) -> PeerMeter:
        return self.meters.setdefault((peer, model), PeerMeter())

    def drafter(self, model: str) -> DraftMeter:
        return self.drafters.setdefault(model, DraftMeter())

    def committer(
        self, name: str, model: str, now_s: float, rtt_ms: float | None, **known: object
    ) -> PeerSignals:
        """One committer as it looks now; `known` are fields of `PeerSignals`."""
        meter = self.meter(name, model)
        if rtt_ms is not None:
            meter.round_trip(rtt_ms, now_s)
        return meter.signals(name, now_s, rtt_ms=rtt_ms, **known)

    def answer(self, model: str) -> Acceptance:
        """The acceptance of one answer, which begins as the device's own."""
        return Acceptance(base=self.drafter(model).acceptance)

    def surprised(self, peer: str, model: str, now_s: float) -> None:
        """Something is not as it was: what is known about drafting is less sure."""
        self.drafter(model).acceptance.forget(0.5)
        self.meter(peer, model).drafted.forget(0.25)
        self.budget.hasten(now_s)


@dataclass(frozen=True, slots=True)
class Heard:
    """A commit as it matters here. Times in milliseconds."""

    tokens: int
    """New ones."""
    rows: int
    hint_rows: int
    step_ms: float
    wish: int

    @classmethod
    def of(cls, commit: Commit, tokens: int) -> Heard:
        step_ms = commit.step_us / 1e3
        return cls(tokens, commit.rows, commit.hint_rows, step_ms, commit.wish)


@dataclass(slots=True)
class Track:
    """One answer's pace, in windows of a few tokens."""

    last_s: float | None = None
    began_s: float = 0.0
    tokens: int = 0
    busy_ms: float = 0.0
    waited: int = 0
    """Tokens since drafting began, until the first hint was looked at."""
    total_tokens: int = 0
    """Since the last `restart`, for what a decision brought."""
    total_ms: float = 0.0
    total_busy_ms: float = 0.0

    def restart(self) -> None:
        """The next commit begins a new window: what lies between belongs to no placement."""
        self.last_s = None
        self.waited = 0
        self.total_tokens, self.total_ms, self.total_busy_ms = 0, 0.0, 0.0

    def settled(self, heard: Heard) -> bool:
        """Whether drafts that were begun have had the time to arrive."""
        self.waited += heard.tokens
        if heard.hint_rows:
            self.waited = WINDOW
        return self.waited >= WINDOW

    def draws(self, ms: float) -> None:
        """The drafter worked for this answer."""
        self.busy_ms += ms
        self.total_busy_ms += ms

    def heard(
        self, heard: Heard, meter: PeerMeter, arm: Arm, now_s: float
    ) -> tuple[float, float] | None:
        """Tell the meter; (ms a token, tokens) where a window is full."""
        if heard.rows:
            meter.passed(heard.rows, heard.hint_rows, heard.step_ms, now_s)
            meter.wish = heard.wish
        if self.last_s is None:
            self.last_s = self.began_s = now_s
            self.tokens, self.busy_ms = 0, 0.0
            return None
        gap_ms = (now_s - self.last_s) * 1e3
        if arm == "plain" and not heard.hint_rows and heard.rows:
            meter.gap(gap_ms / heard.tokens, heard.step_ms, now_s)
        self.last_s = now_s
        if arm == "plain" and heard.hint_rows or arm == "drafted" and not self.settled(heard):
            # What the placement before left under way is not this one's.
            self.began_s, self.tokens, self.busy_ms = now_s, 0, 0.0
            return None
        self.tokens += heard.tokens
        self.total_tokens += heard.tokens
        self.total_ms += gap_ms
        return self._window(meter, arm, now_s) if self.tokens >= WINDOW else None

    def _window(self, meter: PeerMeter, arm: Arm, now_s: float) -> tuple[float, float]:
        took = (now_s - self.began_s) * 1e3 / self.tokens
        if arm == "drafted":
            meter.busy.note(self.busy_ms / self.tokens, now_s, self.tokens / WINDOW)
        window = (took, float(self.tokens))
        self.began_s, self.tokens, self.busy_ms = now_s, 0, 0.0
        return window


def pace(
    peer: PeerSignals,
    meter: PeerMeter,
    drafts: DraftMeter,
    rates: Sequence[float],
    window: tuple[float, float],
    arm: Arm,
    now_s: float,
) -> bool:
    """Compare a window with what was predicted; True when it was a surprise."""
    knots = drafts.bursts.knots()
    expected = plain_ms(peer) if arm == "plain" else drafted(peer, rates, knots, MAX_DEPTH).ms
    if expected <= 0.0:
        return False
    took, tokens = window
    which = meter.plain if arm == "plain" else meter.drafted
    return which.note(took / expected, now_s, tokens / WINDOW)
