"""Whether a choice's passes wait for hints, told when it changes: why, and what it brought. Pure.

The scheduler decides this anew for every pass; here is what lasts of it. A pinned trigger never
changes, and a choice whose device sends no hints is never waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from outrider.protocol import events

Mode = Literal["free", "wait"]
EVERY = 4
"""Commits between two looks."""
AGREE = 3
"""Looks in a row that must say the same."""
MEASURED = 24
"""Tokens after which the effect of a change is told."""
FEWEST = 8
"""Tokens from which on a pace says anything."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """The two ways as the scheduler expects them now; ms are milliseconds a token."""

    mode: Mode
    wait_ms: float
    free_ms: float
    lag_ms: float
    step_ms: float
    rate: float
    """Of first hint tokens that hold."""
    sharing: int
    """Choices in the same passes."""

    def ms(self, mode: Mode) -> float:
        return self.wait_ms if mode == "wait" else self.free_ms

    def reason(self) -> str:
        hints = f"hints come after {self.lag_ms:.0f} ms, {self.rate:.0%} of first tokens hold"
        if self.sharing > 1:
            within = "less" if self.mode == "wait" else "more"
            return f"{hints}; that is {within} than the pass that {self.sharing} answers share"
        costs = f"{self.wait_ms:.1f} ms a token with waiting, {self.free_ms:.1f} without"
        return f"{hints}: {costs}"

    def cause(self, before: Weighed | None) -> str:
        """What moved most since the last change."""
        if before is None:
            return "start"
        pairs = (
            ("hints after", "ms", before.lag_ms, self.lag_ms),
            ("pass", "ms", before.step_ms, self.step_ms),
            ("acceptance", "", before.rate, self.rate),
            ("answers in a pass", "", before.sharing, self.sharing),
        )
        known = [pair for pair in pairs if pair[2] > 0 and pair[3] > 0]
        if not known:
            return "steady"
        name, unit, old, new = max(known, key=lambda pair: abs(math.log(pair[3] / pair[2])))
        return f"{name} {old:.3g} -> {new:.3g} {unit}".rstrip()


@dataclass(slots=True)
class TriggerWatch:
    """Of one choice. Times are seconds on the cloud's clock."""

    mode: Mode = "free"
    agreed: int = 0
    commits: int = 0
    tokens: int = 0
    """Since the last change."""
    began_s: float | None = None
    before: Weighed | None = None
    """As things stood at the last change."""
    pending: tuple[events.Decision, float | None] | None = None
    """A change, and the pace before it."""

    def committed(self, tokens: int, now_s: float) -> events.Decision | None:
        """A commit was made; what the last change brought, once that is known."""
        self.commits += 1
        if self.began_s is None:
            self.began_s = now_s
            return None
        self.tokens += tokens
        return self._measured(now_s, MEASURED)

    def due(self) -> bool:
        return self.commits % EVERY == 0

    def look(
        self, weighed: Weighed, session: str, position: int, number: int, now_s: float
    ) -> events.Decision | None:
        """A change of mode that lasts, as it is to be told with `number`."""
        self.before = self.before or weighed
        self.agreed = self.agreed + 1 if weighed.mode != self.mode else 0
        if self.agreed < AGREE:
            return None
        pace = self._pace(now_s, FEWEST)
        decision = self._decision(weighed, session, position, number, pace)
        self.pending = (decision, pace)
        self.mode, self.before, self.agreed = weighed.mode, weighed, 0
        self.tokens, self.began_s = 0, now_s
        return decision

    def _decision(
        self, weighed: Weighed, session: str, position: int, number: int, pace: float | None
    ) -> events.Decision:
        old, new = weighed.ms(self.mode), weighed.ms(weighed.mode)
        known = weighed.sharing == 1 and 0.0 < new and math.isfinite(old)
        return events.Decision(
            request=session,
            what="trigger",
            old=self.mode,
            new=weighed.mode,
            reason=weighed.reason(),
            predicted_gain=round(1.0 - new / old, 4) if known else None,
            binding="none" if weighed.sharing == 1 else "wait: at most the pass that others share",
            runner_up=self.mode,
            number=number,
            position=position,
            cause=weighed.cause(self.before),
            margin=round(old / new - 1.0, 4) if known else None,
            ms_before=None if pace is None else round(pace, 4),
        )

    def _pace(self, now_s: float, least: int) -> float | None:
        """Milliseconds a token since the last change."""
        if self.began_s is None or self.tokens < least:
            return None
        return (now_s - self.began_s) * 1e3 / self.tokens

    def _measured(self, now_s: float, least: int) -> events.Decision | None:
        pace = self._pace(now_s, least)
        if self.pending is None or pace is None:
            return None
        (made, before), self.pending = self.pending, None
        return _told_again(made, before, pace)


def _told_again(made: events.Decision, before: float | None, pace: float) -> events.Decision:
    gain = None if not before else round(1.0 - pace / before, 4)
    return msgspec.structs.replace(
        made, phase="measured", observed_gain=gain, ms_after=round(pace, 4)
    )
