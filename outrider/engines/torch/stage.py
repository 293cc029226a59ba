"""The torch stage: a range of layers with hidden states in or out, bit for bit the engine's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from outrider.engine import EngineSpec, LayerRange, RowRule, StageInfo, StageSpan
from outrider.engines.stage import BaseStage, Hidden, Result, answering, carrying
from outrider.engines.stages import check_range
from outrider.engines.torch.build import context_of, files_of, memory_errors
from outrider.engines.torch.cache import Cache
from outrider.engines.torch.device import choose_device, choose_dtype
from outrider.engines.torch.engine import class_stem, picker
from outrider.engines.torch.part import PartRunner, Place, Settled, Settler, narrowed
from outrider.engines.torch.probe import SLOTS
from outrider.engines.torch.runner import split
from outrider.models import vocabulary
from outrider.models.config import ModelConfig
from outrider.models.source import ModelFiles
from outrider.models.weights import Weights, shapes_of

RECHECK_EVERY = 1000
"""Passes between two re-checks of exactness."""


def build(spec: EngineSpec, layers: LayerRange) -> TorchStage:
    """Reads the tensors of `layers` alone. Raises as the engine's `build`."""
    files, config = files_of(spec)
    check_range(layers, config.layers)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    device = choose_device(spec.device)
    place = Place(device, choose_dtype(spec.dtype, device), context_of(spec, config))
    digest, size = vocabulary.ids_of(files, config.vocab_size)
    with torch.inference_mode(), memory_errors():
        slots = max(spec.max_slots + 1, SLOTS)
        cache = Cache(narrowed(config, layers), slots, place.context, device, place.dtype)
        settler = Settler(config, Weights(files, config, layers), place, size)
        found = settler.settle(layers, cache, spec.numerics)
    info = replace(
        _info(spec, files, config, found, cache),
        layers=layers,
        vocabulary_digest=digest,
        vocabulary_size=size,
        memory_bytes=_claimed(config, layers, found, cache),
    )
    return TorchStage(info, PartRunner(found.part, cache, found.way, size))


class TorchStage(BaseStage):
    """The cache has one row more than there are slots: re-checks keep company in it."""

    def __init__(self, info: StageInfo, runner: PartRunner) -> None:
        super().__init__(info)
        self._runner = runner
        self._pick = picker(runner.cache.pool.device)
        self._passes = 0

    def _pass(self, spans: Sequence[StageSpan]) -> list[Result]:
        self._passes += 1
        found = self._computed(spans)
        if self._info.exact and self._passes % RECHECK_EVERY == 0:
            self._recheck(spans, found)
        if not self._info.layers.head:
            return list(split([carrying(span) for span in spans], found))
        slots = [self._held[span.slot].slot for span in spans]
        return list[Result](self._pick([answering(span) for span in spans], slots, found))

    def _computed(self, spans: Sequence[StageSpan]) -> torch.Tensor:
        turned = answering if self._info.layers.head else carrying
        return self._runner([turned(span) for span in spans], self._hidden(spans))

    def _hidden(self, spans: Sequence[StageSpan]) -> Hidden | None:
        parts = [span.hidden for span in spans if span.hidden is not None]
        if self._info.layers.embedding or not parts:
            return None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _recheck(self, spans: Sequence[StageSpan], found: torch.Tensor) -> None:
        """Run one span again, in other company, and compare the bits."""
        which = self._passes // RECHECK_EVERY % len(spans)
        span = spans[which]
        rows, size = min(5, self._info.context), self._info.hidden_size
        hidden = np.linspace(-1, 1, rows * size, dtype=np.float32).reshape(rows, size)
        company = StageSpan(self._runner.cache.slots - 1, 0, rows, (0,) * rows, hidden)
        again = self._answers([company, span], self._computed([company, span]))[1]
        expected = self._answers(spans, found)[which]
        if not np.array_equal(again.view(np.int32), expected.view(np.int32)):
            self._info = replace(self._info, exact=False)

    def _answers(self, spans: Sequence[StageSpan], found: torch.Tensor) -> list[Hidden]:
        turned = answering if self._info.layers.head else carrying
        return split([turned(span) for span in spans], found)

    def _forget(self, slot: int, start: int, stop: int) -> None:
        self._runner.cache.clear(slot, start, stop)

    def shutdown(self) -> None:
        super().shutdown()
        del self._runner


# --- description -------------------------------------------------------------------------------


def _info(
    spec: EngineSpec, files: ModelFiles, config: ModelConfig, found: Settled, cache: Cache
) -> StageInfo:
    """What `build` completes by range, vocabulary and memory."""
    padding = found.way.padding
    device, dtype = cache.pool.device, found.part.dtype
    return StageInfo(
        engine="torch",
        model=files.name,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        layers=LayerRange(0, config.layers, embedding=True, head=True),
        model_layers=config.layers,
        hidden_size=config.hidden_size,
        vocabulary_digest="",
        vocabulary_size=0,
        context=cache.context,
        max_slots=spec.max_slots,
        max_rows=spec.max_rows,
        exact=found.exact,
        row_rule=RowRule(minimum=padding.minimum, multiple=padding.multiple),
        weights_digest=files.digest,
        numeric_class=class_stem(files.digest, dtype, device, found.way),
        memory_bytes=0,
    )


def _claimed(config: ModelConfig, layers: LayerRange, found: Settled, cache: Cache) -> int:
    """Bytes of weights, as they stand in memory, and of all slots' KV."""
    shapes = shapes_of(config, layers)
    count = sum(math.prod(shape) for shape in shapes.values())
    if found.way.kind == "both":
        count *= 2
    elif found.way.kind == "packed" and layers.embedding and layers.head and config.tied:
        count += config.vocab_size * config.hidden_size
    return count * found.part.dtype.itemsize + cache.pool.nbytes
