"""A decoder, its pool and one way of grouping rows: from spans to scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.engine import Span
from outrider.engines.torch.attention import Attention
from outrider.engines.torch.batch import Layout, Padding, plan
from outrider.engines.torch.cache import Cache
from outrider.engines.torch.decoder import Decoder
from outrider.engines.torch.linear import Kind
from outrider.errors import EngineFailed, EngineFull
from outrider.models.config import ModelConfig

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Way:
    """How a pass is computed."""

    kind: Kind
    attention: Attention
    padding: Padding

    def __str__(self) -> str:
        return f"{self.kind} {self.attention.__name__} {self.padding}"


class Runner:
    """Runs passes; knows nothing of slots' tokens or sampling."""

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        way: Way,
        vocabulary_size: int,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.decoder = decoder
        self.cache = cache
        self.way = way
        self.vocabulary_size = vocabulary_size
        self._layers = range(decoder.config.layers) if layers is None else layers
        self._layout = layout(decoder.config, cache)

    def scores(self, spans: Sequence[Span]) -> Tensor:
        """Unprocessed scores of all rows from each span's `first` on, on the device, float32."""
        with torch.inference_mode(), typed_errors():
            batch = plan(spans, self._layout, self.way.padding)
            self.cache.begin(spans)
            found = self.decoder.scores(batch, self.cache, self.way.attention, self._layers)
            return found[:, : self.vocabulary_size].float()

    def __call__(self, spans: Sequence[Span]) -> list[Scores]:
        """The same on the host, span by span, each [rows, vocabulary_size]."""
        return split(spans, self.scores(spans))


def layout(config: ModelConfig, cache: Cache) -> Layout:
    """What planning a pass must know."""
    return Layout(
        slots=cache.slots,
        kv_heads=config.kv_heads,
        group=config.group,
        capacity=cache.capacity,
        windows=tuple(set(config.windows)),
        device=cache.pool.device,
    )


def split(spans: Sequence[Span], scores: Tensor) -> list[Scores]:
    """One array per span."""
    flat = scores.cpu().numpy()
    parts, at = [], 0
    for span in spans:
        count = len(span.tokens) - span.first
        parts.append(flat[at : at + count])
        at += count
    return parts


@contextmanager
def typed_errors() -> Iterator[None]:
    """What torch raises in a pass, as ours."""
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
