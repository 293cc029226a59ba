"""A model as units that can be placed: the embedding, each decoder layer, the head.

Costs are those of one row unless they say otherwise. Built from headers alone by
`outrider.models.graph`; nothing here loads weights or does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["embedding", "decoder", "head"]


@dataclass(frozen=True, slots=True)
class Unit:
    """What is never cut."""

    name: str
    kind: Kind
    flops: float
    """Multiply-adds times two of one row, attention over the context left out."""
    attention_flops: float
    """The same per row and token of context."""
    weight_bytes: int
    kv_bytes: int
    """Kept per token."""
    output: int
    """Numbers of one row that leave it: the hidden size; 0 past the head, which gives an id."""


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """Units in the order of computation: embedding, decoder layers, head."""

    name: str
    units: tuple[Unit, ...]
    edges: tuple[tuple[int, int], ...]
    """Which unit feeds which; the chain 0-1-2... for every decoder model."""
    dtype: str
    """Precision of the stored weights."""
    context: int
    vocabulary: int

    @property
    def decoders(self) -> int:
        return sum(unit.kind == "decoder" for unit in self.units)

    @property
    def weight_bytes(self) -> int:
        return sum(unit.weight_bytes for unit in self.units)


def chain(count: int) -> tuple[tuple[int, int], ...]:
    """The edges of `count` units one after another."""
    return tuple((i, i + 1) for i in range(count - 1))
