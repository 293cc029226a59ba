"""What the simulator asks of a committer: the decisions of a cloud, without its engine.

The cloud's own scheduler and hint windows stand behind this (`outrider.cli.committer`
wraps them), so that what is simulated is decided by the code that decides in earnest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

RIGHT, WRONG = 1, 0
"""The target always says RIGHT: only whether a draft equals it matters."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Planned; nothing to compute when `rows` is 0."""

    rows: int
    answers: int
    prefill_rows: int
    held: int
    """Answers held back for a hint."""
    until: float | None
    """When the first of these must run."""


@dataclass(frozen=True, slots=True)
class Settled:
    """One answer after a pass."""

    ticket: int
    rows: int
    position: int
    tokens: int
    """0 while its prompt goes on being filled."""
    hint_rows: int
    held: int
    wish: int
    done: bool


class Committer(Protocol):
    """Times are seconds. A ticket names an answer."""

    def open(self, ticket: int, prompt: int, tokens: int, committed: int, now: float) -> None: ...

    def seat(self, ticket: int) -> None:
        """It has a slot, and nothing stands in it."""
        ...

    def detach(self, ticket: int) -> None: ...

    def attach(self, ticket: int, seen: int) -> int:
        """Its device is back; how much is committed."""
        ...

    def close(self, ticket: int) -> None: ...

    def hear(
        self, ticket: int, seen: int, base: int, tokens: Sequence[int], now: float
    ) -> None: ...

    def plan(self, now: float) -> Pass: ...

    def waited(self) -> None:
        """Nothing came for those that were held."""
        ...

    def settle(self, took_ms: float, now: float) -> list[Settled]:
        """The planned pass was computed."""
        ...

    def step_ms(self, rows: int) -> float:
        """As learnt so far."""
        ...
