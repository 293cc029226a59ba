"""Whether rows come out bit-equal however they are grouped, and under which rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outrider.engine import RowRule
from outrider.engines.numeric import PROBE_ROWS, digest_of, probe_tokens
from outrider.engines.onnx.decoder import Call

RULES = (RowRule(), RowRule(minimum=2), RowRule(minimum=4, multiple=4))
"""From the cheapest on; rows of one slot."""
_GROUPS = ((1,) * 12, (2, 1, 5, 4), (3, 9), (8, 4), (12,))
_BASES = (0, 5, 60, 125, 250, 510)
"""Around the block sizes of the matrix kernels."""

Floats = NDArray[np.float32]


class HasVocabulary(Protocol):
    @property
    def vocab_size(self) -> int: ...


class Scorer(Protocol):
    """A decoder, or a stage that takes tokens for rows; what it gives is compared like scores."""

    capacity: int

    @property
    def notes(self) -> HasVocabulary: ...

    def run(self, call: Call) -> Floats: ...


def rule_of(decoder: Scorer, slots: int) -> RowRule | None:
    """The cheapest rule that held in every grouping tried, or None."""
    return next((rule for rule in RULES if holds(decoder, slots, rule)), None)


def holds(decoder: Scorer, slots: int, rule: RowRule) -> bool:
    """Twelve rows after several prefixes, in five groupings, alone and in company."""
    slack = rule.padded(12) + rule.padded(1)
    bases = [base for base in _BASES if base + slack < decoder.capacity]
    return bool(bases) and all(_holds_at(decoder, slots, rule, base) for base in bases)


def _holds_at(decoder: Scorer, slots: int, rule: RowRule, base: int) -> bool:
    tokens = _tokens(decoder, base + 12)
    if base:
        _extend(decoder, rule, 0, 0, tokens[:base])
    results = [_grouped(decoder, rule, base, tokens[base:], group) for group in _GROUPS]
    if slots > 1 and rule.padded(1) == 1:
        results.append(_in_company(decoder, min(slots, 4), base, tokens))
    return all(np.array_equal(results[0], other) for other in results[1:])


def _tokens(decoder: Scorer, count: int) -> list[int]:
    return [(i * 7919 + 13) % min(decoder.notes.vocab_size, 4001) for i in range(count)]


def _grouped(
    decoder: Scorer, rule: RowRule, base: int, tokens: Sequence[int], group: Sequence[int]
) -> Floats:
    parts, at = [], 0
    for count in group:
        parts.append(_extend(decoder, rule, 0, base + at, tokens[at : at + count]))
        at += count
    return np.concatenate(parts)


def _extend(decoder: Scorer, rule: RowRule, slot: int, base: int, tokens: Sequence[int]) -> Floats:
    padding = rule.padded(len(tokens)) - len(tokens)
    call = Call(slot, [[*tokens, *[0] * padding]], [base], range(len(tokens)))
    return decoder.run(call).copy()


def _in_company(decoder: Scorer, slots: int, base: int, tokens: Sequence[int]) -> Floats:
    """One row a slot, the probed slot last, the others at other lengths."""
    for slot in range(1, slots):
        if base + slot > 1:
            _extend(decoder, RowRule(), slot, 0, tokens[: base + slot - 1])
    _extend(decoder, RowRule(), 0, 0, tokens[: base + 1])
    rows = []
    for step in range(12):
        past = [base + step] + [max(base + slot - 1, 0) for slot in range(1, slots)]
        ids = [[tokens[base + step]]] + [[tokens[slot]] for slot in range(1, slots)]
        rows.append(decoder.run(Call(0, ids, past, [0])).copy())
    return np.concatenate(rows)


def fingerprint(decoder: Scorer, rule: RowRule, ids: int) -> str:
    """Hex hash of the score bits of the probe that all engines have; `ids`: that can be chosen."""
    tokens = probe_tokens(ids, min(PROBE_ROWS, decoder.capacity - rule.padded(1)))
    return digest_of(np.ascontiguousarray(_extend(decoder, rule, 0, 0, tokens)[:, :ids]))
