"""How often drafts hold, by depth, and how surely that is known. Pure; time is an argument.

Depth 0 is the token right after the last one the drafter had seen to be committed
when its chain began; a depth counts only where all before it held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

DEPTHS = 16
FADE = 0.99
"""Per note of a depth: about 100 tries are remembered."""
HALF_LIFE_S = 120.0
"""Old news weighs half after this long without any."""
PRIOR = 0.6
"""Of the first depth, before anything is known: a drafter is tried."""
PRIOR_WEIGHT = 1.0
LENT = 24.0
"""Tries that an answer takes over from those before it, at most."""


@dataclass(slots=True)
class Acceptance:
    """Fading counts by depth; `base` is what is believed where nothing was seen here yet."""

    base: Acceptance | None = None
    """The device's own experience with this pair of models, for a single answer's."""
    held: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)
    tried: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)
    at_s: float = 0.0
    """When it last faded."""

    def note(self, depth: int, *, equal: bool) -> None:
        depth = min(depth, DEPTHS - 1)
        self.tried[depth] = self.tried[depth] * FADE + 1.0
        self.held[depth] = self.held[depth] * FADE + (1.0 if equal else 0.0)
        if self.base is not None:
            self.base.note(depth, equal=equal)

    def follow(self, held: int, depth: int, *, broke: bool) -> None:
        """A chain that had reached `depth` went on for `held` tokens, and broke or not."""
        for offset in range(held):
            self.note(depth + offset, equal=True)
        if broke:
            self.note(depth + held, equal=False)

    def age(self, now_s: float) -> None:
        """Let what was seen fade with time."""
        if self.at_s:
            keep = 0.5 ** (max(0.0, now_s - self.at_s) / HALF_LIFE_S)
            self.held = [value * keep for value in self.held]
            self.tried = [value * keep for value in self.tried]
        self.at_s = now_s

    def forget(self, keep: float) -> None:
        """Keep this share of the counts: what is believed stays, how surely does not."""
        self.held = [value * keep for value in self.held]
        self.tried = [value * keep for value in self.tried]

    def doubt(self, tries: float) -> None:
        """Believe no depth more surely than so many tries would tell, here and in the base."""
        for depth, tried in enumerate(self.tried):
            keep = min(1.0, tries / tried) if tried else 1.0
            self.tried[depth], self.held[depth] = tried * keep, self.held[depth] * keep
        if self.base is not None:
            self.base.doubt(tries)

    def tries(self, depth: int) -> float:
        """Effective tries at a depth, with what the base lends."""
        lent = PRIOR_WEIGHT if self.base is None else min(LENT, self.base.tries(depth))
        return self.tried[min(depth, DEPTHS - 1)] + lent

    def rate(self, depth: int) -> float:
        """P(equal | all before were)."""
        return self.rates()[min(depth, DEPTHS - 1)]

    def rates(self, shift: float = 0.0) -> tuple[float, ...]:
        """All depths; `shift` standard errors up or down (the normal approximation to Beta)."""
        lent = None if self.base is None else self.base.rates()
        found: list[float] = []
        for depth in range(DEPTHS):
            weight = self.tries(depth) - self.tried[depth]
            prior = lent[depth] if lent is not None else (found[-1] if found else PRIOR)
            found.append((self.held[depth] + prior * weight) / (self.tried[depth] + weight))
        return tuple(self._shifted(rate, depth, shift) for depth, rate in enumerate(found))

    def _shifted(self, rate: float, depth: int, shift: float) -> float:
        if not shift:
            return rate
        spread = math.sqrt(max(rate * (1.0 - rate), 0.01) / (self.tries(depth) + 1.0))
        return min(0.999, max(0.0, rate + shift * spread))
