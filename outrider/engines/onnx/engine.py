"""Many slots on one ONNX Runtime session."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from outrider.engine import EngineInfo, KvSegment, Picked, Span
from outrider.engines.base import BaseEngine
from outrider.engines.onnx.decoder import Call, Decoder
from outrider.engines.slots import Slot, pick
from outrider.errors import LocalProtocolError
from outrider.protocol.sampling import best

RECHECK_EVERY = 1000
"""Passes between two re-checks of an exact engine."""
GAP = 3
"""Slots without a row that a run spans rather than ending: an idle row costs less than a run."""

Floats = NDArray[np.float32]


class OnnxEngine(BaseEngine):
    """A pass is a few runs: slots with one row share one, a longer span has its own.

    GroupQueryAttention takes several rows on top of a past for one sequence only.
    Rows of slots that lie in a run's range without being asked write one key
    beyond their end, where nothing reads it.
    """

    def __init__(self, info: EngineInfo, decoder: Decoder) -> None:
        super().__init__(info)
        self._decoder = decoder

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        picked = self._alone(spans[0]) if len(spans) == 1 else self._together(spans)
        if self._info.exact and self._passes % RECHECK_EVERY == RECHECK_EVERY - 1:
            self._recheck(spans[0])
        return picked

    def _step(self, span: Span, slot: Slot) -> Picked:
        if self._info.exact:
            return super()._step(span, slot)
        scores = self._decoder.step(span.slot, span.tokens[0], span.base)
        return Picked((best(scores[: self._info.vocabulary_size]),))

    def _alone(self, span: Span) -> list[Picked]:
        return [self._picked(span, self._run_span(span, self._computed(span)))]

    def _together(self, spans: Sequence[Span]) -> list[Picked]:
        picked: dict[int, Picked] = {}
        single = [span for span in spans if self._computed(span) == 1]
        for group in _neighbours(sorted(single, key=lambda span: span.slot)):
            picked.update(self._run_rows(group))
        for span in spans:
            if span.slot not in picked:
                picked[span.slot] = self._alone(span)[0]
        return [picked[span.slot] for span in spans]

    def _computed(self, span: Span) -> int:
        return self._info.row_rule.padded(len(span.tokens))

    def _run_rows(self, group: Sequence[Span]) -> Iterator[tuple[int, Picked]]:
        """One row each for neighbouring slots, in one run."""
        first, last = group[0].slot, group[-1].slot
        tokens = {span.slot: span.tokens for span in group}
        past = self._lengths(first, last)
        ids = [tokens.get(slot, (0,)) for slot in range(first, last + 1)]
        self._padded_rows += len(ids) - len(group)
        scores = self._decoder.run(Call(first, ids, past, [span.slot - first for span in group]))
        for row, span in enumerate(group):
            yield span.slot, self._picked(span, scores[row : row + 1])

    def _lengths(self, first: int, last: int) -> list[int]:
        held = {slot.number: len(slot.tokens) for slot in self._slots}
        return [held.get(slot, 0) for slot in range(first, last + 1)]

    def _run_span(self, span: Span, rows: int) -> Floats:
        """Scores of the rows asked for, with the span padded to `rows`."""
        count = len(span.tokens)
        self._padded_rows += rows - count
        ids = span.tokens if rows == count else (*span.tokens, *(0,) * (rows - count))
        wanted = range(span.first, count)
        return self._decoder.run(Call(span.slot, (ids,), (span.base,), wanted))

    def _picked(self, span: Span, scores: Floats) -> Picked:
        return pick(span, self._slots[span.slot], scores[:, : self._info.vocabulary_size])

    def _recheck(self, span: Span) -> None:
        """Compute the last row again in other company; `exact` ends with the first difference."""
        last = replace(span, first=len(span.tokens) - 1)
        usual = self._computed(span)
        other = self._info.row_rule.padded(usual + 1)
        if span.base + other > self._decoder.capacity:
            return
        scores = self._run_span(last, usual).copy()
        if not np.array_equal(scores, self._run_span(last, other)):
            self._recheck_mismatches += 1
            self._info = replace(self._info, exact=False)

    def export_kv(self, slot: int, start: int, stop: int) -> KvSegment:
        tokens = self._slots[slot].tokens
        if not 0 <= start < stop <= len(tokens):
            raise LocalProtocolError(
                f"no tokens {start} to {stop} in a slot that holds {len(tokens)}"
            )
        data = self._decoder.read(slot, start, stop)
        return KvSegment(
            "canonical", "float32", start, stop, tuple(tokens[:stop]), data.tobytes(), data.shape
        )

    def import_kv(self, slot: int, segment: KvSegment) -> None:
        held = self._slots[slot].tokens
        self._check_segment(held, segment)
        data = np.frombuffer(segment.data, dtype=np.dtype(segment.dtype)).reshape(segment.shape)
        self._decoder.write(slot, segment.start, data)
        held[:] = segment.tokens

    def _check_segment(self, held: Sequence[int], segment: KvSegment) -> None:
        notes, count = self._decoder.notes, segment.stop - segment.start
        shape = (notes.layers, 2, notes.kv_heads, count, notes.head_dim)
        if segment.layout != "canonical" or segment.dtype not in ("float32", "float16"):
            raise LocalProtocolError(f"no KV in {segment.layout} {segment.dtype} is taken")
        if segment.shape != shape or not 0 < segment.stop <= self._info.context:
            raise LocalProtocolError(f"KV has shape {segment.shape}, this model's is {shape}")
        if len(segment.data) != math.prod(shape) * np.dtype(segment.dtype).itemsize:
            raise LocalProtocolError("KV has another size than its shape says")
        if len(segment.tokens) != segment.stop or tuple(held) != segment.tokens[: segment.start]:
            raise LocalProtocolError("KV does not follow on the tokens that the slot holds")
        if not all(0 <= token < self._info.vocabulary_size for token in segment.tokens):
            raise LocalProtocolError("KV names a token outside the vocabulary")


def _neighbours(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Runs of spans, in order of their slots, with at most GAP idle slots in between."""
    group: list[Span] = []
    for span in spans:
        if group and span.slot - group[-1].slot > GAP + 1:
            yield group
            group = []
        group.append(span)
    if group:
        yield group
