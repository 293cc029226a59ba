"""How well a draft agrees with its target on given text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from examples.train_pair.model import Decoder


@dataclass(frozen=True, slots=True)
class Agreement:
    """Means over tokens, at temperature 1; losses in nats a token."""

    tokens: int
    target_loss: float
    draft_loss: float
    mean_overlap: float
    """1 - total variation distance: the share of drafts accepted by speculative sampling."""
    greedy_agreement: float
    gumbel_match: float
    """Both pick the same token under the same Gumbel noise."""
    gumbel_match_top2: float
    """The target's pick is among the draft's best two under the same noise."""


NAMES = tuple(name for name in Agreement.__dataclass_fields__ if name != "tokens")


def windows(ids: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Consecutive inputs and labels, [N, context]; a shorter rest is left out."""
    count = (len(ids) - 1) // context
    span = count * context
    return ids[:span].long().view(count, context), ids[1 : span + 1].long().view(count, context)


@torch.no_grad()
def measure(target: Decoder, draft: Decoder, ids: Tensor, context: int, seed: int) -> Tensor:
    """One row of six numbers a token in the order of `NAMES`, [tokens, 6], float64 on the CPU."""
    device = next(target.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    rows = []
    inputs, labels = windows(ids, context)
    for x_BT, y_BT in zip(torch.split(inputs, 8), torch.split(labels, 8), strict=True):
        shape = (*x_BT.shape, target.shape.vocab_size)
        noise = -torch.empty(shape).exponential_(generator=generator).log().to(device)
        p_BTV, q_BTV = (m(x_BT.to(device)).log_softmax(-1) for m in (target, draft))
        numbers = _compare(p_BTV, q_BTV, y_BT.to(device), noise)
        rows.append(numbers.flatten(0, 1).double().cpu())
    return torch.cat(rows) if rows else torch.zeros(0, len(NAMES), dtype=torch.float64)


def _compare(p_BTV: Tensor, q_BTV: Tensor, labels_BT: Tensor, noise_BTV: Tensor) -> Tensor:
    picked = (p_BTV + noise_BTV).argmax(-1, keepdim=True)
    drafted = (q_BTV + noise_BTV).topk(2).indices
    columns = (
        -p_BTV.gather(-1, labels_BT[..., None])[..., 0],
        -q_BTV.gather(-1, labels_BT[..., None])[..., 0],
        torch.minimum(p_BTV.exp(), q_BTV.exp()).sum(-1),
        (p_BTV.argmax(-1) == q_BTV.argmax(-1)).float(),
        (picked == drafted[..., :1]).any(-1).float(),
        (picked == drafted).any(-1).float(),
    )
    return torch.stack(columns, dim=-1)


def summary(rows: Tensor) -> Agreement:
    """The means of `measure`'s rows."""
    return Agreement(len(rows), *rows.mean(0).tolist())
