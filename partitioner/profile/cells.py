"""What is measured: one pass of some rows at some context through one model on one engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

Head = Literal["last", "all"]
"""Rows that the head computes: a chunk of a prompt wants its last one, a verified span all."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A pass. Times are seconds, contexts tokens before the first row."""

    rows: int
    context: int
    head: Head = "last"

    @property
    def head_rows(self) -> int:
        return self.rows if self.head == "all" else 1

    @property
    def seen(self) -> float:
        """Tokens that a row sees, its own among them, on average."""
        return self.context + (self.rows + 1) / 2

    @property
    def kind(self) -> str:
        """What such a pass is for."""
        if self.rows == 1:
            return "decode"
        return "verify" if self.head == "all" else "prefill"


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured cell."""

    cell: Cell
    seconds: float
    """The lower quartile of the rounds."""
    rounds: int


KNOTS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Row counts at which the row curve is fitted."""
CONTEXTS = (32, 512)
QUICK_KNOTS = (1, 2, 8, 64)


def grid(rows: tuple[int, ...], contexts: tuple[int, ...], verified: int = 16) -> tuple[Cell, ...]:
    """Each row count at each context; up to `verified` rows also with the whole head."""
    chunks = [Cell(r, c) for r, c in product(rows, contexts)]
    spans = [Cell(r, contexts[0], "all") for r in rows if 1 < r <= verified]
    return (*chunks, *spans)


FULL = grid(KNOTS, CONTEXTS)
QUICK = grid(QUICK_KNOTS, (32, 384), 2)
HELD_OUT = grid((1, 3, 6, 12, 24, 48, 96), (192, 800), 12)
"""Rows and contexts that no fit has seen."""
