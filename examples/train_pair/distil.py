"""The draft: some of the target's layers, taught to say what the target says.

Forward Kullback-Leibler divergence from the target's distribution at every position
(Hinton, Vinyals, Dean, arXiv 1503.02531; for drafts: DistillSpec, arXiv 2310.08461).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.train_pair.model import Decoder
from examples.train_pair.train import Loss

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def draft_from(target: Decoder, layers: Sequence[int]) -> Decoder:
    """A decoder with the target's embedding, last norm and the named layers, copied."""
    draft = Decoder(replace(target.shape, num_hidden_layers=len(layers)))
    weights: dict[str, Tensor] = {}
    for name, value in target.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            weights[name] = value
        elif int(found[1]) in layers:
            weights[f"model.layers.{layers.index(int(found[1]))}.{found[2]}"] = value
    draft.load_state_dict(weights)
    return draft


def distillation_loss(target: Decoder) -> Loss:
    """The loss of a draft against this target, nats a token; labels are not used."""
    target.eval()

    def loss(draft: Decoder, ids_BT: Tensor, _labels_BT: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(target(ids_BT), dim=-1).flatten(0, 1)
        given = F.log_softmax(draft(ids_BT), dim=-1).flatten(0, 1)
        return F.kl_div(given, wanted, log_target=True, reduction="batchmean")

    return loss
