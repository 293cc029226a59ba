"""Runs passes: plans the decodes, pads, hands scores on, and removes the padding again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from outrider.engine import RowRule, Span
from outrider.engines.llama.library import Context, Rows
from outrider.engines.llama.plan import Cost, Decode, plan

Scores = NDArray[np.float32]
Take = Callable[[int, Scores], None]
"""Gets a span's place in the pass and its scores, [rows from first on, V], a view that is
valid until it returns."""


class Runner:
    """Owns how many tokens of each sequence are real; `rule` and `cost` may be changed."""

    def __init__(self, context: Context, slots: int, limit: int, size: int) -> None:
        self.context = context
        self.rule = RowRule()
        self.cost = Cost(8.0, 1.0)
        self.padded_rows = 0
        self.limit = limit
        self.size = size
        """Ids that can be chosen; scores of padding ids are not handed on."""
        self._held = [0] * slots

    def cut(self, slot: int, length: int) -> None:
        """Forget a slot's tokens from `length` on."""
        self.context.cut(slot, length)
        self._held[slot] = length

    def took_over(self, slot: int, length: int) -> None:
        """The slot's KV came from elsewhere."""
        self._held[slot] = length

    def run(self, spans: Sequence[Span], take: Take) -> None:
        """One pass; each slot already ends at its span's base."""
        places = {span.slot: i for i, span in enumerate(spans)}
        lengths = tuple((span.slot, len(span.tokens)) for span in spans)
        for decode in plan(lengths, self.rule, self.cost, self.limit):
            self._decode(decode, spans, places, take)

    def run_alone(self, span: Span, rows: int) -> list[Scores]:
        """One span in its own decode of at least `rows` rows; scores are copied."""
        decode = Decode(max(rows, len(span.tokens)), (span.slot,), frozenset())
        found: list[Scores] = []
        self._decode(decode, [span], {span.slot: 0}, lambda _, scores: found.append(scores.copy()))
        return found

    def _decode(
        self, decode: Decode, spans: Sequence[Span], places: Mapping[int, int], take: Take
    ) -> None:
        wanted = {s: spans[places[s]] for s in decode.slots if s not in decode.fillers}
        rows = self._rows(decode, wanted)
        try:
            scores = self.context.decode(rows)
        except BaseException:
            for slot in decode.slots:
                self.context.cut(slot, self._held[slot])
            raise
        self._settle(decode, wanted)
        self._hand_on(decode, wanted, rows, scores, places, take)

    def _rows(self, decode: Decode, wanted: Mapping[int, Span]) -> Rows:
        """Slot after slot; padding repeats token 0."""
        tokens: list[int] = []
        positions: list[int] = []
        marks: list[int] = []
        for slot in decode.slots:
            at, span = self._held[slot], wanted.get(slot)
            real = span.tokens if span else ()
            first = span.first if span else 0
            tokens += (*real, *[0] * (decode.rows - len(real)))
            positions += range(at, at + decode.rows)
            marks += [0] * first + [1] * (len(real) - first) + [0] * (decode.rows - len(real))
        flags = np.array(marks, dtype=np.int8)
        self._ask_enough(decode, flags)
        return Rows(
            np.array(tokens, dtype=np.int32),
            np.array(positions, dtype=np.int32),
            np.repeat(np.array(decode.slots, dtype=np.int64), decode.rows),
            flags,
        )

    def _ask_enough(self, decode: Decode, flags: NDArray[np.int8]) -> None:
        """The head computes the wanted rows alone, so the rule holds for their number too.

        Extra rows are marked 2: asked for, and dropped.
        """
        start = 0
        for run in decode.runs():
            part = flags[start : start + len(run) * decode.rows]
            start += len(part)
            count = int(np.count_nonzero(part))
            missing = min(self.rule.padded(count), len(part)) - count
            if missing > 0:
                part[np.flatnonzero(part == 0)[-missing:]] = 2

    def _settle(self, decode: Decode, wanted: Mapping[int, Span]) -> None:
        """Real rows count, the others go."""
        for slot in decode.slots:
            real = len(wanted[slot].tokens) if slot in wanted else 0
            self._held[slot] += real
            if real < decode.rows:
                self.padded_rows += decode.rows - real
                self.context.cut(slot, self._held[slot])

    def _hand_on(
        self,
        decode: Decode,
        wanted: Mapping[int, Span],
        rows: Rows,
        scores: Scores,
        places: Mapping[int, int],
        take: Take,
    ) -> None:
        """Rows come back in the batch's order."""
        place = np.cumsum(rows.wanted != 0)
        for i, slot in enumerate(decode.slots):
            if slot in wanted:
                span = wanted[slot]
                first = int(place[i * decode.rows + span.first]) - 1
                count = len(span.tokens) - span.first
                take(places[slot], scores[first : first + count, : self.size])
