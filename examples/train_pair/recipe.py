"""The whole recipe in order: corpus, tokenizer, target, draft, figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.train_pair import agreement, corpus, tokenizer
from examples.train_pair.distil import distillation_loss, draft_from
from examples.train_pair.model import Decoder, Shape, read_model, write_model
from examples.train_pair.plot import loss_plot
from examples.train_pair.stream import Stream, encode, load_or_encode
from examples.train_pair.train import Loss, Report, Run, Schedule, next_token_loss, train

Bar = Callable[[str, int], AbstractContextManager[Report]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that differs between a full and a quick run."""

    shape: Shape
    draft_layers: tuple[int, ...]
    target: Schedule
    draft: Schedule
    most_files: int | None


FULL = Sizes(
    shape=Shape(),
    draft_layers=(0, 5),
    target=Schedule(steps=2200, batch=16, context=256),
    draft=Schedule(steps=1130, batch=16, context=256, muon_lr=0.01, adam_lr=1.5e-3),
    most_files=None,
)
"""About 9.0 M tokens for the target and 4.6 M for the draft, as the shipped pair."""

QUICK = Sizes(
    shape=Shape(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
    ),
    draft_layers=(0, 2),
    target=Schedule(steps=60, batch=8, context=64, save_every=20),
    draft=Schedule(steps=30, batch=8, context=64, save_every=20),
    most_files=120,
)
"""Shows that every part works; the models say nothing sensible."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and on what a recipe runs."""

    out: Path
    roots: tuple[corpus.Root, ...]
    held_out: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished recipe can tell."""

    figures: agreement.Agreement
    target_losses: tuple[float, ...]
    draft_losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """The corpus as ids; texts of the held-out files are encoded the same way."""

    train_ids: Tensor
    held_out_ids: Tensor


def cook(sizes: Sizes, place: Place, bar: Bar) -> Outcome:
    """Runs the recipe; a part that an interrupted run finished is read instead of repeated."""
    torch.manual_seed(place.seed)
    material = prepare(sizes, place)
    target = Decoder(sizes.shape)
    target_losses = _learn("target", target, next_token_loss, sizes.target, place, material, bar)
    draft = draft_from(target, sizes.draft_layers)
    loss = distillation_loss(target)
    draft_losses = _learn("draft", draft, loss, sizes.draft, place, material, bar)
    curves = {"target": target_losses, "draft (divergence)": draft_losses}
    (place.out / "loss.svg").write_text(loss_plot(curves))
    figures = _figures(place, material.held_out_ids, sizes.target.context)
    return Outcome(figures, tuple(target_losses), tuple(draft_losses))


def prepare(sizes: Sizes, place: Place) -> Material:
    """Corpus with its manifest, tokenizer and ids, each written below `out`."""
    found = corpus.collect(place.roots, place.held_out, sizes.most_files)
    corpus.write_manifest(found, place.out)
    texts = [source.text for source in found.sources]
    file = place.out / "tokenizer.json"
    words = tokenizer.load_or_train(file, texts, sizes.shape.vocab_size)
    ids = load_or_encode(place.out / "tokens.safetensors", words, texts)
    return Material(ids, encode(words, [source.text for source in found.held_out]))


def _learn(
    name: str,
    model: Decoder,
    loss: Loss,
    schedule: Schedule,
    place: Place,
    material: Material,
    bar: Bar,
) -> list[float]:
    stream = Stream(material.train_ids, schedule.batch, schedule.context, place.seed)
    file = place.out / "checkpoints" / f"{name}.safetensors"
    with bar(name, schedule.steps) as report:
        losses = train(model, loss, stream, Run(schedule, file, place.device, place.dtype), report)
    write_model(model, place.out / name)
    shutil.copyfile(place.out / "tokenizer.json", place.out / name / "tokenizer.json")
    return losses


def _figures(place: Place, held_out_ids: Tensor, context: int) -> agreement.Agreement:
    """Measures what was written, not what is in memory: float16 weights, read back."""
    pair = [read_model(place.out / name, str(place.device)) for name in ("target", "draft")]
    rows = agreement.measure(pair[0], pair[1], held_out_ids, context, place.seed)
    figures = agreement.summary(rows)
    (place.out / "figures.json").write_text(json.dumps(asdict(figures), indent=1) + "\n")
    return figures
