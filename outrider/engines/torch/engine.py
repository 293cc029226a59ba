"""The torch adapter: a slot pool, one pass over all rows, picks by the shared sampler."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from outrider.engine import EngineInfo, EngineSpec, KvSegment, Picked, RowRule, Span
from outrider.engines.base import BaseEngine
from outrider.engines.slots import pick
from outrider.engines.torch.attention import Attention, blocked, joined
from outrider.engines.torch.batch import Layout, Padding, plan
from outrider.engines.torch.cache import Cache
from outrider.engines.torch.decoder import Decoder
from outrider.engines.torch.device import hardware
from outrider.engines.torch.probe import Finding, examine
from outrider.errors import EngineFailed, EngineFull, LocalProtocolError
from outrider.protocol import sampling

Scores = NDArray[np.float32]

RECHECK_EVERY = 1000
"""Passes between two re-checks of exactness."""

CANDIDATES = (
    Padding(1, 1, 1),
    Padding(4, 1, 4),
    Padding(4, 4, 4),
    Padding(8, 8, 8),
    Padding(16, 16, 16),
)
"""Row rules from the cheapest on."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What of an engine's description does not follow from running it."""

    model: str
    weights_digest: str
    vocabulary_digest: str
    vocabulary_size: int
    context: int


class TorchEngine(BaseEngine):
    """One decoder, one pool. The last pool row belongs to no slot: re-checks keep company in it."""

    def __init__(
        self, spec: EngineSpec, identity: Identity, decoder: Decoder, device: torch.device
    ) -> None:
        self._decoder = decoder
        self._device = device
        self._cache = Cache(
            decoder.config, spec.max_slots + 1, identity.context, device, decoder.dtype
        )
        self._layout = Layout(
            slots=spec.max_slots + 1,
            kv_heads=decoder.config.kv_heads,
            group=decoder.config.group,
            capacity=self._cache.capacity,
            windows=tuple(set(decoder.config.windows)),
            device=device,
        )
        self._vocabulary_size = identity.vocabulary_size
        decoder.prepare(self._cache.capacity)
        super().__init__(self._described(spec, identity))

    # --- what it is ----------------------------------------------------------------------------

    def _described(self, spec: EngineSpec, identity: Identity) -> EngineInfo:
        finding = self._settle(spec, identity)
        rule = RowRule(minimum=self._padding.minimum, multiple=self._padding.multiple)
        dtype = str(self._decoder.dtype).removeprefix("torch.")
        return EngineInfo(
            engine="torch",
            model=identity.model,
            device=str(self._device),
            dtype=dtype,
            vocabulary_digest=identity.vocabulary_digest,
            vocabulary_size=identity.vocabulary_size,
            context=identity.context,
            max_slots=spec.max_slots,
            max_rows=spec.max_rows,
            exact=finding.exact,
            row_rule=rule,
            numeric_class=self._numeric_class(identity, dtype, finding),
            trees=finding.trees or not finding.exact,
            scores=True,
            kv="range",
        )

    def _settle(self, spec: EngineSpec, identity: Identity) -> Finding:
        """Take the cheapest row rule that holds; without one, or for `plain`, the fastest way."""
        self._attention: Attention = blocked
        if spec.numerics == "exact":
            for self._padding in CANDIDATES:
                finding = self._examine(identity)
                if finding.exact:
                    return finding
        self._attention, self._padding = joined, Padding()
        return replace(self._examine(identity), exact=False)

    def _examine(self, identity: Identity) -> Finding:
        return examine(self._scores, identity.vocabulary_size, identity.context)

    def _numeric_class(self, identity: Identity, dtype: str, finding: Finding) -> str:
        parts = (
            "torch 1",
            identity.weights_digest,
            dtype,
            torch.__version__,
            hardware(self._device),
            self._padding,
            self._attention.__name__,
            sampling.VERSION,
            finding.digest,
        )
        return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()

    # --- a pass --------------------------------------------------------------------------------

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        scores = self._scores(spans)
        rows = sum(len(span.tokens) for span in spans)
        self._padded_rows += self._padding.rows(rows) - rows
        if self._info.exact and (self._passes + 1) % RECHECK_EVERY == 0:
            self._recheck(spans, scores)
        try:
            pairs = zip(spans, scores, strict=True)
            return [self._picked(span, found) for span, found in pairs]
        except EngineFailed:
            self._forget(spans)
            raise

    def _scores(self, spans: Sequence[Span]) -> list[Scores]:
        """Unprocessed scores of each span's rows from `first` on, in float32."""
        with torch.inference_mode(), _typed_errors():
            batch = plan(spans, self._layout, self._padding)
            found = self._decoder.scores(batch, self._cache, self._attention)
            flat = found[:, : self._vocabulary_size].float().cpu().numpy()
        parts, at = [], 0
        for span in spans:
            count = len(span.tokens) - span.first
            parts.append(flat[at : at + count])
            at += count
        return parts

    def _picked(self, span: Span, scores: Scores) -> Picked:
        params = self._slots[span.slot].sampling.params
        plain = params.greedy and not params.penalised and not params.logit_bias
        if plain and span.want == "ids":
            return Picked(_greedy(scores))
        return pick(span, self._slots[span.slot], scores)

    def _forget(self, spans: Sequence[Span]) -> None:
        """A NaN left in the pool would reach whoever gets the slot next."""
        for span in spans:
            self._cache.clear(span.slot, span.base, span.base + len(span.tokens))

    # --- keeping watch -------------------------------------------------------------------------

    def _recheck(self, spans: Sequence[Span], scores: Sequence[Scores]) -> None:
        """Run one span again, in other company, and compare the bits."""
        which = self._passes // RECHECK_EVERY % len(spans)
        span, expected = spans[which], scores[which]
        company = Span(self._info.max_slots, 0, tuple(range(min(5, self._vocabulary_size))))
        again = self._scores([company, span])[1]
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
            with torch.inference_mode():
                self._cache.move(slot, rows, base)
        tokens[base:] = [tokens[row] for row in rows]

    def export_kv(self, slot: int, start: int, stop: int) -> KvSegment:
        tokens = self._slots[slot].tokens
        if not 0 <= start < stop <= len(tokens):
            raise LocalProtocolError(f"tokens {start} to {stop} are not in the slot")
        config = self._decoder.config
        with torch.inference_mode():
            data = self._cache.export(slot, start, stop)
        return KvSegment(
            layout="canonical",
            dtype=self._info.dtype,
            start=start,
            stop=stop,
            tokens=tuple(tokens[:stop]),
            data=data,
            shape=(config.layers, 2, config.kv_heads, stop - start, config.head_dim),
        )

    def import_kv(self, slot: int, segment: KvSegment) -> None:
        tokens = self._slots[slot].tokens
        self._check_segment(segment, tokens)
        with torch.inference_mode():
            self._cache.take(slot, segment.start, segment.data, segment.shape)
        tokens[:] = segment.tokens

    def _check_segment(self, segment: KvSegment, tokens: Sequence[int]) -> None:
        config = self._decoder.config
        count = segment.stop - segment.start
        shape = (config.layers, 2, config.kv_heads, count, config.head_dim)
        if segment.layout != "canonical" or segment.dtype != self._info.dtype:
            raise LocalProtocolError(f"this engine takes canonical KV in {self._info.dtype}")
        size = int(np.prod(shape)) * self._decoder.dtype.itemsize
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
        del self._cache, self._decoder


def _greedy(scores: Scores) -> tuple[int, ...]:
    """The first of the best ids of each row; a row without a finite best fails."""
    ids = scores.argmax(-1)
    best = scores[np.arange(len(ids)), ids]
    if not bool(np.isfinite(best).all()):
        sampling.finite(scores[int(np.flatnonzero(~np.isfinite(best))[0])])
    return tuple(ids.tolist())


@contextmanager
def _typed_errors() -> Iterator[None]:
    """What torch raises, as ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineFull(
            "the device has no memory left for this pass",
            effect="the pass was not run",
            todo="start the engine with fewer slots or rows, or a shorter context",
        ) from error
    except RuntimeError as error:
        raise EngineFailed(
            "torch failed in a pass", why=type(error).__name__, effect="the pass was not run"
        ) from error
