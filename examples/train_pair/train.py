"""The training loop, for the target (next token) and, with another loss, for the draft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.train_pair import checkpoint
from examples.train_pair.model import Decoder
from examples.train_pair.numerics import autocast
from examples.train_pair.optimizer import optimizers
from examples.train_pair.stream import Stream

Loss = Callable[[Decoder, Tensor, Tensor], Tensor]
Report = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard to train."""

    steps: int
    batch: int
    context: int
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: float = 0.02
    """Share of the steps over which the rate rises."""
    decay: float = 0.5
    """Share of the steps, at the end, over which it falls to zero in a line."""
    save_every: int = 200

    def rate(self, step: int) -> float:
        """The factor on both learning rates at a step, in 0..1."""
        rise = (step + 1) / max(1.0, self.warmup * self.steps)
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, rise, fall)


@dataclass(frozen=True, slots=True)
class Run:
    """Where one training happens and under which numbers."""

    schedule: Schedule
    checkpoint: Path
    device: torch.device
    dtype: torch.dtype
    stop_after: int | None = None
    """Stop (with a checkpoint) at this step, as if interrupted."""

    def settings(self, model: Decoder, stream: Stream) -> str:
        """What must be equal for a checkpoint to be continued."""
        told = asdict(self.schedule) | {"seed": stream.seed, "tokens": len(stream.ids)}
        return repr((asdict(model.shape), told, str(self.dtype)))


def next_token_loss(model: Decoder, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy, nats a token."""
    return F.cross_entropy(model(ids_BT).flatten(0, 1), labels_BT.flatten())


def train(model: Decoder, loss_of: Loss, stream: Stream, run: Run, report: Report) -> list[float]:
    """Trains in place from the checkpoint on, if there is one; the loss of every step."""
    model.to(run.device).train()
    plan = run.schedule
    opts = optimizers(model, plan.muon_lr, plan.adam_lr, run.dtype)
    settings = run.settings(model, stream)
    at = checkpoint.load(run.checkpoint, model, opts, settings)
    losses = list(at.losses)
    end = plan.steps if run.stop_after is None else min(plan.steps, run.stop_after)
    for step in range(at.step, end):
        losses.append(_step(model, loss_of, stream, run, opts, step))
        report(step + 1, losses[-1])
        if (step + 1) % plan.save_every == 0 or step + 1 == end:
            done = checkpoint.Progress(step + 1, tuple(losses))
            checkpoint.save(run.checkpoint, model, opts, done, settings)
    return losses


def _step(
    model: Decoder,
    loss_of: Loss,
    stream: Stream,
    run: Run,
    opts: tuple[torch.optim.Optimizer, ...],
    step: int,
) -> float:
    rate = run.schedule.rate(step)
    for optimizer, peak in zip(opts, (run.schedule.muon_lr, run.schedule.adam_lr), strict=True):
        optimizer.param_groups[0]["lr"] = peak * rate
    ids, labels = (part.to(run.device) for part in stream.at(step))
    with autocast(run.device, run.dtype):
        loss = loss_of(model, ids, labels)
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in opts:
        optimizer.step()
    return float(loss.detach())
