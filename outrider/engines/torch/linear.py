"""Matrix products whose rows are computed alike in any company, and their plain twin."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional


class Linear(Protocol):
    def __call__(self, rows: Tensor) -> Tensor:
        """[R, into] to [R, out]."""
        ...


class PlainLinear:
    """The library's own way."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        return functional.linear(rows, self.weight, self.bias)
