"""What of a decode does not depend on its tokens: made once, and used by every pass like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from outrider.engine import RowRule
from outrider.engines.llama.library import Rows
from outrider.engines.llama.plan import Cost, Decode, plan

Asked = tuple[int, int, int]
"""A span without its tokens: slot, number of rows, first row that gives a choice."""


@dataclass(frozen=True, slots=True)
class Part:
    """One slot's rows in a decode."""

    slot: int
    place: int | None
    """Of its span in the pass; None for a filler."""
    real: int
    """Rows that are kept; the others are padding and go again."""
    start: int
    stop: int
    """Which of the decode's scores are the span's."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A decode of `size` rows for each part, slot after slot."""

    size: int
    parts: tuple[Part, ...]
    rows: Rows


@lru_cache(maxsize=1024)
def forms(asked: tuple[Asked, ...], rule: RowRule, cost: Cost, limit: int) -> tuple[Form, ...]:
    """The decodes of a pass."""
    lengths = tuple((slot, length) for slot, length, _ in asked)
    return tuple(form_of(decode, asked, rule) for decode in plan(lengths, rule, cost, limit))


def form_of(decode: Decode, asked: Sequence[Asked], rule: RowRule) -> Form:
    """One decode's form; of `asked` it uses what stands in `decode`."""
    wanted = {part[0]: (place, *part[1:]) for place, part in enumerate(asked)}
    spans = [None if s in decode.fillers else wanted[s] for s in decode.slots]
    flags = np.zeros((len(spans), decode.rows), dtype=np.int8)
    for row, span in zip(flags, spans, strict=True):
        if span is not None:
            row[span[2] : span[1]] = 1
    marks = flags.reshape(-1)
    _ask_enough(decode, marks, rule)
    before = np.concatenate(([0], np.cumsum(marks != 0)))
    parts = []
    for i, (slot, span) in enumerate(zip(decode.slots, spans, strict=True)):
        place, length, first = span or (None, 0, 0)
        start = int(before[i * decode.rows + first])
        parts.append(Part(slot, place, length, start, start + length - first))
    sequences = np.repeat(np.array(decode.slots, dtype=np.int64), decode.rows)
    return Form(decode.rows, tuple(parts), Rows(sequences, marks, int(before[-1])))


def _ask_enough(decode: Decode, marks: NDArray[np.int8], rule: RowRule) -> None:
    """The head computes the wanted rows alone, so the rule holds for their number too.

    Extra rows are marked 2: asked for, and dropped.
    """
    start = 0
    for run in decode.runs():
        part = marks[start : start + len(run) * decode.rows]
        start += len(part)
        count = int(np.count_nonzero(part))
        missing = min(rule.padded(count), len(part)) - count
        if missing > 0:
            part[np.flatnonzero(part == 0)[-missing:]] = 2
