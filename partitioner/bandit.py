"""What is learnt by trying: fading means with their spread, and a budget for trying. Pure.

The probes are those of a constraint-satisfying upper-confidence-bound bandit (PerLLM,
arXiv 2405.14636): an arm that breaks a constraint is not an arm, and one that is
believed to be worse is tried only while its optimistic score would still win. Two
bounds hold whatever is measured: probes take at most `SHARE` of all tokens, and each
probe that taught nothing new doubles the time to the next. When what happens stops
being what was expected, confidence is dropped, so that trying begins anew (the
surprise of active inference, without its machinery).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHARE = 0.04
"""Of all committed tokens, at most, that probes may take (one probe is always allowed)."""
PROBE_TOKENS = 24
PROBE_DEPTH = 3
"""Tokens that a probe of drafting drafts ahead though the committer wishes for none."""
DOUBT = 10.0
"""Tries that what was believed of acceptance counts for when a probe begins."""
FIRST_PAUSE_S = 8.0
LONGEST_PAUSE_S = 240.0


@dataclass(slots=True)
class Estimate:
    """A fading mean with variance. `weight` is the effective number of observations."""

    fade: float = 0.95
    half_life_s: float = 180.0
    weight: float = 0.0
    mean: float = 0.0
    spread: float = 0.0
    """Fading variance of single observations."""
    at_s: float = 0.0

    def note(self, value: float, now_s: float, weight: float = 1.0) -> None:
        self.age(now_s)
        self.weight = self.weight * self.fade**weight + weight
        step = weight / self.weight
        before = value - self.mean
        self.mean += before * step
        # Rounding may leave a hair below nothing where all that is old has faded.
        self.spread = max(0.0, self.spread + (before * (value - self.mean) - self.spread) * step)

    def age(self, now_s: float) -> None:
        """Old news is believed, but less surely."""
        if self.weight and now_s > self.at_s:
            self.weight *= 0.5 ** ((now_s - self.at_s) / self.half_life_s)
        self.at_s = max(self.at_s, now_s)

    def error(self, unknown: float) -> float:
        """Standard error of the mean; `unknown` before anything was seen, and fading in after."""
        own = self.spread / max(1.0, self.weight)
        return math.sqrt(own + unknown * unknown / (1.0 + self.weight))


@dataclass(slots=True)
class Budget:
    """When a probe may be made. `tokens` counts all that was committed, probes included."""

    tokens: int = 0
    spent: int = 0
    probes: int = 0
    pause_s: float = FIRST_PAUSE_S
    next_s: float = 0.0
    busy: bool = False
    """Somebody probes: one answer at a time does, for all."""

    def allows(self, now_s: float) -> bool:
        if self.busy or now_s < self.next_s:
            return False
        return self.spent + PROBE_TOKENS <= max(PROBE_TOKENS, SHARE * self.tokens)

    def begin(self) -> None:
        self.busy = True
        self.probes += 1

    def end(self, now_s: float, tokens: int, *, taught: bool) -> None:
        """A probe took `tokens`; `taught` when it changed the placement."""
        self.busy = False
        self.spent += tokens
        self.pause_s = FIRST_PAUSE_S if taught else min(LONGEST_PAUSE_S, 2.0 * self.pause_s)
        self.next_s = now_s + self.pause_s

    def hasten(self, now_s: float) -> None:
        """The world changed: the next probe need not wait for long."""
        self.pause_s = FIRST_PAUSE_S
        self.next_s = min(self.next_s, now_s + FIRST_PAUSE_S / 4)


def optimistic(mean: float, error: float, tries: float) -> float:
    """The lower confidence bound of a cost (UCB1's radius with a measured error)."""
    return mean - error * math.sqrt(2.0 * math.log(2.0 + max(0.0, tries)))
