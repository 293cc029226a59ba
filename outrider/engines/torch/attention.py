"""Attention over a slot pool whose result for a row does not depend on its company.

`blocked` sums over fixed blocks of keys in ascending order: more keys, all
hidden, add exact zeros at the end, so neither other sequences nor later tokens
change a bit. `joined` is one softmax over all keys: the fastest, not invariant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from outrider.engines.torch.batch import BLOCK, Group

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""Queries [B, M, D], keys and values [B, N, D], bias [B, M, N], scale to outputs [B, M, D]."""


def joined(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    scores = _scores(queries, keys, bias, scale)
    return torch.bmm(scores.softmax(-1).to(values.dtype), values)


def blocked(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    scores = _scores(queries, keys, bias, scale)
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    size, rows, count = weights.shape
    sums = weights.view(size, rows, count // BLOCK, BLOCK).sum(-1, keepdim=True)
    weights = weights.to(values.dtype)
    result = torch.bmm(weights[..., :BLOCK], values[:, :BLOCK]).float()
    total = sums[:, :, 0]
    for block in range(1, count // BLOCK):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        result = result + torch.bmm(weights[..., part], values[:, part])
        total = total + sums[:, :, block]
    return (result / total).to(values.dtype)


def _scores(queries: Tensor, keys: Tensor, bias: Tensor, scale: float) -> Tensor:
    """float32 scores, hidden keys at -inf."""
    if queries.dtype == torch.float32:
        return torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scale)
    return torch.bmm(queries, keys.transpose(1, 2)).float().mul_(scale).add_(bias)


def heads_first(rows: Tensor, group: Group, kv_heads: int, head_dim: int) -> Tensor:
    """[S * Q, heads * D] to [S * kv_heads, Q * group, D]."""
    wide = rows.view(group.size, group.queries, kv_heads, -1, head_dim)
    return wide.transpose(1, 2).reshape(group.size * kv_heads, -1, head_dim)


def rows_first(found: Tensor, group: Group, kv_heads: int) -> Tensor:
    """The way back."""
    wide = found.view(group.size, kv_heads, group.queries, -1, found.shape[-1])
    return wide.transpose(1, 2).reshape(group.size * group.queries, -1)
