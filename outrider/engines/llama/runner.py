"""Runs passes: plans the decodes, pads, hands scores on, and removes the padding again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from outrider.engine import RowRule, Span
from outrider.engines.llama.form import Form, form_of, forms
from outrider.engines.llama.library import Context
from outrider.engines.llama.plan import Cost, Decode

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
        asked = tuple((span.slot, len(span.tokens), span.first) for span in spans)
        for form in forms(asked, self.rule, self.cost, self.limit):
            self._decode(form, spans, take)

    def step(self, slot: int, token: int) -> Scores:
        """One row without padding: its scores, [V], a view that is valid until the next decode.

        After an error the caller cuts the slot.
        """
        scores = self.context.step(slot, token, self._held[slot])
        self._held[slot] += 1
        return scores[: self.size]

    def run_alone(self, span: Span, rows: int) -> list[Scores]:
        """One span in its own decode of at least `rows` rows; scores are copied."""
        length = len(span.tokens)
        decode = Decode(max(rows, length), (span.slot,), frozenset())
        found: list[Scores] = []
        self._decode(
            form_of(decode, [(span.slot, length, span.first)], self.rule),
            [span],
            lambda _, scores: found.append(scores.copy()),
        )
        return found

    def _decode(self, form: Form, spans: Sequence[Span], take: Take) -> None:
        try:
            scores = self.context.decode(form.rows, *self._filled(form, spans))
        except BaseException:
            for part in form.parts:
                self.context.cut(part.slot, self._held[part.slot])
            raise
        self._settle(form)
        for part in form.parts:
            if part.place is not None:
                take(part.place, scores[part.start : part.stop, : self.size])

    def _filled(self, form: Form, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Tokens and positions, slot after slot; padding repeats token 0."""
        tokens: list[int] = []
        positions: list[int] = []
        for part in form.parts:
            if part.place is not None:
                tokens += spans[part.place].tokens
            if part.real < form.size:
                tokens += [0] * (form.size - part.real)
            at = self._held[part.slot]
            positions += range(at, at + form.size)
        return tokens, positions

    def _settle(self, form: Form) -> None:
        """Real rows count, the others go."""
        for part in form.parts:
            self._held[part.slot] += part.real
            if part.real < form.size:
                self.padded_rows += form.size - part.real
                self.context.cut(part.slot, self._held[part.slot])
