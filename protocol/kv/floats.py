"""The engine's dtypes as numpy holds them, to float32 and back.

numpy has no bfloat16: its 16 bits are the upper half of a float32, and stand in a uint16.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["float16", "bfloat16", "float32"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Floats = NDArray[np.float32]
Stored = NDArray[Any]
"""An array of `stored_as(dtype)`."""
HALF_MOST = np.float32(65504.0)
"""The greatest finite float16."""
_FIELDS = np.int32(0x8FFFE000 - (1 << 32))
"""Of a float32 that holds a float16's fields: sign, five bits of exponent, ten of fraction."""
_BIAS = np.float32(2.0**112)


def stored_as(dtype: Dtype) -> np.dtype[Any]:
    return np.dtype({"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}[dtype])


def widen(values: Stored, dtype: Dtype) -> Floats:
    """Finite values as float32, exactly; a view where they are already."""
    match dtype:
        case "float32":
            same: Floats = values
            return same
        case "bfloat16":
            wide: Floats = np.left_shift(values, 16, dtype=np.uint32).view(np.float32)
            return wide
        case "float16":
            return _widened(values)


def narrow_into(out: Stored, values: Floats, dtype: Dtype) -> None:
    """Write finite values rounded to nearest, ties to even; float16 ends at its greatest.

    Below 2^-14 a float16 may be the other neighbour where both are all but equally near.
    """
    match dtype:
        case "float32":
            out[...] = values
        case "bfloat16":
            out[...] = _rounded(np.ascontiguousarray(values).view(np.uint32), 16)
        case "float16":
            _narrow(out.view(np.uint16), values)


def _widened(values: Stored) -> Floats:
    """Half the time of numpy's own: the fields are moved to their places, the exponent's bias is
    made good by a product, which is exact and brings subnormal numbers along."""
    bits = values.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _FIELDS
    wide: Floats = bits.view(np.float32)
    wide *= _BIAS
    return wide


def _narrow(out: NDArray[np.uint16], values: Floats) -> None:
    clipped = np.clip(values, -HALF_MOST, HALF_MOST)
    sign = clipped.view(np.uint32) >> 16 & 0x8000
    np.abs(clipped, out=clipped)
    clipped /= _BIAS
    out[...] = _rounded(clipped.view(np.uint32), 13) | sign


def _rounded(bits: NDArray[np.uint32], drop: int) -> NDArray[np.uint32]:
    """Without the lowest bits, to nearest, ties to even."""
    odd: NDArray[np.uint32] = np.right_shift(bits, drop, dtype=np.uint32)
    odd &= 1
    odd += (1 << (drop - 1)) - 1
    odd += bits
    odd >>= drop
    return odd


def finite(values: Stored, dtype: Dtype) -> bool:
    if dtype == "bfloat16":
        return bool(((values & 0x7F80) != 0x7F80).all())
    if dtype == "float16":
        return bool(((values.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool(np.isfinite(values).all())
