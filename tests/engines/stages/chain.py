"""Stages in a row in this process, as plainly as they can be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from outrider.engine import EngineSpec, Picked, Span, Stage, StageSpan
from outrider.engines.stages import build_stage, parse
from outrider.protocol.sampling import Sampling


class Row:
    """A chain whose stages hold `cuts`, texts of ranges."""

    def __init__(self, spec: EngineSpec, layers: int, cuts: Sequence[str]) -> None:
        self.stages: list[Stage] = [build_stage(spec, parse(cut, layers)) for cut in cuts]

    def open(self, slot: int, sampling: Sampling | None = None) -> None:
        for stage in self.stages:
            stage.open(slot, sampling)

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        rows = [
            StageSpan(s.slot, s.base, len(s.tokens), s.tokens, None, s.first, s.want, s.top_n)
            for s in spans
        ]
        for stage in self.stages[:-1]:
            given = stage.run(rows)
            rows = [_with(row, part) for row, part in zip(rows, given, strict=True)]
        picked = self.stages[-1].run(rows)
        assert all(isinstance(part, Picked) for part in picked)
        return [part for part in picked if isinstance(part, Picked)]

    def shutdown(self) -> None:
        for stage in self.stages:
            stage.shutdown()


def _with(row: StageSpan, hidden: object) -> StageSpan:
    assert isinstance(hidden, np.ndarray)
    return replace(row, hidden=hidden)
