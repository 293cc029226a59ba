"""Finds out, on the loaded weights, how rows must be grouped to be bit-equal in any company."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.engine import Span
from outrider.engines.numeric import digest_of, probe_tokens

Scores = NDArray[np.float32]
SLOTS = 3
"""Slots that the probe uses, 0 to 2."""

Run = Callable[[Sequence[Span]], list[Scores]]
"""One pass over slots 0 to 2: per span the scores of its rows from `first` on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of an engine's numerics."""

    exact: bool
    digest: str
    """SHA-256 of the bits of fixed scores."""


def regroups(run: Run, vocabulary_size: int, capacity: int) -> bool:
    """Run a fixed sequence in several groupings and compare every score bit for bit."""
    tokens = probe_tokens(vocabulary_size, min(capacity, 70))
    reference = _reference(run, tokens)
    if not all(_same(reference, found) for found in _regrouped(run, tokens)):
        return False
    return _tree_agrees(run, tokens, reference)


def fingerprint(run: Run, vocabulary_size: int) -> str:
    """Hex digest of the scores of a short sequence, in one pass."""
    return digest_of(run([Span(0, 0, probe_tokens(vocabulary_size))])[0])


def _same(reference: Scores, found: Scores) -> bool:
    return bool((reference.view(np.int32) == found.view(np.int32)).all())


def _reference(run: Run, tokens: tuple[int, ...]) -> Scores:
    """All at once but for the last four, which come one by one, alone."""
    body = len(tokens) - 4
    parts = run([Span(0, 0, tokens[:body])])
    parts += [run([Span(0, at, tokens[at : at + 1])])[0] for at in range(body, len(tokens))]
    return np.concatenate(parts)


def _regrouped(run: Run, tokens: tuple[int, ...]) -> Iterator[Scores]:
    yield _in_chunks(run, tokens, (len(tokens) - 5, 5))
    yield _in_chunks(run, tokens, (1, 2, 3, len(tokens) - 13, 2, 1, 4))
    yield _in_company(run, tokens)


def _in_chunks(run: Run, tokens: tuple[int, ...], sizes: Sequence[int]) -> Scores:
    """The same rows alone, in chunks."""
    parts, at = [], 0
    for size in sizes:
        parts.append(run([Span(1, at, tokens[at : at + size])])[0])
        at += size
    return np.concatenate(parts)


def _in_company(run: Run, tokens: tuple[int, ...]) -> Scores:
    """Ragged and gapped: other slots before and after, of other lengths, then only one of them."""
    middle, late = len(tokens) // 2, len(tokens) - 7
    other = tokens[::-1]
    first = run([Span(0, 0, other[:3]), Span(1, 0, tokens[:middle])])[1]
    spans = [Span(2, 0, other[:1]), Span(0, 3, other[3:9]), Span(1, middle, tokens[middle:late])]
    second = run(spans)[2]
    third = run([Span(1, late, tokens[late : late + 1]), Span(0, 9, other[9:10])])[0]
    fourth = run([Span(2, 1, other[1:6]), Span(1, late + 1, tokens[late + 1 :])])[1]
    return np.concatenate([first, second, third, fourth])


def _tree_agrees(run: Run, tokens: tuple[int, ...], reference: Scores) -> bool:
    """A branch across a block's end, with rows of other branches between."""
    base = len(tokens) - 8
    wrong = tokens[1:] + tokens[:1]
    run([Span(1, 0, tokens[:base])])
    rows = (wrong[base], tokens[base], wrong[base + 1], tokens[base + 1], tokens[base + 2])
    tree = run([Span(1, base, rows, parents=(None, None, 1, 1, 3))])[0]
    return _same(reference[base : base + 3], tree[[1, 3, 4]])
