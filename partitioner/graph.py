"""A model as units that can be placed: the embedding, each decoder layer, the head.

Costs are those of one row unless they say otherwise. Built from headers alone by
`outrider.models.graph`; nothing here loads weights or does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["embedding", "decoder", "head"]

KV_ITEM = 2
"""Bytes of a number in `Unit.kv_bytes`."""


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
    """Kept per token, at 2 bytes a number; `Rate.kv_scale` turns it into an engine's own."""
    output: int
    """Numbers of one row that leave it: the hidden size; 0 past the head, which gives an id."""
    read_bytes: int | None = None
    """Of `weight_bytes`, what one pass reads; None reads all. An embedding reads a row of it."""
    window: int | None = None
    """A row attends to at most this many tokens."""

    @property
    def streamed_bytes(self) -> int:
        """Weight bytes that one pass reads."""
        return self.weight_bytes if self.read_bytes is None else self.read_bytes

    def seen(self, context: float) -> float:
        """Tokens of a context that a row attends to."""
        return context if self.window is None else min(context, self.window)


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
    tied: bool = False
    """The head's matrix is the embedding's: once in memory where both are on one device."""

    @property
    def decoders(self) -> int:
        return sum(unit.kind == "decoder" for unit in self.units)

    @property
    def weight_bytes(self) -> int:
        """Of the whole model on one device."""
        return sum(unit.weight_bytes for unit in self.units) - self.shared_bytes

    @property
    def shared_bytes(self) -> int:
        """What one device saves that holds both the embedding and a head tied to it."""
        return self.units[0].weight_bytes if self.tied else 0


def chain(count: int) -> tuple[tuple[int, int], ...]:
    """The edges of `count` units one after another."""
    return tuple((i, i + 1) for i in range(count - 1))
