"""Values to small whole numbers and back, each group by a scale of its own.

Symmetric: value = (symbol - steps // 2) * step. Ranged: value = low + symbol * step. Steps and
lows are float16. A step is rounded up, so that no value lies beyond the last symbol, and to five
bits of fraction: it costs nothing that can be measured, and the lossless stage has less to carry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.protocol.kv.floats import Floats
from outrider.protocol.kv.level import Steps

Symbols = NDArray[np.uint8]
Halves = NDArray[np.float16]
_SPARE = 31
"""The bits of a float16 that a step does not use."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """Symbols, and of each group its step and, where ranged, its least value."""

    symbols: Symbols
    step: Halves
    """Of the symbols' shape with 1 along the group's axis."""
    low: Halves | None


def quantized(values: Floats, axis: int, steps: int, how: Steps) -> Grouped | None:
    """Groups lie along `axis`, whole. None where a step is not finite: values that are not, or
    that are too far apart for float16."""
    with np.errstate(over="ignore", invalid="ignore"):
        if how == "symmetric":
            low = None
            step = _up(np.abs(values).max(axis, keepdims=True) / np.float32(steps // 2))
        else:
            low = _down(values.min(axis, keepdims=True))
            span = values.max(axis, keepdims=True) - low.astype(np.float32)
            step = _up(span / np.float32(steps - 1))
    if not (np.isfinite(step).all() and (low is None or np.isfinite(low).all())):
        return None
    return Grouped(_symbols(values, step, low, steps), step, low)


def _symbols(values: Floats, step: Halves, low: Halves | None, steps: int) -> Symbols:
    wide = step.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    if low is None:
        scaled = values * inverse
        scaled += np.float32(steps // 2 + 0.5)
    else:
        scaled = values - low.astype(np.float32)
        scaled *= inverse
        scaled += np.float32(0.5)
    return scaled.astype(np.uint8)


def restored(found: Grouped, steps: int) -> Floats:
    """The values again."""
    values = found.symbols.astype(np.float32)
    if found.low is None:
        values -= np.float32(steps // 2)
        values *= found.step.astype(np.float32)
    else:
        values *= found.step.astype(np.float32)
        values += found.low.astype(np.float32)
    return values


def _up(values: Floats) -> Halves:
    """The least float16 with five bits of fraction that is not below; infinite beyond the last."""
    half = values.astype(np.float16)
    bits = half.view(np.uint16).astype(np.uint32)
    bits += half.astype(np.float32) < values
    bits = (bits + _SPARE) & ~np.uint32(_SPARE)
    return bits.astype(np.uint16).view(np.float16)


def _down(values: Floats) -> Halves:
    half = values.astype(np.float16)
    above = half.astype(np.float32) > values
    return np.where(above, np.nextafter(half, np.float16(-np.inf)), half)
