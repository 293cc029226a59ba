"""A range of a decoder's layers: its weights, its passes, and the probe that settles its way.

The way of a stage must not depend on which layers it holds, or the stages of one model
would not be of one numeric class. So products that a stage lacks (the head's; all of a
layer's in a stage without layers) are tried on stand-ins of their shape, which are freed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.engine import LayerRange, Numerics, Span
from outrider.engines.torch.batch import Batch, plan
from outrider.engines.torch.build import parameters
from outrider.engines.torch.cache import Cache, capacity
from outrider.engines.torch.decoder import Layers, Loader, Tensors
from outrider.engines.torch.linear import Kind, Linear, kinds, maker
from outrider.engines.torch.probe import SLOTS, Scores, regroups
from outrider.engines.torch.runner import Way, layout, split, typed_errors
from outrider.engines.torch.settle import first_exact, linears_agree, plain_way, telling
from outrider.models.config import ModelConfig
from outrider.models.weights import expected

Hidden = NDArray[np.float32]

HEAD_ROWS = 1 << 14
"""Most rows of the head's stand-in: a vocabulary's table may be larger than the device."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part is put, and for how many tokens a slot."""

    device: torch.device
    dtype: torch.dtype
    context: int


class Part(Layers):
    """Layers [start, stop), and where asked for the embedding before and the head after them."""

    def __init__(
        self, config: ModelConfig, layers: LayerRange, weights: Tensors, place: Place, kind: Kind
    ) -> None:
        self.whole = config
        load = Loader(
            narrowed(config, layers),
            weights,
            place.device,
            place.dtype,
            maker(kind),
            layers.start,
        )
        self.kind: Kind = kind
        self.embedding: Tensor | None = None
        self.norm: Tensor | None = None
        self.head: Linear | None = None
        if layers.embedding:
            self.embedding = load.tensor("model.embed_tokens.weight")
        if layers.head:
            self.norm = load.tensor("model.norm.weight")
            self.head = load.make(self._table(load), None)
        super().__init__(load.config, load, capacity(place.context))

    def _table(self, load: Loader) -> Tensor:
        if not self.whole.tied:
            return load.tensor("lm_head.weight")
        if self.embedding is not None:
            return self.embedding
        return load.tensor("model.embed_tokens.weight")

    def rows(self, batch: Batch, hidden: Tensor | None) -> Tensor:
        """[R, hidden], where the pass starts: looked up, or what came in, padded by zeros."""
        if self.embedding is not None:
            return self.embedding.index_select(0, batch.tokens)
        assert hidden is not None
        found = torch.zeros(
            len(batch.tokens), hidden.shape[1], dtype=self.dtype, device=self.cos.device
        )
        found[: len(hidden)] = hidden
        return found

    def shapes(self) -> Iterator[tuple[Linear, int]]:
        """One product of each shape of the whole model, with its input width."""
        yield from self.products()
        yield self.head or self._head_stand_in(), self.config.hidden_size

    def _head_stand_in(self) -> Linear:
        shape = (min(self.whole.vocab_size, HEAD_ROWS), self.config.hidden_size)
        return maker(self.kind)(_pattern(shape).to(self.cos.device, self.dtype), None)


def narrowed(config: ModelConfig, layers: LayerRange) -> ModelConfig:
    """The config of a model that has those layers alone."""
    windows = config.windows[layers.start : layers.stop]
    return replace(config, layers=layers.stop - layers.start, windows=windows)


class StandIn:
    """Tensors of a model's shapes, where only the shapes matter."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected(config)

    def tensor(self, name: str) -> Tensor:
        return _pattern(self._shapes[name])


def _pattern(shape: tuple[int, ...]) -> Tensor:
    """Numbers without a pattern that a row's sum could hide, of a weight's size."""
    flat = torch.arange(math.prod(shape), dtype=torch.float32)
    return flat.mul_(0.37).sin_().view(shape).mul_(shape[-1] ** -0.5)


# --- passes ------------------------------------------------------------------------------------


class PartRunner:
    """Runs passes over a part; knows nothing of tokens' meaning or sampling."""

    def __init__(
        self,
        part: Part,
        cache: Cache,
        way: Way,
        vocabulary_size: int,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.part = part
        self.cache = cache
        self.way = way
        self.vocabulary_size = vocabulary_size
        self._layers = range(part.config.layers) if layers is None else layers
        self._layout = layout(part.config, cache)

    def __call__(self, spans: Sequence[Span], hidden: Hidden | None) -> Tensor:
        """float32, on the device: hidden rows of all spans; behind the head the scores of the
        rows from each span's `first` on. `hidden`: [rows, hidden_size] without an embedding."""
        with torch.inference_mode(), typed_errors():
            batch = plan(spans, self._layout, self.way.padding)
            part = self.part
            given = None if hidden is None else _tensor(hidden).to(part.cos.device, part.dtype)
            found = part.rows(batch, given)
            found = part.through(found, batch, self.cache, self.way.attention, self._layers)
            if part.norm is None or part.head is None:
                return found[: batch.rows].float()
            if batch.wanted == 0:
                return found.new_empty(0, self.vocabulary_size).float()
            scores = part.headed(found, batch, part.norm, part.head)
            return scores[:, : self.vocabulary_size].float()


def _tensor(rows: Hidden) -> Tensor:
    """A view where the memory may be written to; what came over a wire may not."""
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


# --- the way -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settled:
    part: Part
    way: Way
    exact: bool


@dataclass(frozen=True, slots=True)
class Settler:
    """Finds the way of a part as `outrider.engines.torch.settle` does the whole model's."""

    config: ModelConfig
    weights: Tensors
    place: Place
    vocabulary_size: int

    def settle(self, layers: LayerRange, cache: Cache, numerics: Numerics) -> Settled:
        """`cache`: of those layers."""
        found = self._exact(layers, cache) if numerics == "exact" else None
        return found or self._plain(layers)

    def _exact(self, layers: LayerRange, cache: Cache) -> Settled | None:
        if layers.start == layers.stop:
            return self._exact_without_layers(layers)

        def holds(part: Part, way: Way) -> bool:
            return _holds(part, cache, way, self.vocabulary_size)

        found = first_exact(partial(self._load, layers), self._kinds(), holds)
        return None if found is None else Settled(*found, exact=True)

    def _exact_without_layers(self, layers: LayerRange) -> Settled | None:
        """The way that a layer would take, found on one that stands in."""
        one, place = LayerRange(0, 1, embedding=False, head=False), self.place
        pool = Cache(narrowed(self.config, one), SLOTS, place.context, place.device, place.dtype)
        found = replace(self, weights=StandIn(self.config))._exact(one, pool)
        if found is None:
            return None
        return Settled(self._load(layers, found.way.kind), found.way, exact=True)

    def _plain(self, layers: LayerRange) -> Settled:
        way = plain_way(self._kinds(), parameters(self.config))
        return Settled(self._load(layers, way.kind), way, exact=False)

    def _load(self, layers: LayerRange, kind: Kind) -> Part:
        return Part(self.config, layers, self.weights, self.place, kind)

    def _kinds(self) -> tuple[Kind, ...]:
        return kinds(self.place.device, self.place.dtype)


def _holds(part: Part, cache: Cache, way: Way, vocabulary_size: int) -> bool:
    runner = PartRunner(part, cache, way, vocabulary_size, telling(part.config.windows))
    run = Probed(runner)
    return regroups(run, vocabulary_size, cache.capacity) and linears_agree(part, way.padding)


class Probed:
    """A part as the probe runs it: each token has a hidden row of its own where none is looked
    up, and hidden rows that come out are compared like scores."""

    def __init__(self, runner: PartRunner) -> None:
        self._runner = runner

    def __call__(self, spans: Sequence[Span]) -> list[Scores]:
        hidden = None if self._runner.part.embedding is not None else self._rows(spans)
        return split(spans, self._runner(spans, hidden))

    def _rows(self, spans: Sequence[Span]) -> Hidden:
        tokens = np.array([token for span in spans for token in span.tokens], dtype=np.float64)
        width = np.arange(1, self._runner.part.config.hidden_size + 1) * 0.013
        return np.sin((tokens[:, None] + 1) * width).astype(np.float32)
