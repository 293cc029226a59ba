"""What all adapters do alike around their pass: bookkeeping, counters, tickets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

from outrider.engine import EngineInfo, EngineStatistics, KvSegment, Picked, Span
from outrider.engines.slots import Slot, Slots, check_pass, is_step
from outrider.errors import LocalProtocolError, UnsupportedParameter
from outrider.models import grammar
from outrider.models.grammar import Grammars, Guide
from outrider.protocol.constraint import PARAM
from outrider.protocol.sampling import Sampling
from outrider.protocol.vocabulary import Vocabulary

EAGER = 1 << 15
"""Ids of a vocabulary above which its masks are made ready when the model is loaded."""


class BaseEngine(ABC):
    """Subclasses give `_pass` and the slot hooks; this keeps tokens, tickets and counters.

    `_pass` sees slots already cut to each span's base; when it raises, the slots
    are cut to the base that they had in common with it, and nothing is appended.
    """

    def __init__(self, info: EngineInfo) -> None:
        self._info = info
        self._slots = Slots(info.max_slots)
        self._tickets: dict[int, list[Picked]] = {}
        self._issued = 0
        self._passes = 0
        self._rows = 0
        self._padded_rows = 0
        self._recheck_mismatches = 0
        self._vocabulary: Callable[[], Vocabulary] | None = None
        self._grammars: Grammars | None = None

    def spell(self, vocabulary: Callable[[], Vocabulary]) -> None:
        """Tell where the ids' bytes are to be had, so that slots may have a constraint; nothing
        changes where llguidance is missing. `vocabulary` is called when one first asks, or now
        where that takes so long that sessions would wait for it."""
        self._info = replace(self._info, masks=grammar.masks())
        if not self._info.masks:
            return
        self._vocabulary = vocabulary
        if self._info.vocabulary_size > EAGER:
            self._grammars = grammar.grammars(self._info.vocabulary_digest, vocabulary)

    def _guide(self, sampling: Sampling | None) -> Guide | None:
        """Raises UnsupportedParameter, and InvalidRequest for what can not be compiled."""
        if sampling is None or sampling.constraint is None:
            return None
        if self._vocabulary is None:
            raise UnsupportedParameter(
                f"engine {self._info.engine} can not keep an answer to a constraint here",
                param=PARAM,
                why="llguidance is missing, or the bytes of its tokens are not known",
                effect="the sequence was not started",
                todo='pip install "outrider[cloud,edge]", or ask without response_format',
            )
        if self._grammars is None:
            self._grammars = grammar.grammars(self._info.vocabulary_digest, self._vocabulary)
        return Guide(self._grammars.compile(sampling.constraint))

    @property
    def info(self) -> EngineInfo:
        return self._info

    @abstractmethod
    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        """Run the rows; `self._slots[n].tokens` holds the first `base` tokens of each slot."""

    def _opened(self, number: int) -> None:  # noqa: B027
        """Hook: a slot was opened."""

    def _cut(self, number: int, length: int) -> None:  # noqa: B027
        """Hook: forget the KV of a slot beyond `length` tokens."""

    def _closed(self, number: int) -> None:  # noqa: B027
        """Hook: a slot is about to be freed."""

    def open(self, sampling: Sampling | None = None) -> int:
        number = self._slots.open(sampling, self._guide(sampling)).number
        self._opened(number)
        return number

    def close(self, slot: int) -> None:
        self._slots[slot]
        self._closed(slot)
        self._slots.close(slot)

    def length(self, slot: int) -> int:
        return len(self._slots[slot].tokens)

    def rewind(self, slot: int, length: int) -> None:
        tokens = self._slots[slot].tokens
        if not 0 <= length <= len(tokens):
            raise LocalProtocolError(f"can not rewind to {length}: the slot holds {len(tokens)}")
        if length < len(tokens):
            del tokens[length:]
            self._cut(slot, length)

    def _step(self, span: Span, slot: Slot) -> Picked:
        """As `_pass`, for one span that is a step (`is_step`); engines may have a shorter way."""
        return self._pass((span,))[0]

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        if len(spans) == 1:
            slot = self._slots.find(spans[0].slot)
            if slot is not None and is_step(spans[0], slot, self._info):
                return [self._stepped(spans[0], slot)]
        return self._extended(spans)

    def _stepped(self, span: Span, slot: Slot) -> Picked:
        """`_extended` without what a step has no need of."""
        try:
            picked = self._step(span, slot)
        except BaseException:
            self._cut(span.slot, span.base)
            raise
        slot.tokens += span.tokens
        self._rows += 1
        self._passes += 1
        return picked

    def _extended(self, spans: Sequence[Span]) -> list[Picked]:
        check_pass(spans, self._slots, self._info)
        if not spans:
            return []
        for span in spans:
            self.rewind(span.slot, span.base)
        try:
            picked = self._pass(spans)
        except BaseException:
            for span in spans:
                self._cut(span.slot, span.base)
            raise
        for span in spans:
            self._slots[span.slot].tokens += span.tokens
            self._rows += len(span.tokens)
        self._passes += 1
        return picked

    def submit(self, spans: Sequence[Span]) -> int:
        self._issued += 1
        self._tickets[self._issued] = self.extend(spans)
        return self._issued

    def collect(self, ticket: int) -> list[Picked]:
        try:
            return self._tickets.pop(ticket)
        except KeyError:
            raise LocalProtocolError(f"ticket {ticket} was not issued, or is collected") from None

    def keep(self, slot: int, base: int, path: Sequence[int]) -> None:
        raise LocalProtocolError(f"engine {self._info.engine} takes chains only")

    def export_kv(self, slot: int, start: int, stop: int) -> KvSegment:
        raise LocalProtocolError(f"engine {self._info.engine} does not export KV")

    def import_kv(self, slot: int, segment: KvSegment) -> None:
        raise LocalProtocolError(f"engine {self._info.engine} does not import KV")

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            len(self._slots), self._passes, self._rows, self._padded_rows, self._recheck_mismatches
        )

    def check_integrity(self) -> None:
        self._slots.check_integrity()

    def shutdown(self) -> None:
        for slot in list(self._slots):
            self.close(slot.number)
