"""What the committer knows of a choice's drafts: a window over the committed end. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.errors import RemoteProtocolError
from outrider.protocol.messages import Hint

DEPTHS = 32
UNSEEN = 0.6
"""The rate of a drafter of which nothing was seen."""
LENDS = 4
"""From this depth on the rate of the depth before it is lent to all."""
BUFFER = 256
"""Hint tokens that are kept past the committed end; more of a chain is dropped."""


@dataclass(slots=True)
class Acceptance:
    """How often a hint token at a depth equalled what was committed, with old news fading.

    Depth 0 is the token right after the last one the drafter had seen to be
    committed when the chain began; a depth counts only where all before it held.
    """

    fade: float = 0.97
    held: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)
    tried: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)

    def note(self, depth: int, *, equal: bool) -> None:
        depth = min(depth, DEPTHS - 1)
        self.tried[depth] = self.tried[depth] * self.fade + 1.0
        self.held[depth] = self.held[depth] * self.fade + (1.0 if equal else 0.0)

    def rate(self, depth: int) -> float:
        """P(equal | all before were); what is unknown counts as one try at the shallower depth's
        rate, at the first depth 0.6, so that a bad drafter is known by its first few hints."""
        rate = UNSEEN
        for shallower in range(min(depth, LENDS)):
            rate = self._with(shallower, rate)
        return self._with(min(depth, DEPTHS - 1), rate)

    def _with(self, depth: int, prior: float) -> float:
        return (self.held[depth] + prior) / (self.tried[depth] + 1.0)

    def expected(self, rows: int) -> float:
        """Expected accepted tokens of `rows` hint rows: the sum of products of rates."""
        total, reach = 0.0, 1.0
        for depth in range(rows):
            reach *= self.rate(depth)
            total += reach
        return total


@dataclass(slots=True)
class HintWindow:
    """The device's current chain of draft tokens, and whether it can still come true.

    A chain starts where the device had seen everything (`base == seen`) and grows
    at its end. It dies at the first token that differs from a committed one; what
    continues a dead chain is stale and dropped, never an error. Equality alone
    protects the text: a wrong chain costs rows, not correctness.
    """

    start: int = 0
    chain: list[int] = field(default_factory=list)
    alive: bool = False
    checked: int = 0
    """Positions below this were compared with committed tokens."""
    seen: int = 0
    received: int = 0
    """Hint tokens that came; each is compared once, or stale, or still pending."""
    compared: int = 0
    """Of these: compared with a committed token, whether it was a row of a pass or came late."""
    acceptance: Acceptance = field(default_factory=Acceptance)

    @property
    def end(self) -> int:
        return self.start + len(self.chain)

    @property
    def pending(self) -> int:
        """Hint tokens that can still come true."""
        return self.end - self.checked if self.alive else 0

    @property
    def stale(self) -> int:
        """Hint tokens dropped without a comparison: their chain was dead, ended or replaced."""
        return self.received - self.compared - self.pending

    def offer(self, hint: Hint, committed: Sequence[int]) -> None:
        """Take a hint in; `committed` are the answer's tokens so far.

        Raises RemoteProtocolError when it claims to have seen more than those.
        """
        if hint.seen > len(committed):
            raise RemoteProtocolError("a hint has seen more than was committed")
        self.seen = max(self.seen, hint.seen)
        self.received += len(hint.tokens)
        if hint.tokens and hint.base == hint.seen:
            self.start = self.checked = hint.base
            self.chain, self.alive = [], True
        elif not self.alive or hint.base != self.end:
            return
        room = max(0, len(committed) + BUFFER - self.end)
        self.chain.extend(hint.tokens[:room])
        self.settle(committed)

    def settle(self, committed: Sequence[int]) -> None:
        """Compare the chain with what was committed since; a difference kills it."""
        while self.alive and self.checked < min(len(committed), self.end):
            depth = self.checked - self.start
            equal = self.chain[depth] == committed[self.checked]
            self.acceptance.note(depth, equal=equal)
            self.alive = equal
            self.checked += 1
            self.compared += 1

    def live(self, end: int) -> tuple[int, ...]:
        """Hint tokens past the committed end that can still come true; settled before."""
        if not self.alive or not self.start <= end < self.end:
            return ()
        return tuple(self.chain[end - self.start :])
