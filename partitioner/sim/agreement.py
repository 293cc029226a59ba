"""Where a drafter is right: a fixed property of an answer's text, drawn from a seed.

Under position-keyed sampling a draft equals the target's token or not, whoever drafts it
and whenever. So an answer has one sequence of rights and wrongs, in which the chance of a
right depends on how many came since the last wrong: the measured acceptance by depth, as
a chain begins right after a wrong token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

DEPTHS = 16


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of a pair of models on a kind of text."""

    rates: tuple[float, ...] = (0.68, 0.7, 0.72, 0.74, 0.75, 0.76, 0.77, 0.78)
    """P(right | so many were right since the last wrong); the last one holds for all beyond."""
    spread: float = 0.5
    """Standard deviation of an answer's own log-odds."""

    def shifted(self, skill: float) -> tuple[float, ...]:
        """Of an answer that lies `skill` standard deviations off, at all depths."""
        return _shifted(self.rates, round(self.spread * skill, 3))


@lru_cache(maxsize=4096)
def _shifted(rates: tuple[float, ...], by: float) -> tuple[float, ...]:
    whole = (*rates, *[rates[-1]] * (DEPTHS - len(rates)))[:DEPTHS]
    return tuple(_moved(rate, by) for rate in whole)


def _moved(rate: float, by: float) -> float:
    if rate <= 0.0 or rate >= 1.0:
        return rate
    return 1.0 / (1.0 + math.exp(-(math.log(rate / (1.0 - rate)) + by)))


@dataclass(slots=True)
class Bits:
    """One answer's rights and wrongs by position, drawn as they are asked for."""

    rates: Sequence[float]
    random: np.random.Generator
    known: list[bool] = field(default_factory=list)
    run: int = 0

    def right(self, position: int) -> bool:
        while len(self.known) <= position:
            right = self.random.random() < self.rates[min(self.run, len(self.rates) - 1)]
            self.run = self.run + 1 if right else 0
            self.known.append(bool(right))
        return self.known[position]


def runs(rates: Sequence[float], count: int, random: np.random.Generator) -> np.ndarray:
    """How many are right before the next wrong: `count` draws, by inversion."""
    chances = np.array([*rates, *[rates[-1]] * (DEPTHS - len(rates))][:DEPTHS])
    reach = np.cumprod(chances)
    drawn = random.random(count)
    found = np.searchsorted(-reach, -drawn, side="left").astype(np.int64)
    beyond = found >= DEPTHS
    tail = float(chances[-1])
    if beyond.any() and 0.0 < tail < 1.0:
        left = np.log(drawn[beyond] / reach[-1]) / math.log(tail)
        found[beyond] = DEPTHS + np.minimum(left, 1e6).astype(np.int64)
    elif beyond.any():
        found[beyond] = 1_000_000 if tail >= 1.0 else DEPTHS
    return found
