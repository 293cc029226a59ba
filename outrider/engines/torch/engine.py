"""The torch adapter: a slot pool, one pass over all rows, picks by the shared sampler."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from outrider.engine import EngineInfo, EngineSpec, KvSegment, Picked, RowRule, Span
from outrider.engines.base import BaseEngine
from outrider.engines.numeric import joined_class
from outrider.engines.slots import Slot, pick
from outrider.engines.torch.device import hardware
from outrider.engines.torch.probe import Finding
from outrider.engines.torch.runner import Runner, Scores, Way, split, typed_errors
from outrider.engines.torch.sampling import pick_spans
from outrider.errors import EngineFailed, LocalProtocolError
from outrider.protocol import sampling

RECHECK_EVERY = 1000
"""Passes between two re-checks of exactness."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What of an engine's description does not follow from running it."""

    model: str
    weights_digest: str
    vocabulary_digest: str


class TorchEngine(BaseEngine):
    """The cache has one row more than there are slots: re-checks keep company in it."""

    def __init__(
        self, spec: EngineSpec, identity: Identity, runner: Runner, finding: Finding
    ) -> None:
        super().__init__(_describe(spec, identity, runner, finding))
        self._runner = runner
        self._cache = runner.cache
        self._padding = runner.way.padding
        self._pick = picker(runner.cache.pool.device)

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        scores = self._runner.scores(spans)
        rows = sum(len(span.tokens) for span in spans)
        self._padded_rows += self._padding.rows(rows) - rows
        if self._info.exact and (self._passes + 1) % RECHECK_EVERY == 0:
            self._recheck(spans, split(spans, scores))
        try:
            return self._pick(spans, [self._slots[span.slot] for span in spans], scores)
        except EngineFailed:
            self._forget(spans)
            raise

    def _forget(self, spans: Sequence[Span]) -> None:
        """A NaN left in the pool would reach whoever gets the slot next."""
        for span in spans:
            self._cache.clear(span.slot, span.base, span.base + len(span.tokens))

    # --- keeping watch -------------------------------------------------------------------------

    def _recheck(self, spans: Sequence[Span], scores: Sequence[Scores]) -> None:
        """Run one span again, in other company, and compare the bits."""
        which = self._passes // RECHECK_EVERY % len(spans)
        span, expected = spans[which], scores[which]
        company = Span(self._cache.slots - 1, 0, tuple(range(min(5, self._runner.vocabulary_size))))
        again = self._runner([company, span])[1]
        if not bool((again.view(np.int32) == expected.view(np.int32)).all()):
            self._recheck_mismatches += 1
            self._info = replace(self._info, exact=False)

    # --- slots ---------------------------------------------------------------------------------

    def keep(self, slot: int, base: int, path: Sequence[int]) -> None:
        tokens = self._slots[slot].tokens
        rows = [base + row for row in path]
        if not 0 <= base <= len(tokens) or any(not base <= row < len(tokens) for row in rows):
            raise LocalProtocolError("a path to keep leads outside the slot")
        if rows != sorted(set(rows)):
            raise LocalProtocolError("a path to keep goes from the root down")
        if rows != list(range(base, base + len(rows))):
            self._cache.move(slot, rows, base)
        tokens[base:] = [tokens[row] for row in rows]

    def export_kv(self, slot: int, start: int, stop: int) -> KvSegment:
        tokens = self._slots[slot].tokens
        if not 0 <= start < stop <= len(tokens):
            raise LocalProtocolError(f"tokens {start} to {stop} are not in the slot")
        config = self._runner.decoder.config
        return KvSegment(
            layout="canonical",
            dtype=self._info.dtype,
            start=start,
            stop=stop,
            tokens=tuple(tokens[:stop]),
            data=self._cache.export(slot, start, stop),
            shape=(config.layers, 2, config.kv_heads, stop - start, config.head_dim),
        )

    def import_kv(self, slot: int, segment: KvSegment) -> None:
        tokens = self._slots[slot].tokens
        self._check_segment(segment, tokens)
        self._cache.take(slot, segment.start, segment.data, segment.shape)
        tokens[:] = segment.tokens

    def _check_segment(self, segment: KvSegment, tokens: Sequence[int]) -> None:
        config = self._runner.decoder.config
        count = segment.stop - segment.start
        shape = (config.layers, 2, config.kv_heads, count, config.head_dim)
        if segment.layout != "canonical" or segment.dtype != self._info.dtype:
            raise LocalProtocolError(f"this engine takes canonical KV in {self._info.dtype}")
        size = int(np.prod(shape)) * self._cache.pool.dtype.itemsize
        if segment.shape != shape or count < 1 or len(segment.data) != size:
            raise LocalProtocolError("the KV segment has another shape than this model's")
        if segment.start != len(tokens) or tuple(tokens) != segment.tokens[: segment.start]:
            raise LocalProtocolError("the KV segment does not start where the slot ends")
        if segment.stop > self._info.context or len(segment.tokens) != segment.stop:
            raise LocalProtocolError("the KV segment does not fit the context")

    def check_integrity(self) -> None:
        super().check_integrity()
        for slot in self._slots:
            assert len(slot.tokens) <= self._cache.capacity

    def shutdown(self) -> None:
        super().shutdown()
        del self._cache, self._runner


# --- picks -------------------------------------------------------------------------------------

Pick = Callable[[Sequence[Span], Sequence[Slot], Tensor], list[Picked]]


def picker(device: torch.device) -> Pick:
    """On a CPU the numpy sampler picks, elsewhere its twin on the device."""
    return pick_on_host if device.type == "cpu" else pick_on_device


def pick_on_host(spans: Sequence[Span], slots: Sequence[Slot], scores: Tensor) -> list[Picked]:
    parts = zip(spans, slots, split(spans, scores), strict=True)
    return [_picked(span, slot, part) for span, slot, part in parts]


def pick_on_device(spans: Sequence[Span], slots: Sequence[Slot], scores: Tensor) -> list[Picked]:
    with torch.inference_mode(), typed_errors():
        return pick_spans(spans, slots, scores)


def _picked(span: Span, slot: Slot, scores: Scores) -> Picked:
    if slot.plain and span.want == "ids":
        return Picked(_greedy(scores))
    return pick(span, slot, scores)


def _greedy(scores: Scores) -> tuple[int, ...]:
    """The first of the best ids of each row; a row without a finite best fails."""
    ids = scores.argmax(-1)
    best = scores[np.arange(len(ids)), ids]
    if not bool(np.isfinite(best).all()):
        sampling.finite(scores[int(np.flatnonzero(~np.isfinite(best))[0])])
    return tuple(ids.tolist())


# --- description -------------------------------------------------------------------------------


def _describe(spec: EngineSpec, identity: Identity, runner: Runner, finding: Finding) -> EngineInfo:
    padding = runner.way.padding
    return EngineInfo(
        engine="torch",
        model=identity.model,
        device=str(runner.cache.pool.device),
        dtype=_dtype(runner),
        vocabulary_digest=identity.vocabulary_digest,
        vocabulary_size=runner.vocabulary_size,
        context=runner.cache.context,
        max_slots=spec.max_slots,
        max_rows=spec.max_rows,
        exact=finding.exact,
        row_rule=RowRule(minimum=padding.minimum, multiple=padding.multiple),
        numeric_class=_numeric_class(identity, runner, finding),
        trees=True,
        scores=True,
        kv="range",
    )


def _dtype(runner: Runner) -> str:
    return str(runner.decoder.dtype).removeprefix("torch.")


def _numeric_class(identity: Identity, runner: Runner, finding: Finding) -> str:
    stem = class_stem(
        identity.weights_digest, runner.decoder.dtype, runner.cache.pool.device, runner.way
    )
    return joined_class([stem], finding.digest)


def class_stem(weights_digest: str, dtype: torch.dtype, device: torch.device, way: Way) -> str:
    """What fixes the numerics of the whole model and of any range of its layers alike: all of
    a numeric class but the hash of the probe's scores."""
    parts = (
        "torch 1",
        weights_digest,
        dtype,
        torch.__version__,
        hardware(device),
        way,
        sampling.VERSION,
    )
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
