"""Attention over a slot pool whose result for a row does not depend on its company.

`blocked` sums the values over fixed blocks of keys in ascending order: more keys,
all hidden, add exact zeros at the end, so neither other sequences nor later tokens
change a bit. `joined` takes one product over all keys, whose order of summing goes
by their number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from outrider.engines.torch.batch import BLOCK

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""Queries [B, M, D], keys and values [B, N, D], bias [B, M, N], scale to outputs [B, M, D]."""


def joined(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    return torch.bmm(_weights(queries, keys, bias, scale), values)


def blocked(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    weights = _weights(queries, keys, bias, scale)
    result = torch.bmm(weights[..., :BLOCK], values[:, :BLOCK])
    for start in range(BLOCK, weights.shape[-1], BLOCK):
        part = slice(start, start + BLOCK)
        result.baddbmm_(weights[..., part], values[:, part])
    return result


def _weights(queries: Tensor, keys: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Softmax over the keys in float32, then in the dtype of the values."""
    scores = torch.bmm(queries, keys.transpose(1, 2)).float()
    return torch.add(bias, scores, alpha=scale).softmax(-1).to(keys.dtype)
