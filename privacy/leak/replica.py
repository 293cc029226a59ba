"""What an adversary computes with: the weights that everybody has, and any prefix it likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from outrider.engine import EngineSpec, LayerRange, Span

if TYPE_CHECKING:
    from outrider.engines.torch.part import PartRunner
    from outrider.engines.torch.stage import TorchStage

Floats = NDArray[np.float32]
SLOT = 0
PART = 512
"""Candidates of one pass."""


@dataclass(frozen=True, slots=True)
class States:
    """What layers [0, k) make of rows of tokens."""

    hidden: Floats
    """Behind the last of them, [rows, hidden_size]."""
    kv: Floats
    """[layer, 2, kv_head, row, head_dim], keys after RoPE."""


class Replica:
    """The first layers of a model, over one text that grows. Needs torch; float32 on the CPU.

    Raises as `outrider.engines.torch.stage.build`.
    """

    def __init__(self, model: str, layers: int, threads: int | None = None) -> None:
        from outrider.engines.torch import stage

        self.layers = layers
        self._stage: TorchStage = stage.build(
            EngineSpec(model, "torch", "cpu", "float32", "plain", max_slots=1, threads=threads),
            LayerRange(0, layers, embedding=True, head=False),
        )
        self._runner: PartRunner = self._stage._runner
        self.size = self._runner.vocabulary_size
        self._alone: States | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stage.shutdown()

    def read(self, base: int, tokens: Sequence[int]) -> States:
        """Cut the text to `base` tokens and go on with these."""
        return self._run(Span(SLOT, base, tuple(tokens)))

    def guess(self, base: int, candidates: Sequence[int]) -> States:
        """The same for each candidate as the one token after the first `base`, side by side."""
        return self._run(Span(SLOT, base, tuple(candidates), parents=(None,) * len(candidates)))

    def alone(self) -> States:
        """Every token of the vocabulary as if it began the text; computed once."""
        if self._alone is None:
            parts = [
                self.guess(0, range(at, min(self.size, at + PART)))
                for at in range(0, self.size, PART)
            ]
            hidden = np.concatenate([part.hidden for part in parts])
            self._alone = States(hidden, np.concatenate([part.kv for part in parts], axis=3))
        return self._alone

    def _run(self, span: Span) -> States:
        hidden = self._runner([span], None).numpy()
        cache = self._runner.cache.pool[:, :, SLOT, :, span.base : span.base + len(span.tokens)]
        return States(hidden, cache.float().numpy().copy())

    def embeddings(self) -> Floats:
        """[vocabulary, hidden_size]."""
        table = self._runner.part.embedding
        assert table is not None
        found: Floats = table[: self.size].float().numpy()
        return found
