"""Slot bookkeeping that every engine shares: who is open, which tokens, what a span may do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outrider.engine import EngineInfo, Picked, Span
from outrider.errors import ContextExceeded, EngineFull, InvalidRequest, LocalProtocolError
from outrider.models.grammar import Guide
from outrider.protocol.sampling import (
    GREEDY,
    Mask,
    Sampling,
    Tally,
    best,
    choose,
    logprobs,
    prepare,
    rank,
)

_NO_SAMPLING = Sampling(GREEDY, seed=0)


@dataclass(slots=True)
class Slot:
    """One sequence: its tokens stand here, its KV in the engine."""

    number: int
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    guide: Guide | None = None
    """Keeps choices to the sampling's constraint."""
    plain: bool = field(init=False)
    """Whether choices are the argmax of the scores as they are."""

    def __post_init__(self) -> None:
        if (self.guide is None) != (self.sampling.constraint is None):
            raise LocalProtocolError("a slot with a constraint needs what keeps its choices to it")
        self.plain = self.sampling.params.plain and self.guide is None


class Slots:
    """The table of open slots. Numbers are reused, lowest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: dict[int, Slot] = {}
        self._free = list(range(limit - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._open.values())

    def __getitem__(self, number: int) -> Slot:
        try:
            return self._open[number]
        except KeyError:
            raise LocalProtocolError(f"slot {number} is not open") from None

    def find(self, number: int) -> Slot | None:
        return self._open.get(number)

    def open(self, sampling: Sampling | None, guide: Guide | None = None) -> Slot:
        if not self._free:
            raise EngineFull(
                f"all {self.limit} slots are in use",
                effect="the sequence was not started",
                todo="wait for one to end, or start the engine with more slots",
            )
        slot = Slot(self._free[-1], sampling or _NO_SAMPLING, guide=guide)
        self._free.pop()
        self._open[slot.number] = slot
        return slot

    def close(self, number: int) -> None:
        self[number]
        del self._open[number]
        self._free.append(number)
        self._free.sort(reverse=True)

    def check_integrity(self) -> None:
        assert len(self._open) + len(self._free) == self.limit
        assert not set(self._open) & set(self._free)
        assert all(number == slot.number for number, slot in self._open.items())


def is_step(span: Span, slot: Slot, info: EngineInfo) -> bool:
    """Whether a span is a drafter's inner loop: one row at the slot's end, chosen plainly.

    Nothing that `check_pass` refuses is a step.
    """
    tokens = span.tokens
    return (
        len(tokens) == 1
        and span.want == "ids"
        and slot.plain
        and span.base == len(slot.tokens) < info.context
        and 0 <= tokens[0] < info.vocabulary_size
        and span.first == 0
        and span.parents is None
    )


def check_pass(spans: Sequence[Span], slots: Slots, info: EngineInfo) -> None:
    """Refuse a pass that can not run, before any slot changes."""
    if len(spans) > 1 and len({span.slot for span in spans}) != len(spans):
        raise LocalProtocolError("a slot stands twice in one pass")
    rows = 0
    for span in spans:
        rows += len(span.tokens)
    if rows > info.max_rows:
        raise LocalProtocolError(f"a pass holds at most {info.max_rows} rows")
    for span in spans:
        _check_span(span, slots[span.slot], info)


def _check_span(span: Span, slot: Slot, info: EngineInfo) -> None:
    tokens, base = span.tokens, span.base
    if not 0 <= base <= len(slot.tokens):
        raise LocalProtocolError(f"base {base} lies beyond the slot's {len(slot.tokens)} tokens")
    if not 0 <= span.first < len(tokens):
        raise LocalProtocolError("a span needs a row, and one that gives a choice")
    if base + len(tokens) > info.context:
        raise ContextExceeded(
            f"{base + len(tokens)} tokens do not fit the context of {info.context}",
            effect="the pass was not run",
            todo="shorten the prompt or the answer",
        )
    if min(tokens) < 0 or max(tokens) >= info.vocabulary_size:
        raise InvalidRequest(
            f"a token id lies outside 0 to {info.vocabulary_size - 1}", param="prompt"
        )
    if span.parents is not None:
        _check_tree(span, span.parents, info)


def _check_tree(span: Span, parents: Sequence[int | None], info: EngineInfo) -> None:
    if not info.trees:
        raise LocalProtocolError(f"engine {info.engine} takes chains only")
    if len(parents) != len(span.tokens):
        raise LocalProtocolError("a tree names one parent per row")
    if any(parent is not None and not 0 <= parent < i for i, parent in enumerate(parents)):
        raise LocalProtocolError("a row's parent must come before it")


def path_to(span: Span, row: int) -> list[int]:
    """Tokens from below `base` down to `row`, the row's own included."""
    if span.parents is None:
        return list(span.tokens[: row + 1])
    path = []
    at: int | None = row
    while at is not None:
        path.append(span.tokens[at])
        at = span.parents[at]
    return path[::-1]


def pick(span: Span, slot: Slot, scores: NDArray[np.floating]) -> Picked:
    """The plain way from scores to `Picked`; `slot.tokens` still ends at `span.base`.

    `scores`: unprocessed, shape [rows from first on, vocabulary_size].
    """
    if slot.plain and span.want != "children":
        ids = (best(scores[0]),) if len(scores) == 1 else tuple(best(row) for row in scores)
        return Picked(ids) if span.want == "ids" else _with_more(span, ids, scores)
    prepared, places = _rows(span, slot, scores)
    ids = tuple(choose(p, slot.sampling, at) for p, at in zip(prepared, places, strict=True))
    if span.want == "children":
        pairs = zip(prepared, places, strict=True)
        return Picked(
            ids, children=tuple(rank(p, slot.sampling, at, span.top_n) for p, at in pairs)
        )
    return _with_more(span, ids, scores)


def _with_more(span: Span, ids: tuple[int, ...], scores: NDArray[np.floating]) -> Picked:
    """What is asked for beside the choice and is made of unprocessed scores."""
    if span.want == "logprobs":
        found = tuple(logprobs(scores[i], ids[i], span.top_n) for i in range(len(ids)))
        return Picked(ids, logprobs=found)
    if span.want == "scores":
        return Picked(ids, scores=scores.astype(np.float32))
    return Picked(ids)


def _rows(
    span: Span, slot: Slot, scores: NDArray[np.floating]
) -> tuple[list[NDArray[np.float64]], list[int]]:
    """Of each row the penalised scores, and the position of its choice."""
    rows = range(span.first, len(span.tokens))
    masks = masks_of(span, slot)
    prepared = [_prepared(span, slot, row, scores[i], masks[i]) for i, row in enumerate(rows)]
    if span.parents is None:
        return prepared, [span.base + row + 1 for row in rows]
    return prepared, [span.base + len(path_to(span, row)) for row in rows]


def masks_of(span: Span, slot: Slot) -> list[Mask] | list[None]:
    """Which ids the constraint allows after each row from `first` on, along the row's path."""
    rows = range(span.first, len(span.tokens))
    if slot.guide is None:
        return [None for _ in rows]
    begin = slot.sampling.prompt_length
    # What of the prompt is in the span is no part of the answer.
    skip = max(0, begin - span.base)
    paths = [path_to(span, row)[skip:] for row in rows]
    return slot.guide.masks(slot.tokens[begin : span.base], paths)


def _prepared(
    span: Span, slot: Slot, row: int, scores: NDArray[np.floating], mask: Mask | None
) -> NDArray[np.float64]:
    if not slot.sampling.params.penalised:
        return prepare(scores, slot.sampling, None, mask)
    tally = Tally(slot.sampling.prompt_length)
    tally.extend(slot.tokens)
    tally.extend(path_to(span, row))
    return prepare(scores, slot.sampling, tally, mask)
