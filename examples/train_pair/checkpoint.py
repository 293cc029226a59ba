"""Checkpoints: weights, optimiser state and losses in one safetensors file (no pickle)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from examples.train_pair.model import Decoder

Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run had come."""

    step: int
    losses: tuple[float, ...]


def _state(optimizers: Optimizers) -> dict[str, Tensor]:
    return {
        f"optimizer.{which}.{index}.{name}": value.detach().cpu().contiguous()
        for which, optimizer in enumerate(optimizers)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def save(file: Path, model: Decoder, optimizers: Optimizers, at: Progress, settings: str) -> None:
    """Writes beside the old checkpoint and puts the new one in its place at once."""
    weights = {f"model.{n}": p.detach().cpu().clone() for n, p in model.state_dict().items()}
    losses = torch.tensor(at.losses, dtype=torch.float64)
    tensors = weights | _state(optimizers) | {"losses": losses}
    fresh = file.with_suffix(".fresh")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, fresh, metadata={"step": str(at.step), "settings": settings, "format": "1"})
    os.replace(fresh, file)


def load(file: Path, model: Decoder, optimizers: Optimizers, settings: str) -> Progress:
    """Restores model and optimisers in place; step 0 if there is no checkpoint.

    Raises ValueError if the checkpoint was written under other settings.
    """
    if not file.exists():
        return Progress(0, ())
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    if metadata["settings"] != settings:
        raise ValueError(
            f"{file} was written under other settings ({metadata['settings']}) than this run's "
            f"({settings}): run with those, or remove the file to start anew"
        )
    _restore_model(model, tensors)
    for which, optimizer in enumerate(optimizers):
        _restore_optimizer(optimizer, f"optimizer.{which}.", tensors)
    return Progress(int(metadata["step"]), tuple(tensors["losses"].tolist()))


def _restore_model(model: Decoder, tensors: dict[str, Tensor]) -> None:
    model.load_state_dict(
        {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    )


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, _, key = name.removeprefix(prefix).partition(".")
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
