"""Muon for the matrices inside the layers, AdamW for embeddings and norms.

Muon orthogonalises the momentum of a matrix by Newton-Schulz iterations (K. Jordan, 2024,
"Muon: an optimizer for hidden layers"); coefficients and the Nesterov form are the author's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from examples.train_pair.model import Decoder


def orthogonalize(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """A matrix with the same row and column spaces and singular values near one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = (x.T if tall else x).to(matrix.dtype)
    return out


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, scaled so that wide and tall matrices move alike."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group["lr"], group["momentum"], group["weight_decay"])

    def _move(self, p: Tensor, grad: Tensor, lr: float, momentum: float, decay: float) -> None:
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        average = self.state[p]["momentum"]
        average.lerp_(grad, 1 - momentum)
        update = orthogonalize(grad.lerp(average, momentum), self._dtype)
        p.mul_(1 - lr * decay)
        p.add_(update, alpha=-lr * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def optimizers(
    model: Decoder, muon_lr: float, adam_lr: float, dtype: torch.dtype
) -> tuple[torch.optim.Optimizer, ...]:
    """One optimiser for the layers' matrices and one for everything else."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return (
        Muon(matrices, lr=muon_lr, dtype=dtype),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    )
