"""One pass of a split model as micro-batches that follow one another through the stages.

GPipe (arXiv 1811.06965) without the training: rows are cut, and while a stage works on
one piece, the stage before it works on the next. How finely to cut is measured: a
piece costs `pass + rows * row` seconds in each stage, so more pieces fill the stages
better and pay the fixed part more often.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from outrider.engine import Picked, Span, StageSpan
from outrider.errors import StageLost
from outrider.stages.chain import Chain, StageTimes

MOST_PIECES = 16
"""Of one pass; beyond this the stages are as good as full."""
FADE = 0.98
"""Of older passes in what is learnt of a stage, for each new one."""

T = TypeVar("T")


# --- cutting and joining -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, start + span.rows) of the pass's span number `of`."""

    of: int
    start: int
    span: StageSpan


Batch = tuple[Piece, ...]
"""Pieces that run as one pass through the stages; each slot stands in it at most once."""


def cut(spans: Sequence[Span], rows: int) -> list[Batch]:
    """Micro-batches of at most `rows` rows, in an order that keeps each slot's tokens in order."""
    batches: list[Batch] = []
    batch: list[Piece] = []
    left = rows
    for of, span in enumerate(spans):
        start = 0
        while start < len(span.tokens):
            count = min(left, len(span.tokens) - start)
            batch.append(Piece(of, start, _part(span, start, count)))
            start, left = start + count, left - count
            if left == 0:
                batches.append(tuple(batch))
                batch, left = [], rows
    return [*batches, tuple(batch)] if batch else batches


def _part(span: Span, start: int, count: int) -> StageSpan:
    return StageSpan(
        slot=span.slot,
        base=span.base + start,
        rows=count,
        tokens=span.tokens[start : start + count],
        first=min(max(span.first - start, 0), count),
        want=span.want,
        top_n=span.top_n,
    )


def join(spans: Sequence[Span], found: Iterable[tuple[Batch, Sequence[Picked]]]) -> list[Picked]:
    """What the pieces gave, put together again span by span."""
    parts: list[list[Picked]] = [[] for _ in spans]
    for batch, picks in found:
        for piece, picked in zip(batch, picks, strict=True):
            if piece.start + piece.span.rows > spans[piece.of].first:
                parts[piece.of].append(picked)
    return [part[0] if len(part) == 1 else _joined(part) for part in parts]


def _joined(parts: Sequence[Picked]) -> Picked:
    scores = [part.scores for part in parts if part.scores is not None]
    return Picked(
        ids=tuple(i for part in parts for i in part.ids),
        logprobs=_chained(part.logprobs for part in parts),
        children=_chained(part.children for part in parts),
        scores=np.concatenate(scores) if scores else None,
    )


def _chained(parts: Iterable[tuple[T, ...] | None]) -> tuple[T, ...] | None:
    found = [part for part in parts if part is not None]
    return tuple(item for part in found for item in part) if found else None


# --- what pieces cost --------------------------------------------------------------------------


@dataclass(slots=True)
class Pace:
    """What a stage was measured to take: least squares of seconds over (passes, rows)."""

    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def note(self, passes: int, rows: int, seconds: float) -> None:
        """`passes` of `rows` rows in all took the stage `seconds`."""
        p, r, s = float(passes), float(rows), seconds
        # Each sample weighs by its relative error: short passes count as much as long ones.
        w = 1.0 / max(s, 1e-6) ** 2
        new = (w * p * p, w * p * r, w * r * r, w * p * s, w * r * s)
        self._sums = [FADE * old + more for old, more in zip(self._sums, new, strict=True)]

    @property
    def known(self) -> bool:
        return self._sums[0] > 0.0

    @property
    def parts(self) -> tuple[float, float]:
        """Seconds of a pass, and of each of its rows; neither below 0."""
        pp, pr, rr, ps, rs = self._sums
        determinant = pp * rr - pr * pr
        if determinant > 1e-6 * pp * rr:
            fixed = (ps * rr - rs * pr) / determinant
            row = (rs * pp - ps * pr) / determinant
            if fixed >= 0.0 and row >= 0.0:
                return fixed, row
            if fixed < 0.0:
                return 0.0, rs / rr
        return (ps / pp, 0.0) if pp else (0.0, 0.0)

    def seconds(self, rows: float) -> float:
        fixed, row = self.parts
        return fixed + row * rows


def pass_s(rows: int, pieces: int, paces: Sequence[Pace], devices: Sequence[str]) -> float:
    """A pass cut into so many pieces: the first goes through all stages, and then one comes out
    of the busiest device after the other."""
    each = [pace.seconds(rows / pieces) for pace in paces]
    load: dict[str, float] = {}
    for device, seconds in zip(devices, each, strict=True):
        load[device] = load.get(device, 0.0) + seconds
    return sum(each) + (pieces - 1) * max(load.values())


def best_pieces(rows: int, paces: Sequence[Pace], devices: Sequence[str], multiple: int) -> int:
    """How many pieces are fastest; none is smaller than the row rule's multiple."""
    most = min(MOST_PIECES, max(1, rows // max(multiple, 1)))
    return min(range(1, most + 1), key=lambda count: pass_s(rows, count, paces, devices))


# --- running -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Pipeline:
    """Cuts passes and keeps the stages busy with them."""

    devices: tuple[str, ...]
    """Of each stage; one that stands twice holds several chunks of layers (Megatron's virtual
    stages, arXiv 2104.04473)."""
    most: int
    """Rows that the stages take in one pass."""
    multiple: int = 1
    """Pieces but the last have a multiple of so many rows, so that no padding is computed."""
    chunk: int | None = None
    """Rows of a piece; None goes by what was measured."""
    start: int = 64
    """Rows of a piece while nothing is measured."""
    paces: list[Pace] = field(default_factory=list)
    _seen: tuple[StageTimes, ...] = ()

    def __post_init__(self) -> None:
        self.paces = [Pace() for _ in self.devices]

    def run(self, chain: Chain, spans: Sequence[Span]) -> list[Picked]:
        """One pass over the spans; raises as `run`."""
        rows = self.rows(sum(len(span.tokens) for span in spans))
        found = run(chain, spans, rows=rows, window=2 * len(self.devices) + 1)
        self._learn(chain.times())
        return found

    def rows(self, rows: int) -> int:
        """Rows of a piece of a pass of `rows` rows."""
        if self.chunk is not None:
            return min(self.chunk, self.most)
        if not all(pace.known for pace in self.paces):
            return min(self.start, self.most)
        pieces = best_pieces(rows, self.paces, self.devices, self.multiple)
        each = -(-rows // pieces)
        return min(-(-each // self.multiple) * self.multiple, self.most)

    def _learn(self, times: tuple[StageTimes, ...]) -> None:
        """Take in what the stages did since the last look."""
        for number, now in enumerate(times):
            before = self._seen[number] if number < len(self._seen) else None
            passes = now.passes - (before.passes if before else 0)
            if passes > 0:
                rows = now.rows - (before.rows if before else 0)
                seconds = now.compute_s - (before.compute_s if before else 0.0)
                self.paces[number].note(passes, rows, seconds)
        self._seen = times


def run(chain: Chain, spans: Sequence[Span], *, rows: int, window: int = 1) -> list[Picked]:
    """One pass in pieces of at most `rows` rows, at most `window` of them under way.

    Raises what the chain's futures raise; of several, StageLost."""
    batches = cut(spans, rows)
    found = list(_flow(chain, batches, window))
    return join(spans, zip(batches, found, strict=True))


def _flow(chain: Chain, batches: Sequence[Batch], window: int) -> Iterator[list[Picked]]:
    waiting: deque[Future[list[Picked]]] = deque()
    try:
        for batch in batches:
            if len(waiting) == window:
                yield waiting.popleft().result()
            waiting.append(chain.submit([piece.span for piece in batch]))
        while waiting:
            yield waiting.popleft().result()
    except Exception as error:
        # Nothing is left under way: the slots are about to be used otherwise.
        lost = _drain(waiting)
        if lost is not None and not isinstance(error, StageLost):
            raise lost from error
        raise


def _drain(waiting: Iterable[Future[list[Picked]]]) -> StageLost | None:
    """Wait for all; the first that tells of a lost device is the cause of other failures."""
    errors = [future.exception() for future in waiting]
    return next((error for error in errors if isinstance(error, StageLost)), None)
