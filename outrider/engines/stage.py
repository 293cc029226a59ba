"""What all stages do alike around their pass: slots that the caller numbers, checks, sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.engine import Picked, Span, StageInfo, StageSpan
from outrider.engines.slots import Slot
from outrider.errors import (
    ContextExceeded,
    EngineFailed,
    EngineFull,
    InvalidRequest,
    LocalProtocolError,
)
from outrider.protocol.sampling import GREEDY, Sampling

Hidden = NDArray[np.float32]
Result = Hidden | Picked
_NO_SAMPLING = Sampling(GREEDY, seed=0)


@dataclass(slots=True)
class Held:
    """A slot: its length in every stage, its tokens only where there is the head."""

    slot: Slot
    length: int = 0


class BaseStage(ABC):
    """Subclasses give `_pass`; this keeps slots and refuses what can not run.

    What is refused (wrong shape, not finite, beyond the context) changes no slot. A pass
    that began and failed has written over rows from `base` on, so its slots end there,
    and nothing of it is left in the cache.
    """

    def __init__(self, info: StageInfo) -> None:
        self._info = info
        self._held: dict[int, Held] = {}

    @property
    def info(self) -> StageInfo:
        return self._info

    @abstractmethod
    def _pass(self, spans: Sequence[StageSpan]) -> list[Result]:
        """Run checked rows; every slot holds `base` tokens. Hidden states need not be finite."""

    @abstractmethod
    def _forget(self, slot: int, start: int, stop: int) -> None:
        """Overwrite keys and values, which may not be finite, with ones that are."""

    def open(self, slot: int, sampling: Sampling | None = None) -> None:
        """Raises EngineFull for a number beyond the stage's slots."""
        if not 0 <= slot < self._info.max_slots:
            raise EngineFull(
                f"there is no slot {slot}: this stage has {self._info.max_slots}",
                effect="the sequence was not started",
                todo="wait for one to end, or start every stage with more slots",
            )
        if slot in self._held:
            raise LocalProtocolError(f"slot {slot} is open already")
        self._held[slot] = Held(Slot(slot, sampling or _NO_SAMPLING))

    def run(self, spans: Sequence[StageSpan]) -> list[Result]:
        self._check(spans)
        if not spans:
            return []
        for span in spans:
            self.rewind(span.slot, span.base)
        try:
            found = self._pass(spans)
            self._check_finite(found)
        except BaseException:
            for span in spans:
                self._forget(span.slot, span.base, span.base + span.rows)
            raise
        for span in spans:
            self._append(span)
        return found

    def _append(self, span: StageSpan) -> None:
        held = self._held[span.slot]
        held.length += span.rows
        if self._info.layers.head:
            held.slot.tokens += span.tokens

    def _check_finite(self, found: Sequence[Result]) -> None:
        if not all(isinstance(part, Picked) or np.isfinite(part).all() for part in found):
            raise EngineFailed(
                "the stage gave hidden states that are not finite",
                why="a weight or what came in is too large for the dtype",
                effect="the pass gave nothing",
                todo="run the stage in float32 or bfloat16",
            )

    def rewind(self, slot: int, length: int) -> None:
        held = self._slot(slot)
        if not 0 <= length <= held.length:
            raise LocalProtocolError(f"can not rewind to {length}: the slot holds {held.length}")
        held.length = length
        del held.slot.tokens[length:]

    def close(self, slot: int) -> None:
        self._slot(slot)
        del self._held[slot]

    def shutdown(self) -> None:
        self._held.clear()

    def _slot(self, number: int) -> Held:
        try:
            return self._held[number]
        except KeyError:
            raise LocalProtocolError(f"slot {number} is not open") from None

    # --- checks --------------------------------------------------------------------------------

    def _check(self, spans: Sequence[StageSpan]) -> None:
        if len({span.slot for span in spans}) != len(spans):
            raise LocalProtocolError("a slot stands twice in one pass")
        if sum(span.rows for span in spans) > self._info.max_rows:
            raise LocalProtocolError(f"a pass holds at most {self._info.max_rows} rows")
        for span in spans:
            self._check_place(span)
            if self._info.layers.embedding or self._info.layers.head:
                self._check_tokens(span)
            if not self._info.layers.embedding:
                self._check_hidden(span)

    def _check_place(self, span: StageSpan) -> None:
        held = self._slot(span.slot)
        if not 0 <= span.base <= held.length:
            raise LocalProtocolError(f"base {span.base} lies beyond the slot's {held.length} rows")
        if span.rows < 1 or not 0 <= span.first <= span.rows:
            raise LocalProtocolError("a span needs a row, and begins to answer within its rows")
        if span.base + span.rows > self._info.context:
            raise ContextExceeded(
                f"{span.base + span.rows} tokens do not fit the context of {self._info.context}",
                effect="the pass was not run",
                todo="shorten the prompt or the answer",
            )

    def _check_tokens(self, span: StageSpan) -> None:
        if len(span.tokens) != span.rows:
            raise LocalProtocolError(
                f"a span of {span.rows} rows brings {len(span.tokens)} tokens",
                why="the stages with the embedding and with the head are given them",
            )
        if min(span.tokens) < 0 or max(span.tokens) >= self._info.vocabulary_size:
            raise InvalidRequest(
                f"a token id lies outside 0 to {self._info.vocabulary_size - 1}", param="prompt"
            )

    def _check_hidden(self, span: StageSpan) -> None:
        wanted = (span.rows, self._info.hidden_size)
        if span.hidden is None:
            raise LocalProtocolError("a stage without the embedding needs hidden states")
        if span.hidden.shape != wanted or span.hidden.dtype != np.float32:
            raise LocalProtocolError(
                f"hidden states come as {span.hidden.dtype} {list(span.hidden.shape)}",
                why=f"this stage takes float32 {list(wanted)}",
                effect="the pass was not run",
                todo="check that the stage before is of the same model",
            )
        if not np.isfinite(span.hidden).all():
            raise EngineFailed(
                "hidden states came in that are not finite",
                why="the stage before failed, or its activations overflowed on the wire",
                effect="the pass was not run",
            )


def answering(span: StageSpan) -> Span:
    """The same behind the head, for what picks."""
    return Span(span.slot, span.base, span.tokens, span.first, None, span.want, span.top_n)


def carrying(span: StageSpan) -> Span:
    """The same before the head: every row goes on; in the middle tokens are not known."""
    return Span(span.slot, span.base, span.tokens or (0,) * span.rows)
