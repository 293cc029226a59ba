"""Which rows the next target pass computes. A pure plan over the choices; time is an argument.

A pass holds, in this order of right: one row for each choice that decodes, the
prefill chunks that fit, and then hint rows, best value first, while each is worth
more tokens than the time it adds would have brought without it.

A choice without a live hint may be held back for a bounded time: as long as the
trigger says, or, left to itself, as long as waiting is expected to bring more
tokens a second than running on. None is passed over by more than one pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.cloud.cost import StepCost
from outrider.cloud.session import Choice
from outrider.cloud.trigger import Weighed

PREFILL_ROWS = 128
"""Prompt rows in a pass that also decodes; bounds how long a long prompt delays the others."""
MAX_WISH = 15
"""Tokens past the committed end: what the target says meanwhile, and the rows."""
MAX_HINT_ROWS = 7
"""Per choice; one less than the smallest class of commits, so that one commit holds a pass."""

LEAST_VALUE = 0.02
"""A row that holds more seldom than this is not computed, even where padding makes it free."""
LEAST_RATE = 0.1
"""A drafter whose next token holds more seldom is only probed: its messages and the device's
energy are never free."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """`free`: never wait; `wait`: up to `wait_ms` for a hint; `auto`: by expected rate."""

    mode: str = "auto"
    wait_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of one choice: tokens to append at `base`, of which the last are hints."""

    choice: Choice
    base: int
    tokens: tuple[int, ...]
    hints: tuple[int, ...]
    wants: bool
    """False while a prefill goes on: no token is chosen."""

    @property
    def rows(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    works: tuple[Work, ...]
    held: tuple[Choice, ...]
    """Ready, but held back for a hint."""
    until: float | None
    """When the first of the held must run; None without held ones."""

    @property
    def rows(self) -> int:
        return sum(work.rows for work in self.works)


@dataclass(slots=True)
class Scheduler:
    cost: StepCost
    trigger: Trigger = field(default_factory=Trigger)
    ahead: int = 64
    max_rows: int = 512

    def plan(self, choices: Sequence[Choice], now: float) -> Plan:
        """Choices not done and with a slot; those held are only returned when nothing else runs."""
        ready = [choice for choice in choices if self._ready(choice)]
        held = [choice for choice in ready if self._deadline(choice, ready) > now]
        running = [choice for choice in ready if choice not in held]
        until = min((self._deadline(choice, ready) for choice in held), default=None)
        return Plan(tuple(self._fill(running)), tuple(held), until)

    def _ready(self, choice: Choice) -> bool:
        session = choice.session
        unseen = len(choice.committed) - choice.window.seen
        return session.attached and not choice.done and (choice.prefilling or unseen < self.ahead)

    # --- waiting ---------------------------------------------------------------------------

    def _deadline(self, choice: Choice, ready: Sequence[Choice]) -> float:
        """When the choice runs without a hint; 0 is at once."""
        if choice.prefilling or choice.passed_over or not choice.committed:
            return 0.0
        if choice.window.live(len(choice.committed)) or not choice.window.received:
            return 0.0
        return choice.settled_at + self._patience_s(choice, ready)

    def _patience_s(self, choice: Choice, ready: Sequence[Choice]) -> float:
        if self.trigger.mode == "free":
            return 0.0
        if self.trigger.mode == "wait":
            return self.trigger.wait_ms / 1e3
        return self._worthwhile_s(choice, len(ready))

    def _worthwhile_s(self, choice: Choice, sharing: int) -> float:
        """How long to wait for the next hint, 0 when running on is better or nothing is known."""
        if choice.lag_s is None or choice.waited:
            return 0.0
        lag_ms, step_ms = choice.lag_s * 1e3, self.cost.ms(sharing)
        if sharing > 1:
            return min(1.5 * lag_ms, step_ms) / 1e3 if lag_ms < step_ms else 0.0
        if waiting_ms(choice, self.cost, lag_ms) >= free_ms(choice, self.cost, lag_ms):
            return 0.0
        return 1.5 * lag_ms / 1e3 + 0.002

    def weighed(self, choice: Choice, sharing: int) -> Weighed | None:
        """Whether `auto` has its passes wait, whatever the last wait brought; None where it is
        not asked."""
        if self.trigger.mode != "auto" or choice.lag_s is None:
            return None
        lag_ms, step_ms = choice.lag_s * 1e3, self.cost.ms(sharing)
        wait, free = waiting_ms(choice, self.cost, lag_ms), free_ms(choice, self.cost, lag_ms)
        waits = lag_ms < step_ms if sharing > 1 else wait < free
        rate = choice.window.acceptance.rate(0)
        return Weighed("wait" if waits else "free", wait, free, lag_ms, step_ms, rate, sharing)

    # --- rows ------------------------------------------------------------------------------

    def _fill(self, running: Sequence[Choice]) -> list[Work]:
        decoding = [choice for choice in running if not choice.prefilling]
        budget = self.max_rows - len(decoding)
        chunks = self._prefill([c for c in running if c.prefilling], budget, bool(decoding))
        rows = len(decoding) + sum(chunk.rows for chunk in chunks)
        depths = self._hint_rows(decoding, rows)
        return [
            *(
                self._decode(choice, depths[choice.number, choice.session.key])
                for choice in decoding
            ),
            *chunks,
        ]

    def _prefill(self, waiting: Sequence[Choice], budget: int, shared: bool) -> list[Work]:  # noqa: FBT001
        left = min(budget, PREFILL_ROWS) if shared else budget
        works = []
        for choice in waiting:
            if left <= 0:
                break
            pending = choice.pending
            tokens = tuple(pending[:left])
            left -= len(tokens)
            wants = len(tokens) == len(pending)
            works.append(Work(choice, choice.filled, tokens, (), wants))
        return works

    def _decode(self, choice: Choice, depth: int) -> Work:
        hints = choice.window.live(len(choice.committed))[:depth]
        return Work(choice, choice.filled, (*choice.pending, *hints), hints, wants=True)

    def _hint_rows(
        self, decoding: Sequence[Choice], rows: int
    ) -> dict[tuple[int, tuple[str, bytes]], int]:
        """Rows granted to each choice: the next row goes where it brings most, while it pays."""
        granted = {(choice.number, choice.session.key): 0 for choice in decoding}
        values = sorted(
            (
                (value, depth, choice)
                for choice in decoding
                for depth, value in enumerate(self._values(choice))
            ),
            key=lambda item: (-item[0], item[1]),
        )
        tokens = float(len(decoding))
        for value, _, choice in values:
            if rows >= self.max_rows or not self._pays(value, rows, tokens):
                break
            granted[choice.number, choice.session.key] += 1
            rows += 1
            tokens += value
        return granted

    def _values(self, choice: Choice) -> list[float]:
        """P(all hint rows up to this depth hold), for the live hints; falls with depth."""
        window = choice.window
        end = len(choice.committed)
        live = len(window.live(end))
        left = choice.session.open.max_tokens - end - 1
        values, reach = [], 1.0
        for offset in range(min(live, MAX_HINT_ROWS, left)):
            reach *= window.acceptance.rate(end - window.start + offset)
            values.append(reach)
        return values

    def _pays(self, value: float, rows: int, tokens: float) -> bool:
        """Whether one more row brings more tokens per added time than the pass so far."""
        now, more = self.cost.ms(rows), self.cost.ms(rows + 1)
        if value < LEAST_VALUE:
            return False
        return now <= 0.0 or value * now > (more - now) * tokens

    def wish(self, choice: Choice) -> int:
        """Hint tokens past the committed end that this committer would look at."""
        acceptance = choice.window.acceptance
        if acceptance.rate(0) < LEAST_RATE:
            return 0
        reach, depth = 1.0, 0
        while depth < MAX_HINT_ROWS:
            reach *= acceptance.rate(depth)
            if not self._pays(reach, 1 + depth, 1.0 + acceptance.expected(depth)):
                break
            depth += 1
        return min(depth + self._lead(choice), MAX_WISH) if depth else 0

    def _lead(self, choice: Choice) -> int:
        """Tokens that the target commits alone while a hint is under way; none where it waits."""
        single_ms = self.cost.ms(1)
        if choice.lag_s is None or single_ms <= 0.0 or self.trigger.mode == "wait":
            return 0
        if self.trigger.mode == "auto" and self._worthwhile_s(choice, 1) > 0.0:
            return 0
        return math.ceil(choice.lag_s * 1e3 / single_ms)


def waiting_ms(choice: Choice, cost: StepCost, lag_ms: float) -> float:
    """Expected ms per token when every pass waits for its hints."""
    return min(
        (lag_ms + cost.ms(1 + rows)) / (1.0 + choice.window.acceptance.expected(rows))
        for rows in range(1, MAX_HINT_ROWS + 1)
    )


def free_ms(choice: Choice, cost: StepCost, lag_ms: float) -> float:
    """Expected ms per token when the target runs on while the hints are under way.

    After a divergence `plain` passes run alone; the hints drafted meanwhile are
    still right with the probability that all those tokens were foreseen.
    """
    single = cost.ms(1)
    if single <= 0.0:
        return math.inf
    plain = max(1, math.ceil(lag_ms / single))
    acceptance = choice.window.acceptance
    alive = 1.0
    for depth in range(plain):
        alive *= acceptance.rate(depth)
    best = single
    for rows in range(1, MAX_HINT_ROWS + 1):
        gain = 1.0 + acceptance.expected(rows)
        best = min(best, (plain * single + alive * cost.ms(1 + rows)) / (plain + alive * gain))
    return best
