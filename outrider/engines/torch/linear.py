"""Matrix products of rows with a weight: the library's own way, and one over packed weights.

Packed (oneDNN's blocked layout, brgemm kernels) reads the weight once whatever
the number of rows and sums each row alike, so that on CPUs four rows cost little
more than one, and rows are bit-equal in any company; the probe checks the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Kind = Literal["packed", "plain", "sized"]
"""`sized`: packed where the weight is large; the fastest, with row counts told apart."""


class Linear(Protocol):
    def __call__(self, rows: Tensor) -> Tensor:
        """[R, into] to [R, out]."""
        ...


MakeLinear = Callable[[Tensor, Tensor | None], Linear]


class PlainLinear:
    """`torch.nn.functional.linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self._weight, self._bias)


_HINT = 4
"""Rows the layout is chosen for; a hint of 1 keeps the plain layout, which is slow beyond."""


class PackedLinear:
    """The weight stands in oneDNN's layout, once; CPU only."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _HINT)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, rows: Tensor) -> Tensor:
        found: Tensor = self._run(rows, self._weight, self._bias, "none", [], "")
        return found


def kinds(device: torch.device, dtype: torch.dtype) -> tuple[Kind, ...]:
    """What this torch offers here, fastest first."""
    return ("packed", "plain") if _packs(device, dtype) else ("plain",)


_LARGE = 2**19
"""Elements from which a packed weight is faster for a single row."""


def maker(kind: Kind) -> MakeLinear:
    """What makes a product from weight and bias."""
    makers: dict[Kind, MakeLinear] = {
        "packed": PackedLinear,
        "plain": PlainLinear,
        "sized": _sized,
    }
    return makers[kind]


def _sized(weight: Tensor, bias: Tensor | None) -> Linear:
    return PackedLinear(weight, bias) if weight.numel() >= _LARGE else PlainLinear(weight, bias)


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """A trial run: the operators are not part of torch's stable interface."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight, rows = torch.eye(64, dtype=dtype), torch.ones(3, 64, dtype=dtype)
    try:
        return torch.equal(PackedLinear(weight, None)(rows), rows)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
