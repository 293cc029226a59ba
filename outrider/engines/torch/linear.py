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

Kind = Literal["packed", "plain", "both"]
"""`both`: the library's own for one row, packed for more; fastest, and twice the memory."""


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


class BothLinear:
    """Whichever is faster for the number of rows; their bits differ."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._one = PlainLinear(weight, bias)
        self._more = PackedLinear(weight, bias)

    def __call__(self, rows: Tensor) -> Tensor:
        return self._one(rows) if len(rows) == 1 else self._more(rows)


def kinds(device: torch.device, dtype: torch.dtype) -> tuple[Kind, ...]:
    """What this torch offers here for exact numerics, the cheaper first."""
    return ("packed", "plain") if _packs(device, dtype) else ("plain",)


_MOST_TWICE = 2**29
"""Parameters up to which plain numerics keep the weights twice."""


def fastest(kinds: tuple[Kind, ...], parameters: int) -> Kind:
    """For plain numerics."""
    return "both" if "packed" in kinds and parameters <= _MOST_TWICE else "plain"


def maker(kind: Kind) -> MakeLinear:
    """What makes a product from weight and bias."""
    makers: dict[Kind, MakeLinear] = {
        "packed": PackedLinear,
        "plain": PlainLinear,
        "both": BothLinear,
    }
    return makers[kind]


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """A trial run: the operators are not part of torch's stable interface."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight, rows = torch.eye(64, dtype=dtype), torch.ones(3, 64, dtype=dtype)
    try:
        return torch.equal(PackedLinear(weight, None)(rows), rows)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
