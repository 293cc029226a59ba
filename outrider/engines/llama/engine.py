"""The llama.cpp engine: any GGUF, many slots, several rows per slot and pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outrider.engine import EngineInfo, EngineStatistics, KvSegment, Picked, Span
from outrider.engines.base import BaseEngine
from outrider.engines.llama.library import Model
from outrider.engines.llama.probe import same
from outrider.engines.llama.runner import Runner, Scores
from outrider.engines.slots import Slot, pick
from outrider.errors import EngineFailed, LocalProtocolError
from outrider.protocol.sampling import best

RECHECK_EVERY = 1000
"""Passes; one of so many is run again in another grouping."""
_RECHECK_ROWS = 64
"""Longer spans are not run twice while a shorter one is there."""
LAYOUT = "opaque:llama"


class LlamaEngine(BaseEngine):
    """Chains only. `import_kv` feeds a native parser: its caller has authenticated the bytes."""

    def __init__(self, info: EngineInfo, model: Model, runner: Runner) -> None:
        super().__init__(info)
        self._model = model
        self._runner = runner

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        picked: dict[int, Picked] = {}
        due = self._due(spans)
        kept: list[Scores] = []

        def take(place: int, scores: Scores) -> None:
            span = spans[place]
            picked[place] = pick(span, self._slots[span.slot], scores)
            if place == due:
                kept.append(scores.copy())

        self._runner.run(spans, take)
        if due is not None:
            self._recheck(spans[due], kept[0])
        return [picked[i] for i in range(len(spans))]

    def _step(self, span: Span, slot: Slot) -> Picked:
        if self._info.exact:
            return super()._step(span, slot)
        return Picked((best(self._runner.step(span.slot, span.tokens[0])),))

    def _due(self, spans: Sequence[Span]) -> int | None:
        """Which span is run again after this pass."""
        if not self._info.exact or (self._passes + 1) % RECHECK_EVERY:
            return None
        short = [i for i, span in enumerate(spans) if len(span.tokens) <= _RECHECK_ROWS]
        if not short:
            return min(range(len(spans)), key=lambda i: len(spans[i].tokens))
        return short[self._passes // RECHECK_EVERY % len(short)]

    def _recheck(self, span: Span, scores: Scores) -> None:
        """The same rows alone, in a decode of another size; a difference ends the promise."""
        self._runner.cut(span.slot, span.base)
        rule, rows = self._runner.rule, len(span.tokens)
        size = rule.padded(rule.padded(rows) + 1)
        again = self._runner.run_alone(span, size if size <= self._runner.limit else rows)
        if not same(scores, again[0]):
            self._recheck_mismatches += 1
            self._info = replace(self._info, exact=False)

    def _cut(self, number: int, length: int) -> None:
        self._runner.cut(number, length)

    def _closed(self, number: int) -> None:
        self._runner.cut(number, 0)

    def export_kv(self, slot: int, start: int, stop: int) -> KvSegment:
        """The whole slot: `start` is 0 and `stop` its length."""
        tokens = self._slots[slot].tokens
        if start != 0 or stop != len(tokens) or not tokens:
            raise LocalProtocolError(
                f"llama.cpp exports whole slots: 0 to {len(tokens)}, not {start} to {stop}"
            )
        data = self._mark() + self._runner.context.save(slot)
        return KvSegment(LAYOUT, self._info.dtype, 0, stop, tuple(tokens), data)

    def _mark(self) -> bytes:
        """States fit their own numeric class alone."""
        return bytes.fromhex(self._info.numeric_class)

    def import_kv(self, slot: int, segment: KvSegment) -> None:
        tokens = self._slots[slot].tokens
        mark = self._mark()
        self._check_segment(segment, tokens, mark)
        self._runner.context.restore(slot, segment.data[len(mark) :])
        if self._runner.context.length(slot) != segment.stop:
            self._runner.cut(slot, 0)
            raise EngineFailed(
                "a slot's state holds another number of tokens than it says",
                effect="the slot is empty",
            )
        self._runner.took_over(slot, segment.stop)
        tokens[:] = segment.tokens

    def _check_segment(self, segment: KvSegment, tokens: Sequence[int], mark: bytes) -> None:
        if segment.layout != LAYOUT or segment.data[: len(mark)] != mark:
            raise LocalProtocolError("this engine takes states of its own numeric class alone")
        if tokens or segment.start or len(segment.tokens) != segment.stop:
            raise LocalProtocolError(
                "a llama.cpp state is a whole slot, and goes into an empty one"
            )
        if not 0 < segment.stop <= self._info.context:
            raise LocalProtocolError("the KV segment does not fit the context")

    def statistics(self) -> EngineStatistics:
        return replace(super().statistics(), padded_rows=self._runner.padded_rows)

    def check_integrity(self) -> None:
        super().check_integrity()
        for slot in self._slots:
            assert self._runner.context.length(slot.number) == len(slot.tokens)

    def shutdown(self) -> None:
        super().shutdown()
        self._model.close()
