"""One answer's placement in virtual time: the runtime's own `Steering`, hosted by a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from outrider.partitioner.acceptance import Acceptance
from outrider.partitioner.book import Book, Heard
from outrider.partitioner.placement import Objective, Rules, Verdict, Wants
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import Energy, PeerSignals, Placement, Signals
from outrider.partitioner.sim.trace import Ask
from outrider.partitioner.steering import Steering
from outrider.protocol import events

MODEL = "target"
CLOUD = "cloud"


@dataclass(slots=True)
class Here:
    """A device with one cloud. Decisions are counted, not kept."""

    clock: Callable[[], float]
    rtt_ms: Callable[[], float]
    reachable: Callable[[], bool]
    power: Callable[[], Bounds]
    energy: Callable[[], Energy]
    book: Book = field(default_factory=Book)
    objective: Objective = Objective()
    rules: Rules = Rules()
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    pin: Placement | None = None
    told: int = 0

    def signals(self, model: str, acceptance: Acceptance, drafter: str) -> Signals:
        return self.book.drafter(model).signals(
            self.clock(),
            [self.committer(model, CLOUD)],
            acceptance=acceptance,
            bounds=self.power(),
            energy=self.energy(),
            drafter=drafter,
        )

    def committer(self, model: str, name: str) -> PeerSignals:
        reachable = self.reachable()
        why = "" if reachable else "the link is down"
        rtt_ms = self.rtt_ms()
        return self.book.committer(
            name or CLOUD, model, self.clock(), rtt_ms, reachable=reachable, why=why
        )

    def tell(self, decision: events.Decision) -> None:
        self.told += 1


def wants(ask: Ask, placement: Placement | None, committed: int, drafter: str) -> Wants:
    return Wants(
        pinned=placement,
        drafter=drafter,
        prompt=ask.prompt,
        committed=committed,
        remaining=max(1, ask.tokens - committed),
    )


@dataclass(slots=True)
class Steer(Steering):
    """Counts where its tokens were said."""

    tokens_at: dict[Placement, int] = field(default_factory=dict)

    @classmethod
    def start(cls, here: Here, ask: Ask, placement: Placement | None, drafter: str) -> Steer:
        found = cls.of(here, "", MODEL, wants(ask, placement, 0, drafter), "draft")
        found.begin()
        if found.placement != "edge":
            found.opened(CLOUD, "cloud")
        return found

    @property
    def most(self) -> Placement:
        """Where most of it was said."""
        found = self.tokens_at or {self.placement: 1}
        return max(found, key=lambda placement: found[placement])

    def heard(self, heard: Heard, choice: int = 0) -> None:
        place = self.placement
        self.tokens_at[place] = self.tokens_at.get(place, 0) + heard.tokens
        Steering.heard(self, heard, choice)
