"""The token stream and the batches cut from it.

A batch is a function of seed and step alone, so a resumed run sees what an unbroken one sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from examples.train_pair.tokenizer import END_OF_TEXT_ID


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Tensor:
    """All texts as one row of ids, int32; the end-of-text id stands before each text."""
    parts = [
        torch.tensor([END_OF_TEXT_ID, *tokenizer.encode(text).ids], dtype=torch.int32)
        for text in texts
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32)


def load_or_encode(file: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Reads the ids if an earlier run wrote them, else encodes the texts and writes them."""
    if not file.exists():
        save_file({"ids": encode(tokenizer, texts)}, file)
    return load_file(file)["ids"]


@dataclass(frozen=True, slots=True)
class Stream:
    """Random windows of a row of ids."""

    ids: Tensor
    batch: int
    context: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.ids) <= self.context:
            raise ValueError(
                f"the corpus has {len(self.ids)} tokens; one window needs {self.context + 1}: "
                "add files, or shorten the context"
            )

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a step, both [batch, context], int64."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(len(self.ids) - self.context, (self.batch,), generator=generator)
        windows = self.ids[starts[:, None] + torch.arange(self.context + 1)].long()
        return windows[:, :-1], windows[:, 1:]
